"""`RateLimitPolicy`: documents -> the rules that `authz.rate_limits` goes by."""

from __future__ import annotations

from collections.abc import Iterable

from authz.attributes import ATTRIBUTES
from authz.policy.compile import Compiler, Loaded
from authz.policy.documents.rate_limits import LimitEntry, RateLimitPolicy
from authz.policy.rules import LimitPolicy
from authz.policy.security import selector_of
from authz.rate_limits import DescriptorRule, DomainRules, EntryRule
from garrison.documents import Field

# Spellings for conditions that would deny are no value to count by.
KNOWN = frozenset(name for name in ATTRIBUTES if not name.endswith(".any") and name != "request.auth.pair")
_WITH_ARGUMENT = frozenset({"destination.labels", "request.headers", "request.auth.claims"})


def compile_rate_limits(compiler: Compiler, loaded: Loaded, policy: RateLimitPolicy) -> LimitPolicy:
    """Return the compiled RateLimitPolicy."""
    spec = policy.spec
    descriptors = []
    for index, descriptor in enumerate(spec.descriptors):
        entries = [
            _entry(compiler, loaded, ("spec", "descriptors", index, "entries", number), entry)
            for number, entry in enumerate(descriptor.entries)
        ]
        descriptors.append(DescriptorRule(policy.title, index, tuple(entries), descriptor.hitsAddend))
    selector = selector_of(compiler, loaded, spec, policy.metadata.namespace)
    return LimitPolicy(policy.title, selector, DomainRules(spec.domain, tuple(descriptors)))


def _entry(compiler: Compiler, loaded: Loaded, where: Field, entry: LimitEntry) -> EntryRule:
    if (entry.value is None) == (entry.attribute is None):
        message = "exactly one of `value` and `attribute` is needed"
        compiler.report(loaded, where, "exclusive", message)
        return EntryRule(entry.key, entry.value or "?")
    if entry.attribute is None:
        for name in ("default", "whenAbsent"):
            if getattr(entry, name) is not None:
                message = f"`{name}` is for an `attribute`: a `value` is never absent"
                compiler.report(loaded, (*where, name), "exclusive", message)
        return EntryRule(entry.key, entry.value or "")
    if entry.default is not None and entry.whenAbsent is not None:
        message = "with a `default` the value is never absent"
        compiler.report(loaded, (*where, "whenAbsent"), "exclusive", message)
    at = (*where, "attribute")
    name, argument = compiler.split_key(loaded, at, entry.attribute, KNOWN, _WITH_ARGUMENT) or ("", "")
    return EntryRule(
        entry.key,
        attribute=name,
        argument=argument,
        spelled=entry.attribute,
        default=entry.default or "",
        skips=entry.whenAbsent == "SKIP",
    )


def domain_rules(policies: Iterable[LimitPolicy]) -> tuple[DomainRules, ...]:
    """Return what `policies` charge, those of one domain together, in the order of names."""
    found: dict[str, list[DescriptorRule]] = {}
    for policy in sorted(policies, key=lambda one: one.title):
        found.setdefault(policy.rules.domain, []).extend(policy.rules.descriptors)
    return tuple(DomainRules(name, tuple(found[name])) for name in sorted(found))
