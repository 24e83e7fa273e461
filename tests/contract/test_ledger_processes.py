"""Several processes on one ledger, and one that is killed in the middle of its work."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import support.ledger_process
from support.ledger_process import ROUNDS
from support.ledgers import NOW, token

from ca.authority import Hierarchy
from ca.ledger import CertificateQuery
from ca.store.sqlite import SqliteLedger
from garrison.identity import TrustDomain

SCRIPT = Path(str(support.ledger_process.__file__))
TIMEOUT = 60


class Worker:
    """A process of `support.ledger_process`."""

    def __init__(self, action: str, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), action, str(directory)],
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
def workers(count: int, action: str, directory: Path) -> Iterator[list[Worker]]:
    """Run `count` processes, which begin when they are told."""
    started = [Worker(action, directory) for _ in range(count)]
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


def race(action: str, directory: Path) -> list[list[str]]:
    """Let two processes do the same at the same time, and return what each said."""
    with workers(2, action, directory) as racing:
        for worker in racing:
            worker.wait_until_ready()
        for worker in racing:
            worker.begin()
        return [worker.results() for worker in racing]


def test_two_processes_never_burn_one_token(tmp_path: Path) -> None:
    """Both try every token at the same time: each is granted to exactly one of them."""
    ledger = SqliteLedger.of(tmp_path)
    for number in range(ROUNDS):
        ledger.add_token(token(str(number)))
    results = race("burn", tmp_path)
    assert [sorted(pair) for pair in zip(*results, strict=True)] == [["granted", "token_used"]] * ROUNDS
    assert len([one for one in ledger.tokens() if one.used_at == NOW]) == ROUNDS
    assert ledger.verify_audit().intact
    ledger.close()


def test_two_processes_never_record_one_serial_number(tmp_path: Path) -> None:
    """Both sign the same serial numbers at the same time: each is recorded, and may leave, once."""
    results = race("issue_same_serials", tmp_path)
    assert [sorted(pair) for pair in zip(*results, strict=True)] == [["duplicate", "recorded"]] * ROUNDS
    ledger = SqliteLedger.of(tmp_path)
    assert len(ledger.issued(CertificateQuery(limit=1000), now=NOW).certificates) == ROUNDS
    assert ledger.verify_audit().head.sequence == ROUNDS
    ledger.close()


def test_processes_make_one_ledger_at_the_same_time(tmp_path: Path) -> None:
    """Whoever opens it first, all work on the same one."""
    with workers(4, "burn", tmp_path) as opening:
        for worker in opening:
            worker.wait_until_ready()
            worker.begin()
        for worker in opening:
            assert worker.results() == ["token_unknown"] * ROUNDS
    ledger = SqliteLedger.of(tmp_path)
    assert ledger.verify_audit().head.sequence == 4 * ROUNDS
    ledger.close()


@pytest.mark.parametrize("after", [1, 7, 40])
def test_what_left_is_recorded_though_the_process_was_killed(tmp_path: Path, after: int) -> None:
    """After a kill in the middle of issuing, every certificate that left is there, and none by half."""
    Hierarchy.create(TrustDomain("cluster.local"), now=NOW).save(tmp_path)
    with workers(1, "issue_for_ever", tmp_path) as (worker,):
        worker.wait_until_ready()
        worker.begin()
        left = [worker.output.readline() for _ in range(after)]
        worker.process.send_signal(signal.SIGKILL)
        left += worker.output.readlines()
        worker.process.wait(TIMEOUT)
    serials = {int(line, 16) for line in left if line.endswith("\n")}
    ledger = SqliteLedger.of(tmp_path)
    verdict = ledger.verify_audit()
    assert verdict.intact
    recorded = set()
    cursor = None
    while cursor != "":
        page = ledger.issued(CertificateQuery(cursor=cursor or "", limit=1000), now=NOW)
        recorded |= {one.serial for one in page.certificates}
        cursor = page.cursor
    ledger.close()
    assert len(serials) >= after
    assert serials <= recorded
    assert {serial ^ 1 for serial in recorded} == recorded
    assert verdict.head.sequence == len(recorded)
