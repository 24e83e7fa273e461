"""The shape of a suite file; `docs/reference/policy-tests.md` says what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Verdict = Literal["allow", "deny"]


def _form(value: Any) -> str:
    """Tell a name from what it stands for, so that mistakes are reported for one of the two."""
    return "fields" if isinstance(value, dict | BaseModel) else "name"


class CallerSpec(BaseModel):
    """Who calls. `claims` are taken for verified; `token` holds the claims of a token that is sent."""

    model_config = STRICT
    principal: NonEmpty | None = None
    ip: NonEmpty | None = None
    claims: dict[str, Any] | None = None
    token: dict[str, Any] | None = None


class RequestSpec(BaseModel):
    """What is sent."""

    model_config = STRICT
    method: NonEmpty = "GET"
    path: NonEmpty = "/"
    host: str = ""
    headers: dict[NonEmpty, str | list[str]] = Field(default_factory=dict)
    protocol: Literal["http", "tcp"] = "http"


class DestinationSpec(BaseModel):
    """Who is called."""

    model_config = STRICT
    service: NonEmpty
    namespace: NonEmpty | None = None
    name: NonEmpty | None = None
    user: NonEmpty | None = None
    labels: dict[NonEmpty, str] = Field(default_factory=dict)
    ip: NonEmpty | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None


class ExpectSpec(BaseModel):
    """What the call should come to; what is absent may be anything."""

    model_config = STRICT
    verdict: Verdict
    policy: str | None = None
    rule: int | None = None
    http_status: int | None = None
    reason: NonEmpty | None = None
    code: NonEmpty | None = None


AnyCaller = Annotated[
    Annotated[NonEmpty, Tag("name")] | Annotated[CallerSpec, Tag("fields")], Discriminator(_form)
]
AnyRequest = Annotated[
    Annotated[NonEmpty, Tag("name")] | Annotated[RequestSpec, Tag("fields")], Discriminator(_form)
]
AnyDestination = Annotated[
    Annotated[NonEmpty, Tag("name")] | Annotated[DestinationSpec, Tag("fields")], Discriminator(_form)
]
AnyExpect = Annotated[
    Annotated[Verdict, Tag("name")] | Annotated[ExpectSpec, Tag("fields")], Discriminator(_form)
]
Names = Annotated[list[NonEmpty], Field(min_length=1)]


class Matrix(BaseModel):
    """Every combination of these; of each list, names."""

    model_config = STRICT
    caller: Names | None = None
    request: Names | None = None
    destination: Names | None = None


class Cell(BaseModel):
    """The combinations that a matrix allows: those with one of each list; an absent list means all."""

    model_config = STRICT
    caller: Names | None = None
    request: Names | None = None
    destination: Names | None = None


Column = Literal[
    "caller",
    "request",
    "method",
    "path",
    "host",
    "destination",
    "expect",
    "policy",
    "rule",
    "http_status",
    "reason",
    "code",
]


class Table(BaseModel):
    """One call a row; `null` where a row says nothing for a column."""

    model_config = STRICT
    columns: Annotated[list[Column], Field(min_length=1)]
    rows: Annotated[list[list[str | int | None]], Field(min_length=1)]


class CaseSpec(BaseModel):
    """One call, or with `matrix` or `table` several."""

    model_config = STRICT
    name: NonEmpty
    caller: AnyCaller | None = None
    request: AnyRequest | None = None
    destination: AnyDestination | None = None
    attributes: dict[NonEmpty, str] = Field(default_factory=dict)
    at: NonEmpty | None = None
    expect: AnyExpect | None = None
    matrix: Matrix | None = None
    allow: list[Cell] | None = None
    table: Table | None = None


class MeshSpec(BaseModel):
    """Settings that change how policies read; what is absent is as on the command line."""

    model_config = STRICT
    trust_domain: NonEmpty | None = None
    trust_domain_aliases: list[NonEmpty] | None = None
    federated_trust_domains: list[NonEmpty] | None = None
    root_namespace: NonEmpty | None = None
    path_normalization: Literal["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] | None = None


class Defaults(BaseModel):
    """What cases have that do not say otherwise."""

    model_config = STRICT
    caller: AnyCaller | None = None
    request: AnyRequest | None = None
    destination: AnyDestination | None = None
    attributes: dict[NonEmpty, str] = Field(default_factory=dict)
    at: NonEmpty | None = None


class SuiteSpec(BaseModel):
    """A suite: policies, names for what cases are made of, and cases."""

    model_config = STRICT
    suite: NonEmpty | None = None
    policies: list[NonEmpty] = Field(default_factory=list)
    mesh: MeshSpec = MeshSpec()
    defaults: Defaults = Defaults()
    callers: dict[NonEmpty, CallerSpec] = Field(default_factory=dict)
    requests: dict[NonEmpty, RequestSpec] = Field(default_factory=dict)
    destinations: dict[NonEmpty, DestinationSpec] = Field(default_factory=dict)
    cases: Annotated[list[CaseSpec], Field(min_length=1)]
