"""What policies and limits fail to say to each other: descriptors that are charged and that nothing limits.

Only what is certain: an attribute may have any value; what is reported leads to a limit with none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from authz.lint.places import Findings, Places
from authz.policy.rules import PolicySet
from authz.rate_limits import DescriptorRule, EntryRule
from garrison.documents import Diagnostic, Document, Severity
from ratelimit.compile import Options, compile_limits, is_limits
from ratelimit.tree import Branch, Domain, Node


def lint(documents: Sequence[Document], policies: PolicySet) -> list[Diagnostic]:
    """Return warnings about the `RateLimitPolicy`s in `documents`; none where no limits are among them."""
    files = [document for document in documents if is_limits(document)]
    limits, problems = compile_limits(files, Options(merge_domains=True))
    if not files or any(one.severity is Severity.ERROR for one in problems):
        return []
    findings = Findings(Places(one for one in documents if not is_limits(one)))
    for policy in policies.limits:
        domain = limits.domains.get(policy.rules.domain)
        if domain is None:
            message = f"no limits for domain `{policy.rules.domain}`, so this limits nothing"
            known = f"known here: {', '.join(sorted(limits.domains))}"
            findings.add(policy.title, ("spec", "domain"), "unknown_limit_domain", message, known)
            continue
        for rule in policy.rules.descriptors:
            if missing := _missing(domain, rule):
                path = ("spec", "descriptors", rule.index)
                findings.add(policy.title, path, "unmatched_descriptor", f"{missing}, so this limits nothing")
    return findings.diagnostics


def _missing(domain: Domain, rule: DescriptorRule) -> str:
    """Return why no values of attributes make a limit count for `rule`; nothing if some may."""
    reached: list[tuple[Mapping[str, Branch], Node | None]] = [(domain.root, None)]
    for number, entry in enumerate(rule.entries):
        # What is no step of the path leaves everything where it was.
        reached = [
            (level, last) if node.once_for else (node.children, node)
            for level, last in reached
            for node in _nodes(level.get(entry.key), entry)
        ]
        if not reached:
            shown = f"{entry.key}={entry.value}" if entry.value else entry.key
            return f"domain `{domain.name}` has no rule for `{shown}` as entry {number}"
    if not any(last is not None and last.rule is not None for _, last in reached):
        return f"where these entries lead, domain `{domain.name}` has no limit"
    return ""


def _nodes(branch: Branch | None, entry: EntryRule) -> Iterable[Node]:
    if branch is None:
        return
    if entry.value:
        found = branch.find(entry.value)
        if found is not None:
            yield found
        return
    yield from branch.exact.values()
    yield from (node for _, node in branch.patterns)
    if branch.any_value is not None:
        yield branch.any_value
