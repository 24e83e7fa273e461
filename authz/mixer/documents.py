"""`config.istio.io/v1alpha2`, Mixer's check side: shape only.

Fields are written in camelCase or snake_case, as they were over Istio's versions. What only reports
(`metric`, `prometheus`, …) is accepted and ignored with a warning; what Garrison does not do is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field

from authz.mixer.expression.values import EvaluationError, ValueType, parse_duration
from authz.policy.documents.kubernetes import STRICT, NonEmpty, Resource

API_VERSION = "config.istio.io/v1alpha2"


def _both(camel: str) -> AliasChoices:
    """Return the two spellings of a field."""
    snake = "".join(f"_{one.lower()}" if one.isupper() else one for one in camel)
    return AliasChoices(camel, snake)


def _duration(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError("expected a duration such as `5s`")  # noqa: TRY004 - pydantic collects ValueErrors
    try:
        nanoseconds = parse_duration(value)
    except EvaluationError as error:
        raise ValueError(str(error)) from None
    if nanoseconds < 0:
        raise ValueError(f"the duration `{value}` is negative")
    return nanoseconds


# A duration as Go writes it, in nanoseconds.
Duration = Annotated[int, BeforeValidator(_duration)]
SECOND = 1_000_000_000


class AttributeInfo(BaseModel):
    """The type of an attribute."""

    model_config = STRICT
    description: str = ""
    value_type: ValueType = Field(validation_alias=_both("valueType"), strict=False)


class ManifestSpec(BaseModel):
    """Attributes and their types."""

    model_config = STRICT
    revision: str = ""
    name: str = ""
    attributes: dict[NonEmpty, AttributeInfo] = Field(default_factory=dict)


class AttributeManifest(Resource):
    """Adds attributes to the vocabulary; their values come from `context_extensions`."""

    kind: Literal["attributemanifest"]
    spec: ManifestSpec


class Action(BaseModel):
    """A handler and the instances it gets."""

    model_config = STRICT
    handler: NonEmpty
    instances: list[NonEmpty] = Field(default_factory=list)
    name: str = ""


class HeaderOperation(BaseModel):
    """What happens to a header of a call that was let through; `values` are expressions."""

    model_config = STRICT
    name: NonEmpty
    values: list[NonEmpty] = Field(default_factory=list)
    operation: Literal["REPLACE", "REMOVE", "APPEND"] = "REPLACE"


class RuleSpec(BaseModel):
    """When, and what then."""

    model_config = STRICT
    match: str = ""
    actions: list[Action] = Field(default_factory=list)
    request_header_operations: list[HeaderOperation] = Field(
        default_factory=list, validation_alias=_both("requestHeaderOperations")
    )
    response_header_operations: list[HeaderOperation] = Field(
        default_factory=list, validation_alias=_both("responseHeaderOperations")
    )
    sampling: dict[str, Any] | None = None


class Rule(Resource):
    """Sends the calls that match to handlers."""

    kind: Literal["rule"]
    spec: RuleSpec


class DirectHttpResponse(BaseModel):
    """The response that a denied caller gets (`istio.policy.v1beta1.DirectHttpResponse`)."""

    model_config = STRICT
    type: Literal["type.googleapis.com/istio.policy.v1beta1.DirectHttpResponse"] = Field(alias="@type")
    code: int | str = 0
    body: str = ""
    headers: dict[NonEmpty, str] = Field(default_factory=dict)


class Status(BaseModel):
    """A `google.rpc.Status`; one without a code would mean OK, so it must be there."""

    model_config = STRICT
    code: Annotated[int, Field(ge=0, le=16)]
    message: str = ""
    details: Annotated[list[DirectHttpResponse], Field(max_length=1)] = Field(default_factory=list)


class DenierParams(BaseModel):
    """What a denier answers; the defaults are Mixer's."""

    model_config = STRICT
    status: Status = Field(default_factory=lambda: Status(code=9))
    valid_duration: Duration = Field(default=5 * SECOND, validation_alias=_both("validDuration"))
    valid_use_count: Annotated[int, Field(ge=0)] = Field(
        default=1000, validation_alias=_both("validUseCount")
    )


class ListParams(BaseModel):
    """A list and what being on it means; the defaults are Mixer's."""

    model_config = STRICT
    provider_url: str = Field(default="", validation_alias=_both("providerUrl"))
    refresh_interval: Duration = Field(default=60 * SECOND, validation_alias=_both("refreshInterval"))
    ttl: Duration = 300 * SECOND
    caching_interval: Duration = Field(default=300 * SECOND, validation_alias=_both("cachingInterval"))
    caching_use_count: Annotated[int, Field(ge=0)] = Field(
        default=10_000, validation_alias=_both("cachingUseCount")
    )
    overrides: list[NonEmpty] = Field(default_factory=list)
    entry_type: Literal["STRINGS", "CASE_INSENSITIVE_STRINGS", "IP_ADDRESSES", "REGEX"] = Field(
        default="STRINGS", validation_alias=_both("entryType")
    )
    blacklist: bool = False


class ListEntryParams(BaseModel):
    """The value that is looked up: an expression."""

    model_config = STRICT
    value: NonEmpty


class CheckNothingParams(BaseModel):
    """Nothing."""

    model_config = STRICT


# What a store counts exactly.
_Amount = Annotated[int, Field(ge=0, le=2**53 - 1)]
_Charged = Annotated[int, Field(ge=1, le=2**53 - 1)]


class QuotaParams(BaseModel):
    """What tells the counters of a quota apart: expressions by name."""

    model_config = STRICT
    dimensions: dict[NonEmpty, NonEmpty] = Field(default_factory=dict)


class MemQuotaOverride(BaseModel):
    """Another limit where dimensions have these values."""

    model_config = STRICT
    dimensions: dict[NonEmpty, str] = Field(default_factory=dict)
    max_amount: _Amount = Field(validation_alias=_both("maxAmount"))
    valid_duration: Duration = Field(validation_alias=_both("validDuration"))


class MemQuotaLimit(BaseModel):
    """How much there is of a quota in a rolling window; `name` is its instance."""

    model_config = STRICT
    name: NonEmpty
    max_amount: _Amount = Field(validation_alias=_both("maxAmount"))
    valid_duration: Duration = Field(validation_alias=_both("validDuration"))
    overrides: list[MemQuotaOverride] = Field(default_factory=list)


class MemQuotaParams(BaseModel):
    """Limits by quota."""

    model_config = STRICT
    quotas: list[MemQuotaLimit] = Field(default_factory=list)
    min_deduplication_duration: Duration = Field(
        default=SECOND, validation_alias=_both("minDeduplicationDuration")
    )


class RedisQuotaOverride(BaseModel):
    """Another limit where dimensions have these values."""

    model_config = STRICT
    dimensions: Annotated[dict[NonEmpty, str], Field(min_length=1)]
    max_amount: _Charged = Field(validation_alias=_both("maxAmount"))


class RedisQuotaLimit(BaseModel):
    """How much there is of a quota in a fixed or rolling window; `name` is its instance."""

    model_config = STRICT
    name: NonEmpty
    max_amount: _Charged = Field(validation_alias=_both("maxAmount"))
    valid_duration: Duration = Field(validation_alias=_both("validDuration"))
    bucket_duration: Duration = Field(default=0, validation_alias=_both("bucketDuration"))
    rate_limit_algorithm: Literal["FIXED_WINDOW", "ROLLING_WINDOW"] = Field(
        default="FIXED_WINDOW", validation_alias=_both("rateLimitAlgorithm")
    )
    overrides: list[RedisQuotaOverride] = Field(default_factory=list)


class RedisQuotaParams(BaseModel):
    """Limits by quota; the store is that of the settings."""

    model_config = STRICT
    quotas: list[RedisQuotaLimit] = Field(default_factory=list)
    redis_server_url: str = Field(default="", validation_alias=_both("redisServerUrl"))
    connection_pool_size: Annotated[int, Field(ge=0)] = Field(
        default=10, validation_alias=_both("connectionPoolSize")
    )


class Quota(Resource):
    """A quota instance (Istio 1.0's form)."""

    kind: Literal["quota"]
    spec: QuotaParams | None = None


class MemQuota(Resource):
    """A handler that counts (Istio 1.0's form)."""

    kind: Literal["memquota"]
    spec: MemQuotaParams


class RedisQuota(Resource):
    """A handler that counts where all replicas do (Istio 1.0's form)."""

    kind: Literal["redisquota"]
    spec: RedisQuotaParams


class StringMatch(BaseModel):
    """What a value has to be; nothing: it has to be there."""

    model_config = STRICT
    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None


class AttributeMatch(BaseModel):
    """Attributes, all of which have to match."""

    model_config = STRICT
    clause: dict[NonEmpty, StringMatch] = Field(default_factory=dict)


class QuotaAmount(BaseModel):
    """How much a call costs of a quota."""

    model_config = STRICT
    quota: NonEmpty
    charge: _Charged = 1


class QuotaRuleSpec(BaseModel):
    """What calls cost that match."""

    model_config = STRICT
    match: list[AttributeMatch] = Field(default_factory=list)
    quotas: Annotated[list[QuotaAmount], Field(min_length=1)]


class QuotaSpecSpec(BaseModel):
    """Rules, all of which that match add up."""

    model_config = STRICT
    rules: Annotated[list[QuotaRuleSpec], Field(min_length=1)]


class QuotaSpec(Resource):
    """What calls cost."""

    kind: Literal["QuotaSpec"]
    spec: QuotaSpecSpec


class IstioService(BaseModel):
    """A service: `name` with `namespace` and `domain`, or `service`."""

    model_config = STRICT
    name: str = ""
    namespace: str = ""
    domain: str = ""
    service: str = ""


class QuotaSpecReference(BaseModel):
    """A QuotaSpec by name."""

    model_config = STRICT
    name: NonEmpty
    namespace: str = ""


class QuotaSpecBindingSpec(BaseModel):
    """Which QuotaSpecs are for which services."""

    model_config = STRICT
    services: Annotated[list[IstioService], Field(min_length=1)]
    quota_specs: Annotated[list[QuotaSpecReference], Field(min_length=1)] = Field(
        validation_alias=_both("quotaSpecs")
    )


class QuotaSpecBinding(Resource):
    """Makes QuotaSpecs count for services."""

    kind: Literal["QuotaSpecBinding"]
    spec: QuotaSpecBindingSpec


class Denier(Resource):
    """A handler that denies (Istio 1.0's form)."""

    kind: Literal["denier"]
    spec: DenierParams | None = None


class ListChecker(Resource):
    """A handler that looks a value up (Istio 1.0's form)."""

    kind: Literal["listchecker"]
    spec: ListParams | None = None


class ListEntry(Resource):
    """An instance with a value (Istio 1.0's form)."""

    kind: Literal["listentry"]
    spec: ListEntryParams


class CheckNothing(Resource):
    """An instance without anything (Istio 1.0's form)."""

    kind: Literal["checknothing"]
    spec: CheckNothingParams | None = None


class HandlerSpec(BaseModel):
    """An adapter with its parameters; `params` are checked as the adapter's."""

    model_config = STRICT
    compiled_adapter: str = Field(default="", validation_alias=_both("compiledAdapter"))
    adapter: str = ""
    params: dict[str, Any] | None = None
    connection: dict[str, Any] | None = None


class Handler(Resource):
    """A handler (Istio 1.1 and later)."""

    kind: Literal["handler"]
    spec: HandlerSpec


class InstanceSpec(BaseModel):
    """A template with its parameters; `params` are checked as the template's."""

    model_config = STRICT
    compiled_template: str = Field(default="", validation_alias=_both("compiledTemplate"))
    template: str = ""
    params: dict[str, Any] | None = None
    attribute_bindings: dict[str, str] = Field(
        default_factory=dict, validation_alias=_both("attributeBindings")
    )


class Instance(Resource):
    """An instance (Istio 1.1 and later)."""

    kind: Literal["instance"]
    spec: InstanceSpec


class ReportOnly(Resource):
    """A kind that only reports: accepted, with a warning, and without effect."""

    spec: Any = None


class Unsupported(Resource):
    """A kind that is known and not supported: always an error."""

    spec: Any = None


REPORT_TEMPLATES = frozenset({"metric", "logentry", "tracespan", "reportnothing", "edge"})
# Adapters for reports. `noop` answers OK to everything.
REPORT_ADAPTERS = frozenset(
    {
        "prometheus",
        "stdio",
        "statsd",
        "dogstatsd",
        "fluentd",
        "circonus",
        "cloudwatch",
        "stackdriver",
        "signalfx",
        "solarwinds",
        "zipkin",
        "noop",
    }
)
# What each of them would be needed for.
UNSUPPORTED = {
    "authorization": "authorization by an adapter",
    "rbac": "authorization by an adapter",
    "opa": "authorization by an adapter",
    "apikey": "API keys",
    "HTTPAPISpec": "API attributes",
    "HTTPAPISpecBinding": "API attributes",
    "servicecontrol": "API keys",
    "servicecontrolreport": "API keys",
    "kubernetes": "attributes from Kubernetes",
    "kubernetesenv": "attributes from Kubernetes",
    "bypass": "adapters in other processes",
    "adapter": "adapters in other processes",
    "template": "adapters in other processes",
}

_KINDS: dict[str, type[Resource]] = {
    "attributemanifest": AttributeManifest,
    "rule": Rule,
    "handler": Handler,
    "instance": Instance,
    "denier": Denier,
    "listchecker": ListChecker,
    "listentry": ListEntry,
    "checknothing": CheckNothing,
    "quota": Quota,
    "memquota": MemQuota,
    "redisquota": RedisQuota,
    "QuotaSpec": QuotaSpec,
    "QuotaSpecBinding": QuotaSpecBinding,
    **dict.fromkeys(REPORT_TEMPLATES | REPORT_ADAPTERS, ReportOnly),
    **dict.fromkeys(UNSUPPORTED, Unsupported),
}
KINDS: dict[tuple[str, str], type[Resource]] = {
    (API_VERSION, kind): model for kind, model in sorted(_KINDS.items())
}
