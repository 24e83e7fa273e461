"""The shape of a rate-limit document: all of envoyproxy/ratelimit's, and optional keys of our own.

What it means is `compile.py`'s.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

UNIT_NAMES = Literal["second", "minute", "hour", "day", "week", "month", "year"]


def _fold(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


UnitName = Annotated[UNIT_NAMES, BeforeValidator(_fold)]
NonEmpty = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0, le=2**32 - 1)]
AtLeastOne = Annotated[int, Field(ge=1, le=2**32 - 1)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_null(cls, value: Any) -> Any:
        # `rate_limit:` with its content commented out would otherwise read as "no limit".
        if value is None:
            raise PydanticCustomError("null", "nothing stands here")
        return value


class ReplacesSpec(_Model):
    """The name of a limit that does not count where this one does."""

    name: NonEmpty


class RateLimitSpec(_Model):
    """One limit: a window with a number, or `unlimited`."""

    unit: UnitName | None = None
    requests_per_unit: Count | None = None
    unlimited: bool = False
    name: str = ""
    replaces: list[ReplacesSpec] = []
    # From here on: not in envoyproxy/ratelimit.
    algorithm: Literal["fixed_window", "sliding_window", "token_bucket", "concurrency"] | None = None
    burst: AtLeastOne | None = None
    unit_multiplier: AtLeastOne | None = None
    window: str | None = None
    time_zone: str | None = None
    denied_hits: Literal["count", "free"] | None = None
    on_store_failure: Literal["allow", "deny", "local"] | None = None
    lease: AtLeastOne | None = None


class MatchSpec(_Model):
    """A pattern for values; exactly one of them."""

    prefix: NonEmpty | None = None
    suffix: NonEmpty | None = None
    regex: NonEmpty | None = None
    cidr: NonEmpty | None = None


class DescriptorSpec(_Model):
    """One node of the tree; `*` in `value` stands for any characters, an empty value for none given."""

    key: NonEmpty
    value: str = ""
    rate_limit: RateLimitSpec | None = None
    shadow_mode: bool = False
    quota_mode: bool = False
    detailed_metric: bool = False
    value_to_metric: bool = False
    share_threshold: bool = False
    metadata: dict[str, Any] = {}
    descriptors: list[DescriptorSpec] = []
    # From here on: not in envoyproxy/ratelimit.
    match: MatchSpec | None = None
    rate_limits: list[RateLimitSpec] = []
    best_effort: bool = False
    deduplicate: str | None = None


class LimitsDocument(_Model):
    """One domain and its descriptors."""

    domain: NonEmpty
    descriptors: list[DescriptorSpec] = []
