"""What is read from processes, answers and responses is read right."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.bench_envoy import bootstrap
from benchmarks.bench_target import answer_of
from benchmarks.http_load import parse_response, request
from benchmarks.paced_load import Paced, paced_load
from benchmarks.servers import cpu_seconds, family_cpu_seconds

TICKS = os.sysconf("SC_CLK_TCK")


@given(
    st.text("a0 ()", max_size=15),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)
def test_cpu_time_is_user_and_system_time_whatever_the_name(name: str, user: int, system: int) -> None:
    """A program's name may hold blanks and parentheses; the times are found behind the last of them."""
    stat = f"42 ({name}) S 1 42 42 0 -1 4194560 900 0 0 0 {user} {system} 0 0 20 0 3 0 1000 1 2 3\n"
    assert cpu_seconds(stat) == pytest.approx((user + system) / TICKS)


def test_cpu_time_of_a_family() -> None:
    """Children count with their parent, or alone by their name; others do not."""
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        name = Path(f"/proc/{child.pid}/comm").read_text().strip()
        assert family_cpu_seconds(child.pid) >= 0.25
        assert family_cpu_seconds(os.getpid(), name) >= 0.25
        assert family_cpu_seconds(os.getpid()) > family_cpu_seconds(os.getpid(), name)
        assert family_cpu_seconds(os.getpid(), "nobody") == 0
        child.communicate(b"\n")


def test_answers_are_told_apart_as_envoy_does() -> None:
    """The status alone says whether a call may pass; an empty answer lets it pass, noise is an error."""
    denied = CheckResponse(status=Status(code=7))
    denied.denied_response.body = "no"
    failed = CheckResponse(status=Status(code=13))
    failed.error_response.SetInParent()
    answers = [b"", denied.SerializeToString(), failed.SerializeToString(), b"\xff\xff"]
    assert Counter(map(answer_of, answers)) == {"allow": 1, "deny": 1, "error": 2}


@given(st.integers(100, 599), st.binary(max_size=40), st.binary(max_size=40))
def test_a_response_is_read_once_all_of_it_is_there(status: int, body: bytes, rest: bytes) -> None:
    """Status and size are those of the first response, however much of the next one has come with it."""
    response = b"HTTP/1.1 %d X\r\nserver: envoy\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body
    assert parse_response(response + rest) == (status, len(response))
    for cut in range(len(response)):
        assert parse_response(response[:cut]) is None


def test_a_response_without_a_length_is_refused() -> None:
    """Where a response ends is never guessed."""
    with pytest.raises(ValueError, match="content-length"):
        parse_response(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


def test_a_steady_load_counts_every_answer_and_what_was_lost() -> None:
    """Requests go out by the clock, not by the answers; a server that stops answering loses the rest."""

    async def scenario() -> Paced:
        seen = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal seen
            while await reader.readuntil(b"\r\n\r\n"):
                seen += 1
                if seen == 8:
                    writer.close()
                    return
                status = b"200" if seen % 2 else b"429"
                writer.write(b"HTTP/1.1 %s X\r\ncontent-length: 2\r\n\r\nok" % status)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            result = Paced()
            port = server.sockets[0].getsockname()[1]
            call = request("GET", "/", [("host", "a")])
            await paced_load(port, call, per_second=400, seconds=0.025, result=result)
        return result

    result = asyncio.run(scenario())
    assert result == Paced(Counter({200: 4, 429: 3}), lost=3)


def test_a_request_is_spelled_as_http_1() -> None:
    """Request line, headers, empty line."""
    assert request("GET", "/a", [("host", "b")]) == b"GET /a HTTP/1.1\r\nhost: b\r\n\r\n"


def test_envoy_asks_below_one_prefix_with_the_sidecars_own_filter() -> None:
    """The measured Envoy has the shipped ext_authz filter; one route asks for a service, the other does not."""
    [listener] = bootstrap(Path("r.sock"), Path("a.sock"))["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    assert [one["name"] for one in manager["http_filters"]] == [
        "envoy.filters.http.ext_authz",
        "envoy.filters.http.router",
    ]
    assert manager["http_filters"][0]["typed_config"]["encode_raw_headers"] is True
    asked, unasked = manager["route_config"]["virtual_hosts"][0]["routes"]
    [asking], [silent] = (
        asked["typed_per_filter_config"].values(),
        unasked["typed_per_filter_config"].values(),
    )
    assert (
        asking["check_settings"]["context_extensions"]["destination.service"]
        == "bench.default.svc.cluster.local"
    )
    assert silent["disabled"] is True
    assert "${" not in yaml.safe_dump(manager)


@pytest.mark.parametrize("target", ["nowhere", "localhost:99999", "tls://127.0.0.1:1", "ftp://a:1"])
def test_a_target_that_cannot_be_loaded_is_refused(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong address ends the program with exit code 2 and names the option."""
    with pytest.raises(SystemExit) as stopped:
        main(["--target", target])
    assert stopped.value.code == 2
    assert "--target" in capsys.readouterr().err
