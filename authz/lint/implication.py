"""Which matchers and conditions follow from which, exclude each other, or can never hold together.

Every answer is one-sided: True is certain, False means "not shown". A warning rests on True only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from authz.policy.matchers import (
    AddressMatcher,
    Condition,
    EitherMatcher,
    GlobMatcher,
    Matcher,
    RequestPrincipalMatcher,
    StringMatcher,
    TemplateMatcher,
)
from garrison.identity import SCHEME, SpiffeId

# Attributes that have one value or none, so that "every value" and "any value" say the same.
SINGLE = frozenset(
    {
        "connection.sni",
        "destination.ip",
        "destination.labels",
        "destination.name",
        "destination.namespace",
        "destination.port",
        "destination.user",
        "remote.ip",
        "request.auth.pair",
        "request.auth.principal",
        "request.host",
        "request.method",
        "request.path",
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
    }
)
# On a dual-stack socket an IPv4 peer has an address in here, and IPv4 networks match it.
_MAPPED = ip_network("::ffff:0:0/96")
_ANY_SPELLING = ".any"

Network = IPv4Network | IPv6Network


def within(narrow: Matcher, wide: Matcher) -> bool:
    """Return whether `wide` certainly matches every value that `narrow` matches."""
    if narrow == wide:
        return True
    if isinstance(wide, StringMatcher) and wide.present and not _is_pair(narrow):
        return True
    if isinstance(narrow, EitherMatcher):
        return all(within(one, wide) for one in narrow.matchers)
    if isinstance(narrow, StringMatcher) and not _is_pair(wide):
        return _strings_within(narrow, wide)
    if isinstance(wide, EitherMatcher):
        return any(within(narrow, one) for one in wide.matchers)
    match narrow, wide:
        case AddressMatcher(), AddressMatcher():
            return all(any(_is_subnet(one, other) for other in wide.networks) for one in narrow.networks)
        case GlobMatcher(), GlobMatcher():
            return all(
                pieces in wide.patterns or (len(pieces) == 1 and wide.matches(pieces[0]))
                for pieces in narrow.patterns
            )
        case TemplateMatcher(), TemplateMatcher():
            return set(narrow.templates) <= set(wide.templates)
        case RequestPrincipalMatcher(), RequestPrincipalMatcher():
            return set(narrow.texts) <= set(wide.texts)
    return False


def _is_pair(matcher: Matcher) -> bool:
    return isinstance(matcher, RequestPrincipalMatcher)


def _strings_within(narrow: StringMatcher, wide: Matcher) -> bool:
    if not all(_matches_text(wide, text) for text in narrow.exact):
        return False
    parts = wide.matchers if isinstance(wide, EitherMatcher) else (wide,)
    strings = [part for part in parts if isinstance(part, StringMatcher)]
    if any(one.present for one in strings):
        return True
    prefixes = tuple(prefix for one in strings for prefix in one.prefixes)
    suffixes = tuple(suffix for one in strings for suffix in one.suffixes)
    return (
        not narrow.present
        and all(text.startswith(prefixes) for text in narrow.prefixes)
        and all(text.endswith(suffixes) for text in narrow.suffixes)
    )


def _matches_text(matcher: Matcher, text: str) -> bool:
    return not isinstance(matcher, RequestPrincipalMatcher) and matcher.matches(text)


def _is_subnet(one: Network, other: Network) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.subnet_of(other)
    return isinstance(other, IPv6Network) and one.subnet_of(other)


def disjoint(one: Matcher, other: Matcher) -> bool:
    """Return whether certainly no value matches both."""
    match one, other:
        case StringMatcher(), StringMatcher():
            return _strings_disjoint(one, other)
        case AddressMatcher(), AddressMatcher():
            return not any(_overlap(a, b) for a in one.networks for b in other.networks)
        case StringMatcher(), GlobMatcher() | TemplateMatcher() | EitherMatcher():
            return _is_exact(one) and not any(other.matches(text) for text in one.exact)
        case GlobMatcher() | TemplateMatcher() | EitherMatcher(), StringMatcher():
            return disjoint(other, one)
    return False


def _is_exact(matcher: StringMatcher) -> bool:
    return bool(matcher.exact) and not (matcher.present or matcher.prefixes or matcher.suffixes)


def _strings_disjoint(one: StringMatcher, other: StringMatcher) -> bool:
    if one.present or other.present:
        return False
    if any(map(other.matches, one.exact)) or any(map(one.matches, other.exact)):
        return False
    if (one.prefixes and other.suffixes) or (one.suffixes and other.prefixes):
        return False
    return not (
        any(a.startswith(b) or b.startswith(a) for a in one.prefixes for b in other.prefixes)
        or any(a.endswith(b) or b.endswith(a) for a in one.suffixes for b in other.suffixes)
    )


def _overlap(one: Network, other: Network) -> bool:
    if isinstance(one, IPv4Network):
        return one.overlaps(other) if isinstance(other, IPv4Network) else other.overlaps(_MAPPED)
    return one.overlaps(other) if isinstance(other, IPv6Network) else one.overlaps(_MAPPED)


def implies(premise: Condition, conclusion: Condition) -> bool:
    """Return whether `conclusion` certainly holds wherever `premise` does."""
    if premise.argument != conclusion.argument or premise.negated is not conclusion.negated:
        return False
    same = premise.attribute == conclusion.attribute
    alike = same and (premise.every is conclusion.every or premise.attribute in SINGLE)
    if premise.negated:
        return alike and within(conclusion.matcher, premise.matcher)
    # Of all values that match one exists, under the same name or among more spellings of it.
    weaker = premise.every and not conclusion.every and (same or _adds_spellings(premise, conclusion))
    return (alike or weaker) and within(premise.matcher, conclusion.matcher)


def _adds_spellings(one: Condition, other: Condition) -> bool:
    return other.attribute == one.attribute + _ANY_SPELLING


def all_imply(premises: Sequence[Condition], conclusions: Iterable[Condition]) -> bool:
    """Return whether each of `conclusions` certainly holds wherever all of `premises` do."""
    return all(any(implies(one, conclusion) for one in premises) for conclusion in conclusions)


def contradiction(conditions: Sequence[Condition]) -> tuple[Condition, Condition] | None:
    """Return two of `conditions` that can never hold together, None when there are none for certain."""
    positive = [one for one in conditions if not one.negated]
    for index, one in enumerate(positive):
        for other in positive[index + 1 :]:
            if _of_all_values(one, other) and disjoint(one.matcher, other.matcher):
                return one, other
        for other in conditions:
            if other.negated and _excludes(one, other):
                return one, other
        wrong = _wrong_identity(one, conditions)
        if wrong is not None:
            return one, wrong
    return None


def _of_all_values(one: Condition, other: Condition) -> bool:
    """Return whether both conditions are about the same value, or about all values of one attribute."""
    return (one.attribute, one.argument) == (other.attribute, other.argument) and (
        one.attribute in SINGLE or (one.every and other.every)
    )


def _excludes(one: Condition, negative: Condition) -> bool:
    if one.argument != negative.argument or not within(one.matcher, negative.matcher):
        return False
    if one.attribute == negative.attribute and one.attribute in SINGLE:
        return True
    same = one.attribute == negative.attribute
    return not negative.every and (same or _adds_spellings(one, negative))


def _wrong_identity(condition: Condition, others: Sequence[Condition]) -> Condition | None:
    """Return a condition on part of an identity that none of the principals in `condition` satisfies."""
    matcher = condition.matcher
    if condition.attribute != "source.principal" or not isinstance(matcher, StringMatcher):
        return None
    if not _is_exact(matcher):
        return None
    parts = [_parts(principal) for principal in matcher.exact]
    for other in others:
        name = other.attribute.removesuffix(_ANY_SPELLING)
        if all(known and name in known and not other.matches((known[name],)) for known in parts):
            return other
    return None


def _parts(principal: str) -> dict[str, str]:
    """Return what follows from a principal in Istio's form; nothing for others."""
    try:
        spiffe_id = SpiffeId.parse(SCHEME + principal)
    except ValueError:
        return {}
    if spiffe_id.namespace is None:
        return {}
    return {
        "source.namespace": spiffe_id.namespace,
        "source.serviceAccount": f"{spiffe_id.namespace}/{spiffe_id.service_account}",
        "source.trustDomain": spiffe_id.trust_domain.name,
    }


def witness(matcher: Matcher) -> Iterator[str]:
    """Yield a text that any wider string matcher matches, too; none where there is no such text."""
    if isinstance(matcher, StringMatcher):
        yield from (*sorted(matcher.exact)[:1], *matcher.prefixes[:1], *matcher.suffixes[:1])
    elif isinstance(matcher, EitherMatcher):
        for one in matcher.matchers:
            yield from witness(one)
