"""What the demo claims, as rows: a call made through real Envoys, what should come of it, what came of it."""

from __future__ import annotations

import http.client
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from garrison.demo.client import Answer, Call, Decided
from garrison.demo.mesh import Mesh
from garrison.demo.tokens import Tokens
from garrison.demo.topology import INGRESS, MEMBERS, SERVED_BY

PATHS = {
    "productpage": "/productpage",
    "products": "/api/v1/products",
    "details": "/details/0",
    "reviews": "/reviews/0",
    "ratings": "/ratings/0",
}
# Details wants its callers to name a version; leaving it out is a row of its own.
DETAILS_VERSION = {"x-details-version": "v1"}
NO_ROLE = "no role allows it"


@dataclass(frozen=True, slots=True)
class Expected:
    """What should come of a call: status, deciding policy (empty: none), words of the reason."""

    status: int
    policy: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.status} {self.reason}".strip()


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `added_ms` is what asking Garrison cost the call, None when it was not asked."""

    group: str
    call: str
    expected: str
    got: str
    decided_by: str
    added_ms: float | None
    ok: bool
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Claim:
    """A call and what should come of it."""

    group: str
    title: str
    call: Call
    expected: Expected


def call_to(caller: str, service: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Call:
    """Return the call that `caller` makes to the usual path of `service`."""
    version = DETAILS_VERSION if service == "details" and headers is None else {}
    return Call(caller, service, PATHS[service], method, {**version, **(headers or {})})


def judge(claim: Claim, answer: Answer | None, decided: Decided | None) -> Row:
    """Return the row of a claim: right only if the status, the policy and the reason are as expected."""
    expected, seen = claim.expected, decided or Decided()
    decision = "allow" if expected.status < 400 else "deny"
    problems = []
    if answer is None:
        problems.append("no answer")
    elif answer.status != expected.status:
        problems.append(f"{answer.status}")
    if decided is None:
        problems.append("no access log entry")
    elif (seen.decision, seen.policy) != (decision, expected.policy):
        problems.append(f"{seen.decision or 'no decision'} by {seen.policy or 'no policy'}")
    elif expected.reason not in seen.reason:
        problems.append("another reason")
    got = str(answer.status) if answer is not None and not problems else ", ".join(problems)
    return Row(
        group=claim.group,
        call=claim.title,
        expected=str(expected),
        got=got,
        decided_by=seen.policy or seen.reason,
        added_ms=seen.added_ms,
        ok=not problems,
        reason=seen.reason,
    )


def check(mesh: Mesh, claim: Claim) -> Row:
    """Make the call of a claim and judge it."""
    try:
        answer = mesh.call(claim.call)
    except (OSError, http.client.HTTPException):
        return judge(claim, None, None)
    return judge(claim, answer, mesh.decided(claim.call, answer))


# --------------------------------------------------------------------------------------------------- roles

_PRODUCTS = "ServiceRole default/products-viewer"
_DETAILS = "ServiceRole default/details-viewer"
_FRONTEND = "ServiceRole default/frontend-viewer"
_TOKENS = "RequestAuthentication default/bookinfo-tokens"

# (caller, service) -> the role that allows it. Everything else between services is denied.
GRANTED = {
    ("productpage", "details"): _DETAILS,
    ("productpage", "reviews"): "ServiceRole default/reviews-viewer",
    ("reviews-v2", "ratings"): "ServiceRole default/ratings-viewer",
    ("reviews-v3", "ratings"): "ServiceRole default/ratings-viewer",
    ("client", "products"): _PRODUCTS,
}
_TELLING_DENIALS = (
    ("reviews-v1", "ratings"),
    ("productpage", "ratings"),
    ("details", "ratings"),
    ("ratings", "details"),
    ("client", "details"),
    ("client", "reviews"),
    ("reviews-v3", "products"),
)


def who(caller: str) -> str:
    """Return the name of `caller` as the table shows it."""
    return "service-account-a" if caller == "client" else caller


def role_claims() -> list[Claim]:
    """Return the claims about calls between services."""
    allowed = [
        Claim("roles", f"{who(caller)} -> {service}", call_to(caller, service), Expected(200, role))
        for (caller, service), role in GRANTED.items()
    ]
    denied = [
        Claim("roles", f"{who(caller)} -> {service}", call_to(caller, service), Expected(403, reason=NO_ROLE))
        for caller, service in _TELLING_DENIALS
    ]
    head = Claim(
        "roles",
        "service-account-a -> products, HEAD",
        call_to("client", "products", method="HEAD"),
        Expected(200, _PRODUCTS),
    )
    post = Claim(
        "roles",
        "service-account-a -> products, POST",
        call_to("client", "products", method="POST"),
        Expected(403, reason=NO_ROLE),
    )
    return [*allowed, head, post, *denied]


def every_other_pair(mesh: Mesh) -> Row:
    """Try every pair of caller and service that no role grants and no row has shown: all are denied."""
    callers = [member.name for member in MEMBERS if member.name != INGRESS]
    pairs = [(caller, service) for caller in callers for service in SERVED_BY]
    claims = [
        Claim("roles", f"{who(caller)} -> {service}", call_to(caller, service), Expected(403, reason=NO_ROLE))
        for caller, service in pairs
        if (caller, service) not in GRANTED and (caller, service) not in _TELLING_DENIALS
    ]
    rows = [check(mesh, claim) for claim in claims]
    wrong = [f"{row.call}: {row.got}" for row in rows if not row.ok]
    latencies = [row.added_ms for row in rows if row.added_ms is not None]
    return Row(
        group="roles",
        call=f"every other pair ({len(rows)} calls)",
        expected=f"403 x {len(rows)}",
        got="; ".join(wrong) or f"403 x {len(rows)}",
        decided_by=NO_ROLE,
        added_ms=statistics.median(latencies) if latencies else None,
        ok=not wrong,
    )


def header_claims() -> list[Claim]:
    """Return the claims about a header value that a role requires."""
    missing = "request.headers[x-details-version] is absent"
    return [
        Claim(
            "header", f"productpage -> details, {title}", call_to("productpage", "details", headers), expected
        )
        for title, headers, expected in (
            ("x-details-version: v2", {"x-details-version": "v2"}, Expected(200, _DETAILS)),
            ("without x-details-version", {}, Expected(403, reason=missing)),
            (
                "x-details-version: v9",
                {"x-details-version": "v9"},
                Expected(403, reason="request.headers[x-details-version]"),
            ),
        )
    ]


def token_claims(tokens: Tokens, stranger: Tokens) -> list[Claim]:
    """Return the claims about calls from outside, with and without tokens."""
    hour = timedelta(hours=1)
    cases = (
        ("token of a@foo.com", tokens.sign("a@foo.com"), Expected(200, _PRODUCTS)),
        ("no token", "", Expected(403, reason="request.auth.claims[email] is absent")),
        ("token of b@foo.com", tokens.sign("b@foo.com"), Expected(403, reason="request.auth.claims[email]")),
        ("expired token", tokens.sign("a@foo.com", lifetime=-hour), Expected(401, _TOKENS, "expired")),
        ("token signed by a stranger", stranger.sign("a@foo.com"), Expected(401, _TOKENS, "signature")),
        ("no JWT at all", "not-a-token", Expected(401, _TOKENS)),
    )
    return [
        Claim(
            "token",
            f"ingress -> products, {title}",
            call_to(INGRESS, "products", {"authorization": f"Bearer {token}"} if token else {}),
            expected,
        )
        for title, token, expected in cases
    ]


def page_claims() -> list[Claim]:
    """Return the claims about the pages that anybody outside may see."""
    login = Call(INGRESS, "productpage", "/login", "POST", body=b"user=jason")
    calls = (
        ("/productpage", call_to(INGRESS, "productpage"), Expected(200, _FRONTEND)),
        ("POST /login", login, Expected(303, _FRONTEND)),
        ("/logout", Call(INGRESS, "productpage", "/logout"), Expected(303, _FRONTEND)),
    )
    return [
        Claim("pages", f"ingress -> productpage, {title}", call, expected) for title, call, expected in calls
    ]


# --------------------------------------------------------------------------------------------------- quota

_QUOTA = 5
_MINUTE_TRIES = 3


def quota_rows(mesh: Mesh) -> list[Row]:
    """Let one user call ratings six times within a minute, and another user once."""
    answers: list[Answer] = []
    for attempt in range(_MINUTE_TRIES):
        answers = [_rate(mesh, f"jason-{attempt}") for _ in range(_QUOTA + 1)]
        resets = [int(answer.headers.get("x-ratelimit-reset", "0")) for answer in answers]
        # Windows are minutes of the clock. Six calls in two of them prove nothing: a new user tries.
        if resets == sorted(resets, reverse=True):
            break
    other = _rate(mesh, "alice")
    first, sixth = answers[:_QUOTA], answers[_QUOTA]
    limit = sixth.headers.get("x-ratelimit-limit", "")
    remaining = [answer.headers.get("x-ratelimit-remaining") for answer in first]
    return [
        _quota_row(
            "user jason: calls 1 to 5",
            "200 x 5, remaining 4 to 0",
            ", ".join(f"{answer.status}" for answer in first if answer.status != 200)
            or f"200 x 5, remaining {remaining[0]} to {remaining[-1]}",
            first[-1],
        ),
        _quota_row(
            "user jason: call 6",
            "429, remaining 0",
            f"{sixth.status}, remaining {sixth.headers.get('x-ratelimit-remaining', 'not told')}",
            sixth,
            ok=limit.startswith(f"{_QUOTA}, {_QUOTA};w=60"),
        ),
        _quota_row("user alice: call 1", "200", str(other.status), other),
    ]


def _rate(mesh: Mesh, user: str) -> Answer:
    return mesh.call(call_to("reviews-v2", "ratings", {"end-user": user}))


def _quota_row(title: str, expected: str, got: str, answer: Answer, *, ok: bool = True) -> Row:
    limit = answer.headers.get("x-ratelimit-limit", "no x-ratelimit-limit")
    return Row(
        "quota",
        f"reviews-v2 -> ratings, {title}",
        expected,
        got,
        f"limit {limit}",
        None,
        ok and got == expected,
    )


def summarise(statuses: Counter[str]) -> str:
    """Return counted outcomes, the most frequent first."""
    return ", ".join(f"{outcome} x {count}" for outcome, count in statuses.most_common()) or "no calls"
