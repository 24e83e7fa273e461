"""Several processes on one ledger, in a file or in Redis, and one that is killed in the middle of its work."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
import support.ledger_process
from support.ledger_process import ROUNDS
from support.ledgers import NOW, TRUST_DOMAIN, token
from support.valkey import DURABLE, Valkey

from ca.authority import Hierarchy
from ca.ledger import CertificateQuery, Ledger
from ca.store.opening import LedgerPlace, parse_where

SCRIPT = Path(str(support.ledger_process.__file__))
TIMEOUT = 60


@dataclass(frozen=True, slots=True)
class Place:
    """A CA's directory, and where its ledger is."""

    directory: Path
    url: str = "-"

    @contextlib.contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """Open the ledger."""
        where = LedgerPlace(None if self.url == "-" else parse_where(self.url))
        ledger = where.open(self.directory, TRUST_DOMAIN, warn=pytest.fail)
        yield ledger
        ledger.close()


@pytest.fixture(params=["file", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Return where a new ledger is: each test is for both kinds."""
    if request.param == "file":
        yield Place(tmp_path)
        return
    # A socket's path has to be short.
    with tempfile.TemporaryDirectory() as folder, Valkey(Path(folder), *DURABLE) as valkey:
        yield Place(tmp_path, valkey.url)


class Worker:
    """A process of `support.ledger_process`."""

    def __init__(self, action: str, place: Place) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), action, str(place.directory), place.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def output(self) -> IO[str]:
        """What it says."""
        assert self.process.stdout is not None
        return self.process.stdout

    def wait_until_ready(self) -> None:
        """Return when it has opened the ledger."""
        assert self.output.readline() == "ready\n"

    def begin(self) -> None:
        """Let it begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def results(self) -> list[str]:
        """Return what it said until its end."""
        lines = self.output.read().split()
        assert self.process.wait(TIMEOUT) == 0
        return lines


@contextlib.contextmanager
def workers(count: int, action: str, place: Place) -> Iterator[list[Worker]]:
    """Run `count` processes, which begin when they are told."""
    started = [Worker(action, place) for _ in range(count)]
    try:
        yield started
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.wait()
            worker.output.close()
            if worker.process.stdin is not None:
                with contextlib.suppress(OSError):
                    worker.process.stdin.close()


def race(action: str, place: Place) -> list[list[str]]:
    """Let two processes do the same at the same time, and return what each said."""
    with workers(2, action, place) as racing:
        for worker in racing:
            worker.wait_until_ready()
        for worker in racing:
            worker.begin()
        return [worker.results() for worker in racing]


def test_two_processes_never_burn_one_token(place: Place) -> None:
    """Both try every token at the same time: each is granted to exactly one of them."""
    with place.ledger() as ledger:
        for number in range(ROUNDS):
            ledger.add_token(token(str(number)))
        results = race("burn", place)
        assert [sorted(pair) for pair in zip(*results, strict=True)] == [["granted", "token_used"]] * ROUNDS
        assert len([one for one in ledger.tokens() if one.used_at == NOW]) == ROUNDS
        assert ledger.verify_audit().intact


def test_two_processes_never_record_one_serial_number(place: Place) -> None:
    """Both sign the same serial numbers at the same time: each is recorded, and may leave, once."""
    results = race("issue_same_serials", place)
    assert [sorted(pair) for pair in zip(*results, strict=True)] == [["duplicate", "recorded"]] * ROUNDS
    with place.ledger() as ledger:
        assert len(ledger.issued(CertificateQuery(limit=1000), now=NOW).certificates) == ROUNDS
        assert ledger.verify_audit().head.sequence == ROUNDS


def test_processes_make_one_ledger_at_the_same_time(place: Place) -> None:
    """Whoever opens it first, all work on the same one."""
    with workers(4, "burn", place) as opening:
        for worker in opening:
            worker.wait_until_ready()
            worker.begin()
        for worker in opening:
            assert worker.results() == ["token_unknown"] * ROUNDS
    with place.ledger() as ledger:
        assert ledger.verify_audit().head.sequence == 4 * ROUNDS


@pytest.mark.parametrize("after", [1, 7, 40])
def test_what_left_is_recorded_though_the_process_was_killed(place: Place, after: int) -> None:
    """After a kill in the middle of issuing, every certificate that left is there, and none by half."""
    Hierarchy.create(TRUST_DOMAIN, now=NOW).save(place.directory)
    with workers(1, "issue_for_ever", place) as (worker,):
        worker.wait_until_ready()
        worker.begin()
        left = [worker.output.readline() for _ in range(after)]
        worker.process.send_signal(signal.SIGKILL)
        left += worker.output.readlines()
        worker.process.wait(TIMEOUT)
    serials = {int(line, 16) for line in left if line.endswith("\n")}
    with place.ledger() as ledger:
        verdict = ledger.verify_audit()
        recorded = _recorded(ledger)
    assert verdict.intact
    assert len(serials) >= after
    assert serials <= recorded
    assert {serial ^ 1 for serial in recorded} == recorded
    assert verdict.head.sequence == len(recorded)


def test_what_left_is_recorded_though_redis_was_killed(tmp_path: Path) -> None:
    """Redis is killed and comes back, again and again, under two processes: none of what left is missing."""
    Hierarchy.create(TRUST_DOMAIN, now=NOW).save(tmp_path)
    with tempfile.TemporaryDirectory() as folder:
        valkey = Valkey(Path(folder), *DURABLE)
        valkey.start()
        place = Place(tmp_path, valkey.url)
        with workers(2, "issue_for_ever", place) as issuing:
            for worker in issuing:
                worker.wait_until_ready()
            for worker in issuing:
                worker.begin()
            left: list[str] = []
            for _ in range(4):
                for worker in issuing:
                    left += [worker.output.readline() for _ in range(5)]
                valkey.kill()
                valkey.start()
            for worker in issuing:
                worker.process.send_signal(signal.SIGKILL)
                left += worker.output.readlines()
                worker.process.wait(TIMEOUT)
        serials = {int(line, 16) for line in left if line.endswith("\n")}
        with place.ledger() as ledger:
            verdict = ledger.verify_audit()
            recorded = _recorded(ledger)
        valkey.kill()
    assert verdict.intact
    assert len(serials) >= 40
    assert serials <= recorded
    assert {serial ^ 1 for serial in recorded} == recorded
    assert verdict.head.sequence == len(recorded)


def _recorded(ledger: Ledger) -> set[int]:
    recorded: set[int] = set()
    cursor = None
    while cursor != "":
        page = ledger.issued(CertificateQuery(cursor=cursor or "", limit=1000), now=NOW)
        recorded |= {one.serial for one in page.certificates}
        cursor = page.cursor
    return recorded
