"""A failed call is answered as its method wants, and tells strangers nothing."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from garrison.errors import DependencyError
from garrison.transport import Call, Method, StatusCode, StatusError
from garrison.transport.faults import answer_fault


def handle(_message: bytes, _call: Call) -> bytes:
    """Stand in for a handler."""
    return b""


def raise_again(error: Exception) -> bytes:
    """Stand in for a fault handler with a bug."""
    raise error


BROKEN = [raise_again, lambda _error: None]


def test_a_status_is_passed_on_unlogged() -> None:
    """A `StatusError` is an answer, not an incident."""
    error = StatusError(StatusCode.NOT_FOUND, "no such thing")
    with capture_logs() as logs:
        assert answer_fault("/t.T/X", Method(handle), error) is error
    assert logs == []


@pytest.mark.parametrize(("error", "stack"), [(ValueError("secret"), True), (DependencyError("x"), False)])
def test_other_failures_are_logged_and_hidden(error: Exception, stack: bool) -> None:
    """A bug is logged with its stack, a foreseen failure without; the caller reads neither."""
    with capture_logs() as logs:
        answer = answer_fault("/t.T/X", Method(handle), error)
    assert isinstance(answer, StatusError)
    assert (answer.code, answer.message) == (StatusCode.INTERNAL, "internal error")
    assert [log["method"] for log in logs] == ["/t.T/X"]
    assert (logs[0]["exc_info"] is error) is stack


def test_on_fault_gets_the_failure() -> None:
    """A method with `on_fault` answers with its bytes."""
    method = Method(handle, lambda error: str(error).encode())
    assert answer_fault("/t.T/X", method, StatusError(StatusCode.INTERNAL, "why")) == b"why"


@pytest.mark.parametrize("on_fault", BROKEN)
def test_a_broken_on_fault_is_internal(on_fault: object) -> None:
    """A fault handler that fails, or answers no bytes, ends the call; its text stays inside."""
    method = Method(handle, on_fault)  # type: ignore[arg-type]
    with capture_logs() as logs:
        answer = answer_fault("/t.T/X", method, StatusError(StatusCode.NOT_FOUND, "why"))
    assert isinstance(answer, StatusError)
    assert (answer.code, answer.message) == (StatusCode.INTERNAL, "internal error")
    assert len(logs) == 1


def test_a_failure_cannot_claim_success() -> None:
    """A `StatusError` with OK would be an answer without a message."""
    answer = answer_fault("/t.T/X", Method(handle), StatusError(StatusCode.OK, ""))
    assert isinstance(answer, StatusError)
    assert answer.code is StatusCode.INTERNAL
