"""A ledger goes from a file to Redis and back: everything, and verified, or nothing."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.ledgers import API, HOUR, ISSUER, NOW, TRUST_DOMAIN, certificate, entry, open_redis, token
from support.valkey import DURABLE, Valkey

from ca.authority import Hierarchy
from ca.cli import ca
from ca.ledger import (
    CertificateQuery,
    EndpointProfile,
    FederatedBundle,
    KeyState,
    KeyUse,
    Ledger,
    LedgerUnavailableError,
    RevocationReason,
    SigningKey,
    StateChange,
    StoredCrl,
    token_hash,
)
from ca.store.contents import Contents
from ca.store.migration import migrate
from ca.store.opening import LedgerPlace
from ca.store.redis import RedisLedger
from ca.store.sqlite import SqliteLedger
from garrison.errors import ConfigError, GarrisonError
from garrison.identity import SpiffeId, TrustDomain
from garrison.redis_address import RedisAddress


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server that keeps what it confirms."""
    with Valkey(tmp_path_factory.mktemp("v"), *DURABLE) as server:
        yield server


@pytest.fixture
def valkey(durable: Valkey) -> Valkey:
    """Return a server with nothing in it but something of somebody else."""
    with durable.client() as client:
        client.flushall()
        client.set("garrison:ca:{other.test}:x", "1")
    return durable


@pytest.fixture
def file(tmp_path: Path) -> LedgerPlace:
    """Return a file with something of everything."""
    with contextlib.closing(SqliteLedger(tmp_path / "old")) as ledger:
        fill(ledger)
    return LedgerPlace(tmp_path / "old")


def fill(ledger: Ledger) -> None:
    """Do something of everything, more than a page of the most."""
    ledger.record_issued([certificate() for _ in range(1003)])
    ledger.record_issued([certificate(5, requester="☂"), certificate(6, spiffe_id=API)])
    for serial in (5, 6):
        ledger.revoke(ISSUER, serial, RevocationReason.KEY_COMPROMISE, now=NOW, by="root")
    ledger.put_crl(StoredCrl(ISSUER, 1, 2, b"\n\x00[", NOW, NOW + HOUR), now=NOW, by="root")
    ledger.put_crl(StoredCrl(ISSUER, 2, 2, b"\n\x01[", NOW, NOW + HOUR), now=NOW, by="root")
    for name in "cab":
        ledger.add_entry(
            entry(name, API, f"unix:gid:{ord(name)}", hint="in", dns_names=["web"], jwt_ttl=HOUR)
        )
        ledger.add_token(token(name))
    ledger.delete_entry("a", now=NOW, by="root")
    ledger.burn_token(token_hash("b"), now=NOW, by="10.0.0.1")
    for use in KeyUse:
        ledger.add_key(SigningKey(use, "k", KeyState.PREPARED, "{}", NOW, NOW + HOUR), by="root")
    step = StateChange(KeyUse.JWT, "k", KeyState.PREPARED, KeyState.ACTIVE)
    ledger.change_states([step], now=NOW, by="root")
    for digest in "xy":
        ledger.publish_bundle(digest, now=NOW, by="root")
    ledger.put_federated(
        FederatedBundle(
            TrustDomain("partner.test"),
            "https://partner.test",
            EndpointProfile.SPIFFE,
            SpiffeId.parse("spiffe://partner.test/b"),
            b"\x00{}",
            2**62,
            timedelta(minutes=5),
            NOW,
        ),
        now=NOW,
        by="root",
    )


def redis_at(valkey: Valkey) -> LedgerPlace:
    """Return where the server is."""
    return LedgerPlace(RedisAddress.parse(valkey.url))


def move(source: LedgerPlace, target: LedgerPlace) -> Contents:
    """Migrate."""
    return migrate(source, target, TRUST_DOMAIN, warn=pytest.fail)


def names(valkey: Valkey) -> list[bytes]:
    """Return the names of all keys."""
    with valkey.client() as client:
        found: list[bytes] = client.keys("*")
    return sorted(found)


def test_a_pruned_ledger_goes_to_redis_and_back(tmp_path: Path, file: LedgerPlace, valkey: Valkey) -> None:
    """What was forgotten in either store is not missed in the other."""
    later = NOW + timedelta(days=30)
    with contextlib.closing(SqliteLedger(tmp_path / "old")) as ledger:
        assert ledger.forget_expired(NOW + 2 * HOUR, most=3, now=later, by="root") == 3
    assert move(file, redis_at(valkey)).certificate_count == 1002
    with contextlib.closing(open_redis(valkey)) as ledger:
        assert ledger.forget_expired(NOW + 2 * HOUR, most=1000, now=later, by="root") == 1000
        assert ledger.forget_expired(NOW + 2 * HOUR, most=1000, now=later, by="root") == 0
        assert ledger.verify_audit().intact
    back = LedgerPlace(tmp_path / "new")
    assert move(redis_at(valkey), back).certificate_count == 2
    with contextlib.closing(SqliteLedger(tmp_path / "new")) as ledger:
        left = ledger.issued(CertificateQuery(), now=later).certificates
        assert {one.serial for one in left} == {5, 6}
        assert all(one.revocation is not None for one in left)


def test_a_ledger_goes_to_redis_and_back(tmp_path: Path, file: LedgerPlace, valkey: Valkey) -> None:
    """Nothing is lost or renumbered on the way, and whoever goes on does so where the old one ended."""
    moved = move(file, redis_at(valkey))
    assert (moved.certificate_count, len(moved.entries), len(moved.tokens)) == (1005, 2, 3)
    assert b"garrison:ca:{other.test}:x" in names(valkey)
    back = LedgerPlace(tmp_path / "new")
    assert move(redis_at(valkey), back).head == moved.head
    old, new = SqliteLedger(tmp_path / "old"), SqliteLedger(tmp_path / "new")
    in_redis = open_redis(valkey)
    for ledger in (new, in_redis):
        assert Contents.of(old).is_same(Contents.of(ledger))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    assert sorted(one.name for one in tmp_path.iterdir() if one.name.startswith((".new", "new-"))) in (
        [],
        ["new-shm", "new-wal"],
    )
    for ledger in (old, new, in_redis):
        _go_on(ledger)
    for ledger in (new, in_redis):
        assert Contents.of(old).is_same(Contents.of(ledger))
        ledger.close()
    old.close()


def _go_on(ledger: Ledger) -> None:
    assert ledger.publish_bundle("y", now=NOW, by="root") == 2
    ledger.put_crl(StoredCrl(ISSUER, 3, 2, b"", NOW, NOW + HOUR), now=NOW, by="root")
    ledger.record_issued([certificate(7)])
    ledger.add_entry(entry("d", API, "unix:gid:4"))
    ledger.add_token(token("d"))
    for refused in (
        lambda: ledger.record_issued([certificate(5)]),
        lambda: ledger.add_entry(entry("e", API, f"unix:gid:{ord('c')}")),
        lambda: ledger.burn_token(token_hash("b"), now=NOW, by="x"),
    ):
        with pytest.raises(GarrisonError):
            refused()
    assert [one.serial for one in ledger.revoked(ISSUER, unexpired_at=NOW)] == [5, 6]
    page = ledger.issued(CertificateQuery(limit=3), now=NOW)
    assert [one.serial for one in page.certificates] == [7, 6, 5]
    rest = ledger.issued(CertificateQuery(limit=1000, cursor=page.cursor), now=NOW)
    assert len(rest.certificates) == 1000
    assert len(ledger.find(serial=7)) == 1


def test_nothing_is_in_the_way(tmp_path: Path, file: LedgerPlace, valkey: Valkey) -> None:
    """A ledger is copied to where there is none, and from where there is one."""

    def refused(source: LedgerPlace, target: LedgerPlace) -> str:
        with pytest.raises(ConfigError) as error:
            move(source, target)
        return error.value.diagnostics[0].message

    assert "not replaced" in refused(file, file)
    assert "no ledger here" in refused(LedgerPlace(tmp_path / "none"), redis_at(valkey))
    assert "no ledger of `cluster.local`" in refused(redis_at(valkey), LedgerPlace(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "none").exists()
    assert names(valkey) == [b"garrison:ca:{other.test}:x"]
    with contextlib.closing(open_redis(valkey)) as there:
        there.add_token(token())
        before = names(valkey)
        assert "already" in refused(file, redis_at(valkey))
        assert names(valkey) == before
        assert there.tokens() == (token(),)


def test_a_broken_log_is_not_copied(tmp_path: Path, file: LedgerPlace, valkey: Valkey) -> None:
    """What cannot be believed is looked at first."""
    connection = sqlite3.connect(tmp_path / "old")
    connection.execute("DROP TRIGGER audit_is_not_changed")
    connection.execute("UPDATE audit SET actor = 'nobody' WHERE sequence = 7")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerUnavailableError, match="broken at record 7"):
        move(file, redis_at(valkey))
    assert names(valkey) == [b"garrison:ca:{other.test}:x"]


@pytest.mark.parametrize("to", ["file", "redis"])
def test_a_ledger_that_changes_meanwhile_is_not_copied(
    tmp_path: Path, file: LedgerPlace, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """Nothing is left at the target, so that nobody goes on with less than there was."""
    target = redis_at(valkey) if to == "redis" else LedgerPlace(tmp_path / "new")
    store: Any = RedisLedger if to == "redis" else SqliteLedger
    load: Callable[..., None] = store.load

    def load_and_change(ledger: Any, contents: Contents) -> None:
        load(ledger, contents)
        contents.ledger.add_token(token("late"))

    monkeypatch.setattr(store, "load", load_and_change)
    with pytest.raises(LedgerUnavailableError, match="stop what uses it"):
        move(file, target)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".new*"))
    assert names(valkey) == [b"garrison:ca:{other.test}:x"]
    monkeypatch.undo()
    move(file, target)


def test_a_copy_that_was_interrupted_is_no_ledger(file: LedgerPlace, valkey: Valkey) -> None:
    """Until it is whole nobody can use it; the message says what to delete."""
    unfinished = open_redis(valkey, opening="empty")
    with contextlib.closing(SqliteLedger(Path(str(file.where)))) as ledger:
        unfinished.load(replace(Contents.of(ledger), entries=()))
    for action in (lambda: open_redis(valkey), lambda: move(file, redis_at(valkey))):
        with pytest.raises(ConfigError) as error:
            action()
        assert "delete `garrison:ca:{cluster.local}:*`" in error.value.diagnostics[0].message
    unfinished.discard()
    unfinished.close()
    assert names(valkey) == [b"garrison:ca:{other.test}:x"]


def test_the_command_says_what_it_copied(
    tmp_path: Path, file: LedgerPlace, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JSON too; places come from options or the environment."""
    Hierarchy.create(TRUST_DOMAIN, now=NOW).save(tmp_path / "pki")
    arguments = ["ledger", "migrate", "--dir", str(tmp_path / "pki"), "--json"]
    result = CliRunner().invoke(ca, [*arguments, "--from", str(file.where), "--to", valkey.url])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["certificates"], said["records"]) == (1005, int(said["head"].partition(":")[0]))
    monkeypatch.setenv("GARRISON_CA_LEDGER_FROM", valkey.url)
    monkeypatch.setenv("GARRISON_CA_LEDGER", str(tmp_path / "new"))
    assert json.loads(CliRunner().invoke(ca, arguments).stdout) == said
    again = CliRunner().invoke(ca, arguments)
    assert (again.exit_code, "not replaced" in again.stderr) == (2, True)
