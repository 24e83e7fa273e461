"""The shape of a rate-limit document, as envoyproxy/ratelimit writes it. What it means is `compile.py`'s.

Fields that upstream knows and Garrison does not yet (`UNSUPPORTED`) are refused like any unknown field: a
limit that silently does something else is worse than none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

UNSUPPORTED = frozenset(
    {
        "detailed_metric",
        "metadata",
        "quota_mode",
        "replaces",
        "share_threshold",
        "value_to_metric",
    }
)


def _fold(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


UnitName = Annotated[
    Literal["second", "minute", "hour", "day", "week", "month", "year"], BeforeValidator(_fold)
]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_null(cls, value: Any) -> Any:
        # `rate_limit:` with its content commented out would otherwise read as "no limit".
        if value is None:
            raise PydanticCustomError("null", "nothing stands here")
        return value


class RateLimitSpec(_Model):
    """`rate_limit`: either a unit with a number, or `unlimited`."""

    unit: UnitName | None = None
    requests_per_unit: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    unlimited: bool = False
    name: str = ""


class DescriptorSpec(_Model):
    """One node of the tree; `*` in `value` stands for any characters, an empty value for none given."""

    key: Annotated[str, Field(min_length=1)]
    value: str = ""
    rate_limit: RateLimitSpec | None = None
    shadow_mode: bool = False
    descriptors: list[DescriptorSpec] = []


class LimitsDocument(_Model):
    """One domain and its descriptors."""

    domain: Annotated[str, Field(min_length=1)]
    descriptors: list[DescriptorSpec] = []
