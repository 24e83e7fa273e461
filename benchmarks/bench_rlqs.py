"""Quota over RLQS: what three real Envoys admit of one limit together, while one comes and one goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bench_envoy import admin_page
from benchmarks.http_load import request
from benchmarks.paced_load import Paced, paced_load
from benchmarks.report import Requirement, Row, Sample, Section
from benchmarks.run import BenchmarkError, Run
from benchmarks.servers import start_server
from garrison.demo.children import Child
from garrison.envoy_binary import find_envoy
from garrison.envoy_config import dump, fill, load_template

_QUOTA = 50
_OFFERED = 60
_START_SECONDS = 30.0
# The whole, and of it: when the third Envoy comes, when the first one goes. Envoys report every five seconds,
# so there is no shorter way.
_SECONDS, _COMES, _GOES = 60, 15, 40
# By then an Envoy that came has its part.
_SETTLED = 12
_LIMITS = f"""\
domain: bench
descriptors:
- key: tenant
  rate_limit: {{unit: second, requests_per_unit: {_QUOTA}}}
"""
_CALL = request("GET", "/", [("host", "bench"), ("x-tenant", "acme")])


@dataclass(slots=True)
class _Proxy:
    """An Envoy, and what it answered."""

    child: Child
    port: int
    result: Paced = field(default_factory=Paced)

    @property
    def admitted(self) -> int:
        return self.result.statuses[200]


def bootstrap(control_socket: Path, admin_socket: Path) -> dict[str, Any]:
    """Return an Envoy that answers by itself, with a bucket for each value of a header."""
    template = load_template()
    value = fill(template["header_value"], {"header": "x-tenant"})
    action = fill(template["quota_action"], {"bucket_id": {"tenant": {"custom_value": value}}})
    bucket = fill(template["quota_bucket"], {"header_value": value, "action": action})
    quota = fill(
        template["rate_limit_quota"],
        {"rate_limit_domain": "bench", "buckets": [bucket], "otherwise": action},
    )
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "ok\n"}},
    }
    http = fill(
        template["inbound_http"],
        {"access_log": [], "http_filters": [quota, template["router"]], "routes": [route]},
    )
    listener = {
        "name": "load",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}]}
        ],
    }
    cluster = fill(
        template["garrison_cluster"],
        {
            "name": "garrison_control",
            "http2": template["http2"],
            "endpoints": [{"endpoint": {"address": {"pipe": {"path": str(control_socket)}}}}],
        },
    )
    values = {
        "node_id": "bench",
        "node_cluster": "bench",
        "admin_address": {"pipe": {"path": str(admin_socket)}},
        "listeners": [listener],
        "clusters": [cluster],
    }
    filled: dict[str, Any] = fill(template["bootstrap"], values)
    return filled


def rlqs(run: Run) -> Section:
    """Offer three Envoys more than the limit together; count what they let through."""
    folder = run.folder / "rlqs"
    folder.mkdir()
    (folder / "limits.yaml").write_text(_LIMITS, encoding="utf-8")
    settings = {
        "limits": [str(folder / "limits.yaml")],
        "request": {"listen": ["tcp://127.0.0.1:0"]},
        "control": {"listen": [f"unix://{folder}/control.sock"]},
    }
    server = start_server(run.children, folder, "garrison", settings)
    proxies = [_start(run, folder, number) for number in range(2)]
    begin = server.cpu_seconds()
    run.say(f"RLQS with three Envoys: {_SECONDS} s")
    per_second = asyncio.run(_load(run, folder, proxies))
    cpu = server.cpu_seconds() - begin
    _check(proxies)
    for proxy in proxies[1:]:
        run.children.stop(proxy.child)
    run.children.stop(server.child)
    total = sum(proxy.admitted for proxy in proxies)
    settled = per_second[_SETTLED:_COMES] + per_second[_COMES + _SETTLED : _GOES]
    whole = f"admitted in {_SECONDS} s over the limit's {_QUOTA * _SECONDS:,}"
    steady = f"admitted in a second over the limit's {_QUOTA}, from {_SETTLED} s after a start"
    ratio, steady_ratio = Sample.of([total / (_QUOTA * _SECONDS)]), Sample.of(one / _QUOTA for one in settled)
    return Section(
        "One limit over RLQS",
        f"{_QUOTA} calls a second for one bucket; three Envoys with one worker thread, each offered "
        f"{_OFFERED} a second at a steady rate; two from the start, one after {_COMES} s, and the first is "
        f"ended after {_GOES} s. Its share is free once its assignment has run out.",
        (
            Row("admitted by all", Sample.of([total]), "calls"),
            *(
                Row(f"admitted by Envoy {number + 1}", Sample.of([proxy.admitted]), "calls")
                for number, proxy in enumerate(proxies)
            ),
            Row("admitted in each second", Sample.of(per_second), "calls"),
            Row(whole, ratio, "times"),
            Row(steady, steady_ratio, "times"),
            Row("Garrison: CPU", Sample.of([cpu / _SECONDS * 1e3]), "ms a second"),
        ),
        (
            Requirement(whole, ratio, 1.1, at_least=False),
            Requirement(steady, steady_ratio, 0.9, at_least=True),
        ),
    )


async def _load(run: Run, folder: Path, proxies: list[_Proxy]) -> list[int]:
    """Load the Envoys; return what all of them admitted in each second."""

    async def offer(proxy: _Proxy, length: float) -> None:
        await paced_load(proxy.port, _CALL, per_second=_OFFERED, seconds=length, result=proxy.result)

    async def end_first() -> None:
        await offer(proxies[0], _GOES)
        run.children.stop(proxies[0].child)

    async def come_later() -> None:
        await asyncio.sleep(_COMES)
        # It starts in a thread: the others are loaded meanwhile.
        proxy = await asyncio.to_thread(_start, run, folder, 2)
        proxies.append(proxy)
        await offer(proxy, begin + _SECONDS - loop.time())

    async def count() -> list[int]:
        counts, before = [], 0
        for second in range(_SECONDS):
            await asyncio.sleep(begin + second + 1 - loop.time())
            now = sum(proxy.admitted for proxy in proxies)
            counts.append(now - before)
            before = now
        return counts

    loop = asyncio.get_running_loop()
    begin = loop.time()
    counts, *_ = await asyncio.gather(count(), end_first(), offer(proxies[1], _SECONDS), come_later())
    return counts


def _check(proxies: Sequence[_Proxy]) -> None:
    """Make sure that there was something to limit, and that nobody was left out."""
    for number, proxy in enumerate(proxies):
        if proxy.result.lost or set(proxy.result.statuses) != {200, 429}:
            raise BenchmarkError(
                f"Envoy {number + 1} lost {proxy.result.lost} calls and answered {proxy.result.statuses}"
            )


def _start(run: Run, folder: Path, number: int) -> _Proxy:
    admin, config = folder / f"admin-{number}.sock", folder / f"envoy-{number}.yaml"
    config.write_text(dump(bootstrap(folder / "control.sock", admin)), encoding="utf-8")
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
    log = folder / f"envoy-{number}.log"
    child = run.children.start(f"Envoy {number + 1}", [find_envoy(), "-c", config, *options], log)
    child.wait_until(lambda: admin_page(admin, "/ready") == "LIVE\n", "becoming ready", _START_SECONDS)
    listeners = json.loads(admin_page(admin, "/listeners?format=json"))["listener_statuses"]
    return _Proxy(child, int(listeners[0]["local_address"]["socket_address"]["port_value"]))
