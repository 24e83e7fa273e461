"""A rate-limit service on YAML, with a clock of the test's own."""

from __future__ import annotations

from typing import Any

from envoy.service.ratelimit.v3 import rls_pb2

from garrison.documents import parse
from garrison.transport import Call, Peer
from ratelimit.algorithm import SECOND
from ratelimit.compile import DEFAULTS, Options, compile_limits
from ratelimit.response import ResponseOptions
from ratelimit.service import RateLimitService
from ratelimit.store.base import Store
from ratelimit.store.memory import MemoryStore
from ratelimit.tree import Limits

OK = rls_pb2.RateLimitResponse.OK
OVER_LIMIT = rls_pb2.RateLimitResponse.OVER_LIMIT
CALL = Call(Peer("127.0.0.1:1"), ())
START = 1_700_002_800 * SECOND  # the start of an hour


class Clock:
    """A clock that the test sets."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        """Return the time."""
        return self.now


def limits_of(text: str, options: Options = DEFAULTS) -> Limits:
    """Return the limits in `text`, which has no mistakes."""
    limits, diagnostics = compile_limits(parse(text.encode(), "f.yaml")[0], options)
    assert diagnostics == []
    return limits


def service(
    text: str,
    options: Options = DEFAULTS,
    *,
    response: ResponseOptions | None = None,
    store: Store | None = None,
    clock: Clock | None = None,
) -> RateLimitService:
    """Return a service with the limits in `text`."""
    limits = limits_of(text, options)
    return RateLimitService(
        lambda: limits, store or MemoryStore(), clock or Clock(), response or ResponseOptions()
    )


def request(*descriptors: dict[str, str], domain: str = "d", hits: int = 0) -> Any:
    """Return a request; each descriptor is a mapping of its entries."""
    message = rls_pb2.RateLimitRequest(domain=domain, hits_addend=hits)
    for entries in descriptors:
        descriptor = message.descriptors.add()
        for key, value in entries.items():
            descriptor.entries.add(key=key, value=value)
    return message


def answer(serve: RateLimitService, message: Any) -> Any:
    """Return the answer of a service whose store answers at once."""
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    found = serve.should_rate_limit(raw, CALL)
    assert isinstance(found, bytes)
    return rls_pb2.RateLimitResponse.FromString(found)
