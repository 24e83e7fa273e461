"""Suite files -> cases, each one call: names resolved, matrices and tables spelled out."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from pydantic import BaseModel

from authz.authn.peers import FederatedDomain
from authz.decision import Verdict
from authz.paths import PathNormalization
from authz.policy.compile import MeshSettings
from authz.suites.documents import (
    CallerSpec,
    CaseSpec,
    DestinationSpec,
    ExpectSpec,
    RequestSpec,
    SuiteSpec,
)
from authz.tools.requests import parse_time
from garrison.documents import Diagnostic, Document, Field, load, validate
from garrison.errors import ConfigError
from garrison.identity import SCHEME, SpiffeId, TrustDomain
from garrison.keys.jwks import VerificationKey

# When a suite does not say what time it is. A test must not come out differently tomorrow.
DEFAULT_TIME = "2026-01-01T00:00:00Z"
# How long a token of a test is good for unless it has an `exp` (seconds).
_TOKEN_LIFETIME = 3600
# Signs the tokens of tests; known to everybody, and trusted by nothing but `garrison test`.
_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
TOKEN_KEY = VerificationKey(None, _KEY.public_key(), ("EdDSA",))

# Columns of a table that say what is sent, and what is expected besides the verdict.
_SENT: tuple[str, ...] = ("method", "path", "host")
_EXPECTED: tuple[str, ...] = ("policy", "rule", "http_status", "reason", "code")

Spec = TypeVar("Spec", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a call should come to; None and empty texts are not compared."""

    verdict: Verdict
    policy: str | None = None
    rule: int | None = None
    http_status: int | None = None
    reason: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One call; `at` in seconds since the epoch.

    `claims` are taken for verified, `token` is signed and sent.
    """

    suite: str
    name: str
    where: str
    request: Any
    at: float
    expected: Expected
    claims: Mapping[str, Any] | None = None
    token: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """What filters look at and reports show."""
        return f"{self.suite}/{self.name}"


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite: where its policies are, how they read, and its cases."""

    name: str
    policies: tuple[Path, ...]
    mesh: MeshSettings
    cases: tuple[Case, ...]


def signed(claims: Mapping[str, Any], at: float) -> str:
    """Return a token with `claims`, signed with the key that `TOKEN_KEY` verifies.

    Without `exp` it is good for another hour; `exp: null` is none at all.
    """
    payload = {"exp": int(at) + _TOKEN_LIFETIME, **claims}
    return jwt.encode({name: value for name, value in payload.items() if value is not None}, _KEY, "EdDSA")


def load_suites(paths: Sequence[Path], mesh: MeshSettings) -> list[Suite]:
    """Return the suites in all files below `paths`; `mesh` is what holds where a suite says nothing.

    Raises:
        ConfigError: a file is no suite; every problem of every file is in it.

    """
    documents, problems = load(paths)
    suites: list[Suite] = []
    for document in documents:
        spec = validate(SuiteSpec, document)
        if isinstance(spec, list):
            problems += spec
            continue
        reader = _Reader(document, spec, mesh)
        suites.append(reader.suite())
        problems += reader.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return suites


@dataclass(slots=True)
class _Reader:
    """Reads one suite."""

    document: Document
    spec: SuiteSpec
    mesh: MeshSettings
    problems: list[Diagnostic] = field(default_factory=list)

    def suite(self) -> Suite:
        file = Path(self.document.file)
        name = self.spec.suite or file.stem
        cases = tuple(
            case for index, spec in enumerate(self.spec.cases) for case in self._cases(name, index, spec)
        )
        policies = tuple(file.parent / path for path in self.spec.policies)
        return Suite(name, policies, self._mesh(), cases)

    def _mesh(self) -> MeshSettings:
        spec, given = self.spec.mesh, self.mesh
        try:
            return replace(
                given,
                trust_domain=TrustDomain.parse(spec.trust_domain)
                if spec.trust_domain
                else given.trust_domain,
                trust_domain_aliases=given.trust_domain_aliases
                if spec.trust_domain_aliases is None
                else tuple(map(TrustDomain.parse, spec.trust_domain_aliases)),
                federated_trust_domains=given.federated_trust_domains
                if spec.federated_trust_domains is None
                else tuple(map(FederatedDomain.parse, spec.federated_trust_domains)),
                root_namespace=spec.root_namespace or given.root_namespace,
                path_normalization=PathNormalization(spec.path_normalization or given.path_normalization),
            )
        except ValueError as error:
            self._report(("mesh",), "trust_domain", str(error))
            return given

    def _cases(self, suite: str, index: int, spec: CaseSpec) -> Iterator[Case]:
        where: Field = ("cases", index)
        if spec.matrix is not None and spec.table is not None:
            self._report(where, "exclusive", "`matrix` and `table` exclude each other")
        elif spec.table is not None:
            yield from self._table(suite, where, spec)
        elif spec.matrix is not None:
            yield from self._matrix(suite, where, spec)
        elif spec.allow is not None:
            self._report((*where, "allow"), "exclusive", "`allow` belongs to a `matrix`")
        else:
            expected = self._expected(where, spec)
            if expected is not None:
                yield from self._case(suite, where, spec.name, spec, expected)

    def _matrix(self, suite: str, where: Field, spec: CaseSpec) -> Iterator[Case]:
        assert spec.matrix is not None  # noqa: S101 - the caller looked
        axes = [
            (name, values)
            for name in ("caller", "request", "destination")
            if (values := getattr(spec.matrix, name))
        ]
        if (spec.allow is None) is (spec.expect is None):
            self._report(where, "exclusive", "a matrix has either `expect`, for all, or `allow`, for some")
            return
        for cell in spec.allow or ():
            for name in ("caller", "request", "destination"):
                asked, known = getattr(cell, name), getattr(spec.matrix, name) or ()
                for value in asked or ():
                    if value not in known:
                        self._report((*where, "allow"), "unknown_name", f"the matrix has no {name} `{value}`")
        for values in product(*(values for _, values in axes)):
            chosen = dict(zip((name for name, _ in axes), values, strict=True))
            expected: Expected | None
            if spec.allow is None:
                expected = self._expected(where, spec)
            else:
                allowed = any(
                    all(value in (getattr(cell, name) or [value]) for name, value in chosen.items())
                    for cell in spec.allow
                )
                expected = Expected(Verdict.ALLOW if allowed else Verdict.DENY)
            if expected is None:
                return
            name = f"{spec.name} [{', '.join(values)}]"
            yield from self._case(suite, where, name, spec.model_copy(update=chosen), expected)

    def _table(self, suite: str, where: Field, spec: CaseSpec) -> Iterator[Case]:
        assert spec.table is not None  # noqa: S101 - the caller looked
        columns = spec.table.columns
        for number, row in enumerate(spec.table.rows):
            at = (*where, "table", "rows", number)
            if len(row) != len(columns):
                self._report(at, "row_length", f"{len(row)} values for {len(columns)} columns")
                continue
            cells: dict[str, Any] = {
                name: value for name, value in zip(columns, row, strict=True) if value is not None
            }
            wrong = next((name for name, value in cells.items() if not _fits(name, value)), None)
            if wrong is not None:
                self._report(at, "string_type", f"`{cells[wrong]}` is no {wrong}", "put text in quotes")
                continue
            yield from self._row(suite, at, spec, cells, number)

    def _row(
        self, suite: str, at: Field, spec: CaseSpec, cells: dict[str, Any], number: int
    ) -> Iterator[Case]:
        request = self._request(at, cells.get("request", spec.request))
        changes = {name: cells[name] for name in _SENT if name in cells}
        changed: dict[str, Any] = {name: cells[name] for name in ("caller", "destination") if name in cells}
        if request is not None:
            changed["request"] = request.model_copy(update=changes)
        base = spec.expect if isinstance(spec.expect, ExpectSpec) else None
        verdict = cells.get("expect") or (base.verdict if base else spec.expect)
        if verdict not in {"allow", "deny"}:
            self._report(at, "missing_field", "a row needs `expect`: `allow` or `deny`")
            return
        expected: dict[str, Any] = {name: cells[name] for name in _EXPECTED if name in cells}
        wanted = (base or ExpectSpec(verdict=verdict)).model_copy(update={"verdict": verdict, **expected})
        shown = ", ".join(str(value) for name, value in cells.items() if name not in expected)
        name = f"{spec.name} [{number}: {shown}]"
        yield from self._case(suite, at, name, spec.model_copy(update=changed), _expectation(wanted))

    def _case(
        self, suite: str, where: Field, name: str, spec: CaseSpec, expected: Expected
    ) -> Iterator[Case]:
        defaults, known = self.spec.defaults, self.spec
        caller = self._resolve(where, "caller", spec.caller or defaults.caller, known.callers, CallerSpec())
        request = self._request(where, spec.request)
        nowhere = DestinationSpec.model_construct(service="", labels={})
        destination = self._resolve(
            where, "destination", spec.destination or defaults.destination, known.destinations, nowhere
        )
        try:
            at = parse_time(spec.at or defaults.at or DEFAULT_TIME, "at")
        except ValueError as error:
            self._report(where, "time", str(error))
            return
        if caller is None or request is None or destination is None:
            return
        if caller.claims is not None and caller.token is not None:
            self._report(where, "exclusive", "`claims` and `token` exclude each other")
            return
        principal = self._principal(where, caller.principal)
        attributes = {**defaults.attributes, **spec.attributes}
        position = self.document.position(where)
        yield Case(
            suite,
            name,
            f"{self.document.file}:{position.line}",
            _check_request(principal, caller, request, destination, attributes),
            at,
            expected,
            caller.claims,
            caller.token,
        )

    def _request(self, where: Field, given: str | RequestSpec | None) -> RequestSpec | None:
        """Return the request, with what it leaves out as in `defaults`."""
        default = self._resolve(
            where, "request", self.spec.defaults.request, self.spec.requests, RequestSpec()
        )
        found = self._resolve(where, "request", given, self.spec.requests, default)
        if found is None or default is None:
            return None
        return default.model_copy(update={name: getattr(found, name) for name in found.model_fields_set})

    def _resolve(
        self,
        where: Field,
        what: str,
        given: str | Spec | None,
        known: Mapping[str, Spec],
        default: Spec | None,
    ) -> Spec | None:
        """Return what is given, or what its name stands for; None after reporting an unknown name."""
        if given is None:
            return default
        if not isinstance(given, str):
            return given
        if given in known:
            return known[given]
        close = difflib.get_close_matches(given, known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(sorted(known)) or 'none'}"
        if what == "destination" and "." in given:
            return DestinationSpec(service=given)  # type: ignore[return-value] # `what` says which
        if what == "caller" and ("/" in given):
            return CallerSpec(principal=given)  # type: ignore[return-value] # `what` says which
        self._report(where, "unknown_name", f"there is no {what} `{given}`", hint)
        return None

    def _principal(self, where: Field, text: str | None) -> str:
        """Return the SPIFFE ID as Envoy reports it."""
        if text is None:
            return ""
        full = text if text.startswith(SCHEME) else SCHEME + text
        try:
            SpiffeId.parse(full)
        except ValueError as error:
            self._report(
                where, "principal", str(error), "a principal is `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`"
            )
        return full

    def _expected(self, where: Field, spec: CaseSpec) -> Expected | None:
        if spec.expect is None:
            self._report(where, "missing_field", "the required field `expect` is missing")
            return None
        written = spec.expect
        return _expectation(written if isinstance(written, ExpectSpec) else ExpectSpec(verdict=written))

    def _report(self, path: Field, code: str, message: str, hint: str = "") -> None:
        self.problems.append(self.document.error(path, code, message, hint))


def _fits(column: str, value: str | int) -> bool:
    return isinstance(value, int if column in {"rule", "http_status"} else str)


def _expectation(spec: ExpectSpec) -> Expected:
    return Expected(
        Verdict(spec.verdict), spec.policy, spec.rule, spec.http_status, spec.reason or "", spec.code or ""
    )


def _check_request(
    principal: str,
    caller: CallerSpec,
    request: RequestSpec,
    destination: DestinationSpec,
    attributes: Mapping[str, str],
) -> Any:
    """Return the CheckRequest that Envoy would send."""
    message = CheckRequest()
    context = message.attributes
    context.source.principal = principal
    if caller.ip:
        context.source.address.socket_address.address = caller.ip
    if destination.ip:
        context.destination.address.socket_address.address = destination.ip
    if destination.port:
        context.destination.address.socket_address.port_value = destination.port
    if request.protocol == "http":
        http = context.request.http
        http.method, http.path, http.host, http.protocol = (
            *(request.method, request.path, request.host),
            "HTTP/1.1",
        )
        for name, value in request.headers.items():
            for one in [value] if isinstance(value, str) else value:
                http.header_map.headers.add(key=name.lower(), raw_value=one.encode())
    named = {
        "destination.service": destination.service,
        "destination.namespace": destination.namespace,
        "destination.name": destination.name,
        "destination.user": destination.user,
        **{f"destination.labels[{name}]": value for name, value in destination.labels.items()},
    }
    for name, text in (*named.items(), *attributes.items()):
        if text:
            context.context_extensions[name] = text
    return message
