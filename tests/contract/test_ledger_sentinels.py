"""A ledger behind Sentinels: found, followed when another server takes over, and never with a change missing."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import support.ledger_process
from click.testing import CliRunner
from support.ledgers import HOUR, NOW, TRUST_DOMAIN, WEB, certificate, token
from support.proxy import Proxy
from support.store_certificates import certificate as tls_certificate
from support.valkey import DURABLE, Valkey, server_with_tls
from support.valkey_nodes import Node, Watched, free_port, wait_until

from ca.authority import Hierarchy
from ca.cli import ca
from ca.ledger import CertificateQuery, LedgerUnavailableError, token_hash
from ca.store.redis import RedisLedger
from ca.store.redis_server import RedisPlace, Safety
from ca.store.sentinels import SentinelPlace
from garrison.errors import ConfigError
from garrison.redis_address import Credentials, RedisAddress

SCRIPT = Path(str(support.ledger_process.__file__))
# Answers may take longer than the second for which the server waits for replicas.
LONG: dict[str, Any] = {"patience_seconds": 30.0, "answer_seconds": 5.0}
BRIEF: dict[str, Any] = {"patience_seconds": 1.0, "answer_seconds": 0.3}


@pytest.fixture
def watch() -> Iterator[Callable[..., Watched]]:
    """Return what starts a master, replicas and Sentinels."""
    with tempfile.TemporaryDirectory() as folder:
        started: list[Watched] = []

        def run(*arguments: str, **counts: int) -> Watched:
            started.append(Watched(Path(folder), *arguments, **counts))
            started[-1].start()
            return started[-1]

        yield run
        for one in started:
            one.kill()


def place(watched: Watched, **more: Any) -> RedisPlace:
    """Return a ledger that a master and one replica have to have."""
    first, *others = map(RedisAddress.parse, watched.urls)
    login = more.pop("login", Credentials())
    sentinels = SentinelPlace(more.pop("master", "ledger"), tuple(others), login)
    return replace(RedisPlace(first, replicas=1, sentinels=sentinels), **more)


def test_the_sentinels_say_where_the_ledger_is(watch: Callable[..., Watched]) -> None:
    """Also when the first of them is away; who takes over is followed, with everything that was confirmed."""
    watched = watch(sentinels=2)
    ledger = RedisLedger(place(watched), TRUST_DOMAIN, **LONG)
    ledger.add_token(token())
    ledger.record_issued([certificate(1)])
    watched.sentinels[0].kill()
    other = RedisLedger(place(watched), TRUST_DOMAIN, **LONG)
    assert other.audit_head() == ledger.audit_head()
    watched.sentinels[0].start()

    (successor,) = watched.replicas
    watched.master.kill()
    wait_until(lambda: watched.named() == successor.port, "another master")
    # Nobody but the new master has a change now, so there is none.
    with pytest.raises(LedgerUnavailableError, match="0 of 1 replicas confirm"):
        ledger.record_issued([certificate(2)])
    # The old one comes back, takes itself for the master for a moment, and is told otherwise.
    watched.master.start()
    # A Sentinel tells it so when nothing was wrong with it for 8 s, which a busy machine can put off for long.
    wait_until(lambda: watched.master.ask("ROLE")[0] in {"slave", "replica"}, "a replica again", 150)
    wait_until(
        lambda: watched.master.ask("INFO", "replication")["master_link_status"] == "up", "one that follows"
    )
    for one in (ledger, other):
        one.record_issued([certificate()])
        assert one.find(serial=1)
    assert ledger.burn_token(token_hash("secret"), now=NOW, by="x").spiffe_id == WEB
    assert other.verify_audit().intact
    other.close()
    ledger.close()


def test_a_replica_that_could_take_over_must_have_each_change(watch: Callable[..., Watched]) -> None:
    """Of two replicas one may be behind when it becomes the master: both have to confirm, or one never takes over."""
    watched = watch(replicas=2)
    with pytest.raises(
        ConfigError, match="2 replicas may become the master, and a change counts when 1 have it"
    ):
        RedisLedger(place(watched), TRUST_DOMAIN)
    warnings: list[str] = []
    risky = place(watched, safety=Safety.WARN)
    RedisLedger(risky, TRUST_DOMAIN, warn=warnings.append).close()
    assert [one for one in warnings if "set `ledger_replicas: 2`" in one] == warnings
    RedisLedger(place(watched, replicas=2), TRUST_DOMAIN).close()
    # Priority 0: it is never made the master.
    watched.replicas[0].ask("CONFIG", "SET", "replica-priority", "0")
    command = ("SENTINEL", "replicas", "ledger")
    wait_until(
        lambda: any(one["slave-priority"] == "0" for one in told(watched.sentinels[0], *command)),
        "a Sentinel that knows the priority",
    )
    RedisLedger(place(watched), TRUST_DOMAIN).close()


def told(sentinel: Node, *command: str) -> list[dict[str, str]]:
    """Return what a Sentinel says of some servers."""
    return [
        one if isinstance(one, dict) else dict(zip(one[::2], one[1::2], strict=True))
        for one in sentinel.ask(*command)
    ]


def test_what_was_seen_on_an_old_master_may_be_gone(watch: Callable[..., Watched]) -> None:
    """It was confirmed to nobody. Whoever has seen it goes on with the new one; what was confirmed must be there."""
    watched = watch()
    (successor,) = watched.replicas
    writer, reader = (RedisLedger(place(watched), TRUST_DOMAIN, **LONG) for _ in range(2))
    writer.record_issued([certificate(1)])
    reader.audit_head()
    successor.kill()
    with pytest.raises(LedgerUnavailableError, match="0 of 1 replicas confirm"):
        writer.record_issued([certificate(2)])
    assert reader.find(serial=2)
    assert reader.audit_head().sequence == 2
    watched.master.kill()
    successor.start()
    wait_until(lambda: watched.named() == successor.port, "another master")
    assert reader.audit_head().sequence == 1
    assert reader.find(serial=2) == ()
    assert writer.find(serial=1)
    # A master that lacks what was confirmed is not used.
    successor.ask("FLUSHALL")
    with pytest.raises(LedgerUnavailableError, match="the ledger is gone"):
        writer.audit_head()
    RedisLedger(place(watched, replicas=1), TRUST_DOMAIN, **LONG).close()
    with pytest.raises(LedgerUnavailableError, match="went back from record 1 to 0"):
        writer.audit_head()
    for one in (writer, reader):
        one.close()


def test_a_master_that_nobody_told_is_not_used(watch: Callable[..., Watched], tmp_path: Path) -> None:
    """A server that takes itself for the master, and is not the one that the Sentinels name, is asked nothing new."""
    watched = watch(replicas=0)
    ledger = RedisLedger(place(watched, replicas=0), TRUST_DOMAIN, **BRIEF)
    ledger.record_issued([certificate(1)])
    other = Node(tmp_path / "other", *DURABLE)
    other.start()
    try:
        (sentinel,) = watched.sentinels
        sentinel.ask("SENTINEL", "REMOVE", "ledger")
        sentinel.ask("SENTINEL", "MONITOR", "ledger", "127.0.0.1", str(other.port), "1")
        assert watched.master.ask("ROLE")[0] == "master"
        # As when one thread more needs a connection.
        ledger._server._client.connection_pool.disconnect()
        with pytest.raises(LedgerUnavailableError, match="the ledger is gone"):
            ledger.find(serial=1)
    finally:
        ledger.close()
        other.kill()


def test_what_sentinels_do_not_know(watch: Callable[..., Watched]) -> None:
    """An unknown name, a wrong password and no Sentinel at all are said, without the password."""
    watched = watch(replicas=0)
    (sentinel,) = watched.sentinels
    rights = (
        "reset",
        "on",
        ">s3ntinel",
        "+auth",
        "+client",
        "+sentinel|get-master-addr-by-name",
        "+sentinel|replicas",
    )
    sentinel.ask("ACL", "SETUSER", "ledger", *rights)
    sentinel.ask("ACL", "SETUSER", "default", "off")
    where = place(watched, replicas=0)

    def known_as(master: str, user: str | None, password: str | None) -> RedisPlace:
        return replace(where, sentinels=SentinelPlace(master, (), Credentials(user, password)))

    RedisLedger(known_as("ledger", "ledger", "s3ntinel"), TRUST_DOMAIN).close()
    for place_of, why in (
        (known_as("ledger", "ledger", "wr0ng"), "invalid username-password pair"),
        (known_as("other", "ledger", "s3ntinel"), "knows no `other`"),
        (known_as("ledger", None, None), "Authentication required"),
    ):
        with pytest.raises(LedgerUnavailableError, match=why) as error:
            RedisLedger(place_of, TRUST_DOMAIN, **BRIEF)
        assert "wr0ng" not in str(error.value)
    sentinel.kill()
    with pytest.raises(LedgerUnavailableError, match="does not answer"):
        RedisLedger(known_as("ledger", "ledger", "s3ntinel"), TRUST_DOMAIN, **BRIEF)


def test_a_master_elsewhere_is_reached_by_tls(watch: Callable[..., Watched]) -> None:
    """A Sentinel on this machine may name a server on another one: not in plain text."""
    watched = watch(replicas=0)
    watched.sentinels[0].ask("SENTINEL", "REMOVE", "ledger")
    watched.sentinels[0].ask("SENTINEL", "MONITOR", "ledger", "192.0.2.1", "6379", "1")
    with pytest.raises(ConfigError, match="is not on this machine"):
        RedisLedger(place(watched, replicas=0), TRUST_DOMAIN, **BRIEF)


class Issuing:
    """A process that issues for ever, whatever fails; a thread reads what left."""

    def __init__(self, directory: Path, url: str) -> None:
        command = [sys.executable, str(SCRIPT), "issue_through_failures", str(directory), url, "sentinel"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.output.readline() == "ready\n"
        self.lines: list[str] = []
        self._reading = threading.Thread(target=lambda: self.lines.extend(iter(self.output.readline, "")))

    @property
    def output(self) -> IO[str]:
        """What it says."""
        assert self.process.stdout is not None
        return self.process.stdout

    def begin(self) -> None:
        """Let it begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._reading.start()

    @property
    def left(self) -> set[int]:
        """The serial numbers of what left."""
        return {int(line, 16) for line in self.lines if line.endswith("\n") and line != "failed\n"}

    def end(self) -> None:
        """Kill it, and read the rest."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self._reading.ident is not None:
            self._reading.join()
        self.output.close()
        assert self.process.stdin is not None
        self.process.stdin.close()


def test_nothing_leaves_without_its_record_when_another_takes_over(
    watch: Callable[..., Watched], tmp_path: Path
) -> None:
    """Two processes issue while the master is killed, its replica takes over, and the old one follows."""
    Hierarchy.create(TRUST_DOMAIN, now=NOW).save(tmp_path)
    watched = watch()
    (successor,) = watched.replicas
    issuing = [Issuing(tmp_path, watched.urls[0]) for _ in range(2)]
    try:
        for one in issuing:
            one.begin()
        wait_until(lambda: all(len(one.left) > 20 for one in issuing), "certificates")
        watched.master.kill()
        wait_until(lambda: watched.named() == successor.port, "another master")
        watched.master.start()
        before = [len(one.left) for one in issuing]
        wait_until(
            lambda: all(len(one.left) > count + 20 for one, count in zip(issuing, before, strict=True)),
            "certificates under the new master",
        )
    finally:
        for one in issuing:
            one.end()
    first, second = (one.left for one in issuing)
    assert first.isdisjoint(second)
    ledger = RedisLedger(place(watched), TRUST_DOMAIN, **LONG)
    verdict, recorded = ledger.verify_audit(), _recorded(ledger)
    ledger.close()
    assert verdict.intact
    assert first | second <= recorded
    assert verdict.head.sequence == len(recorded)


def _recorded(ledger: RedisLedger) -> set[int]:
    recorded: list[int] = []
    cursor = None
    while cursor != "":
        page = ledger.issued(CertificateQuery(cursor=cursor or "", limit=1000), now=NOW)
        recorded += [one.serial for one in page.certificates]
        cursor = page.cursor
    assert len(set(recorded)) == len(recorded)
    return set(recorded)


def test_commands_ask_sentinels(watch: Callable[..., Watched], tmp_path: Path) -> None:
    """The options of `ca` and their variables; what does not go together is said."""
    Hierarchy.create(TRUST_DOMAIN, now=NOW).save(tmp_path / "pki")
    watched = watch(sentinels=2)

    def run(*options: str, **environment: str) -> Any:
        words = ["list", "--dir", str(tmp_path / "pki"), "--json", *options]
        return CliRunner().invoke(
            ca, words, env={f"GARRISON_CA_LEDGER{k}": v for k, v in environment.items()}
        )

    known = RedisLedger(place(watched), TRUST_DOMAIN)
    known.record_issued([certificate(77, not_after=NOW + 9 * HOUR)])
    known.close()
    first, second = watched.urls
    result = run("--ledger", first, "--ledger-sentinel-master", "ledger", "--ledger-replicas", "1")
    assert (result.exit_code, '"serial": "4d"' in result.output) == (0, True), result.output
    watched.sentinels[0].kill()
    variables = {"": first, "_SENTINELS": second, "_SENTINEL_MASTER": "ledger", "_REPLICAS": "1"}
    result = run(**variables)
    assert (result.exit_code, '"serial": "4d"' in result.output) == (0, True), result.output
    for options, why in (
        (("--ledger", first, "--ledger-sentinels", second), "go with --ledger-sentinel-master"),
        (("--ledger", first, "--ledger-certificate", __file__), "go together"),
        (
            ("--ledger", first, "--ledger-sentinel-master", "x", "--ledger-sentinels", "redis://u@h"),
            "differ in nothing but host and port",
        ),
    ):
        result = run(*options)
        assert (result.exit_code, why in result.output) == (2, True), result.output


# Client certificates


def test_a_server_may_ask_for_a_certificate(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With the right one it is used; without, or with a file that is none, it is said which."""
    valkey = Valkey(tmp_path_factory.mktemp("v"), *DURABLE)
    valkey.start()
    server, own, other = (tls_certificate(tmp_path, name) for name in ("server", "own", "other"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server)
    tls.load_verify_locations(own)
    tls.verify_mode = ssl.CERT_REQUIRED
    # With TLS 1.3 a client learns only later that it is refused.
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with Proxy(valkey.socket, tls) as proxy:
            address = RedisAddress.parse(f"rediss://127.0.0.1:{proxy.port}")
            good = RedisPlace(address, server, certificate=own, private_key=own)
            ledger = RedisLedger(good, TRUST_DOMAIN)
            ledger.record_issued([certificate(1)])
            ledger.close()
            for wrong in (RedisPlace(address, server), replace(good, certificate=other, private_key=other)):
                with pytest.raises(LedgerUnavailableError):
                    RedisLedger(wrong, TRUST_DOMAIN, **BRIEF)
            nothing = tmp_path / "nothing.pem"
            for files in ((own, other), (own, nothing), (nothing, own)):
                unusable = replace(good, certificate=files[0], private_key=files[1])
                with pytest.raises(ConfigError, match="no certificate for TLS"):
                    RedisLedger(unusable, TRUST_DOMAIN)
    finally:
        valkey.kill()


def test_a_real_server_asks_for_a_certificate(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same with a server that speaks TLS itself."""
    binary, port = server_with_tls(), free_port()
    server, own = (tls_certificate(tmp_path, name) for name in ("server", "own"))
    files = ("--tls-cert-file", server, "--tls-key-file", server, "--tls-ca-cert-file", own)
    options = ("--tls-port", port, *files, "--tls-auth-clients", "yes", "--bind", "127.0.0.1")
    valkey = Valkey(tmp_path_factory.mktemp("v"), *DURABLE, *map(str, options), binary=binary)
    valkey.start()
    try:
        address = RedisAddress.parse(f"rediss://127.0.0.1:{port}")
        ledger = RedisLedger(RedisPlace(address, server, certificate=own, private_key=own), TRUST_DOMAIN)
        ledger.record_issued([certificate(1)])
        ledger.close()
        with pytest.raises(LedgerUnavailableError):
            RedisLedger(RedisPlace(address, server), TRUST_DOMAIN, **BRIEF)
    finally:
        valkey.kill()
