"""Kill -9 at every step: `python crash_walk.py OPERATION DIRECTORY` walks one operation, and prints what it found.

The operation runs in a child again and again, on the same beginning. The n-th child is killed before its n-th
change of the disk or the ledger: opening a file to write, syncing, renaming, linking, removing, and each statement
of a transaction. After each death the CA has to be whole, as a server or a command would find it, and the same
command has to work again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from click.testing import CliRunner
from cryptography import x509

from ca.authorities import Authorities
from ca.authority import CA_CERT, CA_KEY, ROOT_CERT, ROOT_KEY, Authority, load_key
from ca.authority_files import FOLDER
from ca.bundle import parse_certificates
from ca.cli import ca
from ca.commands.svids import SVID_CERTIFICATE
from ca.crl import key_identifier_of, renew_crl
from ca.keys import new_private_key
from ca.ledger import KeyState, KeyUse, fingerprint_of
from ca.store import database
from ca.store.sqlite import LEDGER, SqliteLedger
from ca.verification import verify_svid
from garrison.identity import SpiffeId
from support.ca_files import OutsideRoot

THREE_DAYS = timedelta(days=3)
MAX_STEPS = 400
WEB = "spiffe://cluster.local/web"
_CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Death:
    """Counts changes, and ends this process before the n-th; nothing before it is armed."""

    def __init__(self) -> None:
        self.left = 0
        sys.addaudithook(self._hear)
        sync = os.fsync

        def fsync(descriptor: Any) -> None:
            self.step()
            sync(descriptor)
            self.step()

        os.fsync = fsync  # type: ignore[assignment]
        connect, death = sqlite3.connect, self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                writes = sql.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE", "COMMIT", "CREATE"))
                if writes:
                    death.step()
                found = super().execute(sql, *arguments)
                if writes:
                    death.step()
                return found

        def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
            found: sqlite3.Connection = connect(*arguments, **options, factory=Connection)
            return found

        database.sqlite3.connect = connected  # type: ignore[attr-defined]

    def step(self) -> None:
        """Count a change."""
        if self.left:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.left and (event in _CHANGES or (event == "open" and (arguments[2] or 0) & _WRITING)):
            self.step()


@dataclass(frozen=True)
class Operation:
    """A command, what there has to be before it, the states of authorities after it, how late it all is."""

    command: Callable[[Path], Sequence[str]]
    before: Callable[[Path], None]
    states: Sequence[str]
    again: Sequence[int] = (0,)
    later: timedelta = timedelta(0)


def run(*arguments: str, codes: Sequence[int] = (0,)) -> str:
    """Run a command of `ca` on a CA."""
    if arguments[0] == "retire":
        return retire(Path(arguments[1]))
    result = CliRunner().invoke(ca, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code not in codes:
        raise AssertionError(f"{arguments}: {result.exit_code}: {result.output}")
    return result.stdout


def retire(directory: Path) -> str:
    """Do what a server would do by schedule three days from now."""
    ledger, now = SqliteLedger.of(directory), datetime.now(UTC) + THREE_DAYS
    authorities = Authorities(directory, ledger)
    for step in authorities.due(now):
        authorities.run(step, now=now, by="garrison serve")
    ledger.close()
    return ""


def make(directory: Path) -> None:
    """Make a CA with a leaf."""
    run("init", "--dir", str(directory), "--trust-domain", "cluster.local", "--no-passphrase")
    run("issue", "--dir", str(directory), WEB, "--out", str(directory.parent / "web"))


def prepared(directory: Path) -> None:
    """Make a CA with a successor."""
    make(directory)
    run("authority", "prepare", "--dir", str(directory), "--new-root")


def activated(directory: Path) -> None:
    """Make a CA whose second authority signs."""
    prepared(directory)
    run("authority", "activate", "--dir", str(directory), "--now")


def tainted(directory: Path) -> None:
    """Make a CA whose first authority is tainted."""
    activated(directory)
    run("authority", "taint", "--dir", str(directory), first(directory))


def asked(directory: Path) -> None:
    """Make a CA that waits for the answer of an outside root, and the answer."""
    make(directory)
    shown = run("authority", "prepare", "--dir", str(directory), "--csr", "--json")
    root = OutsideRoot.create()
    answer = root.sign(Path(json.loads(shown)["request"]).read_bytes())
    (directory.parent / "answer.pem").write_bytes(answer + root.pem)


def nothing(directory: Path) -> None:
    """Make nothing."""


def first(directory: Path) -> str:
    """Return the id of the first authority."""
    ledger = SqliteLedger.of(directory)
    try:
        return ledger.keys(KeyUse.X509)[0].key_id
    finally:
        ledger.close()


def authority(*arguments: str) -> Callable[[Path], Sequence[str]]:
    """Return a command of `ca authority`; FIRST is the id of the first one."""

    def command(directory: Path) -> Sequence[str]:
        named = [
            first(directory) if one == "FIRST" else one.replace("BESIDE", str(directory.parent))
            for one in arguments
        ]
        return ["authority", named[0], "--dir", str(directory), *named[1:]]

    return command


OPERATIONS = {
    "init": Operation(
        lambda directory: [
            "init",
            "--dir",
            str(directory),
            "--trust-domain",
            "cluster.local",
            "--no-passphrase",
        ],
        nothing,
        ["active"],
        again=(0, 2),
    ),
    "issue": Operation(
        lambda directory: [
            "issue",
            "--dir",
            str(directory),
            WEB,
            "--out",
            str(directory.parent / "new"),
            "--force",
        ],
        make,
        ["active"],
    ),
    "revoke_certificate": Operation(
        lambda directory: [
            "revoke",
            "--dir",
            str(directory),
            str(directory.parent / "web" / SVID_CERTIFICATE),
        ],
        make,
        ["active"],
        again=(0, 3),
    ),
    "prepare_root": Operation(authority("prepare", "--new-root"), make, ["active", "prepared"], again=(0, 3)),
    "prepare_intermediate": Operation(authority("prepare"), make, ["active", "prepared"], again=(0, 3)),
    "prepare_csr": Operation(authority("prepare", "--csr"), make, ["active"], again=(0, 3)),
    "prepare_answer": Operation(
        authority("prepare", "--answer", "BESIDE/answer.pem"), asked, ["active", "prepared"], again=(0, 3)
    ),
    "activate": Operation(authority("activate", "--now"), prepared, ["old", "active"], again=(0, 3)),
    "retire": Operation(
        lambda directory: ["retire", str(directory)], activated, ["revoked", "active"], later=THREE_DAYS
    ),
    "taint": Operation(authority("taint", "FIRST"), activated, ["tainted", "active"], again=(0, 3)),
    "revoke": Operation(authority("revoke", "FIRST", "--now"), tainted, ["revoked", "active"], again=(0, 3)),
}


def keys_in(directory: Path) -> set[str]:
    """Return the identifiers of all keys that are there."""
    found = set()
    for place in (directory, *(directory / FOLDER).glob("*")):
        for name in (CA_KEY, ROOT_KEY):
            if (place / name).exists():
                public_key = load_key(place / name).public_key()
                found.add(x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex())
    return found


def check(directory: Path, keys: set[str], now: datetime) -> None:
    """Start on what is left, as a server does, and look at everything."""
    ledger = SqliteLedger.of(directory)
    try:
        authorities = Authorities(directory, ledger)
        authorities.reconcile(now=now, by="restart")
        view = authorities.view()
        assert not view.refusal, view.refusal
        rows = ledger.keys(KeyUse.X509)
        states = [row.state for row in rows]
        assert states.count(KeyState.ACTIVE) == 1, states
        live = [row for row in rows if row.state is not KeyState.REVOKED]
        assert len(view.issuers) == len(live), "the key of an authority is gone"
        # Nothing on disk that the ledger does not know.
        folders = [path for path in (directory / FOLDER).glob("*") if (path / CA_CERT).exists()]
        known = {row.key_id for row in live}
        for folder in folders:
            assert key_identifier_of(parse_certificates((folder / CA_CERT).read_bytes())[0]) in known
        on_disk = parse_certificates((directory / ROOT_CERT).read_bytes())
        assert on_disk == view.authority.roots
        assert {one.root for one in view.standings if one.state is not KeyState.REVOKED} == {
            fingerprint_of(root) for root in on_disk
        }
        for row in rows:
            assert row.state is not KeyState.PREPARED or row.changed_at is not None, "never published"
        # The files of the one that signs are those that commands use.
        plain = Authority.load(directory)
        assert plain.issuer.certificate == view.authority.issuer.certificate
        for issuing in (plain, view.authority):
            spiffe_id = SpiffeId.parse(WEB)
            svid = issuing.issue(spiffe_id, new_private_key().public_key(), now=now, ttl=timedelta(hours=1))
            verify_svid(svid.leaf, issuing.chain, on_disk, now)
        lost = keys - keys_in(directory)
        assert not lost or any(row.state is KeyState.REVOKED for row in rows), "a key is lost"
        for place in ("web", "new"):
            file = directory.parent / place / SVID_CERTIFICATE
            if file.exists():
                leaf, *chain = parse_certificates(file.read_bytes())
                (recorded,) = ledger.find(serial=leaf.serial_number)
                if KeyState.REVOKED not in states:
                    verify_svid(leaf, chain, on_disk, datetime.now(UTC))
                if recorded.revocation is not None:
                    crl = x509.load_der_x509_crl(renew_crl(ledger, plain.issuer, now=now, by="restart").der)
                    assert crl.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None
        assert ledger.verify_audit().intact
    finally:
        ledger.close()


def walk(name: str, folder: Path) -> dict[str, Any]:
    """Kill the operation at every step; return how many there were, and what went wrong."""
    operation, death = OPERATIONS[name], Death()
    start = folder / "start"
    start.mkdir()
    operation.before(start / "pki")
    problems: list[str] = []
    died = 0
    for step in range(1, MAX_STEPS):
        place = folder / str(step)
        shutil.copytree(start, place, symlinks=True)
        directory = place / "pki"
        keys = keys_in(directory)
        arguments = operation.command(directory)
        child = os.fork()
        if not child:
            death.left = step
            try:
                run(*arguments)
            except BaseException as error:  # noqa: BLE001 - told by the exit code
                sys.stderr.write(f"{error!r}\n")
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        try:
            now = datetime.now(UTC) + operation.later
            if (directory / CA_CERT).exists():
                check(directory, keys, now)
            else:
                assert name == "init", "the CA is gone"
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0, "it failed by itself"
            run(*operation.command(directory), codes=operation.again)
            check(directory, keys, now)
            ledger = SqliteLedger(directory / LEDGER)
            states = [row.state.value for row in ledger.keys(KeyUse.X509)]
            ledger.close()
            assert states == list(operation.states), states
            rests = [path for path in directory.rglob("*") if path.name.startswith((".", "unrecorded"))]
            assert not rests, rests
        except Exception as error:  # noqa: BLE001 - all are told
            problems.append(f"step {step}: {type(error).__name__}: {error}")
        shutil.rmtree(place)
        if not os.WIFSIGNALED(status):
            return {"steps": died, "problems": problems}
        died += 1
    return {"steps": died, "problems": [*problems, "it does not end"]}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(walk(sys.argv[1], Path(sys.argv[2]))))
