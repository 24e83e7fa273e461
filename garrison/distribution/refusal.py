"""Why a replica does not take what it finds on its channel."""

from __future__ import annotations

from enum import StrEnum

from garrison.errors import RequestError


class Refusal(StrEnum):
    """The reasons; also the label of the metric. Stable."""

    UNREADABLE = "unreadable"
    SIGNATURE = "signature"
    CHANNEL = "channel"
    REPLAYED = "replayed"
    OVERSIZE = "oversize"
    MISSING = "missing"
    ALTERED = "altered"
    POLICIES = "policies"
    INTERNAL = "internal"


class RefusalError(RequestError):
    """An announcement or a bundle is not taken; what is in force stays in force."""

    def __init__(self, code: Refusal, message: str) -> None:
        super().__init__(message)
        self.code = code
