"""What is logged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from authz.service import DecisionLog
from garrison.process.settings.types import STRICT, member_of

Decisions = Annotated[DecisionLog, member_of(DecisionLog)]


class LogSettings(BaseModel):
    """What is logged, on standard error."""

    model_config = STRICT
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level")
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else JSON lines"
    )
    decisions: Decisions = Field(default=DecisionLog.DENIED, description="which decisions get a line")
    decisions_per_second: int = Field(
        default=100, ge=0, description="most decisions that get a line in one second; the rest are counted"
    )
