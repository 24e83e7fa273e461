"""The CA over gRPC: certificates for each CPU-second of the server, each with its record on disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import process_time_ns

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.load import load
from benchmarks.report import Requirement, Row, Sample, Section
from benchmarks.run import BenchmarkError, Run
from benchmarks.servers import Server, apart, start_server
from ca.api.istio_csr import SERVICE
from ca.authority import Authority, Hierarchy
from ca.inspection import check_leaf
from ca.keys import PrivateKey, new_private_key, private_key_pem
from ca.ledger import Entry, IssuedCertificate
from ca.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from ca.registration import Registration
from ca.store.sqlite import SqliteLedger
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport.address import Address, Scheme

_METHOD = f"/{SERVICE}/CreateCertificate"
_DOMAIN = TrustDomain("bench.example")
_LOCAL = SpiffeId(_DOMAIN, ("local",))
_REQUESTS = 200
_VERIFICATIONS = 1000
# Connections with a certificate of their own, and calls in flight on each.
_RENEWING, _IN_FLIGHT = 16, 4

LEAST_PER_CPU_SECOND = 2_000


@dataclass(frozen=True, slots=True)
class _Workload:
    """A workload with a certificate to renew."""

    spiffe_id: SpiffeId
    key: PrivateKey
    chain_pem: bytes


@dataclass(frozen=True, slots=True)
class _Ca:
    """A server, and what its clients need."""

    server: Server
    ledger: SqliteLedger
    unix: Address
    control: Address
    tls_port: int
    roots: bytes
    workloads: tuple[_Workload, ...]


def ca_api(run: Run) -> Section:
    """Measure local processes on both stacks, and renewals over mTLS."""
    started = _start(run)
    messages = [_request(new_private_key()) for _ in range(_REQUESTS)]
    local, grpcio, renewed, verified = [], [], [], []
    try:
        with apart(started.server):
            for number in range(run.rounds):
                run.say(f"ca, round {number + 1} of {run.rounds}")
                verified.append(_verification_us())
                local.append(_local(started, started.unix, messages, run.seconds))
                grpcio.append(_local(started, started.control, messages, run.seconds))
                renewed.append(_renewals(started, run.seconds))
    finally:
        started.ledger.close()
    return Section(
        "CA: CreateCertificate",
        f"P-256 keys on both sides, {_REQUESTS} different signing requests, every certificate recorded in "
        "SQLite, synced to disk, before it leaves. Local: attested by the kernel, over a Unix socket, 4 "
        "connections with 64 calls in flight each. Renewal: mTLS, "
        f"{_RENEWING} workloads, each with its own certificate that is verified and looked up for each "
        "call. The server has a core of its own.",
        (
            Row("a P-256 signature verified, this machine", Sample.of(verified), "us"),
            Row("local, ngh2: certificates", Sample.of(local), "per CPU-second"),
            Row("local, grpcio: certificates", Sample.of(grpcio), "per CPU-second"),
            Row("renewal, ngh2: certificates", Sample.of(renewed), "per CPU-second"),
        ),
        (
            Requirement(
                "certificates per CPU-second, local, ngh2",
                Sample.of(local),
                LEAST_PER_CPU_SECOND,
                at_least=True,
            ),
        ),
    )


def _verification_us() -> float:
    """Return what the least costs that a certificate cannot do without; two of these are in each."""
    key, algorithm = new_private_key(), ec.ECDSA(hashes.SHA256())
    signature, public = key.sign(b"x" * 400, algorithm), key.public_key()
    begin = process_time_ns()
    for _ in range(_VERIFICATIONS):
        public.verify(signature, b"x" * 400, algorithm)
    return (process_time_ns() - begin) / _VERIFICATIONS / 1000


def _start(run: Run) -> _Ca:
    folder = run.folder / "ca"
    folder.mkdir()
    now = datetime.now(UTC)
    Hierarchy.create(_DOMAIN, now=now).save(folder / "pki")
    authority = Authority.load(folder / "pki")
    ledger = SqliteLedger.of(folder / "pki")
    _write_server_certificate(folder, authority)
    workloads = tuple(_workload(authority, ledger, number) for number in range(_RENEWING))
    settings = {
        "trust_domain": str(_DOMAIN),
        "request": {"listen": ["tcp://127.0.0.1:0"]},
        "control": {"listen": [f"unix://{folder}/control.sock"]},
        "ca": {
            "dir": str(folder / "pki"),
            "listen": [f"unix://{folder}/ca.sock", "tls://127.0.0.1:0"],
            "tls": {"certificate": str(folder / "tls.pem"), "private_key": str(folder / "tls.key")},
        },
        "workloads": [{"spiffe_id": str(_LOCAL), "selectors": [f"unix:uid:{os.getuid()}"]}],
    }
    server = start_server(run.children, run.folder, "ca", settings)
    (tls,) = (one for one in server.ca if one.scheme is Scheme.TLS)
    return _Ca(
        server,
        ledger,
        Address.parse(f"unix://{folder}/ca.sock"),
        Address.parse(f"unix://{folder}/control.sock"),
        tls.port,
        authority.bundle_pem(),
        workloads,
    )


def _write_server_certificate(folder: Path, authority: Authority) -> None:
    key = new_private_key()
    svid = authority.issue(
        SpiffeId(_DOMAIN, ("garrison",)),
        key.public_key(),
        now=datetime.now(UTC),
        ttl=timedelta(hours=1),
        dns_names=["localhost"],
    )
    (folder / "tls.pem").write_bytes(svid.chain_pem)
    (folder / "tls.key").write_bytes(private_key_pem(key))


def _workload(authority: Authority, ledger: SqliteLedger, number: int) -> _Workload:
    now, key, spiffe_id = datetime.now(UTC), new_private_key(), SpiffeId(_DOMAIN, ("w", str(number)))
    svid = authority.issue(spiffe_id, key.public_key(), now=now, ttl=timedelta(hours=1))
    ledger.record_issued(
        [IssuedCertificate.of(svid.leaf, spiffe_id, now=now, requester="bench", attested_by="cli")]
    )
    registration = Registration.parse(str(spiffe_id), [f"x509:id:{spiffe_id}"])
    ledger.add_entry(Entry(f"w{number}", registration, now, "bench"))
    return _Workload(spiffe_id, key, svid.chain_pem)


def _request(key: PrivateKey) -> bytes:
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return IstioCertificateRequest(csr=csr.public_bytes(Encoding.PEM).decode()).SerializeToString()


def _local(started: _Ca, address: Address, messages: Sequence[bytes], seconds: float) -> float:
    before = started.server.cpu_seconds()
    result = asyncio.run(load(address, _METHOD, messages, seconds=seconds, connections=4, streams=64))
    spent = started.server.cpu_seconds() - before
    if result.errors or not result.calls:
        raise BenchmarkError(f"CreateCertificate: {result.errors} calls failed, {result.calls} were answered")
    _check(result.last_answer, _LOCAL)
    return result.calls / spent


def _check(answer: bytes, spiffe_id: SpiffeId) -> None:
    chain = IstioCertificateResponse.FromString(answer).cert_chain
    found = check_leaf(x509.load_pem_x509_certificate(chain[0].encode()))
    if found != spiffe_id or len(chain) != 3:
        raise BenchmarkError(f"CreateCertificate answered {len(chain)} certificates for `{found}`")


def _renewals(started: _Ca, seconds: float) -> float:
    before = started.server.cpu_seconds()
    calls = asyncio.run(_renew_all(started, seconds))
    return calls / (started.server.cpu_seconds() - before)


async def _renew_all(started: _Ca, seconds: float) -> int:
    end = asyncio.get_running_loop().time() + seconds
    counts = await asyncio.gather(*(_renew(started, one, end) for one in started.workloads))
    return sum(counts)


async def _renew(started: _Ca, workload: _Workload, end: float) -> int:
    credentials = grpc.ssl_channel_credentials(
        started.roots, private_key_pem(workload.key), workload.chain_pem
    )
    message, loop = _request(new_private_key()), asyncio.get_running_loop()
    async with grpc.aio.secure_channel(f"localhost:{started.tls_port}", credentials) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)

        async def repeat() -> int:
            calls = 0
            while loop.time() < end:
                answer = await call(message, timeout=30)
                calls += 1
            _check(answer, workload.spiffe_id)
            return calls

        return sum(await asyncio.gather(*(repeat() for _ in range(_IN_FLIGHT))))
