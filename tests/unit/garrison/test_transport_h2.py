"""What an HTTP/2 connection asks of its transport, seen without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ngh2 import Connection, DataReceived, Role

from garrison.transport import Call, Method, Peer, h2, turns
from garrison.transport.h2 import H2Connection, Limits, Shared
from garrison.transport.wire import PREFIX


class FakeTransport(asyncio.Transport):
    """Keeps what is written and what is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.reading = True
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.writes.append(bytes(data))

    def pause_reading(self) -> None:
        """Keep it."""
        self.reading = False

    def resume_reading(self) -> None:
        """Keep it."""
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Accept any."""

    def is_closing(self) -> bool:
        """Say whether `abort` was called."""
        return self.aborted

    def abort(self) -> None:
        """Keep it."""
        self.aborted = True


class Wire:
    """A connection, its transport and a client, without a socket."""

    def __init__(self, peer: Peer | None = Peer("test")) -> None:  # noqa: B008 - a frozen value
        def echo(message: bytes, _call: Call) -> bytes:
            return message

        shared = Shared({"/t.T/Echo": Method(echo)}, Limits())
        self.transport = FakeTransport()
        self.server = H2Connection(shared, lambda _transport: peer)
        self.server.connection_made(self.transport)
        self.client = Connection(Role.CLIENT)
        self.client.initiate_connection()

    def ask(self, count: int) -> bytes:
        """Make the bytes of so many calls."""
        for number in range(count):
            stream_id = self.client.send_request(
                [
                    (b":method", b"POST"),
                    (b":scheme", b"http"),
                    (b":path", b"/t.T/Echo"),
                    (b":authority", b"x"),
                    (b"content-type", b"application/grpc"),
                ]
            )
            message = b"%d" % number
            self.client.send_data(stream_id, PREFIX.pack(0, len(message)) + message, end_stream=True)
        return self.client.data_to_send()

    async def deliver(self, data: bytes) -> None:
        """Hand bytes to the server as one read, and let it have its turn."""
        self.server.get_buffer(-1)[: len(data)] = data
        self.server.buffer_updated(len(data))
        await asyncio.sleep(0)

    def answers(self) -> list[bytes]:
        """Take all answers written so far."""
        for data in self.transport.writes:
            self.client.receive_data(data)
        self.transport.writes.clear()
        events: list[Any] = self.client.events()
        return [event.data[5:] for event in events if isinstance(event, DataReceived)]


def test_one_read_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls of one read are answered in its one write, if there is time."""
    monkeypatch.setattr(turns, "QUANTUM_SECONDS", 60.0)

    async def scenario() -> None:
        wire = Wire()
        wire.answers()
        await wire.deliver(wire.ask(32))
        assert len(wire.transport.writes) == 1
        assert wire.answers() == [b"%d" % number for number in range(32)]
        wire.server.connection_lost(None)

    asyncio.run(scenario())


def test_a_full_transport_stops_reading_and_writing() -> None:
    """Backpressure from the socket reaches the peer; afterwards nothing is missing."""

    async def scenario() -> None:
        wire = Wire()
        wire.answers()
        wire.server.pause_writing()
        assert not wire.transport.reading
        await wire.deliver(wire.ask(3))
        assert wire.transport.writes == []
        wire.server.resume_writing()
        assert wire.transport.reading
        await asyncio.sleep(0)
        assert wire.answers() == [b"0", b"1", b"2"]
        wire.server.connection_lost(None)

    asyncio.run(scenario())


def test_a_peer_that_may_not_be_served_is_hung_up_on() -> None:
    """Without an identity of the connection nothing is sent, and nothing read."""

    async def scenario() -> None:
        wire = Wire(peer=None)
        assert wire.transport.aborted
        await wire.deliver(wire.ask(1))
        assert wire.transport.writes == []
        wire.server.connection_lost(None)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (60.0, [[], [], [], [], [], [b"0", b"1", b"2", b"3", b"4", b"0"]]),
        (-1.0, [[], [b"0", b"1"], [], [b"2", b"3"], [], [b"4", b"0"]]),
    ],
)
def test_what_takes_several_turns_is_answered_together_but_soon(
    monkeypatch: pytest.MonkeyPatch, held: float, expected: list[list[bytes]]
) -> None:
    """With time for one call in each turn, every call is answered, in order; no answer is held for long."""
    monkeypatch.setattr(turns, "QUANTUM_SECONDS", 1e-9)
    monkeypatch.setattr(h2, "_MOST_HELD_SECONDS", held)

    async def scenario() -> None:
        wire = Wire()
        wire.answers()
        await wire.deliver(wire.ask(5))
        found = [wire.answers()]
        await wire.deliver(wire.ask(1))
        found.append(wire.answers())
        for _ in range(4):
            await asyncio.sleep(0)
            found.append(wire.answers())
        assert found == expected
        assert wire.transport.reading
        wire.server.connection_lost(None)

    asyncio.run(scenario())


def test_a_peer_that_brings_too_much_is_not_read_until_it_had_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What waits for a turn is bounded: reading stops, and goes on when all of it is answered."""
    monkeypatch.setattr(turns, "QUANTUM_SECONDS", 1e-9)

    async def scenario() -> None:
        wire = Wire()
        wire.answers()
        monkeypatch.setattr(h2, "_READ_BYTES", 100)
        await wire.deliver(wire.ask(9))
        assert not wire.transport.reading
        for _ in range(8):
            assert not wire.transport.reading
            await asyncio.sleep(0)
        assert wire.transport.reading
        assert len(wire.answers()) == 9
        wire.server.connection_lost(None)

    asyncio.run(scenario())


def test_calls_before_the_end_of_file_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends its calls and hangs up at once still gets their answers."""
    monkeypatch.setattr(turns, "QUANTUM_SECONDS", 1e-9)

    async def scenario() -> None:
        wire = Wire()
        wire.answers()
        await wire.deliver(wire.ask(5))
        wire.server.eof_received()
        assert len(wire.answers()) == 5
        wire.server.connection_lost(None)
        await asyncio.sleep(0)

    asyncio.run(scenario())
