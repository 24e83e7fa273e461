"""RLQS over real gRPC streams: who is told what, who is refused, and what RLS sees of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import structlog
from envoy.service.rate_limit_quota.v3 import rlqs_pb2
from envoy.service.ratelimit.v3 import rls_pb2
from support.ratelimit import CALL, OK, OVER_LIMIT, Clock, answer, limits_of, request
from support.rlqs import described, first, reports

from garrison.errors import DependencyError
from ratelimit.algorithm import SECOND, Outcome
from ratelimit.quotas import QuotaOptions, Quotas
from ratelimit.rlqs import SERVICE, RateLimitQuotaService
from ratelimit.service import RateLimitService
from ratelimit.store.base import Spend, Store
from ratelimit.store.memory import MemoryStore

TIMEOUT = 10
CONFIG = """
domain: d
descriptors:
- key: tenant
  rate_limit: {unit: second, requests_per_unit: 64}
- key: user
  rate_limit: {unit: minute, requests_per_unit: 60}
- key: export
  rate_limit: {unit: hour, requests_per_unit: 60, algorithm: token_bucket}
"""
TENANT, USER, EXPORT = {"tenant": "a"}, {"user": "u"}, {"export": "x"}
KEY = (("tenant", "a"),)


class Remote(Store):
    """A store that answers later, or not at all."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.is_down = False

    async def spend(self, spends: Sequence[Spend], now: int) -> list[Outcome]:
        """Answer after a turn of the event loop."""
        await asyncio.sleep(0)
        if self.is_down:
            raise DependencyError("the store is down")
        return self.inner.spend(spends, now)


@dataclass
class Lab:
    """A running server, a channel to it, and a clock for shares and windows."""

    service: RateLimitQuotaService
    rate_limit: RateLimitService
    clock: Clock
    channel: grpc.aio.Channel

    def stream(self, channel: grpc.aio.Channel | None = None) -> Any:
        """Open a stream."""
        return (channel or self.channel).stream_stream(
            f"/{SERVICE}/StreamRateLimitQuotas",
            _bytes,
            rlqs_pb2.RateLimitQuotaResponse.FromString,
        )(timeout=TIMEOUT)

    async def tell(self, stream: Any, message: Any) -> dict[Any, Any]:
        """Send a report and return the next answer."""
        await stream.write(message)
        return described(await stream.read())

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until the server has got so far."""
        while not holds():  # noqa: ASYNC110 - what it waits for is inside the server
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def lab(store: Store | None = None, options: QuotaOptions | None = None) -> AsyncIterator[Lab]:
    """Run the server."""
    clock, limits, store = Clock(), limits_of(CONFIG), MemoryStore() if store is None else store
    service = RateLimitQuotaService(
        limits, store, clock=clock, monotonic=clock, options=options or QuotaOptions()
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(service.handlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Lab(service, RateLimitService(lambda: limits, store, clock), clock, channel)
    finally:
        await server.stop(0)


def run(scenario: Callable[[Lab], Awaitable[None]], **options: Any) -> None:
    """Run `scenario` against a fresh lab."""

    async def main() -> None:
        async with lab(**options) as running:
            await asyncio.wait_for(scenario(running), TIMEOUT)

    asyncio.run(main())


async def status(stream: Any) -> tuple[grpc.StatusCode, str]:
    """Return the status that ends a stream, however the client library reports it."""
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
        return await stream.code(), await stream.details()
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""


def test_a_report_subscribes_and_is_answered() -> None:
    """The first report gets half of the limit, the next one by demand, a new bucket in it gets its own."""

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        assert await lab.tell(stream, first(TENANT)) == {KEY: (32.0, 32)}
        lab.clock.now += 5 * SECOND
        told = await lab.tell(stream, reports((TENANT, 300, 100), (USER, 1, 0)))
        assert told[KEY] == (60.0, 60)
        assert told[("user", "u"),] == (pytest.approx(15 / 16, rel=0.01), 2)
        assert (len(lab.service.quotas.streams), lab.service.quotas.buckets) == (1, 2)
        stream.cancel()

    run(scenario)


def test_others_are_told_when_an_envoy_comes_and_when_limits_change() -> None:
    """Nobody has to ask."""

    async def scenario(lab: Lab) -> None:
        one, two = lab.stream(), lab.stream()
        await lab.tell(one, first(TENANT))
        lab.clock.now += 5 * SECOND
        assert await lab.tell(one, reports((TENANT, 400, 0))) == {KEY: (60.0, 60)}
        await two.write(first(TENANT))
        assert described(await one.read()) == {KEY: (30.0, 30)}
        ((rate, _),) = described(await two.read()).values()
        assert 0 < rate <= 4
        lab.service.use(limits_of("domain: d\n"))
        assert described(await one.read()) == described(await two.read()) == {KEY: "allow"}
        one.cancel()
        two.cancel()

    run(scenario)


def test_a_stream_that_ends_frees_its_place() -> None:
    """Ended, cancelled or half-closed: nothing of it stays but what its Envoy may still use."""

    async def scenario(lab: Lab) -> None:
        for end in ("cancel", "done_writing"):
            stream = lab.stream()
            await lab.tell(stream, first(TENANT))
            ended = getattr(stream, end)()
            if asyncio.iscoroutine(ended):
                await ended
            await lab.until(lambda: not lab.service.quotas.streams and not lab.service.quotas.buckets)
        assert not lab.service._ends

    run(scenario)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"\xff\xff\xff", "not a RateLimitQuotaUsageReports"),
        (first(TENANT, domain=""), "the first report of a stream names its domain"),
        (reports((TENANT, 1, 0), (TENANT, 1, 0)), "a report has the same bucket twice"),
        (reports((TENANT, 1, 0), elapsed=-1), "the time elapsed is negative"),
        (first({"tenant": "a" * 5000}), "a bucket id has more than 4096 characters"),
        (first(*({"tenant": str(number)} for number in range(6))), "a report has more than 5 buckets"),
    ],
)
def test_a_bad_report_ends_its_own_stream(message: Any, text: str) -> None:
    """With a status that says what is wrong; other streams go on."""

    async def scenario(lab: Lab) -> None:
        good, bad = lab.stream(), lab.stream()
        await lab.tell(good, first(TENANT))
        await bad.write(message)
        assert await status(bad) == (grpc.StatusCode.INVALID_ARGUMENT, text)
        lab.clock.now += 5 * SECOND
        assert await lab.tell(good, reports((TENANT, 400, 0))) == {KEY: (60.0, 60)}
        assert lab.service.quotas.refused()["malformed",] == 1
        good.cancel()

    run(scenario, options=QuotaOptions(max_buckets=5))


def test_too_many_streams_are_refused() -> None:
    """Those that are there are served on."""

    async def scenario(lab: Lab) -> None:
        good = lab.stream()
        await lab.tell(good, first(TENANT))
        one_too_many = lab.stream()
        await one_too_many.write(first(TENANT))
        assert await status(one_too_many) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "there are too many streams",
        )
        lab.clock.now += 5 * SECOND
        assert await lab.tell(good, reports((TENANT, 400, 0))) == {KEY: (60.0, 60)}
        good.cancel()

    run(scenario, options=QuotaOptions(max_streams=1))


def test_a_bug_ends_one_stream_and_shows_nothing() -> None:
    """The caller sees `internal error`, the log has the rest, the next stream is served."""

    class Broken(MemoryStore):
        def spend(self, spends: Sequence[Spend], now: int) -> list[Outcome]:
            raise ZeroDivisionError("secret inside")

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        with structlog.testing.capture_logs() as lines:
            await stream.write(first(USER))
            assert await status(stream) == (grpc.StatusCode.INTERNAL, "internal error")
        assert [line["event"] for line in lines] == ["rlqs stream failed"]
        stream = lab.stream()
        assert await lab.tell(stream, first(TENANT)) != {}
        stream.cancel()

    run(scenario, store=Broken())


def test_closing_ends_every_stream_well() -> None:
    """Envoys see the end of the stream, no failure, and go elsewhere; new streams are told to."""

    async def scenario(lab: Lab) -> None:
        streams = [lab.stream() for _ in range(3)]
        for stream in streams:
            await lab.tell(stream, first(TENANT))
        lab.service.close()
        for stream in streams:
            assert await status(stream) == (grpc.StatusCode.OK, "")
        assert not lab.service.quotas.streams
        stream = lab.stream()
        # It may have ended before anything is written to it.
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stream.write(first(TENANT))
        assert (await status(stream))[0] is grpc.StatusCode.UNAVAILABLE

    run(scenario)


def test_stopping_the_server_ends_a_stream_that_is_not_read() -> None:
    """A drain is never held up by it for longer than its grace."""
    left: list[Quotas] = []

    async def scenario(lab: Lab) -> None:
        slow = lab.stream()
        large = [{"tenant": f"{number:03}" + "x" * 4000} for number in range(400)]
        for _ in range(20):
            await slow.write(first(*large))
        quotas = lab.service.quotas
        await lab.until(lambda: any(stream.due for stream in quotas.streams))
        lab.service.close()
        left.append(quotas)

    run(scenario)
    assert not left[0].streams
    assert not left[0].buckets


def test_a_stream_that_is_cancelled_twice_is_forgotten() -> None:
    """Also while a write is under way that never ends."""

    class Stuck:
        """A call whose peer never reads."""

        def __init__(self) -> None:
            self.writing = asyncio.Event()

        async def write(self, _message: bytes) -> None:
            self.writing.set()
            await asyncio.Event().wait()

    async def one_report() -> AsyncIterator[bytes]:
        yield first(TENANT).SerializeToString()
        await asyncio.Event().wait()

    async def scenario(lab: Lab) -> None:
        context = Stuck()
        call = asyncio.ensure_future(lab.service._run(one_report(), context))  # type: ignore[arg-type]
        await context.writing.wait()
        for _ in range(2):
            call.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not lab.service.quotas.streams
        assert not lab.service.quotas.buckets

    run(scenario)


def test_a_bad_report_of_a_stream_that_is_not_read_ends_it_once_it_is() -> None:
    """What was being written is finished first."""

    async def scenario(lab: Lab) -> None:
        slow = lab.stream()
        large = [{"tenant": f"{number:03}" + "x" * 4000} for number in range(400)]
        for _ in range(10):
            await slow.write(first(*large))
        await slow.write(b"\xff\xff")
        quotas = lab.service.quotas
        await lab.until(lambda: not lab.service._ends)
        assert (await status(slow))[0] is grpc.StatusCode.INVALID_ARGUMENT
        await lab.until(lambda: not quotas.streams)

    run(scenario)


def test_a_stream_that_is_not_read_holds_nobody_up() -> None:
    """Its answers wait for it, others get theirs; when it goes, nothing of it stays, and nothing is logged."""

    async def scenario(lab: Lab) -> None:
        slow, good = lab.stream(), lab.stream()
        large = [{"tenant": f"{number:03}" + "x" * 4000} for number in range(400)]
        for _ in range(40):
            await slow.write(first(*large))
        quotas = lab.service.quotas
        await lab.until(lambda: any(stream.due for stream in quotas.streams))
        for _ in range(10):
            lab.clock.now += 5 * SECOND
            await lab.tell(good, reports((TENANT, 400, 0)))
        (waiting,) = [stream for stream in quotas.streams if len(stream.subscriptions) > 1]
        assert waiting.due, "it would be no slow reader"
        assert len(waiting.due) <= len(large)
        lab.service.close()
        assert await status(good) == (grpc.StatusCode.OK, "")
        with structlog.testing.capture_logs() as lines:
            slow.cancel()
            await lab.until(lambda: not quotas.streams and not quotas.buckets)
        assert lines == []

    run(scenario)


@pytest.mark.parametrize("make_store", [MemoryStore, Remote])
def test_reported_calls_count_in_rls(make_store: Callable[[], Store]) -> None:
    """What Envoys let through is gone from the counter that `ShouldRateLimit` asks, and the other way round."""

    async def ask(lab: Lab, entries: dict[str, str], hits: int) -> Any:
        message = request(entries, hits=hits)
        if isinstance(lab.rate_limit._store, MemoryStore):
            return answer(lab.rate_limit, message)
        found = lab.rate_limit.should_rate_limit(message.SerializeToString(), CALL)
        assert not isinstance(found, bytes)
        return rls_pb2.RateLimitResponse.FromString(await found)

    async def scenario(lab: Lab) -> None:
        stream = lab.stream()
        await lab.tell(stream, first(USER, EXPORT))
        lab.clock.now += 5 * SECOND
        await lab.tell(stream, reports((USER, 19, 7), (EXPORT, 29, 0)))
        code = await ask(lab, USER, 30)
        assert (code.overall_code, code.statuses[0].limit_remaining) == (OK, 10)
        code = await ask(lab, EXPORT, 1)
        assert (code.overall_code, code.statuses[0].limit_remaining) == (OK, 29)
        # 10 are left for 50 seconds: an Envoy that asks now is told, at the latest by its next report.
        lab.clock.now += 5 * SECOND
        told = await lab.tell(stream, reports((USER, 0, 100)))
        assert told[("user", "u"),][0] == pytest.approx(10 / 50 * 15 / 16, rel=0.01)
        assert (await ask(lab, USER, 11)).overall_code == OVER_LIMIT
        stream.cancel()

    run(scenario, store=make_store())


def test_while_the_store_is_down_quotas_are_given_out_and_calls_counted_later() -> None:
    """Envoys keep their shares; what they report meanwhile is charged once the store is back."""

    async def scenario(lab: Lab) -> None:
        store.is_down = True
        stream = lab.stream()
        assert await lab.tell(stream, first(USER)) != {}
        lab.clock.now += 5 * SECOND
        await lab.tell(stream, reports((USER, 20, 0)))
        assert len(store.inner) == 0
        store.is_down = False
        lab.clock.now += 5 * SECOND
        await lab.tell(stream, reports((USER, 20, 0)))
        assert (
            answer(RateLimitService(lambda: limits_of(CONFIG), store.inner, lab.clock), request(USER))
            .statuses[0]
            .limit_remaining
            == 60 - 41 - 1
        )
        stream.cancel()

    store = Remote()
    run(scenario, store=store)


def _bytes(message: Any) -> bytes:
    data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return data
