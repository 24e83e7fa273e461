"""Where workers listen, what they are told, and what none of them shares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.errors import ConfigError
from garrison.process.settings import load_settings, load_settings_and_data
from garrison.process.workers import Assignment, control_settings
from garrison.transport.address import Address


@pytest.mark.parametrize(
    ("configured", "number", "expected"),
    [
        ("unix:///run/request.sock", 0, "unix:///run/request.0.sock"),
        ("unix:///run/v1.d/request", 12, "unix:///run/v1.d/request.12"),
        ("tcp://127.0.0.1:9191", 0, "tcp://127.0.0.1:9191"),
        ("tcp://127.0.0.1:9191", 3, "tcp://127.0.0.1:9221"),
        ("tls://[::1]:9191", 1, "tls://[::1]:9201"),
        ("tcp://127.0.0.1:0", 5, "tcp://127.0.0.1:0"),
    ],
)
def test_addresses_of_workers(configured: str, number: int, expected: str) -> None:
    """A number before the suffix of a socket, ports ten apart, free ports as they are."""
    assert str(Address.parse(configured).of_worker(number)) == expected


@given(st.from_regex(r"\A/[a-z.]{1,20}/[a-z.]{0,10}[a-z]\Z"))
def test_workers_never_share_a_socket(path: str) -> None:
    """Whatever the path is called, workers have paths of their own, in the same folder."""
    derived = [Address.parse(f"unix://{path}").of_worker(number).path for number in range(64)]
    assert len({*derived, path}) == 65
    assert {Path(one).parent for one in derived} == {Path(path).parent}


@pytest.mark.parametrize("configured", ["tcp://h:65535", f"unix:///{'x' * 105}"])
def test_an_address_that_has_no_room_for_workers(configured: str) -> None:
    """Ports and paths end somewhere."""
    with pytest.raises(ValueError, match=r"would need port|longer than"):
        Address.parse(configured).of_worker(1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("request: {listen: ['tcp://127.0.0.1:9182']}", "worker 1 would listen on `tcp://127.0.0.1:9192`, which is control.listen's"),
        ("request: {listen: ['tcp://0.0.0.0:9180']}", "which is admin.listen's"),
        ("request: {listen: ['tcp://h:1000', 'tcp://h:1010']}", "which is worker 0's"),
        ("request: {listen: ['tcp://h:65530']}", "would need port 65540"),
    ],
)  # fmt: skip
def test_workers_do_not_listen_where_others_do(tmp_path: Path, text: str, expected: str) -> None:
    """Two listeners on one port would each get some of the calls of the other."""
    file = tmp_path / "garrison.yaml"
    file.write_text(f"workers: 2\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {}, {})
    assert expected in str(caught.value)
    file.write_text(f"workers: 1\n{text}\n")
    load_settings(file, {}, {})


def test_the_default_addresses_have_room_for_workers() -> None:
    """`workers` alone is enough."""
    assert load_settings(None, {}, {"workers": "64"}).workers == 64


def test_a_worker_serves_by_the_settings_it_was_told() -> None:
    """They pass through JSON; what a process writes to and how it is called is each worker's own."""
    settings, data = load_settings_and_data(
        None,
        {},
        {
            "workers": "3",
            "keys.cache": "/keys",
            "rate_limit.replicas": "2",
            "distribution.redis": "unix:///r.sock",
            "distribution.unsigned_from_trusted_connection": "true",
            "distribution.cache": "/bundles",
            "distribution.replica": "here",
            "trust_domain": "a.example",
        },
    )
    listen = [address.of_worker(1) for address in settings.request.listen]
    bundles = {"a.example": {"roots": "", "intermediates": ""}}
    told = Assignment(1, data, listen, "unix:///store.sock", bundles).as_message()
    assignment = Assignment.of(json.loads(json.dumps(told)))
    assert assignment.bundles == bundles
    worker = assignment.parse_settings()
    assert (worker.workers, worker.request.listen, str(worker.trust_domain)) == (1, listen, "a.example")
    assert worker.keys.cache == Path("/keys/worker-1")
    assert worker.distribution.cache == Path("/bundles/worker-1")
    assert worker.distribution.replica == "here.1"
    assert [str(one) for one in worker.rate_limit.redis] == ["unix:///store.sock"]
    assert worker.rate_limit.replicas == 6
    control = control_settings(settings, "")
    assert (control.keys.cache, control.distribution.redis, control.rate_limit.redis) == (None, None, [])
