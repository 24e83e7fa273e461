"""Unary gRPC on libnghttp2: one protocol object per connection, one pass per read.

What arrived together is decided in one pass and answered in one write, unless it takes so long that others
would have to wait for it (`turns`). The common request, one HEADERS and one DATA frame, never meets a buffer;
whatever else HTTP/2 and gRPC allow takes the slow path through `MessageReader`. All knowledge of `ngh2` is in
this module.

What bounds a hostile peer, by what it does:

- rapid resets, PING and SETTINGS floods, endless CONTINUATION, big header blocks: libnghttp2's counters
  close the connection (`_configuration`);
- a peer that sends half of something: `Limits.handshake_seconds`, then `Limits.sweep_seconds`;
- a peer that does not read: we stop reading when the transport's buffer is full, and close when responses
  that its windows hold back exceed `Limits.max_queued_bytes` or do not move;
- a peer that sends a lot: one budget for unfinished large requests per server, and one share of the loop's
  time; no more is read of it while what it has sent waits for its turn.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

import structlog
from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    Event,
    NGH2Error,
    PingAcknowledged,
    RequestReceived,
    Role,
    Setting,
    SettingsReceived,
    StreamClosed,
    TrailersReceived,
    WindowUpdated,
)

from garrison.transport import Call, Method, Methods, Peer, StatusCode, StatusError
from garrison.transport.faults import answer_fault
from garrison.transport.turns import Turns
from garrison.transport.wire import (
    PREFIX,
    PREFIX_BYTES,
    RESPONSE,
    TRAILERS_OK,
    Fields,
    MessageReader,
    http_error,
    is_grpc,
    parse_timeout,
    too_large,
    trailers_only,
)

_log = structlog.get_logger(__name__)

_READ_BYTES = 256 * 1024
_WRITE_BYTES = 1 << 20
# Requests up to this size are not charged to the server's budget: streams per connection bound them.
_SMALL_BYTES = 64 * 1024
_DRAIN_PING = b"drained?"
# How long a peer may take to answer the drain's PING, and to close once everything is said.
_DRAIN_PING_SECONDS = 1.0
_LINGER_SECONDS = 2.0
# How long answers wait for others of the same connection that are decided in its next turns: a write costs as
# much as deciding a call.
_MOST_HELD_SECONDS = 0.001

_pack_prefix = PREFIX.pack
_Awaited = tuple[Method, str, Call, float | None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server grants its callers.

    A request that stays unfinished for one to two `sweep_seconds` is answered as expired; a connection
    that is silent for two gets a PING, and is closed after four.
    """

    max_message_bytes: int = 64 << 20
    # Responses that one connection's windows may hold back.
    max_queued_bytes: int = 64 << 20
    max_concurrent_streams: int = 1000
    max_connections: int = 4096
    max_header_list_bytes: int = 64 * 1024
    window_bytes: int = 1 << 20
    handshake_seconds: float = 10.0
    sweep_seconds: float = 30.0


@dataclass(slots=True)
class Shared:
    """What the connections of one server have in common. Belongs to one event loop."""

    methods: Methods
    limits: Limits
    # Bytes of unfinished large requests, over all connections.
    buffered_bytes: int = 0
    connections: set[H2Connection] = field(default_factory=set)
    # Set when a connection has ended.
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    routes: dict[bytes, tuple[Method, str]] = field(init=False)
    turns: Turns = field(init=False)
    # One read buffer for all: what is in it is consumed before the loop runs anything else.
    read_buffer: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self.routes = {path.encode(): (method, path) for path, method in self.methods.items()}
        self.read_buffer = memoryview(bytearray(_READ_BYTES))
        self.turns = Turns(asyncio.get_running_loop().call_soon, perf_counter)

    @property
    def budget_bytes(self) -> int:
        """How much unfinished large requests may hold together."""
        return 4 * self.limits.max_message_bytes


def _configuration(limits: Limits) -> Configuration:
    return Configuration(
        max_inbound_header_list_size=limits.max_header_list_bytes,
        # An Envoy under load resets every call that its own timeout ended; each costs us microseconds.
        # The limit is for peers that do nothing else (CVE-2023-44487).
        stream_reset_rate_limit=(10_000, 1_000),
    )


class _Unfinished:
    """A request whose message did not come in one piece."""

    __slots__ = ("charged", "reader", "request")

    def __init__(self, request: _Awaited, limit: int) -> None:
        self.request = request
        self.reader = MessageReader(limit)
        self.charged = 0


class H2Connection(asyncio.BufferedProtocol):
    """One HTTP/2 connection: bytes in, calls decided, bytes out.

    `identify` names the peer once the transport is there (after the TLS handshake, if any); it returns
    None for one that must not be served.
    """

    def __init__(self, shared: Shared, identify: Callable[[asyncio.BaseTransport], Peer | None]) -> None:
        self._shared = shared
        self._routes = shared.routes
        self._limit = shared.limits.max_message_bytes
        self._max_queued = shared.limits.max_queued_bytes
        self._read_buffer = shared.read_buffer
        self._identify = identify
        self._loop = asyncio.get_running_loop()
        self._http2 = Connection(Role.SERVER, _configuration(shared.limits))
        # Requests not yet handed to a handler, and calls whose handler is at work, by stream.
        self._open: dict[int, _Awaited | _Unfinished] = {}
        self._tasks: dict[int, tuple[asyncio.Task[None], Awaitable[bytes]]] = {}
        # The headers of the last call that was routed, and what they mean: request and timeout in seconds.
        self._usual_headers: tuple[tuple[bytes, bytes], ...] = ()
        self._usual: tuple[_Awaited, float | None]
        # Answered before the request ended: to be reset once the answer is out.
        self._early: set[int] = set()
        # What arrived and was not looked at yet, and of how many bytes it was made.
        self._arrived: deque[Event] = deque()
        self._arrived_bytes = 0
        self._has_asked = False
        self.served = 0.0
        self._established = False
        self._reading = True
        self._paused = False
        self._draining = False
        self._ended = False
        self._flush_scheduled = False
        # When answers leave at the latest (`perf_counter`), though there is more to decide; 0: none wait.
        self._flush_by = 0.0
        self._silent_sweeps = 0
        self._open_before: set[int] = set()
        self._stuck_bytes = 0

    # -- transport side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the peer, or hang up on one that cannot be identified."""
        self._transport = cast("asyncio.Transport", transport)
        limits = self._shared.limits
        peer = self._identify(transport)
        self._timer = self._loop.call_later(limits.handshake_seconds, self._expire_handshake)
        self._shared.connections.add(self)
        if peer is None or len(self._shared.connections) > limits.max_connections:
            self._ended = True
            self._transport.abort()
            return
        self._peer = peer
        self._transport.set_write_buffer_limits(high=_WRITE_BYTES)
        self._http2.initiate_connection(
            {
                Setting.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
                Setting.INITIAL_WINDOW_SIZE: limits.window_bytes,
                Setting.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
            }
        )
        self._http2.set_local_window_size(limits.window_bytes)
        self._flush()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Forget the connection and stop the handlers that still work for it."""
        self._ended = True
        self._timer.cancel()
        tasks, self._tasks = self._tasks, {}
        for work in tasks.values():
            _stop(*work)
        for stream_id in list(self._open):
            self._take(stream_id)
        self._arrived.clear()
        self._shared.connections.discard(self)
        self._shared.gone.set()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Return the server's read buffer."""
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what arrived, and ask for a turn to decide it."""
        if self._ended:
            return
        self._silent_sweeps = 0
        try:
            self._http2.receive_data(self._read_buffer[:nbytes])
            self._arrived.extend(self._http2.events())
        except NGH2Error as error:
            self._fail(error)
            return
        if not self._has_asked:
            self._has_asked = True
            self._shared.turns.ask(self)
        self._arrived_bytes += nbytes
        if self._arrived_bytes > _READ_BYTES:
            # It brings more than there is time for.
            self._read(wanted=False)

    def work(self, until: float) -> bool:
        """Decide what arrived and write the answers, as much as can be done by then (`perf_counter`)."""
        try:
            is_done = self._ended or self._process(self._arrived, until)
            if is_done:
                self._has_asked, self._arrived_bytes = False, 0
                self._flush()
                self._read(wanted=True)
            elif self._flush_by == 0.0:
                self._flush_by = until + _MOST_HELD_SECONDS
            elif until > self._flush_by:
                self._flush()
        except NGH2Error as error:
            self._fail(error)
        except Exception:  # noqa: BLE001 - a bug here; other connections are not to suffer for it
            _log.exception("connection failed", peer=self._peer.address)
            self._fail(None)
        else:
            return is_done
        return True

    def _read(self, *, wanted: bool) -> None:
        """Read on, or stop reading; not while the peer does not take its answers."""
        wanted = wanted and not self._paused
        if wanted is not self._reading and not self._transport.is_closing():
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def eof_received(self) -> None:
        """Answer what was sent before, and close: a peer that hung up reads no later answers."""
        self.work(math.inf)

    def pause_writing(self) -> None:
        """Stop reading: the peer does not take its answers."""
        self._paused = True
        self._read(wanted=False)

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._read(wanted=not self._arrived)
        self._flush_soon()

    # -- one pass

    def _process(self, events: deque[Event], until: float) -> bool:
        """Go through `events`; return whether that was all of them before the time `until`."""
        waiting = self._open
        while events:
            event = events.popleft()
            if isinstance(event, DataReceived):
                request = waiting.get(event.stream_id)
                if type(request) is tuple and event.end_stream:
                    data = event.data
                    size = len(data) - PREFIX_BYTES
                    if 0 <= size <= self._limit and data.startswith(_pack_prefix(0, size)):
                        del waiting[event.stream_id]
                        self._call(event.stream_id, request, data[PREFIX_BYTES:])
                        if perf_counter() >= until:
                            return not events
                        continue
                self._receive(event.stream_id, event.data, end=event.end_stream)
            elif isinstance(event, RequestReceived):
                self._begin(event)
            elif isinstance(event, StreamClosed):
                # Empty in the common case, where the call was answered in the pass that brought it.
                if waiting or self._tasks or self._early:
                    self._forget(event.stream_id)
            else:
                self._process_rare(event)
        return True

    def _begin(self, event: RequestReceived) -> None:
        headers = event.headers
        if headers == self._usual_headers:
            # Envoy sends the same ones with nearly every call; what they mean was worked out before.
            request, timeout = self._usual
            if timeout is not None:
                request = (*request[:3], self._loop.time() + timeout)
            self._open[event.stream_id] = request
            if event.end_stream:
                self._receive(event.stream_id, b"", end=True)
            return
        fields = dict(headers)
        route = self._routes.get(fields.get(b":path", b""))
        stream_id = event.stream_id
        if not is_grpc(fields.get(b"content-type", b"")):
            self._refuse(stream_id, http_error(415, "content-type is not application/grpc"), event)
        elif fields.get(b":method") != b"POST":
            self._refuse(stream_id, http_error(405, "method is not POST"), event)
        elif route is None:
            status = StatusError(StatusCode.UNIMPLEMENTED, "unknown method")
            self._refuse(stream_id, trailers_only(status), event)
        else:
            seconds = None
            spelled = fields.get(b"grpc-timeout")
            if spelled is not None:
                try:
                    seconds = parse_timeout(spelled)
                except ValueError as error:
                    self._answer_fault(stream_id, *route, StatusError(StatusCode.INTERNAL, str(error)))
                    if not event.end_stream:
                        self._early.add(stream_id)
                    return
            call = Call(self._peer, headers)
            self._usual_headers, self._usual = headers, ((*route, call, None), seconds)
            deadline = None if seconds is None else self._loop.time() + seconds
            self._open[stream_id] = (*route, call, deadline)
            if event.end_stream:
                self._receive(stream_id, b"", end=True)

    def _refuse(self, stream_id: int, fields: Fields, event: RequestReceived) -> None:
        self._answer_fields(stream_id, fields)
        if not event.end_stream:
            self._early.add(stream_id)

    def _receive(self, stream_id: int, data: bytes, *, end: bool) -> None:
        """Take a part of a request, the slow way."""
        request = self._open.get(stream_id)
        if request is None:
            # Already answered; what still comes is dropped.
            if end:
                self._early.discard(stream_id)
            return
        if type(request) is tuple:
            request = self._open[stream_id] = _Unfinished(request, self._limit)
        request = cast("_Unfinished", request)
        try:
            request.reader.feed(data)
            if not end:
                self._charge(request)
                return
            message = request.reader.message()
        except StatusError as error:
            self._take(stream_id)
            if not end:
                self._early.add(stream_id)
            method, path, _, _ = request.request
            self._answer_fault(stream_id, method, path, error)
        else:
            self._take(stream_id)
            self._call(stream_id, request.request, message)

    def _charge(self, request: _Unfinished) -> None:
        size = len(request.reader)
        if size <= _SMALL_BYTES:
            return
        shared = self._shared
        shared.buffered_bytes += size - request.charged
        request.charged = size
        if shared.buffered_bytes > shared.budget_bytes:
            raise too_large(self._limit)

    def _take(self, stream_id: int) -> _Awaited | None:
        """Remove and return what waits on a stream, and give its bytes back to the budget."""
        request = self._open.pop(stream_id, None)
        if isinstance(request, _Unfinished):
            self._shared.buffered_bytes -= request.charged
            return request.request
        return request

    def _call(self, stream_id: int, request: _Awaited, message: bytes) -> None:
        method, path, call, deadline = request
        try:
            if deadline is not None and deadline <= self._loop.time():
                raise _expired()  # noqa: TRY301 - one place turns failures into answers
            answer = method.handler(message, call)
            if type(answer) is not bytes:
                if inspect.isawaitable(answer):
                    task = self._loop.create_task(self._finish(stream_id, request, answer))
                    self._tasks[stream_id] = task, answer
                    return
                raise TypeError(f"handler returned {type(answer).__name__}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - whatever a handler raises ends its call only
            self._answer_fault(stream_id, method, path, error)
        else:
            self._answer(stream_id, answer)

    async def _finish(self, stream_id: int, request: _Awaited, awaitable: Awaitable[bytes]) -> None:
        """Await a handler, bounded by the call's deadline, and queue its answer."""
        method, path, _, deadline = request
        error: Exception
        try:
            if deadline is None:
                answer = await awaitable
            else:
                answer = await _before(deadline, awaitable)
            if not isinstance(answer, bytes):
                raise TypeError(f"handler returned {type(answer).__name__}")  # noqa: TRY301
        except asyncio.CancelledError:
            if self._tasks.pop(stream_id, None) is None:
                # By us: the caller reset the stream or went away.
                raise
            error = RuntimeError("handler was cancelled")
        except Exception as failure:  # noqa: BLE001 - as in _call
            error = failure
        else:
            if self._tasks.pop(stream_id, None) is not None:
                self._answer(stream_id, answer)
                self._flush_soon()
            return
        self._tasks.pop(stream_id, None)
        if not self._ended:
            self._answer_fault(stream_id, method, path, error)
            self._flush_soon()

    def _process_rare(self, event: Event) -> None:
        if isinstance(event, TrailersReceived):
            # Trailers end the request; unary gRPC gives them no meaning.
            self._receive(event.stream_id, b"", end=True)
        elif isinstance(event, SettingsReceived):
            if not self._established:
                self._established = True
                self._timer.cancel()
        elif isinstance(event, PingAcknowledged):
            if event.opaque_data == _DRAIN_PING:
                self._say_goodbye()
        elif isinstance(event, WindowUpdated):
            # Progress, as far as the sweep is concerned.
            self._stuck_bytes = 0
        elif isinstance(event, ConnectionClosed):
            self._end()

    def _forget(self, stream_id: int) -> None:
        self._take(stream_id)
        self._early.discard(stream_id)
        work = self._tasks.pop(stream_id, None)
        if work is not None:
            _stop(*work)

    # -- answers

    def _answer(self, stream_id: int, message: bytes) -> None:
        http2 = self._http2
        try:
            http2.send_response(stream_id, RESPONSE)
            http2.send_data(stream_id, _pack_prefix(0, len(message)) + message)
            http2.send_trailers(stream_id, TRAILERS_OK)
        except NGH2Error:
            # The caller reset the stream, perhaps in this very pass.
            return
        if len(message) > _SMALL_BYTES and http2.queued_body_size() > self._max_queued:
            # Not to wait for the end of the pass: it may hold a thousand such calls.
            self._write()
            self._check_queue()

    def _answer_fields(self, stream_id: int, fields: Fields) -> None:
        try:
            self._http2.send_response(stream_id, fields, end_stream=True)
        except NGH2Error:
            return

    def _answer_fault(self, stream_id: int, method: Method, path: str, error: Exception) -> None:
        answer = answer_fault(path, method, error)
        if isinstance(answer, bytes):
            self._answer(stream_id, answer)
        else:
            self._answer_fields(stream_id, trailers_only(answer))

    def _flush_soon(self) -> None:
        """Flush once for all handlers that finish in this turn of the loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_scheduled = False
        try:
            self._flush()
        except NGH2Error as error:
            self._fail(error)

    def _flush(self) -> None:
        if self._ended:
            return
        self._flush_by = 0.0
        self._write()
        events = self._http2.events()
        if events:
            # They say what became of answers, and do not have to wait for what arrived.
            self._process(deque(events), math.inf)
            if self._ended:
                return
        if self._early and not self._paused:
            self._reset_early()
        self._check_queue()

    def _write(self) -> None:
        http2 = self._http2
        while not self._paused:
            data = http2.data_to_send(_WRITE_BYTES)
            if data:
                self._transport.write(data)
            if len(data) < _WRITE_BYTES:
                break

    def _check_queue(self) -> None:
        if self._http2.queued_body_size() > self._max_queued:
            self._terminate(ErrorCode.ENHANCE_YOUR_CALM)

    def _reset_early(self) -> None:
        """Tell callers whose answer is out to stop sending (RFC 9113, 8.1)."""
        http2 = self._http2
        out = [stream_id for stream_id in self._early if not http2.queued_body_size(stream_id)]
        for stream_id in out:
            self._early.discard(stream_id)
            http2.reset_stream(stream_id, ErrorCode.NO_ERROR)
        if out:
            self._transport.write(http2.data_to_send())

    # -- the end

    def drain(self) -> None:
        """Ask the peer to take new calls elsewhere; what it has sent until it knows is answered.

        Two GOAWAYs (RFC 9113, 6.8): the first refuses nothing. When its PING is answered, every call that
        was on its way has arrived, and the second one names the last of them.
        """
        if self._draining or self._ended:
            return
        self._draining = True
        self._http2.send_shutdown_notice()
        self._http2.ping(_DRAIN_PING)
        self._timer.cancel()
        self._timer = self._loop.call_later(_DRAIN_PING_SECONDS, self._say_goodbye)
        self._flush_now()

    def _say_goodbye(self) -> None:
        self._timer.cancel()
        if not self._ended:
            self._http2.send_goaway()
            self._flush_soon()

    def close(self) -> None:
        """End the connection now; calls in flight are lost."""
        if not self._ended:
            self._terminate(ErrorCode.NO_ERROR)
        self._transport.abort()

    def sweep(self) -> None:
        """Look for what does not move. Called every `Limits.sweep_seconds`."""
        if self._ended:
            return
        for stream_id in self._open_before & self._open.keys():
            request = self._take(stream_id)
            if request is not None:
                self._early.add(stream_id)
                self._answer_fault(stream_id, request[0], request[1], _expired())
        self._open_before = set(self._open)
        stuck_bytes = self._http2.queued_body_size()
        self._silent_sweeps += 1
        if (stuck_bytes and stuck_bytes == self._stuck_bytes) or self._silent_sweeps > 4:
            self._terminate(ErrorCode.ENHANCE_YOUR_CALM)
            return
        self._stuck_bytes = stuck_bytes
        if self._silent_sweeps == 2:
            self._http2.ping()
        self._flush_now()

    def _expire_handshake(self) -> None:
        self._fail(None)

    def _terminate(self, code: ErrorCode) -> None:
        try:
            self._http2.terminate_connection(code)
            self._transport.write(self._http2.data_to_send())
        except NGH2Error as error:
            self._fail(error)
        else:
            self._end()

    def _fail(self, error: NGH2Error | None) -> None:
        """End a connection whose HTTP/2 state is lost."""
        if error is not None:
            _log.info("connection refused", peer=self._peer.address, error=str(error))
        if not self._ended:
            # The engine gives no more bytes, so the last frame is made here (RFC 9113, 6.8): we cannot say
            # which streams were processed, so none is declared safe to retry.
            code = ErrorCode.ENHANCE_YOUR_CALM if error is not None else ErrorCode.INTERNAL_ERROR
            self._transport.write(b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff" + int(code).to_bytes(4, "big"))
            self._end()

    def _end(self) -> None:
        """Close once the peer has read: closing at once could destroy answers it has not read yet."""
        if self._ended:
            return
        self._ended = True
        self._timer.cancel()
        self._timer = self._loop.call_later(_LINGER_SECONDS, self._transport.abort)
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()
        except OSError:
            # The peer has hung up already.
            self._transport.abort()


async def _before(deadline: float, awaitable: Awaitable[bytes]) -> bytes:
    """Return what `awaitable` returns; at `deadline`, in the loop's time, it is cancelled.

    Raises:
        StatusError: the deadline came; whatever the handler made of that.

    """
    timeout = asyncio.timeout_at(deadline)
    try:
        async with timeout:
            return await awaitable
    except Exception as error:
        if timeout.expired():
            raise _expired() from error
        raise


def _expired() -> StatusError:
    return StatusError(StatusCode.DEADLINE_EXCEEDED, "deadline exceeded")


def _stop(task: asyncio.Task[None], awaitable: Awaitable[bytes]) -> None:
    """Cancel a call's task; a handler that has not begun never will, and is not to be missed."""
    task.cancel()
    if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED:
        awaitable.close()
