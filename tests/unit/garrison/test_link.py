"""What passes between a worker and the control process arrives whole, and bad metrics do not end it."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import struct
from concurrent.futures import Future
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from garrison.process.link import WorkerLink, frame, read_frame

MESSAGES = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=50), max_size=3), max_size=5)


@given(MESSAGES, st.integers(1, 7), st.integers(0, 3))
def test_frames_arrive_as_they_were_sent(messages: list[dict[str, Any]], step: int, cut: int) -> None:
    """In whatever pieces; a frame that is cut off is the end."""
    content = b"".join(map(frame, messages)) + frame({"cut": "off"})[:cut]

    async def read() -> list[dict[str, Any]]:
        reader = asyncio.StreamReader()
        for start in range(0, len(content), step):
            reader.feed_data(content[start : start + step])
        reader.feed_eof()
        found = []
        while (message := await read_frame(reader)) is not None:
            found.append(message)
        return found

    assert asyncio.run(read()) == messages


def read_one(sock: socket.socket) -> Any:
    """Return the next message of a blocking socket."""
    (length,) = struct.unpack(">I", sock.recv(4, socket.MSG_WAITALL))
    return json.loads(sock.recv(length, socket.MSG_WAITALL))


def test_metrics_that_fail_do_not_end_the_link() -> None:
    """A worker that cannot say its metrics once still says how it is, and answers the next request."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    answers = iter(["ValueError", "page", "last"])

    def metrics() -> str:
        if (answer := next(answers)) == "ValueError":
            raise ValueError("a bug")
        return answer

    with ours, theirs:
        link = WorkerLink(theirs)
        assert theirs.get_inheritable() is False
        link.serve_metrics(metrics)
        ours.sendall(frame({"number": 0}))
        assert link.receive() == {"number": 0}
        link.watch(0)
        link.tell_addresses(["tcp://127.0.0.1:1"])
        assert read_one(ours) == {"addresses": ["tcp://127.0.0.1:1"]}
        ours.sendall(frame({"request": 1}) + frame({"request": 2}))
        assert read_one(ours) == {"metrics": "page", "request": 2}
        link.tell_ready(ready=True)
        assert read_one(ours) == {"ready": True}
        link.close()
        assert read_one(ours) == {"metrics": "last", "request": None}


def test_a_worker_says_when_it_has_forgotten() -> None:
    """Not before it has, not at all if it could not, and the link goes on."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    asked: queue.SimpleQueue[tuple[list[str], Future[None]]] = queue.SimpleQueue()

    def forget(keys: list[str]) -> Future[None]:
        future: Future[None] = Future()
        asked.put((keys, future))
        return future

    with ours, theirs:
        link = WorkerLink(theirs)
        link.serve_metrics(lambda: "page")
        ours.sendall(frame({"number": 0}))
        assert link.receive() == {"number": 0}
        link.watch(0)
        ours.sendall(frame({"request": 1, "forget": ["a"]}))  # before it serves: it knows nothing
        link.serve_forget(forget)
        ours.sendall(frame({"request": 2}))
        assert read_one(ours) == {"metrics": "page", "request": 2}
        while not asked.empty():
            asked.get()
        ours.sendall(frame({"request": 3, "forget": ["a"]}) + frame({"request": 4, "forget": ["b", "c"]}))
        (first, bad), (second, good) = asked.get(timeout=20), asked.get(timeout=20)
        assert (first, second) == (["a"], ["b", "c"])
        ours.sendall(frame({"request": 5}))
        assert read_one(ours) == {"metrics": "page", "request": 5}
        bad.set_exception(RuntimeError("the loop has stopped"))
        good.set_result(None)
        assert read_one(ours) == {"forgotten": True, "request": 4}
        link.close()
