"""`/ratelimit/…` over real HTTP, and the commands that ask it: what is shown, who may reset, what is on the log."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import pwd
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import structlog
from click.testing import CliRunner, Result
from prometheus_client import CollectorRegistry
from support.ratelimit import limits_of

from garrison.cli import main
from garrison.errors import DependencyError
from garrison.process.admin import AdminServer
from garrison.process.counter_pages import MAX_BODY_BYTES, CounterPages
from garrison.process.counters import CounterOperator
from garrison.telemetry import log as telemetry_log
from garrison.transport.address import Address
from ratelimit.algorithm import SECOND
from ratelimit.counters import find_counters
from ratelimit.store.memory import MemoryStore

LIMITS = limits_of("""\
domain: shop
descriptors:
- {key: user, rate_limit: {name: per-user, unit: year, requests_per_unit: 3}}
- {key: ip, match: {cidr: 10.0.0.0/8}, shadow_mode: true,
   rate_limit: {algorithm: token_bucket, unit: year, requests_per_unit: 2}}
- {key: file, value: "/a*", share_threshold: true, rate_limit: {unlimited: true}}
- {key: path, descriptors: [{key: id, quota_mode: true, rate_limit: {unit: day, requests_per_unit: 1}}]}
""")
ENTRIES = [["user", "a=b,c&d|\u00e9 "]]
BODY = {"domain": "shop", "descriptor": ENTRIES}


class Admin:
    """Admin HTTP with a store in memory, whose event loop runs in a thread."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.forgotten: list[str] = []
        self.fails = ""
        self._output = io.StringIO()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.operator = CounterOperator(
            lambda: (LIMITS, 1_700_000_000 * SECOND), self.store, time.time_ns, forget=self._forget
        )
        listen = Address.parse("tcp://127.0.0.1:0")
        pages = CounterPages(self.operator, self._loop, "127.0.0.1")
        self._server = AdminServer(listen, CollectorRegistry(), lambda: True, {}, counters=pages)
        self.port = self._server.address.port
        self._before = structlog.get_config()
        # At the highest level that there is: an audit is written all the same.
        self._writer = telemetry_log.configure("error", "json", self._output)

    async def _forget(self, keys: Sequence[str]) -> None:
        if self.fails:
            raise DependencyError(self.fails)
        self.forgotten += keys

    def close(self) -> None:
        """End everything."""
        self._server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._writer.close()
        structlog.configure(**self._before)

    def events(self) -> list[dict[str, Any]]:
        """Return the log so far; nothing is written to it afterwards."""
        self._writer.close()
        return [json.loads(line) for line in self._output.getvalue().splitlines()]

    def use(self, times: int) -> None:
        """Charge the counter so many times."""
        (spend,) = find_counters(LIMITS, "shop", [("user", ENTRIES[0][1])])
        for _ in range(times):
            self.store.spend([spend._replace(cost=1)], time.time_ns())

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Return status and JSON of an answer; headers are given with `_` for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            content = json.dumps(body) if body is not None and not isinstance(body, bytes) else body
            given = {"content-type": "application/json"} if content is not None else {}
            given |= {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, content, given)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def show(self, **more: str) -> tuple[int, Any]:
        """Return what the counter page says."""
        query = {"domain": "shop", "descriptor": json.dumps(ENTRIES), **more}
        return self.ask("GET", f"/ratelimit/counters?{urlencode(query)}")

    def used(self) -> int:
        """Return how much of the limit is used."""
        used: int = self.show()[1]["limits"][0]["used"]
        return used

    def command(self, *words: str) -> Result:
        """Run `garrison ratelimit` against this server."""
        command = ["ratelimit", words[0], "--admin", f"http://127.0.0.1:{self.port}", *words[1:]]
        return CliRunner().invoke(main, command)


@pytest.fixture
def admin() -> Iterator[Admin]:
    """Serve admin pages."""
    server = Admin()
    try:
        yield server
    finally:
        server.close()


def test_a_counter_is_shown_and_reset(admin: Admin) -> None:
    """Whatever characters it is called by; a reset says what was there, and who it was is on the log."""
    admin.use(5)
    status, found = admin.show()
    assert status == 200
    assert (found["domain"], found["descriptor"]) == ("shop", ENTRIES)
    (limit,) = found["limits"]
    assert (limit["name"], limit["used"], limit["remaining"], limit["over_limit"]) == ("per-user", 5, 0, True)
    assert admin.used() == 5
    status, found = admin.ask("POST", "/ratelimit/reset", BODY)
    assert (status, found["before"][0]["used"], found["descriptor"]) == (200, 5, ENTRIES)
    assert admin.used() == 0
    assert admin.forgotten == [find_counters(LIMITS, "shop", [("user", ENTRIES[0][1])])[0].key]
    (event,) = admin.events()
    assert (event["event"], event["domain"], event["descriptor"]) == ("rate_limit_reset", "shop", ENTRIES)
    assert event["before"][0]["used"] == 5
    assert event["peer"].startswith("127.0.0.1:")
    assert (event["uid"], event["user"]) == (os.getuid(), pwd.getpwuid(os.getuid()).pw_name)
    assert event["timestamp"]
    assert admin.operator.resets == {"done": 1, "failed": 0, "refused": 0}


def test_the_limits_in_force_are_shown(admin: Admin) -> None:
    """With version, time and positions."""
    status, found = admin.ask("GET", "/ratelimit/config")
    assert (status, found["version"], found["shadow_mode"]) == (200, LIMITS.version, False)
    assert found["loaded_at"] == "2023-11-14T22:13:20.000+00:00"
    assert found["domains"][0]["descriptors"][0]["limits"][0]["source"] == "f.yaml:3:27"


@pytest.mark.parametrize(
    ("headers", "status", "why"),
    [
        ({"origin": "http://127.0.0.1:9190"}, 403, "web pages"),
        ({"origin": "null"}, 403, "web pages"),
        ({"host": "rebound.example:9190"}, 403, "Host"),
        ({"host": "127.0.0.1.rebound.example"}, 403, "Host"),
        ({"host": ""}, 403, "Host"),
        ({"host": "[::1"}, 403, "Host"),
        ({"content_type": "text/plain"}, 415, "content-type"),
        ({"content_type": "application/x-www-form-urlencoded"}, 415, "content-type"),
        ({"x_forwarded_for": "10.0.0.1"}, 403, "proxy"),
        ({"via": "1.1 here"}, 403, "proxy"),
    ],
    ids=str,
)
def test_pages_and_proxies_reset_nothing(
    admin: Admin, headers: dict[str, str], status: int, why: str
) -> None:
    """What a browser or a proxy may have sent is refused, counted and logged."""
    admin.use(2)
    answer = admin.ask("POST", "/ratelimit/reset", BODY, **headers)
    assert answer[0] == status
    assert why in answer[1]["error"]
    assert admin.used() == 2
    assert admin.operator.resets["refused"] == 1
    assert [event["event"] for event in admin.events()] == ["rate_limit_reset_refused"]


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:9190", "10.1.2.3:80"])
def test_addresses_and_localhost_may_be_called(admin: Admin, host: str) -> None:
    """No name that somebody else controls is one of these."""
    assert admin.ask("POST", "/ratelimit/reset", BODY, host=host)[0] == 200
    assert admin.ask("GET", "/ratelimit/config", host=host)[0] == 200


def test_limits_are_not_shown_to_pages_of_a_rebound_name(admin: Admin) -> None:
    """Looking is for the same hosts."""
    for path in ("config", "counters?domain=shop&descriptor=[[%22user%22,%22a%22]]"):
        assert admin.ask("GET", f"/ratelimit/{path}", host="rebound.example")[0] == 403


def test_only_this_machine_resets() -> None:
    """A caller from elsewhere, or from nowhere, may look and not reset."""
    operator = CounterOperator(lambda: (LIMITS, 0), MemoryStore(), time.time_ns, forget=_nothing)
    pages = CounterPages(operator, asyncio.new_event_loop(), "0.0.0.0")
    pages._loop.close()
    for peer in ("10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "0.0.0.0", "", "127.0.0.1.example"):
        environ = {
            "PATH_INFO": "/ratelimit/reset",
            "REQUEST_METHOD": "POST",
            "REMOTE_ADDR": peer,
            "REMOTE_PORT": "1",
            "HTTP_HOST": "10.0.0.2:9190",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": "0",
            "wsgi.input": io.BytesIO(),
        }
        status, content = pages.answer(environ)
        assert (status, "loopback" in content["error"]) == ("403 Forbidden", True)
        config = pages.answer({**environ, "PATH_INFO": "/ratelimit/config", "REQUEST_METHOD": "GET"})
        assert config.status == "200 OK"
    for peer in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        body = json.dumps(BODY).encode()
        environ |= {"REMOTE_ADDR": peer, "CONTENT_LENGTH": str(len(body))}
        assert pages.answer({**environ, "wsgi.input": io.BytesIO(body)}).status == "503 Service Unavailable"


async def _nothing(_keys: Sequence[str]) -> None:
    pass


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        ({"domain": "shop"}, 400),
        ({"domain": "", "descriptor": ENTRIES}, 400),
        ({"domain": "shop", "descriptor": []}, 400),
        ({"domain": "shop", "descriptor": [["user"]]}, 400),
        ({"domain": "shop", "descriptor": [["user", 1]]}, 400),
        ({"domain": "shop", "descriptor": {"user": "a"}}, 400),
        ({"domain": "shop", "descriptor": ENTRIES, "more": 1}, 400),
        (b'{"domain": "shop", "descriptor": [["user", "\\ud800"]]}', 400),
        (b'{"domain": "shop", "descriptor": [["user", "\xff"]]}', 400),
        ({"domain": "shop", "descriptor": [["none", "a"]]}, 404),
        ({"domain": "shop", "descriptor": [["file", "/a"]]}, 404),
        ({"domain": "none", "descriptor": ENTRIES}, 404),
        (b"[" * MAX_BODY_BYTES, 400),
    ],
)
def test_what_names_no_counter_resets_none(admin: Admin, body: Any, status: int) -> None:
    """It is refused with what is wrong, and nobody is told to forget."""
    answer = admin.ask("POST", "/ratelimit/reset", body)
    assert answer[0] == status
    assert answer[1]["error"]
    assert admin.forgotten == []


@pytest.mark.parametrize(
    "query",
    [
        "",
        "domain=shop",
        "domain=shop&descriptor=",
        "domain=shop&descriptor=user=a",
        "domain=shop&domain=shop&descriptor=[[%22user%22,%22a%22]]",
        "domain=shop&descriptor=[[%22user%22,%22a%22]]&other=1",
        "domain=%ff&descriptor=[[%22user%22,%22a%22]]",
        "domain=shop&descriptor=[[%22user%22,%22a%22]],%22domain%22:%22x%22",
    ],
)
def test_a_query_that_names_no_counter(admin: Admin, query: str) -> None:
    """Is a mistake of who asks."""
    assert admin.ask("GET", f"/ratelimit/counters?{query}")[0] == 400


def test_a_body_that_does_not_come(admin: Admin) -> None:
    """Without a length, or with less than was promised, nothing is reset."""
    too_much = f"content-length: {MAX_BODY_BYTES + 1}\r\n\r\n"
    head = "POST /ratelimit/reset HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    for rest, status in (
        ("\r\n", b" 411 "),
        ("content-length: -1\r\n\r\n", b" 411 "),
        ("content-length: 9\r\n\r\n{}", b" 400 "),
        (too_much, b" 413 "),
        (f"content-length: {'9' * 5000}\r\n\r\n", b" 413 "),
    ):
        with socket.create_connection(("127.0.0.1", admin.port), timeout=20) as connection:
            connection.sendall((head + rest).encode())
            connection.shutdown(socket.SHUT_WR)
            assert status in connection.makefile("rb").readline()


def test_other_methods_and_pages(admin: Admin) -> None:
    """A reset is no GET, looking is no POST, and other paths are named."""
    assert admin.ask("GET", "/ratelimit/reset")[0] == 405
    assert admin.ask("OPTIONS", "/ratelimit/reset")[0] == 405
    assert admin.ask("POST", "/ratelimit/config", {})[0] == 405
    status, found = admin.ask("GET", "/ratelimit/other")
    assert (status, found["error"]) == (
        404,
        "there is /ratelimit/config /ratelimit/counters /ratelimit/reset",
    )


def test_what_cannot_be_reset_stays(admin: Admin) -> None:
    """Where a worker does not answer the store is not touched, and the failure is on the log."""
    admin.use(3)
    admin.fails = "worker 1 does not answer; nothing was reset"
    assert admin.ask("POST", "/ratelimit/reset", BODY) == (503, {"error": admin.fails})
    assert admin.used() == 3
    (event,) = admin.events()
    assert (event["event"], event["error"]) == ("rate_limit_reset_failed", admin.fails)
    assert admin.operator.resets["failed"] == 1


# ------------------------------------------------------------------------------------------- the commands


def test_show_and_reset_on_the_command_line(admin: Admin) -> None:
    """The same descriptor in words; values may hold `=` and `,`."""
    admin.use(4)
    word = f"user={ENTRIES[0][1]}"
    shown = admin.command("show", "shop", word)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("f.yaml:3:27: 3 a year (per-user)\n  4 used, 0 left, reset in ")
    assert shown.stdout.endswith(" s, over the limit\n")
    found = json.loads(admin.command("show", "--json", "shop", word).stdout)
    assert (found["descriptor"], found["limits"][0]["used"]) == (ENTRIES, 4)
    done = admin.command("reset", "shop", word)
    assert (done.exit_code, done.stdout) == (0, "reset: f.yaml:3:27: 3 a year (per-user): 4 were used\n")
    assert admin.used() == 0
    assert json.loads(admin.command("reset", "--json", "shop", word).stdout)["before"][0]["used"] == 0


def test_the_limits_on_the_command_line(admin: Admin) -> None:
    """One line for each descriptor and each limit."""
    shown = admin.command("show", "--config")
    assert shown.exit_code == 0
    assert shown.stdout == (
        f"version {LIMITS.version}, in force since 2023-11-14T22:13:20.000+00:00\n"
        "shop\n"
        "  user\n"
        "    f.yaml:3:27: 3 a year (per-user)\n"
        "  ip (cidr 10.0.0.0/8)\n"
        "    f.yaml:5:16: 2 a year, token_bucket, shadow mode\n"
        "  file=/a*, counted together\n"
        "    f.yaml:6:64: unlimited\n"
        "  path\n"
        "    id\n"
        "      f.yaml:7:69: 1 a day, quota mode\n"
    )
    assert json.loads(admin.command("show", "--config", "--json").stdout)["version"] == LIMITS.version


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["show", "shop", "none=a"], 1, "no rule for `none=a` as entry 1"),
        (["reset", "none", "user=a"], 1, "there is no domain `none` (known here: shop)"),
        (["show", "shop", "user"], 2, "`user` is not KEY=VALUE"),
        (["reset", "shop", "=a"], 2, "`=a` is not KEY=VALUE"),
        (["show"], 2, "name a counter by its domain"),
        (["show", "--config", "shop"], 2, "leave the domain"),
        (["show", "shop", "user=\udcff"], 2, "surrogate"),
    ],
)
def test_commands_that_name_no_counter(admin: Admin, words: list[str], code: int, message: str) -> None:
    """They say what is wrong; with --json too."""
    result = admin.command(*words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    result = admin.command(words[0], "--json", *words[1:])
    assert result.exit_code == code
    assert message in json.loads(result.stdout)["error"]


def test_a_server_that_cannot_answer(admin: Admin) -> None:
    """Is another exit code, with what the server says."""
    admin.fails = "worker 1 does not answer; nothing was reset"
    result = admin.command("reset", "shop", "user=a")
    assert (result.exit_code, result.stderr) == (3, f"{admin.fails}\n")


def test_a_server_that_is_not_there() -> None:
    """Says where nobody answered, and what to look at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(main, ["ratelimit", "show", "--admin", url, "shop", "user=a"])
    assert result.exit_code == 3
    assert result.stderr == (
        f"there is no answer at {url}: connection refused; is `garrison serve` running, and is this its "
        "`admin.listen`?\n"
    )


@pytest.mark.parametrize(
    "content",
    [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"HTTP/1.1 404 No\r\n\r\nno", b"hello\r\n", b""],
)
def test_something_else_at_the_address(content: bytes) -> None:
    """No Garrison, or an older one, is no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(content)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = CliRunner().invoke(main, ["ratelimit", "show", "--admin", url, "--config"])
        thread.join()
    assert result.exit_code in {2, 3}
    assert f"at {url}" in result.stderr


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:9190", "https://h", "http://", "http://h:x", "http://h/path", "http://u:p@h", "http://[::1"],
)
def test_an_address_that_is_none(url: str) -> None:
    """Is a wrong use of the command."""
    result = CliRunner().invoke(main, ["ratelimit", "show", "--admin", url, "--config"])
    assert result.exit_code == 2
    assert "such as `http://127.0.0.1:9190`" in result.stderr


def test_the_port_that_is_left_out_is_the_default_one() -> None:
    """As in `admin.listen`."""
    assert urlsplit("http://127.0.0.1").port is None
