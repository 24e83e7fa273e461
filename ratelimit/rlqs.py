"""`envoy.service.rate_limit_quota.v3.RateLimitQuotaService`: a share of each limit for every Envoy.

One stream is one Envoy. A report is answered with an assignment for each bucket in it; Envoys are told
without having asked when another one comes, and when the limits change. Writing waits for an Envoy that reads
slowly, reading and the other streams do not. A stream whose reports make no sense ends with a status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
import structlog

from garrison.errors import DependencyError, RequestError
from garrison.transport import StatusCode, StatusError
from ratelimit.quotas import Quota, QuotaOptions, Quotas, Stream
from ratelimit.rlqs_messages import build_response, parse_reports
from ratelimit.store.base import Spend, Store
from ratelimit.tree import Limits

SERVICE = "envoy.service.rate_limit_quota.v3.RateLimitQuotaService"

# Buckets that are read, charged or answered before other work of the process gets its turn: a millisecond.
_AT_ONCE = 50
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

_Context = grpc.aio.ServicerContext[bytes, bytes]
_log = structlog.get_logger()


class RateLimitQuotaService:
    """Serves quotas of the `limits` in force; what is reported is charged to `store`, as RLS calls are.

    `clock` returns nanoseconds since the Unix epoch, `monotonic` those of a clock that never steps.
    """

    def __init__(
        self,
        limits: Limits,
        store: Store,
        *,
        clock: Callable[[], int],
        monotonic: Callable[[], int],
        options: QuotaOptions,
    ) -> None:
        self.quotas = Quotas(limits, options)
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._options = options
        self._closed = False
        # What ends each stream, and what makes it look.
        self._ends: dict[asyncio.Event, asyncio.Event] = {}

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return the handlers for `grpc.aio.Server.add_generic_rpc_handlers`."""
        # Without (de)serializers: a message that cannot be read is answered here, not by grpcio.
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._serve)
        return (grpc.method_handlers_generic_handler(SERVICE, {"StreamRateLimitQuotas": method}),)

    def use(self, limits: Limits) -> None:
        """Put other limits into force, and tell every Envoy."""
        self.quotas.use(limits)

    def close(self) -> None:
        """End every stream, so that Envoys go to the server that takes over; their assignments last on."""
        self._closed = True
        for end, due in self._ends.items():
            end.set()
            due.set()

    async def _serve(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        try:
            await self._run(requests, context)
        except StatusError as error:
            code, text = error.code, error.message
        except RequestError as error:
            self.quotas.counters.malformed += 1
            code, text = StatusCode.INVALID_ARGUMENT, str(error)
        except Exception:  # noqa: BLE001 - a bug here must not show the caller our insides
            if context.done():
                # Its caller went away while something was being written.
                return
            _log.exception("rlqs stream failed", peer=context.peer())
            code, text = StatusCode.INTERNAL, "internal error"
        else:
            return
        await context.abort(_GRPC_CODES[int(code)], text)

    async def _run(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        if self._closed:
            raise StatusError(StatusCode.UNAVAILABLE, "the server is shutting down")
        due, end = asyncio.Event(), asyncio.Event()
        stream = Stream(due.set)
        if not self.quotas.open(stream):
            raise StatusError(StatusCode.RESOURCE_EXHAUSTED, "there are too many streams")
        self._ends[end] = due
        reading = asyncio.ensure_future(self._read(stream, requests))
        writing = asyncio.ensure_future(self._write(stream, due, end, context))
        try:
            done, _ = await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._ends.pop(end, None)
            end.set()
            due.set()
            reading.cancel()
            try:
                # A write that has begun is not cancelled: grpcio cannot end a call that has one under way.
                await asyncio.gather(reading, writing, return_exceptions=True)
            finally:
                # Also when the call is cancelled again.
                writing.cancel()
                self.quotas.close(stream, self._monotonic())

    async def _read(self, stream: Stream, requests: AsyncIterator[bytes]) -> None:
        async for message in requests:
            touched: list[Quota] = []
            for reports in parse_reports(message, self._options.max_buckets, _AT_ONCE):
                touched += self.quotas.receive(stream, reports, self._monotonic())
                await asyncio.sleep(0)
            await self._charge(list(dict.fromkeys(touched)))
            stream.wake()

    async def _write(self, stream: Stream, due: asyncio.Event, end: asyncio.Event, context: _Context) -> None:
        while not end.is_set():
            await due.wait()
            due.clear()
            while not end.is_set() and (taken := self.quotas.take(stream, _AT_ONCE, self._monotonic())):
                await context.write(build_response(taken, self._options.ttl_seconds))
                self.quotas.delivered(stream, taken, self._monotonic())

    async def _charge(self, quotas: Sequence[Quota]) -> None:
        """Charge what was reported, and let what is left bound what is given out.

        While the store cannot tell, quotas are given out as if nobody else used them.
        """
        for start in range(0, len(quotas), _AT_ONCE):
            spends: list[Spend] = []
            slices: list[tuple[Quota, slice]] = []
            for quota in quotas[start : start + _AT_ONCE]:
                first = len(spends)
                spends += quota.take_spends(first)
                slices.append((quota, slice(first, len(spends))))
            try:
                answer = self._store.spend(spends, self._clock())
                outcomes = answer if isinstance(answer, list) else await answer
            except DependencyError:
                for quota, part in slices:
                    quota.put_back(spends[part])
                return
            for quota, part in slices:
                quota.charged(spends[part], outcomes[part], self._options.replicas)
            await asyncio.sleep(0)
