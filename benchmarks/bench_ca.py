"""The CA: issuing with and without a record, and what many records, revocations and registrations cost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.report import Requirement, Row, Sample, Section
from benchmarks.run import BenchmarkError, Run
from benchmarks.servers import on_one_core, start_server
from benchmarks.stores import Valkey
from ca.api.istio_csr import SERVICE as ISTIO
from ca.attestation import Registrations
from ca.attestors.base import Attested, selectors
from ca.authority import Authority, Hierarchy
from ca.crl import CRL_LIFE, renew_crl
from ca.csr import parse_csr
from ca.entitlement import Grant, choose
from ca.keys import new_private_key
from ca.ledger import CertificateKind, IssuedCertificate, Revocation, RevocationReason
from ca.memory import CaMemory
from ca.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from ca.recording import Recorder, RecordingIssuer, Requester
from ca.registration import Registration, SelectorKind
from ca.store.redis import RedisLedger
from ca.store.redis_server import RedisPlace
from ca.store.sqlite import SqliteLedger
from garrison.identity import SpiffeId, TrustDomain
from garrison.redis_address import RedisAddress

_RECORDS = 100_000
_IDENTITIES = 1000
_BATCH = 1000
_CALLERS = 64
# Service accounts, ten to each namespace.
_FEW, _MANY = 10, 100_000
_PER_NAMESPACE = 10
_CHOICES = 1000
_STEP = 7919
_ISSUER = "https://kubernetes.default.svc"
_TTL = timedelta(hours=1)
# Each round alternates between the two ways this often: other processes' load then falls on both.
_TURNS = 8
_REQUESTER = Requester("uid 1000", "unix")
# What a ledger asks of its server.
_DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")
_ANSWER_SECONDS = 10


def ca(run: Run) -> Section:
    """Measure what a record costs, and what many records cost."""
    now = datetime.now(UTC)
    lab = _Lab(Hierarchy.create(TrustDomain("cluster.local"), now=now).authority(), now)
    with on_one_core():
        rounds = [asyncio.run(_issue(run, lab, number)) for number in range(run.rounds)]
    plain, recorded = Sample.of(one[0] for one in rounds), Sample.of(one[1] for one in rounds)
    starts, lists, size = _many(run, lab)
    restarts = _restarts(run, "sqlite")
    shared = _restarts(run, "valkey")
    kept = recorded.over(plain)
    builds, few, many = _choosing(run)
    slower = many.over(few)
    return Section(
        "The CA",
        "One process, in the first part on one core. A signing request in PEM is parsed and verified, its "
        "key gets the SVID of a registration, which leaves as PEM: without a record, and with one on disk "
        "before it leaves, "
        f"{_CALLERS} callers at a time, {_TURNS} turns each in every round. Then a ledger with "
        f"{_RECORDS:,} certificates, all revoked: opening it until it can issue, and a new CRL of all of "
        f"them, read, built, signed, checked and stored. Then {_MANY:,} registrations, each of a service "
        f"account, {_PER_NAMESPACE} to a namespace: the index of them, and a choice for each of "
        f"{_CHOICES * _TURNS:,} callers, no two alike, against as many choices among {_FEW}. And `garrison "
        f"serve` as a whole, with {_RECORDS:,} certificates of {_IDENTITIES:,} identities in its ledger: "
        "from the start of the process until a local caller has a new certificate, with all that Python and "
        "the libraries need.",
        (
            Row("issued without a record", plain, "per CPU-second"),
            Row("issued with a record", recorded, "per CPU-second"),
            Row("with a record over without", kept, "times"),
            Row(f"start with {_RECORDS:,} records", starts, "CPU-seconds"),
            Row(f"CRL of {_RECORDS:,} entries", lists, "CPU-seconds"),
            Row("its size", size, "MB"),
            Row(f"server, {_RECORDS:,} records: to the first certificate", restarts.wall, "s"),
            Row("of that, the server's own", restarts.cpu, "CPU-seconds"),
            Row("the same with the ledger in Valkey", shared.wall, "s"),
            Row("of that, the server's own", shared.cpu, "CPU-seconds"),
            Row(f"index of {_MANY:,} registrations", builds, "CPU-seconds"),
            Row(f"choosing among {_FEW} registrations", few, "us CPU"),
            Row(f"choosing among {_MANY:,} registrations", many, "us CPU"),
            Row(f"choosing among {_MANY:,} over {_FEW}", slower, "times"),
        ),
        (
            Requirement("with a record over without", kept, 0.75, at_least=True),
            Requirement(f"start with {_RECORDS:,} records, in CPU-seconds", starts, 2, at_least=False),
            Requirement(f"CRL of {_RECORDS:,} entries, in CPU-seconds", lists, 1, at_least=False),
            Requirement("server to its first certificate, in seconds", restarts.wall, 2, at_least=False),
            Requirement("the same with Valkey, in seconds", shared.wall, 2, at_least=False),
            Requirement(f"choosing among {_MANY:,} registrations over {_FEW}", slower, 5, at_least=False),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Lab:
    """A CA, and what it is asked."""

    authority: Authority
    now: datetime
    registration: Registration = field(
        default_factory=lambda: Registration.parse("spiffe://cluster.local/web", ["unix:uid:1000"])
    )
    csr: bytes = field(
        default_factory=lambda: (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .sign(new_private_key(), hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )
    )

    def issue(self) -> bytes:
        """Issue without a record."""
        key = parse_csr(self.csr).public_key
        return self.authority.issue(self.registration.spiffe_id, key, now=self.now, ttl=_TTL).chain_pem


@contextmanager
def _ledger(folder: Path) -> Iterator[SqliteLedger]:
    folder.mkdir(exist_ok=True)
    ledger = SqliteLedger.of(folder)
    try:
        yield ledger
    finally:
        ledger.close()


async def _issue(run: Run, lab: _Lab, number: int) -> tuple[float, float]:
    """Return certificates per CPU-second without and with a record."""
    run.say(f"issuing, round {number + 1} of {run.rounds}")
    count = _CALLERS * (4 if run.quick else 8)
    spent = {False: 0.0, True: 0.0}
    with _ledger(run.folder / f"ca-{number}") as ledger:
        recorder = Recorder(ledger)
        issuer = RecordingIssuer(lambda: lab.authority, recorder).for_registration(_REQUESTER)

        async def caller(share: int) -> None:
            for _ in range(share):
                key = parse_csr(lab.csr).public_key
                svid = await issuer(lab.registration, key, lab.now)
                _ = svid.chain_pem

        for turn in range(2 * _TURNS):
            begin = process_time()
            if turn % 2:
                await asyncio.gather(*(caller(count // _CALLERS) for _ in range(_CALLERS)))
            else:
                for _ in range(count):
                    lab.issue()
            spent[bool(turn % 2)] += process_time() - begin
        await asyncio.to_thread(recorder.close)
        if ledger.audit_head().sequence != count * _TURNS:
            raise BenchmarkError("not everything that was issued is recorded")
    return count * _TURNS / spent[False], count * _TURNS / spent[True]


def _many(run: Run, lab: _Lab) -> tuple[Sample, Sample, Sample]:
    """Return CPU-seconds to start with many records, seconds to make their CRL, and its megabytes."""
    starts: list[float] = []
    lists: list[float] = []
    size = 0
    folder = run.folder / "ca-many"
    with _ledger(folder) as ledger:
        run.say(f"recording {_RECORDS:,} certificates")
        for first in range(0, _RECORDS, _BATCH):
            ledger.record_issued([_revoked(lab, first + number) for number in range(_BATCH)])
        for number in range(run.rounds):
            run.say(f"CRL, round {number + 1} of {run.rounds}")
            moment = lab.now + number * CRL_LIFE
            begin = process_time()
            crl = renew_crl(ledger, lab.authority.issuer, now=moment, by="bench")
            lists.append(process_time() - begin)
            size = len(crl.der)
            if crl.number != number + 1 or len(x509.load_der_x509_crl(crl.der)) != _RECORDS:
                raise BenchmarkError("the CRL does not hold what was revoked")
    for number in range(run.rounds):
        run.say(f"start, round {number + 1} of {run.rounds}")
        begin = process_time()
        opened = SqliteLedger.of(folder)
        memory = CaMemory(opened, lab.authority, [lab.registration], now=lambda: moment)
        starts.append(process_time() - begin)
        if not memory.crls:
            raise BenchmarkError("the ledger was opened without its CRL")
        memory.close()
    return Sample.of(starts), Sample.of(lists), Sample.of([size / 1e6])


def _revoked(lab: _Lab, number: int) -> IssuedCertificate:
    issued = _issued(lab.authority, lab.registration.spiffe_id, number, lab.now)
    return replace(issued, revocation=Revocation(lab.now, RevocationReason.KEY_COMPROMISE, "bench"))


def _issued(authority: Authority, spiffe_id: SpiffeId, number: int, now: datetime) -> IssuedCertificate:
    # Spread over all values, as random serial numbers are.
    serial = (number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128
    return IssuedCertificate(
        serial=serial,
        issuer=authority.issuer.key_identifier,
        kind=CertificateKind.X509_SVID,
        spiffe_id=spiffe_id,
        not_before=now,
        not_after=now + timedelta(days=365),
        issued_at=now,
        requester="uid 1000",
        attested_by="unix",
        fingerprint=f"{serial:064x}",
    )


@dataclass(frozen=True, slots=True)
class _Restarts:
    """How long servers took to their first certificate, and what they spent."""

    wall: Sample
    cpu: Sample


def _restarts(run: Run, store: str) -> _Restarts:
    """Return what it takes to start a server with many records in that store."""
    folder = run.folder / f"serve-{store}"
    folder.mkdir()
    domain, now = TrustDomain("bench.example"), datetime.now(UTC)
    Hierarchy.create(domain, now=now).save(folder / "pki")
    valkey = Valkey(run, "serve-valkey-store", *_DURABLE) if store == "valkey" else None
    place = RedisAddress.parse(valkey.url) if valkey is not None else None
    ledger = RedisLedger(RedisPlace(place), domain) if place is not None else SqliteLedger.of(folder / "pki")
    try:
        run.say(f"recording {_RECORDS:,} certificates, {store}")
        authority = Authority.load(folder / "pki")
        names = [SpiffeId(domain, ("w", str(number))) for number in range(_IDENTITIES)]
        for first in range(0, _RECORDS, _BATCH):
            ledger.record_issued(
                [
                    _issued(authority, names[number % _IDENTITIES], number, now)
                    for number in range(first, first + _BATCH)
                ]
            )
        settings = {
            "trust_domain": str(domain),
            "request": {"listen": ["tcp://127.0.0.1:0"]},
            "ca": {
                "dir": str(folder / "pki"),
                "listen": [f"unix://{folder}/ca.sock"],
                **({} if valkey is None else {"ledger": valkey.url}),
            },
            "workloads": [{"spiffe_id": str(names[0]), "selectors": [f"unix:uid:{os.getuid()}"]}],
        }
        _restart(run, folder, settings)  # the first start takes in the authority and makes its CRL
        taken = []
        for number in range(run.rounds):
            run.say(f"restart with {store}, round {number + 1} of {run.rounds}")
            taken.append(_restart(run, folder, settings))
        if ledger.audit_head().sequence < _RECORDS + run.rounds + 1:
            raise BenchmarkError("not everything that was issued is recorded")
    finally:
        ledger.close()
        if valkey is not None:
            valkey.stop()
    return _Restarts(Sample.of(wall for wall, _ in taken), Sample.of(cpu for _, cpu in taken))


def _restart(run: Run, folder: Path, settings: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds from the start of a server to its first certificate, and its CPU-seconds."""
    key = new_private_key()
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    request = IstioCertificateRequest(csr=csr.public_bytes(Encoding.PEM).decode())
    begin = perf_counter()
    server = start_server(run.children, folder, "serve", settings)
    try:
        with grpc.insecure_channel(f"unix:{folder}/ca.sock") as channel:
            answer = channel.unary_unary(
                f"/{ISTIO}/CreateCertificate",
                IstioCertificateRequest.SerializeToString,
                IstioCertificateResponse.FromString,
            )(request, timeout=_ANSWER_SECONDS)
        wall, cpu = perf_counter() - begin, server.cpu_seconds()
        if x509.load_pem_x509_certificate(answer.cert_chain[0].encode()).public_key() != key.public_key():
            raise BenchmarkError("the first certificate is for another key")
    except grpc.RpcError as error:
        raise BenchmarkError(f"the server has no certificate: {error}") from error
    finally:
        run.children.stop(server.child)
    return wall, cpu


def _choosing(run: Run) -> tuple[Sample, Sample, Sample]:
    """Return CPU-seconds to build an index of many, and microseconds of a choice among few and many."""
    builds: list[float] = []
    spent: dict[int, list[float]] = {_FEW: [], _MANY: []}
    registered = [_registration(number) for number in range(_MANY)]
    few = Registrations(registered[:_FEW])
    for number in range(run.rounds):
        run.say(f"choosing, round {number + 1} of {run.rounds}")
        begin = process_time()
        many = Registrations(registered)
        builds.append(process_time() - begin)
        totals = {_FEW: 0.0, _MANY: 0.0}
        for turn in range(_TURNS):
            for count, registrations in ((_FEW, few), (_MANY, many)):
                # Far apart and never the same: one that was chosen just now is in the processor's caches.
                places = [(turn * _CHOICES + one) * _STEP % count for one in range(_CHOICES)]
                callers = [_caller(one) for one in places]
                begin = process_time()
                found = [choose(caller, registrations) for caller in callers]
                totals[count] += process_time() - begin
                if found != [Grant.of(registered[one]) for one in places]:
                    raise BenchmarkError("a caller did not get what is registered for it")
        for count, seconds in totals.items():
            spent[count].append(seconds * 1e6 / (_CHOICES * _TURNS))
    return Sample.of(builds), Sample.of(spent[_FEW]), Sample.of(spent[_MANY])


def _account(number: int) -> tuple[str, str]:
    return f"ns-{number // _PER_NAMESPACE}", f"sa-{number % _PER_NAMESPACE}"


def _registration(number: int) -> Registration:
    namespace, name = _account(number)
    spiffe_id = f"spiffe://cluster.local/ns/{namespace}/sa/{name}"
    return Registration.parse(spiffe_id, [f"jwt:iss:{_ISSUER}", f"k8s:ns:{namespace}", f"k8s:sa:{name}"])


def _caller(number: int) -> Attested:
    namespace, name = _account(number)
    proven = [
        (SelectorKind.JWT_ISSUER, _ISSUER),
        (SelectorKind.JWT_SUBJECT, f"system:serviceaccount:{namespace}:{name}"),
        (SelectorKind.K8S_NAMESPACE, namespace),
        (SelectorKind.K8S_SERVICE_ACCOUNT, name),
        (SelectorKind.K8S_POD_NAME, f"{name}-{number}"),
        (SelectorKind.K8S_POD_UID, f"{number:08x}"),
    ]
    return Attested(selectors(proven), name, "jwt")
