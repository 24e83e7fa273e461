"""What a call is answered when its handler cannot: the same on every transport."""

from __future__ import annotations

import structlog

from garrison.errors import GarrisonError
from garrison.transport import Method, StatusCode, StatusError

_log = structlog.get_logger(__name__)

# What callers read of a failure that is not theirs: nothing.
_INTERNAL = "internal error"


def answer_fault(path: str, method: Method, error: Exception) -> bytes | StatusError:
    """Return the response of `method` to `error`: bytes for an ordinary answer, else a status.

    A `StatusError` is the handler's (or the transport's) own word. Any other exception is logged, with its
    stack when nobody foresaw it, and none of its text reaches the caller.
    """
    if isinstance(error, StatusError):
        status = error
    else:
        stack = None if isinstance(error, GarrisonError) else error
        _log.error("call failed", method=path, error=str(error), exc_info=stack)
        status = StatusError(StatusCode.INTERNAL, _INTERNAL)
    if method.on_fault is not None:
        try:
            answer = method.on_fault(error)
            if isinstance(answer, bytes):
                return answer
            _log.error("fault handler answered no bytes", method=path)
        except Exception:  # noqa: BLE001 - nothing may escape while a failure is being answered
            _log.exception("fault handler failed", method=path)
        return StatusError(StatusCode.INTERNAL, _INTERNAL)
    # An error that claims success would be an answer without a message.
    return status if status.code is not StatusCode.OK else StatusError(StatusCode.INTERNAL, _INTERNAL)
