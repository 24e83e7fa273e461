"""What a broken or hostile peer can do to the `ngh2` transport: end its own connection, at most.

After every one of these, the server answers a good call.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    PingReceived,
    ResponseReceived,
    Role,
    Setting,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)

from garrison.transport import Call, Method, Methods, StatusCode, StatusError
from garrison.transport.address import Address
from garrison.transport.h2 import Limits
from garrison.transport.h2_server import H2Server
from garrison.transport.wire import PREFIX

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
DATA, HEADERS, PRIORITY, RST_STREAM, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
Headers = Sequence[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Make one HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream_id) + payload


def request_headers(path: bytes, *more: tuple[bytes, bytes], **replace: bytes) -> list[tuple[bytes, bytes]]:
    """Make the fields of a gRPC request."""
    fields = {
        b":method": replace.get("method", b"POST"),
        b":scheme": b"http",
        b":path": path,
        b":authority": b"localhost",
        b"te": b"trailers",  # codespell:ignore te
        b"content-type": replace.get("content_type", b"application/grpc"),
    }
    return [*fields.items(), *more]


def framed(message: bytes, flags: int = 0) -> bytes:
    """Put gRPC's prefix before a message."""
    return PREFIX.pack(flags, len(message)) + message


class Reply:
    """What came back on one stream."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.data = b""
        self.closed = False
        self.reset: int | None = None

    @property
    def message(self) -> bytes:
        """The one message, of a call that ended well."""
        assert self.headers[b":status"] == b"200"
        assert self.headers[b"grpc-status"] == b"0"
        assert PREFIX.unpack(self.data[:5]) == (0, len(self.data) - 5)
        return self.data[5:]

    @property
    def status(self) -> int:
        """The gRPC status."""
        return int(self.headers[b"grpc-status"])


class Client:
    """An HTTP/2 client that does what a test tells it, also what it should not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int) -> None:
        self.reader, self.writer = reader, writer
        self.http2 = Connection(
            Role.CLIENT, Configuration(peer_max_concurrent_streams=2000, max_send_header_block_length=1 << 21)
        )
        self.http2.initiate_connection({Setting.INITIAL_WINDOW_SIZE: window})
        self.replies: dict[int, Reply] = {}
        self.goaway: int | None = None
        self.pings = 0
        self.ended = False

    def send(self, headers: Headers, *parts: bytes, end: bool = True) -> Reply:
        """Queue a request, with one DATA frame per part."""
        stream_id = self.http2.send_request(headers, end_stream=end and not parts)
        self.replies[stream_id] = Reply()
        for number, part in enumerate(parts, 1):
            self.http2.send_data(stream_id, part, end_stream=end and number == len(parts))
            # One frame per part, not one for all.
            self.flush()
        self.flush()
        return self.replies[stream_id]

    def flush(self) -> None:
        """Hand what is queued to the socket."""
        self.writer.write(self.http2.data_to_send())

    async def pump(self) -> None:
        """Read once."""
        data = await self.reader.read(1 << 16)
        if not data:
            self.ended = True
            return
        self.http2.receive_data(data)
        for event in self.http2.events():
            match event:
                case ResponseReceived() | TrailersReceived():
                    self.replies[event.stream_id].headers.update(event.headers)
                case DataReceived():
                    self.replies[event.stream_id].data += event.data
                case StreamReset():
                    self.replies[event.stream_id].reset = event.error_code
                case StreamClosed():
                    self.replies[event.stream_id].closed = True
                case GoAwayReceived():
                    self.goaway = event.error_code
                case PingReceived():
                    self.pings += 1
                case ConnectionClosed():
                    pass
        self.flush()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until something is so, or the connection ends."""
        while not condition() and not self.ended:
            await self.pump()

    async def call(self, headers: Headers, *parts: bytes) -> Reply:
        """Make a call and wait for its end."""
        reply = self.send(headers, *parts)
        await self.until(lambda: reply.closed)
        return reply

    def close(self) -> None:
        """Hang up."""
        self.writer.transport.abort()


async def connect(address: Address, window: int = 65_535) -> Client:
    """Open a connection."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    return Client(reader, writer, window)


def deny(error: Exception) -> bytes:
    """Answer for a handler that could not."""
    return f"denied: {error}".encode()


async def hang(_message: bytes, _call: Call) -> bytes:
    """Never answer."""
    await asyncio.Event().wait()
    return b""


def refuse(_message: bytes, _call: Call) -> bytes:
    """Refuse with a status."""
    raise StatusError(StatusCode.UNAUTHENTICATED, "who?")


ECHO = request_headers(b"/t.T/Echo")
GUARDED = request_headers(b"/t.T/Guarded")
METHODS: Methods = {
    "/t.T/Echo": Method(lambda message, _call: message),
    "/t.T/Guarded": Method(lambda message, _call: b"allowed " + message, deny),
    "/t.T/Big": Method(lambda message, _call: bytes(int(message))),
    "/t.T/Hang": Method(hang, deny),
    "/t.T/Refuse": Method(refuse),
}


def run(scenario: Callable[[Address], Awaitable[None]], **limits: Any) -> None:
    """Run a scenario against a server, and see the server answer a good call afterwards."""

    async def bounded() -> None:
        loop = asyncio.get_running_loop()
        surprises: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _loop, context: surprises.append(context))
        server = H2Server(METHODS, limits=Limits(**limits))
        (address,) = await server.start([Address.parse("tcp://127.0.0.1:0")])
        async with asyncio.timeout(60):
            await scenario(address)
            good = await connect(address)
            assert (await good.call(ECHO, framed(b"good"))).message == b"good"
            good.close()
            await server.drain(5)
        assert not surprises

    asyncio.run(bounded())


async def send_raw(address: Address, data: bytes) -> bytes:
    """Write bytes, say that there are no more, and return all that comes back."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    except OSError:
        return b""
    finally:
        writer.transport.abort()


# -- messages


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 9, 100])
def test_a_message_may_be_cut_anywhere(size: int) -> None:
    """DATA frames may split prefix and message at any byte."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        data = framed(b"0123456789" * 7)
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        assert (await client.call(ECHO, *parts)).message == b"0123456789" * 7
        assert (await client.call(ECHO, *parts, b"")).message == b"0123456789" * 7
        client.close()

    run(scenario)


BAD_BODIES = {
    "nothing": [],
    "empty frame": [b""],
    "half a prefix": [b"\0\0\0"],
    "prefix only": [b"\0\0\0\0\x05"],
    "half a message": [framed(b"12345")[:-1]],
    "half a message in parts": [framed(b"12345")[:7], b"\x31"],
    "trailing bytes": [framed(b"12345") + b"x"],
    "trailing bytes later": [framed(b"12345"), b"x"],
    "two messages": [framed(b"1") + framed(b"2")],
    "two messages in parts": [framed(b"1"), framed(b"2")],
    "compressed": [framed(b"12345", 1)],
    "compressed in parts": [framed(b"12345", 1)[:3], framed(b"12345", 1)[3:]],
    "unknown flags": [framed(b"12345", 0x80)],
    "too long by one": [framed(bytes(1001))],
    "endless": [b"\0\xff\xff\xff\xff", bytes(5000)],
}


@pytest.mark.parametrize("parts", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_message_is_an_explicit_denial(parts: list[bytes]) -> None:
    """Where a failed call would be let through, `on_fault` answers; elsewhere the call fails cleanly."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        assert (await client.call(GUARDED, *parts)).message.startswith(b"denied: ")
        assert (await client.call(ECHO, *parts)).status in {8, 12, 13}
        assert (await client.call(GUARDED, framed(b"1"))).message == b"allowed 1"
        client.close()

    run(scenario, max_message_bytes=1000)


def test_an_endless_message_is_answered_while_it_comes() -> None:
    """The answer to a message over the limit does not wait for its end, and stops the sender."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        reply = client.send(GUARDED, b"\0\xff\xff\xff\xff", bytes(10_000), end=False)
        await client.until(lambda: reply.reset is not None)
        assert reply.message.startswith(b"denied: ")
        assert reply.reset == ErrorCode.NO_ERROR
        assert (await client.call(ECHO, framed(b"same connection"))).message == b"same connection"
        client.close()

    run(scenario)


def test_unfinished_messages_share_a_budget() -> None:
    """Large requests that never end cannot fill the memory: beyond the budget they are refused."""

    async def scenario(address: Address) -> None:
        clients = [await connect(address) for _ in range(2)]
        part = framed(bytes(200_000))[:150_000]
        replies = [client.send(GUARDED, part, end=False) for client in clients for _ in range(5)]
        # 800,000 bytes is the budget of a server with this limit; ten times 150,000 do not fit.
        pumps = [
            asyncio.create_task(client.until(lambda: any(reply.data for reply in replies)))
            for client in clients
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        assert any(reply.data.startswith(framed(b"denied: a message has more")[:4]) for reply in replies)
        client = await connect(address)
        assert (await client.call(ECHO, framed(b"small"))).message == b"small"
        for each in [*clients, client]:
            each.close()

    run(scenario, max_message_bytes=200_000)


# -- requests


@pytest.mark.parametrize(
    ("headers", "http_status", "grpc_status"),
    [
        (request_headers(b"/t.T/Echo", content_type=b"application/json"), b"415", None),
        (request_headers(b"/t.T/Echo", content_type=b"application/grpc-web"), b"415", None),
        (request_headers(b"/t.T/Echo", content_type=b""), b"415", None),
        (request_headers(b"/t.T/Echo", method=b"GET"), b"405", None),
        (request_headers(b"/t.T/Echo", method=b"post"), b"405", None),
        (request_headers(b"/t.T/None"), b"200", 12),
        (request_headers(b"/t.T/Echo/"), b"200", 12),
        (request_headers(b"/t.T/Echo?x"), b"200", 12),
        (request_headers(b"/\xff\xfe"), b"200", 12),
        (request_headers(b"/t.T/Refuse"), b"200", 16),
        (request_headers(b"/t.T/Echo", (b"grpc-timeout", b"1")), b"200", 13),
        (request_headers(b"/t.T/Echo", (b"grpc-timeout", b"-1S")), b"200", 13),
        (request_headers(b"/t.T/Echo", (b"grpc-timeout", b"123456789S")), b"200", 13),
        (request_headers(b"/t.T/Echo", (b"grpc-timeout", b"0n")), b"200", 4),
    ],
)
@pytest.mark.parametrize("parts", [[framed(b"x")], []])
def test_a_request_that_is_not_a_call(
    headers: Headers, http_status: bytes, grpc_status: int | None, parts: list[bytes]
) -> None:
    """What is no gRPC call gets an HTTP error, what nobody serves a status; the connection goes on."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        reply = await client.call(headers, *parts)
        assert reply.headers[b":status"] == http_status
        if grpc_status is not None and parts:
            assert reply.status == grpc_status
        assert (await client.call(ECHO, framed(b"x"))).message == b"x"
        client.close()

    run(scenario)


def test_a_bad_deadline_is_denied_where_that_matters() -> None:
    """A guarded method answers also when the deadline is nonsense or over."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        for timeout in (b"soon", b"0m"):
            reply = await client.call([*GUARDED, (b"grpc-timeout", timeout)], framed(b"x"))
            assert reply.message.startswith(b"denied: ")
        late = [*request_headers(b"/t.T/Hang"), (b"grpc-timeout", b"20m")]
        assert (await client.call(late, framed(b"x"))).message == b"denied: deadline exceeded"
        client.close()

    run(scenario)


def test_metadata_need_not_be_text() -> None:
    """Bytes that are no UTF-8 in a metadata value do not disturb the call."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        headers = [*ECHO, (b"x-a", b"\xff\xfe\x80"), (b"x-a", b"")]
        assert (await client.call(headers, framed(b"x"))).message == b"x"
        client.close()

    run(scenario)


def test_a_malformed_header_field_ends_one_call() -> None:
    """A control character in a field is a stream error (RFC 9113, 8.2.1), not the connection's."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        reply = await client.call([*ECHO, (b"x-a", b"a\0b")], framed(b"x"))
        assert reply.reset == ErrorCode.PROTOCOL_ERROR
        assert (await client.call(ECHO, framed(b"x"))).message == b"x"
        client.close()

    run(scenario)


@pytest.mark.parametrize("size", [70_000, 1 << 20])
def test_a_huge_header_block_is_refused(size: int) -> None:
    """A header block over the limit ends its connection with a GOAWAY."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        assert (await client.call(ECHO, framed(b"x"))).message == b"x"
        fields = [(b"x-%d" % number, b"~" * 9_000) for number in range(size // 9_000 + 1)]
        client.send([*ECHO, *fields], framed(b"x"))
        await client.until(lambda: client.ended)
        assert client.goaway == ErrorCode.ENHANCE_YOUR_CALM
        client.close()

    run(scenario)


def test_many_small_fields_are_refused() -> None:
    """A block that compresses well (HPACK bomb) counts with its decoded size."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        client.send([*ECHO, *[(b"x-bomb", b"b" * 3_000)] * 300], framed(b"x"))
        await client.until(lambda: client.ended)
        assert client.goaway == ErrorCode.ENHANCE_YOUR_CALM
        client.close()

    run(scenario)


# -- floods


def test_resets_in_the_same_breath() -> None:
    """A call that is reset in the packet that brought it costs nothing but itself."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        for number in range(200):
            stream_id = client.http2.send_request(ECHO if number % 2 else request_headers(b"/t.T/Hang"))
            client.replies[stream_id] = Reply()
            client.http2.send_data(stream_id, framed(b"x"), end_stream=True)
            data = client.http2.data_to_send()
            client.http2.reset_stream(stream_id)
            client.writer.write(data + client.http2.data_to_send())
        assert (await client.call(ECHO, framed(b"x"))).message == b"x"
        client.close()

    run(scenario)


def test_a_rapid_reset_attack_ends_its_connection() -> None:
    """Nothing but resets, as in CVE-2023-44487, closes the connection."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        for _ in range(40):
            for _ in range(500):
                stream_id = client.http2.send_request(ECHO)
                client.replies[stream_id] = Reply()
                data = client.http2.data_to_send()
                client.http2.reset_stream(stream_id)
                client.writer.write(data + client.http2.data_to_send())
        await client.until(lambda: client.ended)
        assert client.goaway is not None
        client.close()

    run(scenario)


@pytest.mark.parametrize(
    "flood",
    [
        frame(PING, 0, 0, b"12345678") * 20_000,
        SETTINGS * 20_000,
        frame(PRIORITY, 0, 1, b"\0\0\0\0\x10") * 20_000,
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 20_000,
        frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b"") * 20_000,
        frame(0xFE, 0, 0, b"") * 20_000,
    ],
    ids=["ping", "settings", "priority", "window", "continuation", "unknown"],
)
def test_a_flood_hurts_only_its_sender(flood: bytes) -> None:
    """Floods of control frames are survived; whoever sends one may lose the connection."""

    async def scenario(address: Address) -> None:
        await send_raw(address, PREFACE + SETTINGS + flood)

    run(scenario)


def test_too_many_calls_at_once_are_refused() -> None:
    """Calls beyond the stream limit are refused as not processed; the others are answered."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        hanging = request_headers(b"/t.T/Hang", (b"grpc-timeout", b"500m"))
        replies = [client.send(hanging, framed(b"x")) for _ in range(60)]
        await client.until(lambda: all(reply.closed for reply in replies))
        refused = [reply for reply in replies if reply.reset == ErrorCode.REFUSED_STREAM]
        answered = [reply for reply in replies if reply.data]
        assert (len(refused), len(answered)) == (10, 50)
        client.close()

    run(scenario, max_concurrent_streams=50)


def test_too_many_connections_are_hung_up_on() -> None:
    """Connections beyond the limit are closed at once; when one ends there is room again."""

    async def scenario(address: Address) -> None:
        clients = [await connect(address) for _ in range(3)]
        for client in clients:
            assert (await client.call(ECHO, framed(b"x"))).message == b"x"
        assert await send_raw(address, PREFACE + SETTINGS) == b""
        for client in clients:
            client.close()
        while not await send_raw(address, PREFACE + SETTINGS):
            pass

    run(scenario, max_connections=3)


# -- silence


@pytest.mark.parametrize("data", [b"", b"PRI * HTTP", PREFACE, PREFACE + SETTINGS[:5]])
def test_half_a_handshake_is_not_waited_for(data: bytes) -> None:
    """Who does not finish the HTTP/2 handshake in time is hung up on."""

    async def scenario(address: Address) -> None:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(data)
        await reader.read()
        writer.transport.abort()

    run(scenario, handshake_seconds=0.05)


@pytest.mark.parametrize("data", [b"", frame(HEADERS, 0, 1, bytes(100))[:50], b"\0\0"])
def test_silence_ends_a_connection(data: bytes) -> None:
    """Who does not even answer a PING, perhaps in the middle of a frame, is hung up on."""

    async def scenario(address: Address) -> None:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(PREFACE + SETTINGS + data)
        received = await reader.read()
        assert frame(PING, 0, 0, b"")[3:9] in received
        writer.transport.abort()

    run(scenario, sweep_seconds=0.05)


def test_a_connection_without_calls_may_stay() -> None:
    """Who answers PINGs stays connected, however long there is nothing to ask."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        assert (await client.call(ECHO, framed(b"x"))).message == b"x"
        await client.until(lambda: client.pings == 5)
        assert (await client.call(ECHO, framed(b"x"))).message == b"x"
        client.close()

    run(scenario, sweep_seconds=0.02)


def test_half_a_request_is_answered_in_time() -> None:
    """A request that never ends is denied; so is one that has headers only."""

    async def scenario(address: Address) -> None:
        client = await connect(address)
        replies = [client.send(GUARDED, end=False), client.send(GUARDED, b"\0\0", end=False)]
        await client.until(lambda: all(reply.closed for reply in replies))
        assert [reply.message for reply in replies] == [b"denied: deadline exceeded"] * 2
        assert (await client.call(ECHO, framed(b"x"))).message == b"x"
        client.close()

    run(scenario, sweep_seconds=0.1)


# -- peers that do not read


def test_small_windows_get_big_answers() -> None:
    """An answer of any size goes through a window of one kilobyte, several at a time."""

    async def scenario(address: Address) -> None:
        client = await connect(address, window=1024)
        replies = [client.send(request_headers(b"/t.T/Big"), framed(b"200000")) for _ in range(3)]
        await client.until(lambda: all(reply.closed for reply in replies))
        assert [len(reply.message) for reply in replies] == [200_000] * 3
        client.close()

    run(scenario)


def test_a_window_that_never_opens_is_given_up() -> None:
    """A peer whose window holds back its answer and does not move loses the connection."""

    async def scenario(address: Address) -> None:
        client = await connect(address, window=0)
        client.send(ECHO, framed(b"x"))
        await client.until(lambda: client.ended)
        assert client.goaway == ErrorCode.ENHANCE_YOUR_CALM
        client.close()

    run(scenario, sweep_seconds=0.05)


def test_held_back_answers_are_bounded() -> None:
    """A peer that asks for much and takes nothing loses the connection before it costs memory."""

    async def scenario(address: Address) -> None:
        client = await connect(address, window=0)
        for _ in range(20):
            client.send(request_headers(b"/t.T/Big"), framed(b"100000"))
        await client.until(lambda: client.ended)
        assert client.goaway == ErrorCode.ENHANCE_YOUR_CALM
        client.close()

    run(scenario, max_queued_bytes=1_000_000)


def test_unread_answers_are_bounded() -> None:
    """A peer with endless windows that does not read in time loses the connection, not our memory."""

    async def scenario(address: Address) -> None:
        client = await connect(address, window=(1 << 31) - 1)
        client.http2.set_local_window_size((1 << 31) - 1)
        assert (await client.call(ECHO, framed(b"x"))).message == b"x"
        # All in one packet, so that they are decided in one pass.
        for _ in range(200):
            stream_id = client.http2.send_request(request_headers(b"/t.T/Big"))
            client.replies[stream_id] = Reply()
            client.http2.send_data(stream_id, framed(b"1000000"), end_stream=True)
        client.flush()
        await client.until(lambda: client.ended)
        assert client.ended
        assert sum(len(reply.data) for reply in client.replies.values()) < 50_000_000
        client.close()

    run(scenario, max_queued_bytes=5_000_000)


def test_a_slow_reader_gets_everything() -> None:
    """A full socket pauses the connection; when the peer reads again it goes on where it was."""

    async def scenario(address: Address) -> None:
        client = await connect(address, window=(1 << 31) - 1)
        client.http2.set_local_window_size((1 << 31) - 1)
        assert (await client.call(ECHO, framed(b"x"))).message == b"x"
        replies = [client.send(request_headers(b"/t.T/Big"), framed(b"1000000")) for _ in range(40)]
        replies += [client.send(ECHO, framed(b"%d" % number)) for number in range(40)]
        await client.until(lambda: all(reply.closed for reply in replies))
        assert [len(reply.message) for reply in replies[:40]] == [1_000_000] * 40
        assert [reply.message for reply in replies[40:]] == [b"%d" % number for number in range(40)]
        client.close()

    run(scenario)


# -- anything at all


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
def test_any_bytes_are_survived(data: bytes) -> None:
    """Bytes that are not HTTP/2, with and without the preface, end only their own connection."""

    async def scenario(address: Address) -> None:
        await send_raw(address, data)
        await send_raw(address, PREFACE + data)
        await send_raw(address, PREFACE + SETTINGS + data)

    run(scenario)


FRAMES = st.builds(
    frame,
    st.integers(0, 12),
    st.integers(0, 255),
    st.one_of(st.sampled_from([0, 1, 2, 3, 5]), st.integers(0, 2**32 - 1)),
    st.one_of(st.binary(max_size=60), st.sampled_from([framed(b"x"), bytes(4), b"12345678"])),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(FRAMES, st.just(0)), max_size=12))
def test_any_frames_are_survived(frames: list[bytes | int]) -> None:
    """Well-formed frames in any order, with good calls between them (0), end only their own connection."""

    async def scenario(address: Address) -> None:
        sender = Connection(Role.CLIENT)
        sender.initiate_connection()
        data = sender.data_to_send()
        for item in frames:
            if isinstance(item, bytes):
                data += item
            else:
                stream_id = sender.send_request(GUARDED)
                sender.send_data(stream_id, framed(b"x"), end_stream=True)
                data += sender.data_to_send()
        await send_raw(address, data)

    run(scenario)


def good_traffic() -> bytes:
    """Make a valid conversation: three calls."""
    sender = Connection(Role.CLIENT)
    sender.initiate_connection()
    for message in (b"", b"x" * 100, b"y" * 20_000):
        stream_id = sender.send_request([*GUARDED, (b"grpc-timeout", b"1S"), (b"x-a", b"\xff")])
        sender.send_data(stream_id, framed(message), end_stream=True)
    return sender.data_to_send()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_traffic_is_survived(data: st.DataObject) -> None:
    """Valid traffic with bytes changed, lost, doubled or cut off ends only its own connection."""
    traffic = bytearray(good_traffic())
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of the traffic is payload; the first kilobyte has all the structure.
        at = data.draw(st.integers(24, min(len(traffic) - 1, 1000)))
        match data.draw(st.sampled_from(["change", "lose", "double", "cut"])):
            case "change":
                traffic[at] = data.draw(st.integers(0, 255))
            case "lose":
                del traffic[at : at + data.draw(st.integers(1, 20))]
            case "double":
                traffic[at:at] = traffic[at : at + data.draw(st.integers(1, 60))]
            case _:
                del traffic[max(at, 30) :]
        if len(traffic) <= 40:
            break

    async def scenario(address: Address) -> None:
        await send_raw(address, bytes(traffic))

    run(scenario)
