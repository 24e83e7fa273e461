"""A real server and the `ca` command on one ledger, and a server whose ledger is unusable."""

from __future__ import annotations

import contextlib
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from support.asking import page
from support.ledgers import API, entry, open_redis
from support.serving import PATIENCE_SECONDS, Serving, serving, write_settings
from support.valkey import DURABLE, Valkey

from ca.api.sds import SERVICE
from ca.api.workload import SERVICE as WORKLOAD
from ca.audit import AuditEvent, AuditRecord
from ca.authority import Authority, Hierarchy
from ca.cli import ca
from ca.crl import renew_crl
from ca.ledger import CertificateQuery, RevocationReason
from ca.protos.workload_pb2 import JWTSVIDRequest, JWTSVIDResponse
from ca.store.sqlite import LEDGER, SqliteLedger
from garrison.identity import SpiffeId, TrustDomain

WEB = SpiffeId.parse("spiffe://cluster.local/web")


@pytest.fixture
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a new CA, with a name short enough for sockets beside it."""
    directory = tmp_path_factory.mktemp("s") / "pki"
    Hierarchy.create(TrustDomain("cluster.local"), now=datetime.now(UTC)).save(directory)
    return directory


@pytest.fixture
def ledger(pki: Path) -> Iterator[SqliteLedger]:
    """Return the ledger that the server uses too."""
    opened = SqliteLedger.of(pki)
    yield opened
    opened.close()


@pytest.fixture
def server(pki: Path) -> Iterator[Serving]:
    """Run a server that sends CRLs over SDS."""
    file = write_settings(pki.parent, f"ca: {{dir: {pki}, crl_in_sds: true}}")
    with serving("--config", str(file)) as running:
        yield running


def fetch(pki: Path, name: str) -> Any:
    """Ask for a secret over the server's Unix socket."""
    with grpc.insecure_channel(f"unix:{pki.parent}/c.sock") as channel:
        answer = channel.unary_unary(
            f"/{SERVICE}/FetchSecrets", DiscoveryRequest.SerializeToString, DiscoveryResponse.FromString
        )(DiscoveryRequest(resource_names=[name]), timeout=30)
    secret = Secret()
    assert answer.resources[0].Unpack(secret)
    return secret


def fetch_token(pki: Path) -> Any:
    """Ask for a JWT-SVID over the server's Unix socket."""
    with grpc.insecure_channel(f"unix:{pki.parent}/c.sock") as channel:
        return channel.unary_unary(
            f"/{WORKLOAD}/FetchJWTSVID", JWTSVIDRequest.SerializeToString, JWTSVIDResponse.FromString
        )(JWTSVIDRequest(audience=["db"]), timeout=30, metadata=(("workload.spiffe.io", "true"),))


def crl(admin: str) -> x509.CertificateRevocationList:
    """Return the CRL that the server serves."""
    with urllib.request.urlopen(admin.replace("tcp://", "http://") + "/ca/crl", timeout=10) as answer:
        assert answer.headers["content-type"] == "application/pkix-crl"
        return x509.load_der_x509_crl(answer.read())


def eventually(look: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_follows_its_ledger(pki: Path, server: Serving, ledger: SqliteLedger) -> None:
    """Registered while it runs, issued and recorded, revoked by another process, on its CRL, deleted."""
    ready = server.wait_for("ready")
    with pytest.raises(grpc.RpcError, match="no registration matches"):
        fetch(pki, "default")
    ledger.add_entry(entry("1", WEB, f"unix:uid:{os.getuid()}", at=datetime.now(UTC)))
    server.wait_for("registrations changed")
    chain = fetch(pki, "default").tls_certificate.certificate_chain.inline_bytes
    leaf = x509.load_pem_x509_certificate(chain)
    (recorded,) = ledger.issued(CertificateQuery(), now=datetime.now(UTC)).certificates
    assert (recorded.serial, recorded.attested_by) == (leaf.serial_number, "unix")

    assert len(crl(ready["admin"])) == 0
    reason, now = RevocationReason.SUPERSEDED, datetime.now(UTC)
    ledger.revoke(recorded.issuer, recorded.serial, reason, now=now, by="test")
    eventually(lambda: {one.serial_number for one in crl(ready["admin"])} == {leaf.serial_number})
    published = ledger.crls()[0]
    assert page(ready["admin"], "/ca/crl.pem")[1].startswith("-----BEGIN X509 CRL-----")
    # Who makes it first, all serve the same.
    issuer = Authority.load(pki).issuer
    assert renew_crl(ledger, issuer, now=datetime.now(UTC), by="test") == published
    eventually(lambda: published.der in _ders(fetch(pki, "ROOTCA").validation_context.crl.inline_bytes))

    ledger.delete_entry("1", now=datetime.now(UTC), by="test")
    server.wait_for("registrations changed")
    with pytest.raises(grpc.RpcError, match="no registration matches"):
        fetch(pki, "default")
    assert ledger.verify_audit().intact


def _ders(pem: bytes) -> list[bytes]:
    return [x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER)] if pem else []


def test_a_server_does_not_start_without_its_ledger(pki: Path) -> None:
    """One line says which file is wrong and why; nothing is served."""
    (pki / LEDGER).write_bytes(b"x" * 1000)
    (pki / LEDGER).chmod(0o600)
    file = write_settings(pki.parent, f"ca: {{dir: {pki}}}")
    with serving("--config", str(file)) as running:
        assert running.process.wait(PATIENCE_SECONDS) == 2
        event = running.wait_for("text", lambda event: LEDGER in event["text"])
        assert "not a ledger" in event["text"]


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server that keeps what it confirms."""
    with Valkey(tmp_path_factory.mktemp("v"), *DURABLE) as server:
        yield server


def test_who_is_refused_is_audited_by_whichever_door(
    pki: Path, server: Serving, ledger: SqliteLedger
) -> None:
    """SDS and the Workload API leave the same records as the others: who, why, and what was asked for."""
    server.wait_for("ready")
    for _ in range(2):
        with pytest.raises(grpc.RpcError, match="no registration matches"):
            fetch(pki, "default")
    with pytest.raises(grpc.RpcError, match="no registration matches"):
        fetch_token(pki)
    me, tokens = f"unix:uid:{os.getuid()}", timedelta(minutes=7)
    ledger.add_entry(entry("1", WEB, me, at=datetime.now(UTC), jwt_ttl=tokens))
    server.wait_for("registrations changed")
    claims = jwt.decode(fetch_token(pki).svids[0].svid, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == tokens.total_seconds()
    with pytest.raises(grpc.RpcError, match="may not have"):
        fetch(pki, str(API))

    def denials() -> list[AuditRecord]:
        return [one for one in ledger.audit() if one.event == AuditEvent.ISSUANCE_DENIED]

    eventually(lambda: len(denials()) == 3)
    assert [(one.fields()["method"], one.fields()["reason"]) for one in denials()] == [
        ("FetchSecrets", "not_registered"),
        ("FetchJWTSVID", "not_registered"),
        ("FetchSecrets", "not_entitled"),
    ]
    for one in denials():
        assert one.actor.startswith(f"uid {os.getuid()}, gid {os.getgid()}, /")
        assert one.actor.endswith(f", pid {os.getpid()}")
    assert str(API) in denials()[-1].fields()["detail"]
    printed = CliRunner().invoke(ca, ["audit", "--dir", str(pki), "--print"]).output
    assert printed.count('"issuance_denied"') == 3


def test_a_server_starts_by_a_clock_that_is_behind(pki: Path, ledger: SqliteLedger) -> None:
    """It decides calls and issues nothing, as /healthz says, until an operator has accepted the clock."""
    ahead = datetime.now(UTC) + timedelta(hours=1)
    ledger.add_entry(entry("1", WEB, f"unix:uid:{os.getuid()}", at=ahead))
    file = write_settings(pki.parent, f"ca: {{dir: {pki}}}")
    with serving("--config", str(file)) as server:
        ready = server.wait_for("ready")
        assert "nothing is issued: the clock of this machine" in page(ready["admin"], "/healthz")[1]
        with pytest.raises(grpc.RpcError, match="the newest record of the ledger"):
            fetch(pki, "default")
        with pytest.raises(grpc.RpcError, match="the newest record of the ledger"):
            fetch_token(pki)
        assert ledger.issued(CertificateQuery(), now=ahead).certificates == ()
        result = CliRunner().invoke(ca, ["clock", "--dir", str(pki), "--accept"])
        assert result.exit_code == 0, result.output
        server.wait_for("issuing resumed")
        # The first start takes in the authority that is there: that waited for the clock as well.
        eventually(lambda: "nothing is issued" not in page(ready["admin"], "/healthz")[1])
        assert fetch(pki, "default").tls_certificate.certificate_chain.inline_bytes
        assert fetch_token(pki).svids[0].svid
        assert len(ledger.issued(CertificateQuery(), now=ahead).certificates) == 1
    assert ledger.verify_audit().intact


def test_two_servers_share_a_ledger_in_redis(
    pki: Path, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Registered once, issued by both, revoked for both; while Redis stalls, neither hands out anything."""
    folders = [tmp_path_factory.mktemp("s") for _ in range(2)]
    settings = f"ca: {{dir: {pki}, ledger: '{valkey.url}', ledger_safety: require}}"
    files = [write_settings(folder, settings) for folder in folders]
    with serving("--config", str(files[0])) as first, serving("--config", str(files[1])) as second:
        admins = [server.wait_for("ready")["admin"] for server in (first, second)]
        with contextlib.closing(open_redis(valkey)) as ledger:
            ledger.add_entry(entry("1", WEB, f"unix:uid:{os.getuid()}", at=datetime.now(UTC)))
            leaves = []
            for server, folder in zip((first, second), folders, strict=True):
                server.wait_for("registrations changed")
                chain = fetch(folder / "pki", "default").tls_certificate.certificate_chain.inline_bytes
                leaves.append(x509.load_pem_x509_certificate(chain).serial_number)
            recorded = ledger.issued(CertificateQuery(), now=datetime.now(UTC)).certificates
            assert [one.serial for one in recorded] == leaves[::-1]
            now = datetime.now(UTC)
            ledger.revoke(
                recorded[0].issuer, recorded[0].serial, RevocationReason.SUPERSEDED, now=now, by="test"
            )
            for admin in admins:
                eventually(lambda admin=admin: {one.serial_number for one in crl(admin)} == {leaves[1]})  # type: ignore[misc]
            ledger.add_entry(entry("2", API, f"unix:uid:{os.getuid()}", at=datetime.now(UTC)))
            for server in (first, second):
                server.wait_for("registrations changed")
            valkey.pause()
            try:
                with pytest.raises(grpc.RpcError, match="it cannot be recorded"):
                    fetch(folders[0] / "pki", str(API))
            finally:
                valkey.resume()
            assert fetch(folders[1] / "pki", str(API)).name == str(API)
            assert ledger.verify_audit().intact
    assert not (pki / LEDGER).exists()


def test_a_server_does_not_start_without_its_redis(pki: Path, valkey: Valkey) -> None:
    """Nor with one that may forget; the line names the server, and no password."""
    file = write_settings(pki.parent, f"ca: {{dir: {pki}}}")
    environment = {"GARRISON_CA_LEDGER": f"unix://:s3cret@{valkey.socket}"}
    with valkey.client() as client:
        client.config_set("appendfsync", "no")
        client.config_set("requirepass", "s3cret")
    with serving("--config", str(file), environment=environment) as running:
        assert running.process.wait(PATIENCE_SECONDS) == 2
        event = running.wait_for("text", lambda event: "appendfsync" in event["text"])
        assert str(valkey.socket) in event["text"]
        assert "s3cret" not in event["text"]
