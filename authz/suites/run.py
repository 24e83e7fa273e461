"""Cases -> results, and which rules they made match."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from authz.authn.jwt import DEFAULT_PLACES
from authz.authn.places import CookiePlace, HeaderPlace, ParameterPlace
from authz.decision import Decision, Explanation
from authz.lint.places import Places
from authz.snapshot import Snapshot
from authz.suites.cases import TOKEN_KEY, Case, signed
from authz.tools.requests import Vouched, explained, policies_for, token_rules
from garrison.documents import Document


@dataclass(frozen=True, slots=True)
class Result:
    """What a case came to; `failures` say what was expected and what there was, none when it passed."""

    case: Case
    explanation: Explanation
    failures: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything was as expected."""
        return not self.failures


def run_case(snapshot: Snapshot, case: Case) -> Result:
    """Decide the call of `case` and compare."""
    request, vouched = case.request, Vouched(claims=case.claims)
    remarks: list[str] = []
    if case.token is not None:
        request, remarks = _with_token(snapshot, case)
        vouched = Vouched(key=TOKEN_KEY)
    explanation = explained(snapshot, request, case.at, vouched)
    return Result(case, explanation, tuple(_failures(case, explanation.decision)), tuple(remarks))


def _with_token(snapshot: Snapshot, case: Case) -> tuple[Any, list[str]]:
    """Return the request with a token where the rules for its issuer look for one."""
    assert case.token is not None  # noqa: S101 - the caller looked
    text, request = signed(case.token, case.at), type(case.request)()
    request.CopyFrom(case.request)
    policies = policies_for(snapshot, request)
    rules = token_rules(policies) if policies is not None else []
    first = rules[0] if rules else None
    rule = next((one for one in rules if one.issuer == case.token.get("iss")), first)
    http = request.attributes.request.http
    match (rule.places if rule is not None else DEFAULT_PLACES)[0]:
        case ParameterPlace(parameter):
            separator = "&" if "?" in http.path else "?"
            http.path += f"{separator}{parameter}={text}"
        case CookiePlace(cookie):
            http.header_map.headers.add(key="cookie", raw_value=f"{cookie}={text}".encode())
        case HeaderPlace(header, prefix):
            http.header_map.headers.add(key=header, raw_value=f"{prefix}{text}".encode())
    return request, [] if rules else ["nothing verifies tokens for this destination: none is read"]


def _failures(case: Case, decision: Decision) -> Iterable[str]:
    expected = case.expected
    compared: Sequence[tuple[str, object, object]] = (
        ("verdict", expected.verdict.value, decision.verdict.value),
        ("http_status", expected.http_status, decision.http_status),
        ("policy", expected.policy, decision.policy),
        ("rule", expected.rule, decision.rule),
        ("code", expected.code or None, decision.code.value),
    )
    for name, wanted, got in compared:
        if wanted is not None and wanted != got:
            yield f"{name}: expected {_shown(wanted)}, got {_shown(got)}"
    if expected.reason not in decision.reason:
        yield f"reason: expected `{expected.reason}` in it, got `{decision.reason}`"


def _shown(value: object) -> str:
    return f"`{value}`" if value not in {"", -1} else "none"


RuleKey = tuple[str, str, int]  # file, title, rule


@dataclass(slots=True)
class Coverage:
    """The rules of all policies that were loaded, and how often a case made each of them match."""

    matched: dict[RuleKey, int] = field(default_factory=dict)
    lines: dict[RuleKey, int] = field(default_factory=dict)

    def expect(self, snapshot: Snapshot, documents: Sequence[Document]) -> dict[str, str]:
        """Count the rules of `snapshot`, made of `documents`, from now on; return the file of each title."""
        places, files = Places(documents), {}
        for policy in snapshot.policies.policies:
            document = places.document(policy.title)
            files[policy.title] = document.file if document else ""
            for rule in policy.rules:
                key = (files[policy.title], policy.title, rule.index)
                self.matched.setdefault(key, 0)
                if document is not None:
                    self.lines[key] = document.position(("spec", "rules", rule.index)).line
        return files

    def count(self, result: Result, files: dict[str, str]) -> None:
        """Count the rules that matched in `result`."""
        for key in {(files.get(step.policy, ""), step.policy, step.rule) for _, step in _matches(result)}:
            if key in self.matched:
                self.matched[key] += 1

    @property
    def total(self) -> int:
        """How many rules there are."""
        return len(self.matched)

    @property
    def covered(self) -> int:
        """How many of them matched at least once."""
        return sum(1 for count in self.matched.values() if count)

    def reaches(self, percent: int) -> bool:
        """Return whether at least `percent` of the rules are covered; exact, so 99.9 is not 100."""
        return self.covered * 100 >= percent * self.total

    @property
    def missed(self) -> list[tuple[RuleKey, int]]:
        """The rules that no case made match, with their lines."""
        return sorted((key, self.lines.get(key, 1)) for key, count in self.matched.items() if not count)


def _matches(result: Result) -> Iterable[Any]:
    return (one for one in result.explanation.steps if one[1].matched)
