"""Single patterns that no call can have, or that mean something else than they seem to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from authz.lint.places import Findings
from authz.paths import PathNormalization, normalize_path
from authz.policy.compile import MeshSettings
from authz.policy.matchers import Condition, EitherMatcher, Matcher, StringMatcher
from authz.policy.rules import Policy, PolicySet
from garrison.identity import SCHEME, SpiffeId

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
# RFC 9110, section 5.6.2: what a method is made of.
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]*")
# RFC 3986, sections 3.2 and 3.3: neither white space nor control characters; a host has no slash.
_NOT_IN_PATH = re.compile(r"[\x00-\x20\x7f]")
_NOT_IN_HOST = re.compile(r"[\x00-\x20\x7f/?#]")
_IN_PRINCIPAL = re.compile(r"[A-Za-z0-9._/-]*")
# What may follow a prefix, or stand before a suffix, so that the whole is a path in normal form.
_FOLLOWING = ("", "x", "Z", "0", "/x")
_PRECEDING = ("", "/", "/x", "/x/")


class Pattern(NamedTuple):
    """One pattern: its fixed text, and at which end anything may stand."""

    text: str
    before: bool = False
    after: bool = False

    def __str__(self) -> str:
        return f"{'*' if self.before else ''}{self.text}{'*' if self.after else ''}"


Remark = tuple[str, str, str]  # code, message, help


def look(findings: Findings, policies: PolicySet, mesh: MeshSettings) -> None:
    """Warn about every pattern of every rule."""
    for policy in policies.policies:
        for title, condition in conditions_of(policy):
            for pattern in _patterns(condition.matcher):
                for code, message, help_ in _remarks(condition, pattern, mesh):
                    path = findings.places.element(title, condition.field, str(pattern))
                    findings.add(title, path, code, message, help_)


def conditions_of(policy: Policy) -> Iterator[tuple[str, Condition]]:
    """Yield every condition of a policy with the title of the document that it stands in."""
    for condition in policy.selector.conditions:
        yield policy.title, condition
    for rule in policy.rules:
        for condition in rule.when:
            yield policy.title, condition
        for alternative in (*rule.operations, *rule.sources):
            for condition in alternative.conditions:
                yield alternative.origin or policy.title, condition


def _patterns(matcher: Matcher) -> Iterator[Pattern]:
    if isinstance(matcher, StringMatcher):
        yield from (Pattern(text) for text in sorted(matcher.exact))
        yield from (Pattern(text, after=True) for text in matcher.prefixes)
        yield from (Pattern(text, before=True) for text in matcher.suffixes)
    elif isinstance(matcher, EitherMatcher):
        for one in matcher.matchers:
            yield from _patterns(one)


def _remarks(condition: Condition, pattern: Pattern, mesh: MeshSettings) -> Iterable[Remark]:
    attribute = condition.attribute.removesuffix(".any")
    if "*" in pattern.text:
        templates = attribute == "request.path" and ".to[" in condition.field
        help_ = "for one segment of a path write `{*}`" if templates else "use a star at one end only"
        yield "star_in_middle", f"a `*` inside `{pattern}` is an ordinary character", help_
    match attribute:
        case "request.method":
            yield from _method(pattern)
        case "request.path":
            yield from _path(pattern, mesh.path_normalization)
        case "request.host":
            if _NOT_IN_HOST.search(pattern.text):
                yield "host_form", f"`{pattern}` matches no host: a host has no scheme, path or space", ""
        case "source.principal":
            yield from _principal(pattern, mesh)


def _method(pattern: Pattern) -> Iterable[Remark]:
    text = pattern.text
    if not _TOKEN.fullmatch(text):
        yield "method_form", f"`{pattern}` matches no HTTP method", ""
    elif not (pattern.before or pattern.after) and text not in _METHODS and text.upper() in _METHODS:
        yield "method_case", f"methods have a case, and `{text}` is not `{text.upper()}`", ""


def _path(pattern: Pattern, mode: PathNormalization) -> Iterable[Remark]:
    text = pattern.text
    if "?" in text or "#" in text:
        message = f"`{pattern}` matches no path: query and fragment are cut off before"
        yield "path_query", message, ""
    elif _NOT_IN_PATH.search(text):
        yield "path_form", f"`{pattern}` matches no path: a path has no space", ""
    elif text and not pattern.before and not text.startswith("/"):
        yield "path_form", f"`{pattern}` matches no path: paths start with `/`", f"did you mean `/{pattern}`?"
    elif not _is_normal(pattern, mode):
        normal = normalize_path(text, mode)
        help_ = f"write `{pattern._replace(text=normal)}`" if normal != text else ""
        message = f"`{pattern}` is compared with paths in normal form ({mode}), which never look like this"
        yield "path_not_normal", message, help_


def _is_normal(pattern: Pattern, mode: PathNormalization) -> bool:
    """Return whether some path in normal form fits `pattern`."""
    starts = _PRECEDING if pattern.before else ("",)
    ends = _FOLLOWING if pattern.after else ("",)
    tries = (start + pattern.text + end for start in starts for end in ends)
    return any(normalize_path(path, mode) == path for path in tries)


def _principal(pattern: Pattern, mesh: MeshSettings) -> Iterable[Remark]:
    text = pattern.text
    if SCHEME in text:  # the compiler says so
        return
    exact = not (pattern.before or pattern.after)
    if not _IN_PRINCIPAL.fullmatch(text.replace("*", "")) or (exact and not _is_principal(text)):
        message = f"`{pattern}` matches no principal"
        yield "principal_form", message, "a principal is `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`"
        return
    domain, slash, _ = text.partition("/")
    federated = {one.trust_domain.name for one in mesh.federated_trust_domains}
    if slash and not pattern.before and domain not in {*mesh.trust_domains, *federated}:
        message = f"`{domain}` is none of our trust domains, nor federated: its workloads may not call"
        ours = ", ".join(f"`{name}`" for name in mesh.trust_domains)
        yield "foreign_trust_domain", message, f"ours: {ours}"


def _is_principal(text: str) -> bool:
    try:
        return bool(SpiffeId.parse(SCHEME + text).segments)
    except ValueError:
        return False
