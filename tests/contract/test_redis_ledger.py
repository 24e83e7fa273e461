"""A ledger in a Redis that loses answers, stalls, forgets, is full, was tampered with, or cannot be relied on."""

from __future__ import annotations

import json
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.ledgers import API, HOUR, ISSUER, NOW, TRUST_DOMAIN, WEB, certificate, entry, open_redis, token
from support.proxy import Proxy
from support.store_certificates import certificate as tls_certificate
from support.valkey import DURABLE, Valkey
from support.valkey_nodes import Cluster, Node, wait_until

from ca.audit import AuditEvent, AuditRecord
from ca.ledger import (
    CertificateQuery,
    IssuedCertificate,
    KeyUse,
    Ledger,
    LedgerCode,
    LedgerRefusalError,
    LedgerUnavailableError,
    RevocationReason,
    StoredCrl,
    TokenGrant,
    token_hash,
)
from ca.store.redis import RedisLedger
from ca.store.redis_server import LedgerServer, RedisPlace, Safety, complaints
from garrison.errors import ConfigError
from garrison.redis_address import RedisAddress

PREFIX = "garrison:ca:{cluster.local}:"
SOUND = {"role": "master", "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always"}
# Long enough for a loaded machine, short enough to wait for.
BRIEF: dict[str, Any] = {"patience_seconds": 1.0, "answer_seconds": 0.3}


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server that keeps what it confirms."""
    with Valkey(tmp_path_factory.mktemp("v"), *DURABLE) as server:
        yield server


@pytest.fixture
def valkey(durable: Valkey) -> Valkey:
    """Return a server with nothing in it."""
    with durable.client() as client:
        client.flushall()
        client.config_set("maxmemory", 0)
    return durable


@pytest.fixture
def ledger(valkey: Valkey) -> Iterator[RedisLedger]:
    """Return a new ledger in it."""
    opened = open_redis(valkey)
    yield opened
    opened.close()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Valkey]]:
    """Return what starts a server of the test's own."""
    started: list[Valkey] = []

    def run(*arguments: str) -> Valkey:
        started.append(Valkey(tmp_path_factory.mktemp("v"), *arguments))
        started[-1].start()
        return started[-1]

    yield run
    for server in started:
        server.kill()


def at(proxy: Proxy) -> RedisPlace:
    """Return where the proxy is."""
    return RedisPlace(RedisAddress.parse(f"redis://127.0.0.1:{proxy.port}"))


def tried(action: Callable[[], object]) -> str:
    """Run what the ledger cannot do, and return why."""
    with pytest.raises(LedgerUnavailableError) as error:
        action()
    return str(error.value)


def unusable(open_it: Callable[[], object]) -> str:
    """Open what must not be used, and return why not."""
    with pytest.raises(ConfigError) as error:
        open_it()
    return error.value.diagnostics[0].message


# Answers that are lost, and a server that stalls


def test_a_change_whose_answer_is_lost_is_made_once(valkey: Valkey) -> None:
    """The connection breaks after the change was made: it is known all the same, and there is one record."""
    with Proxy(valkey.socket) as proxy:
        ledger = RedisLedger(at(proxy), TRUST_DOMAIN)
        ledger.add_token(token())
        for number, action in enumerate(_changes(ledger)):
            proxy.losing = b"EVAL"
            action()
            assert proxy.losing == b""
            assert ledger.audit_head().sequence == number + 2
        assert ledger.tokens()[0].used_by == "10.0.0.1"
        assert ledger.verify_audit().intact
        ledger.close()


def _changes(ledger: Ledger) -> Sequence[Callable[[], object]]:
    key = token_hash("secret")
    return (
        lambda: ledger.burn_token(key, now=NOW, by="10.0.0.1"),
        lambda: ledger.record_issued([certificate(5)]),
        lambda: ledger.revoke(ISSUER, 5, RevocationReason.SUPERSEDED, now=NOW, by="root"),
        lambda: ledger.put_crl(StoredCrl(ISSUER, 1, 1, b"\x00", NOW, NOW + HOUR), now=NOW, by="root"),
        lambda: ledger.add_entry(entry("1")),
        lambda: ledger.delete_entry("1", now=NOW, by="root"),
        lambda: ledger.publish_bundle("a", now=NOW, by="root"),
    )


def test_a_lost_answer_is_not_taken_for_that_of_somebody_else(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two who burn one token at the same moment write the same record; the loser of an answer is not both."""
    with Proxy(valkey.socket) as proxy:
        slow, fast = RedisLedger(at(proxy), TRUST_DOMAIN), open_redis(valkey)
        fast.add_token(token())
        fast.append_audit(AuditEvent.ISSUANCE_DENIED, now=NOW, by="x", details={})
        slow.audit_head()
        key = token_hash("secret")
        # The slow one has built its change, and the fast one makes the very same before it arrives.
        original = slow._get

        def read_then_lose(*arguments: Any) -> bytes | None:
            found = original(*arguments)
            if not overtaken:
                overtaken.append(fast.burn_token(key, now=NOW, by="process"))
                proxy.losing = b"EVAL"
            return found

        overtaken: list[TokenGrant] = []
        monkeypatch.setattr(slow, "_get", read_then_lose)
        with pytest.raises(LedgerRefusalError) as error:
            slow.burn_token(key, now=NOW, by="process")
        assert error.value.code is LedgerCode.TOKEN_USED
        assert [one.event for one in fast.audit()][-2:] == ["token_burned", "token_refused"]
        slow.close()
        fast.close()


def test_nothing_leaves_while_the_server_stalls(start: Callable[..., Valkey]) -> None:
    """What was not confirmed in time failed; when the server goes on, it may be recorded, but opens nothing."""
    valkey = start(*DURABLE)
    ledger = open_redis(valkey, **BRIEF)
    ledger.add_token(token())
    key = token_hash("secret")
    valkey.pause()
    try:
        assert "may or may not" in tried(lambda: ledger.record_issued([certificate(5)]))
        assert "does not answer" in tried(lambda: ledger.burn_token(key, now=NOW, by="first"))
        tried(ledger.entries)
    finally:
        valkey.resume()
    wait_until(lambda: len(ledger.find(serial=5)) == 1, "the certificate that was sent")
    with pytest.raises(LedgerRefusalError):
        ledger.record_issued([certificate(5)])
    # Reading a token is not sent on; so it is still there, and opens for one caller.
    assert ledger.burn_token(key, now=NOW, by="second").spiffe_id == WEB
    assert ledger.verify_audit().head.sequence == 3
    ledger.close()


def test_a_token_whose_burning_was_under_way_opens_at_most_once(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers to all attempts are lost: the caller is told no, and so is everybody after."""
    with Proxy(valkey.socket) as proxy:
        ledger = RedisLedger(at(proxy), TRUST_DOMAIN, **BRIEF)
        ledger.add_token(token())
        key = token_hash("secret")
        original = ledger._get

        def read_then_hold(*arguments: Any) -> bytes | None:
            found = original(*arguments)
            proxy.delay_seconds = 60
            return found

        monkeypatch.setattr(ledger, "_get", read_then_hold)
        tried(lambda: ledger.burn_token(key, now=NOW, by="first"))
        other = open_redis(valkey)
        with pytest.raises(LedgerRefusalError) as error:
            other.burn_token(key, now=NOW, by="second")
        assert error.value.code is LedgerCode.TOKEN_USED
        assert [one.used_by for one in other.tokens()] == ["first"]
        other.close()
        ledger.close()


def test_a_server_that_restarts_is_waited_for(start: Callable[..., Valkey]) -> None:
    """A restart costs time, no error and no record."""
    valkey = start(*DURABLE)
    ledger = open_redis(valkey)
    ledger.record_issued([certificate(1)])
    valkey.kill()
    again = threading.Thread(target=valkey.start)
    again.start()
    ledger.record_issued([certificate(2)])
    again.join()
    assert ledger.verify_audit().head.sequence == 2
    ledger.close()


def test_a_server_that_is_gone_fails_in_time(start: Callable[..., Valkey]) -> None:
    """Nobody waits for ever, and the message has neither password nor traceback."""
    valkey = start(*DURABLE)
    ledger = open_redis(valkey, **BRIEF)
    valkey.kill()
    before = time.monotonic()
    assert str(valkey.socket) in tried(lambda: ledger.record_issued([certificate(1)]))
    assert time.monotonic() - before < 20
    ledger.close()
    assert "closed" in tried(ledger.entries)


# A server that forgets, is full, or was tampered with


def test_a_ledger_that_went_back_is_not_used(valkey: Valkey, ledger: RedisLedger) -> None:
    """Who has seen more than the server knows reads and writes no more: burnt tokens may be whole again."""
    with valkey.client() as client:
        ledger.add_token(token())
        before = {name: client.dump(name) for name in client.keys("*")}
        ledger.burn_token(token_hash("secret"), now=NOW, by="x")
        client.flushall()
        assert "gone" in tried(ledger.entries)
        assert "gone" in tried(lambda: ledger.record_issued([certificate(1)]))
        for name, value in before.items():
            client.restore(name, 0, value)
    assert "went back from record 2 to 1" in tried(ledger.tokens)
    assert "went back" in tried(lambda: ledger.burn_token(token_hash("secret"), now=NOW, by="x"))
    assert "went back" in tried(lambda: ledger.record_issued([certificate(1)]))
    # Who starts now knows nothing else; a head that was written down does.
    other = open_redis(valkey)
    assert other.tokens() == (token(),)
    other.close()


def test_a_server_that_is_full_changes_nothing(valkey: Valkey, ledger: RedisLedger) -> None:
    """Out of memory: refused, whole, and used again when there is room."""
    ledger.add_token(token())
    with valkey.client() as client:
        client.config_set("maxmemory", 1)
        assert "maxmemory" in tried(lambda: ledger.record_issued([certificate(1)]))
        tried(lambda: ledger.burn_token(token_hash("secret"), now=NOW, by="x"))
        client.config_set("maxmemory", 0)
    assert ledger.audit_head().sequence == 1
    assert ledger.burn_token(token_hash("secret"), now=NOW, by="x").spiffe_id == WEB


@pytest.mark.parametrize("name", ["serials", "issued", "expiries", "log", "state", "turn"])
def test_a_key_of_another_type_leaves_no_half_change(valkey: Valkey, ledger: RedisLedger, name: str) -> None:
    """Whichever key is not what it should be, all others stay as they were."""
    ledger.record_issued([certificate(1)])
    with valkey.client() as client:
        client.delete(PREFIX + name)
        client.rpush(PREFIX + name, "x")
        before = {one: client.dump(one) for one in client.keys("*")}
        tried(lambda: ledger.record_issued([certificate(2)]))
        assert {one: client.dump(one) for one in client.keys("*")} == before


def test_what_is_damaged_is_said(valkey: Valkey, ledger: RedisLedger) -> None:
    """A value that is none of ours is an unusable ledger, not a crash."""
    ledger.record_issued([certificate(1)])
    ledger.add_entry(entry("1"))
    ledger.add_token(token())
    ledger.put_crl(StoredCrl(ISSUER, 1, 0, b"", NOW, NOW + HOUR), now=NOW, by="root")
    with valkey.client() as client:
        for name in ("certificates", "entries", "tokens", "crls", "keys", "federated"):
            for value in (b"", b"[]", b"[1,2]", b"{}", b"\xff", b'["a"]', b"[" * 100_000):
                client.hset(
                    PREFIX + name, "x" if name in {"keys", "federated"} else _first(client, name), value
                )
                tried(_reads(ledger)[name])
        client.hset(PREFIX + "state", "entries", "x")
        assert "damaged" in tried(ledger.entries_version)
        client.delete(PREFIX + "certificates")
        assert "missing" in tried(lambda: ledger.issued(CertificateQuery(), now=NOW))
        client.hset(PREFIX + "state", "sequence", "x")
        assert "damaged" in tried(ledger.entries)


def _first(client: Any, name: str) -> bytes:
    fields: list[bytes] = client.hkeys(PREFIX + name)
    return fields[0]


def _reads(ledger: Ledger) -> dict[str, Callable[[], object]]:
    return {
        "certificates": lambda: ledger.find(serial=1),
        "entries": ledger.entries,
        "tokens": ledger.tokens,
        "crls": ledger.crls,
        "keys": lambda: ledger.keys(KeyUse.X509),
        "federated": ledger.federated,
    }


def _log(client: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(f"{PREFIX}log")
    return found


def _write_log(client: Any, records: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
    client.delete(f"{PREFIX}log")
    for name, fields in records:
        client.xadd(f"{PREFIX}log", fields, id=name)


@pytest.mark.parametrize("broken", ["changed", "removed", "cut", "swapped", "renamed", "forged", "emptied"])
def test_tampering_with_the_log_shows(valkey: Valkey, ledger: RedisLedger, broken: str) -> None:
    """Whatever somebody does to the log in Redis, verifying it says where."""
    for number in range(4):
        ledger.append_audit(AuditEvent.ISSUANCE_DENIED, now=NOW, by="x", details={"n": number})
    assert ledger.verify_audit().intact
    place = {"cut": 4, "emptied": 1, "forged": 4}.get(broken, 2)
    with valkey.client() as client:
        log = _log(client)
        match broken:
            case "changed":
                log[1][1][b"actor"] = b"nobody \xff"
            case "removed":
                del log[1]
            case "cut":
                del log[3]
            case "swapped":
                log[1], log[2] = (log[1][0], log[2][1]), (log[2][0], log[1][1])
            case "renamed":
                log[1] = (b"2-1", log[1][1])
            case "emptied":
                log = []
            case "forged":
                # A new last record whose own hash is right is not the one that changes went by.
                head = next(one for one in ledger.audit() if one.sequence == 3).head
                made = AuditRecord.after(
                    head, AuditEvent.ISSUANCE_DENIED, actor="y", details={"n": 3}, now=NOW
                )
                log[3][1].update({b"actor": b"y", b"hash": made.hash.encode()})
        _write_log(client, log)
    assert ledger.verify_audit().broken_at == place


# What can be relied on


@pytest.mark.parametrize(
    ("changes", "fatal", "said"),
    [
        ({}, None, ""),
        ({"maxmemory-policy": "allkeys-lru"}, True, "`allkeys-lru`: it must be `noeviction`"),
        ({"maxmemory-policy": None}, False, "`maxmemory-policy` is not told"),
        ({"appendonly": "no"}, False, "`appendonly` is `no`"),
        ({"appendfsync": "everysec"}, False, "`appendfsync` is `everysec`"),
        ({"appendfsync": None}, False, "`appendfsync` is not told"),
        ({"role": "slave"}, True, "a replica"),
    ],
)
def test_what_makes_a_server_unsafe(changes: dict[str, str | None], fatal: bool | None, said: str) -> None:
    """Each thing that can lose what was confirmed has its own words; some make a server useless."""
    told = {name: value for name, value in {**SOUND, **changes}.items() if value is not None}
    found = list(complaints(told))
    assert [one for one, _ in found] == ([] if fatal is None else [fatal])
    assert all(said in text for _, text in found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "`appendonly` is `no`"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), "`appendfsync` is `everysec`"),
    ],
)
def test_a_server_that_may_forget_is_refused(
    start: Callable[..., Valkey], arguments: Sequence[str], said: str
) -> None:
    """Unless the operator says that a warning is enough; then each is said once."""
    valkey = start(*arguments)
    assert said in unusable(lambda: open_redis(valkey))
    warnings: list[str] = []
    ledger = open_redis(valkey, place={"safety": Safety.WARN}, warn=warnings.append)
    ledger.record_issued([certificate(1)])
    ledger.close()
    assert sum(said in one for one in warnings) == 1
    assert len(set(warnings)) == len(warnings)


def test_a_server_that_evicts_is_never_used(start: Callable[..., Valkey]) -> None:
    """A burnt token that was thrown away would be unknown, a revoked certificate valid again."""
    valkey = start(*DURABLE, "--maxmemory-policy", "allkeys-lru")
    for safety in Safety:
        assert "allkeys-lru" in unusable(lambda safety=safety: open_redis(valkey, place={"safety": safety}))  # type: ignore[misc]


def test_a_server_is_looked_at_on_each_connection(start: Callable[..., Valkey]) -> None:
    """One that comes back with other settings is used no more."""
    valkey = start(*DURABLE)
    ledger = open_redis(valkey)
    ledger.record_issued([certificate(1)])
    with valkey.client() as client:
        client.config_set("maxmemory-policy", "allkeys-random")
        client.client_kill_filter(skipme=True, _type="normal")
    assert "allkeys-random" in tried(lambda: ledger.record_issued([certificate(2)]))
    ledger.close()


def test_a_user_with_few_rights_is_enough(valkey: Valkey) -> None:
    """The rights that the reference names suffice for everything that is asked."""
    with valkey.client() as client:
        _let_in(client, "+config|get")
    ledger = _open_as(valkey, "ledger:s3cret", replicas=0)
    ledger.add_token(token())
    for action in _changes(ledger):
        action()
    assert ledger.verify_audit().intact
    assert ledger.find(serial=5)
    ledger.close()


def test_what_a_server_does_not_tell_counts_as_wrong(valkey: Valkey) -> None:
    """Without `CONFIG GET` nobody knows, so it is refused, or said."""
    with valkey.client() as client:
        _let_in(client, "-config")
    warnings: list[str] = []
    assert "`appendfsync` is not told" in unusable(lambda: _open_as(valkey, "ledger:s3cret"))
    ledger = _open_as(valkey, "ledger:s3cret", warnings.append, safety=Safety.WARN)
    ledger.record_issued([certificate(1)])
    ledger.close()
    assert len(warnings) == 1
    assert "not told" in warnings[0]


def test_a_wrong_password_fails_at_once(valkey: Valkey) -> None:
    """Nobody waits for it to become right, and the message does not repeat it."""
    with valkey.client() as client:
        _let_in(client)
    before = time.monotonic()
    message = tried(lambda: _open_as(valkey, "ledger:wr0ng"))
    assert "invalid username-password pair" in message
    assert "wr0ng" not in message
    assert time.monotonic() - before < 5


def _let_in(client: Any, *more: str) -> None:
    rights = "+@read +@write +@transaction +eval +info +wait"
    client.execute_command(
        "ACL", "SETUSER", "ledger", "reset", "on", ">s3cret", "~garrison:ca:*", *rights.split(), *more
    )


def _open_as(
    valkey: Valkey, login: str, warn: Callable[[str], None] = pytest.fail, **options: Any
) -> RedisLedger:
    address = RedisAddress.parse(f"unix://{login}@{valkey.socket}")
    return RedisLedger(RedisPlace(address, **options), TRUST_DOMAIN, warn=warn)


def test_a_redis_elsewhere_is_reached_by_tls(valkey: Valkey, tmp_path: Path) -> None:
    """Plain text only on this machine, unless a warning is enough; TLS is verified."""
    elsewhere = RedisPlace(RedisAddress.parse("redis://:pw@192.0.2.1"))
    message = unusable(lambda: RedisLedger(elsewhere, TRUST_DOMAIN))
    assert "use `rediss://`" in message
    assert "pw" not in message
    right, wrong = tls_certificate(tmp_path, "right"), tls_certificate(tmp_path, "wrong")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(right)
    with Proxy(valkey.socket, tls) as proxy:
        address = RedisAddress.parse(f"rediss://127.0.0.1:{proxy.port}")
        ledger = RedisLedger(RedisPlace(address, right), TRUST_DOMAIN)
        ledger.record_issued([certificate(1)])
        ledger.close()
        assert "certificate verify failed" in tried(
            lambda: RedisLedger(RedisPlace(address, wrong), TRUST_DOMAIN, **BRIEF)
        )
        nothing = tmp_path / "nothing.pem"
        assert "no roots" in unusable(lambda: RedisLedger(RedisPlace(address, nothing), TRUST_DOMAIN))


@pytest.mark.parametrize("version", ["3", "0", "x"])
def test_a_newer_ledger_is_refused(valkey: Valkey, ledger: RedisLedger, version: str) -> None:
    """What a later version wrote is not guessed at, and not touched."""
    with valkey.client() as client:
        client.hset(f"{PREFIX}state", "version", version)
        assert "newer" in unusable(lambda: open_redis(valkey))
        assert client.hget(f"{PREFIX}state", "version") == version.encode()


def test_a_ledger_of_the_version_before_is_taken_over(valkey: Valkey, ledger: RedisLedger) -> None:
    """Its registrations said nothing of tokens, which lived for 5 minutes; its log did not tell its time."""
    old = entry("old", WEB, "unix:uid:1", hint="in")
    ledger.add_entry(old)
    head = ledger.audit_head()
    with valkey.client() as client:
        stored = json.loads(client.hget(f"{PREFIX}entries", "old"))
        assert stored.pop() == 300_000_000
        client.hset(f"{PREFIX}entries", "old", json.dumps(stored))
        client.hset(f"{PREFIX}state", "version", "1")
        client.hdel(f"{PREFIX}state", "time")
        # Who only reads leaves it as it is.
        reader = open_redis(valkey, opening="existing")
        assert reader.entries() == (old,)
        reader.close()
        assert client.hget(f"{PREFIX}state", "version") == b"1"
        opened = open_redis(valkey)
        assert client.hget(f"{PREFIX}state", "version") == b"2"
    assert opened.entries() == (old,)
    assert opened.audit_head() == head
    new = entry("new", API, jwt_ttl=timedelta(minutes=9))
    opened.add_entry(new)
    assert opened.entries() == (old, new)
    assert opened.audit_head().time == "2030-01-02T03:04:05.000678Z"
    assert opened.verify_audit().intact
    opened.close()


def test_a_certificate_that_is_revoked_meanwhile_is_not_forgotten(
    valkey: Valkey, ledger: RedisLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever revokes it between the look and the change is faster, and it is known as revoked for ever."""
    ended, later = certificate(7, issued_at=NOW - 2 * HOUR, not_after=NOW - HOUR), NOW + HOUR
    ledger.record_issued([ended])
    other, look = open_redis(valkey), ledger._ended
    pending = [True]

    def looked(before: datetime) -> Iterator[tuple[bytes, bytes, IssuedCertificate]]:
        found = list(look(before))
        if pending:
            pending.clear()
            other.revoke(ISSUER, 7, RevocationReason.KEY_COMPROMISE, now=later, by="root")
        yield from found

    monkeypatch.setattr(ledger, "_ended", looked)
    assert ledger.forget_expired(NOW, most=10, now=later, by="root") == 0
    (kept,) = other.find(serial=7)
    assert kept.revocation is not None
    assert other.verify_audit().intact
    other.close()


def test_other_trust_domains_do_not_meet(valkey: Valkey, ledger: RedisLedger) -> None:
    """Two CAs may share a server."""
    other = LedgerServer(
        RedisPlace(RedisAddress.parse(valkey.url)), replace(TRUST_DOMAIN, name="other.test"), lambda _: None
    )
    ledger.record_issued([certificate(1)])
    assert other.read_head().sequence == 0
    other.close()


def test_the_last_expiry_of_an_issuer_only_rises(ledger: RedisLedger) -> None:
    """Whatever is issued later for less long, and of whichever other issuer."""
    assert ledger.last_expiry(ISSUER) is None
    for hours in (1, 3, 2):
        ledger.record_issued([certificate(not_after=NOW + hours * HOUR), certificate(issuer="bb" * 20)])
    assert ledger.last_expiry(ISSUER) == NOW + 3 * HOUR
    assert ledger.last_expiry("cc" * 20) is None


# Fairness, replicas, clusters


def test_who_loses_again_and_again_gets_a_turn(valkey: Valkey) -> None:
    """A slow replica is overtaken by a fast one a few times, not for ever."""
    with Proxy(valkey.socket) as proxy:
        slow, fast = RedisLedger(at(proxy), TRUST_DOMAIN), open_redis(valkey)
        stop = threading.Event()
        waited: list[int] = []

        def hurry() -> None:
            while not stop.is_set():
                fast.append_audit(AuditEvent.ISSUANCE_DENIED, now=NOW, by="fast", details={})
                waited.append(1)

        hurrying = threading.Thread(target=hurry)
        proxy.delay_seconds = 0.05
        hurrying.start()
        try:
            for number in range(3):
                slow.record_issued([certificate(number + 1)])
        finally:
            stop.set()
            hurrying.join()
        assert fast.verify_audit().head.sequence == len(waited) + 3
        slow.close()
        fast.close()


def test_a_change_waits_for_replicas(tmp_path: Path) -> None:
    """Where replicas are asked for, a change without them is none: the certificate does not leave."""
    master = Node(tmp_path / "m", *DURABLE, "--repl-diskless-sync-delay", "0")
    master.start()
    replica = Node(tmp_path / "r", "--replicaof", "127.0.0.1", str(master.port))
    try:
        replica.start()
        wait_until(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up", "a replica")
        place = RedisPlace(RedisAddress.parse(f"redis://127.0.0.1:{master.port}"), replicas=1)
        ledger = RedisLedger(place, TRUST_DOMAIN)
        ledger.record_issued([certificate(1)])
        follower = RedisPlace(RedisAddress.parse(f"redis://127.0.0.1:{replica.port}"))
        assert "a replica" in unusable(lambda: RedisLedger(follower, TRUST_DOMAIN))
        replica.kill()
        assert "0 of 1 replicas" in tried(lambda: ledger.record_issued([certificate(2)]))
        ledger.close()
    finally:
        replica.kill()
        master.kill()


def test_a_cluster_keeps_a_ledger_on_one_node() -> None:
    """Whichever node is asked first, it leads to the one with the ledger."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            for node in cluster.nodes:
                for name, value in (("appendonly", "yes"), ("appendfsync", "always")):
                    node.ask("CONFIG", "SET", name, value)
            for number, url in enumerate(cluster.urls):
                ledger = RedisLedger(RedisPlace(RedisAddress.parse(url)), TRUST_DOMAIN)
                ledger.record_issued([certificate(number + 1)])
                assert ledger.verify_audit().head.sequence == number + 1
                ledger.close()
        finally:
            cluster.kill()
