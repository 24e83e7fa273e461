"""How limits are read, counted, answered and given out."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from garrison.process.quota import StoreOptions
from garrison.process.settings.types import STRICT, Duration, FilePath, RedisUrl, SentinelAuth, member_of
from garrison.redis_address import Credentials
from ratelimit.algorithm import OnStoreFailure
from ratelimit.compile import Options as LimitsOptions
from ratelimit.quotas import QuotaOptions
from ratelimit.response import HeaderNames, ResponseOptions

StoreFailure = Annotated[OnStoreFailure, member_of(OnStoreFailure)]
# A token (RFC 9110, 5.6.2), as every field name is.
HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]


class RateLimitSettings(BaseModel):
    """How limits are read and answered; what they are stands in the files of `limits`."""

    model_config = STRICT
    shadow_mode: bool = Field(
        default=False, description="allow every call; statuses and counts stay as they are"
    )
    quota_mode: bool = Field(default=False, description="treat every limit as if it had `quota_mode: true`")
    merge_domain_config: bool = Field(
        default=False, description="let several documents define descriptors of one domain"
    )
    response_headers: bool = Field(
        default=False, description="answer with headers of the limit that has least remaining"
    )
    limit_header: HeaderName = Field(default="RateLimit-Limit", description="its number of requests")
    remaining_header: HeaderName = Field(default="RateLimit-Remaining", description="what is left of it")
    reset_header: HeaderName = Field(default="RateLimit-Reset", description="seconds until its reset")
    response_dynamic_metadata: bool = Field(
        default=False,
        description="answer with the request and the `metadata` of what passed, for Envoy's filters",
    )
    redis: list[RedisUrl] = Field(
        default=[], description="redis://, rediss:// (TLS) or unix:// URLs of servers; none: counts in memory"
    )
    redis_mode: Literal["single", "sentinel", "cluster"] = Field(
        default="single",
        description="what the servers in `redis` are: the only one, Sentinels, or nodes of a Cluster",
    )
    redis_ca: FilePath | None = Field(
        default=None, description="roots that rediss:// is verified with (PEM); none: those of the system"
    )
    redis_certificate: FilePath | None = Field(
        default=None, description="certificate for servers that want one of their clients (PEM)"
    )
    redis_private_key: FilePath | None = Field(
        default=None, description="the certificate's private key (PEM)"
    )
    sentinel_master: str = Field(default="", description="what the Sentinels call the server")
    sentinel_auth: SentinelAuth | None = Field(
        default=None, description="`PASSWORD` or `USER:PASSWORD` for the Sentinels themselves"
    )
    key_prefix: str = Field(
        default="garrison",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="what keys on the servers start with",
    )
    deadline: Duration = Field(
        default=timedelta(milliseconds=10),
        description="how long a call waits for the servers; Envoy waits 20 ms",
    )
    on_store_failure: StoreFailure = Field(
        default=OnStoreFailure.DENY,
        description="what limits answer without the servers, unless they say otherwise",
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="by how many `local` limits are divided: processes like this one",
    )
    embedded_max_bytes: int = Field(
        default=256 * 2**20,
        ge=16 * 2**20,
        le=2**40,
        description="most memory of the embedded Valkey, where several workers have no `redis`",
    )
    max_buckets: int = Field(default=200_000, ge=1, le=100_000_000, description="most counters in memory")

    @field_validator("deadline")
    @classmethod
    def _in_time(cls, value: timedelta) -> timedelta:
        if not timedelta(milliseconds=1) <= value <= timedelta(seconds=1):
            raise ValueError("`deadline` is between 1ms and 1s")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.redis_certificate is None) != (self.redis_private_key is None):
            raise ValueError("`redis_certificate` and `redis_private_key` go together")
        if self.redis_mode == "single" and len(self.redis) > 1:
            raise ValueError("several servers need `redis_mode: sentinel` or `redis_mode: cluster`")
        if self.redis_mode != "single" and not self.redis:
            raise ValueError(f"`redis_mode: {self.redis_mode}` needs `redis`")
        if (self.redis_mode == "sentinel") != bool(self.sentinel_master):
            raise ValueError("`sentinel_master` and `redis_mode: sentinel` go together")
        if self.redis_mode != "single" and any(address.scheme == "unix" for address in self.redis):
            raise ValueError("Sentinels and Clusters are reached by redis:// and rediss://")
        if self.redis_mode == "cluster" and any(address.database for address in self.redis):
            raise ValueError("a Cluster has no other database than 0")
        if len({(one.scheme, one.database, one.username, one.password) for one in self.redis}) > 1:
            raise ValueError("the URLs in `redis` differ in nothing but host and port")
        return self

    def store_options(self) -> StoreOptions:
        """Return where counts live."""
        return StoreOptions(
            self.redis,
            self.redis_mode,
            self.sentinel_master,
            self.sentinel_auth or Credentials(),
            self.redis_ca,
            self.redis_certificate,
            self.redis_private_key,
            self.key_prefix,
            self.deadline.total_seconds(),
            self.replicas,
            self.max_buckets,
        )

    def limits_options(self) -> LimitsOptions:
        """Return what limits are compiled with."""
        return LimitsOptions(self.quota_mode, self.merge_domain_config, self.on_store_failure)

    def response_options(self) -> ResponseOptions:
        """Return what answers hold."""
        names = HeaderNames(self.limit_header, self.remaining_header, self.reset_header)
        headers = names if self.response_headers else None
        return ResponseOptions(self.shadow_mode, headers, self.response_dynamic_metadata)


class RlqsSettings(BaseModel):
    """How limits are given out over RLQS; what they are stands in the files of `limits`."""

    model_config = STRICT
    assignment_ttl: Duration = Field(
        default=timedelta(seconds=15),
        description="how long an Envoy may use what it was assigned; it reports, and is assigned, every 5s",
    )
    replicas: int = Field(
        default=1, ge=1, le=1000, description="how many Garrisons give out equal parts of every limit"
    )
    max_streams: int = Field(default=1000, ge=1, description="most Envoys")
    max_buckets: int = Field(default=10_000, ge=1, description="most buckets of one Envoy")
    max_total_buckets: int = Field(default=100_000, ge=1, description="most buckets of all Envoys")

    @field_validator("assignment_ttl")
    @classmethod
    def _outlives_a_report(cls, value: timedelta) -> timedelta:
        # Envoy drops parts of a second, and reports every five.
        if value % timedelta(seconds=1) or not timedelta(seconds=6) <= value <= timedelta(hours=1):
            raise ValueError("`assignment_ttl` is a number of whole seconds between 6s and 1h")
        return value

    def options(self, *, shadow_mode: bool) -> QuotaOptions:
        """Return what the service is told."""
        seconds = self.assignment_ttl // timedelta(seconds=1)
        return QuotaOptions(
            seconds, self.replicas, self.max_streams, self.max_buckets, self.max_total_buckets, shadow_mode
        )
