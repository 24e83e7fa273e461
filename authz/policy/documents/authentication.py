"""`authentication.istio.io/v1alpha1`: Policy and MeshPolicy, with every field through Istio 1.4.

Fields have two spellings, `peerIsOptional` and `peer_is_optional`, as Istio accepted both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, StringConstraints

from authz.policy.documents.kubernetes import STRICT, NonEmpty, Resource

# RFC 1123, a DNS label: what services are called.
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


def _both(camel: str) -> AliasChoices:
    """Return the two spellings of a field."""
    snake = "".join(f"_{one.lower()}" if one.isupper() else one for one in camel)
    return AliasChoices(camel, snake)


class PortSelector(BaseModel):
    """A port of the workload; a name is known to the API server only."""

    model_config = STRICT
    number: int | None = None
    name: NonEmpty | None = None


class TargetSelector(BaseModel):
    """A service of the document's namespace, by its short name; labels and ports narrow it down."""

    model_config = STRICT
    name: DnsLabel
    labels: dict[NonEmpty, str] = Field(default_factory=dict)
    ports: list[PortSelector] = Field(default_factory=list)


class MutualTlsMethod(BaseModel):
    """A peer's certificate."""

    model_config = STRICT
    allowTls: bool = Field(default=False, validation_alias=_both("allowTls"))  # noqa: N815
    mode: Literal["STRICT", "PERMISSIVE"] = "STRICT"


class PeerMethod(BaseModel):
    """One way to authenticate the peer; `mtls` without a value is STRICT."""

    model_config = STRICT
    mtls: MutualTlsMethod | None = None
    jwt: Any = None


class StringMatch(BaseModel):
    """Exactly one of four ways to look at a path."""

    model_config = STRICT
    exact: NonEmpty | None = None
    prefix: NonEmpty | None = None
    suffix: NonEmpty | None = None
    regex: NonEmpty | None = None


class TriggerRule(BaseModel):
    """Paths for which the token is asked for."""

    model_config = STRICT
    excludedPaths: list[StringMatch] = Field(  # noqa: N815
        default_factory=list, validation_alias=_both("excludedPaths")
    )
    includedPaths: list[StringMatch] = Field(  # noqa: N815
        default_factory=list, validation_alias=_both("includedPaths")
    )


class Jwt(BaseModel):
    """An issuer, its keys, and where its tokens stand."""

    model_config = STRICT
    issuer: NonEmpty
    audiences: list[NonEmpty] = Field(default_factory=list)
    jwksUri: NonEmpty | None = Field(default=None, validation_alias=_both("jwksUri"))  # noqa: N815
    jwks: NonEmpty | None = None
    jwtHeaders: list[NonEmpty] = Field(default_factory=list, validation_alias=_both("jwtHeaders"))  # noqa: N815
    jwtParams: list[NonEmpty] = Field(default_factory=list, validation_alias=_both("jwtParams"))  # noqa: N815
    triggerRules: list[TriggerRule] = Field(  # noqa: N815
        default_factory=list, validation_alias=_both("triggerRules")
    )


class OriginMethod(BaseModel):
    """One way to authenticate who is behind the peer."""

    model_config = STRICT
    jwt: Jwt


class AuthenticationSpec(BaseModel):
    """Which services, and how callers prove who they are."""

    model_config = STRICT
    targets: list[TargetSelector] = Field(default_factory=list)
    peers: list[PeerMethod] = Field(default_factory=list)
    peerIsOptional: bool = Field(default=False, validation_alias=_both("peerIsOptional"))  # noqa: N815
    origins: list[OriginMethod] = Field(default_factory=list, max_length=64)
    originIsOptional: bool = Field(default=False, validation_alias=_both("originIsOptional"))  # noqa: N815
    principalBinding: Literal["USE_PEER", "USE_ORIGIN"] = Field(  # noqa: N815
        default="USE_PEER", validation_alias=_both("principalBinding")
    )


class AuthenticationPolicy(Resource):
    """Says how callers of services of its namespace prove who they are."""

    kind: Literal["Policy"]
    spec: AuthenticationSpec = AuthenticationSpec()


class MeshAuthenticationPolicy(Resource):
    """The same for all services that no Policy is for."""

    kind: Literal["MeshPolicy"]
    spec: AuthenticationSpec = AuthenticationSpec()
