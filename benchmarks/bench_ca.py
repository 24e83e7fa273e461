"""The CA: issuing with and without a record, a start with many records, a CRL of many entries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import process_time

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.report import Requirement, Row, Sample, Section
from benchmarks.run import BenchmarkError, Run
from ca.authority import Authority, Hierarchy
from ca.crl import CRL_LIFE, key_identifier, renew_crl
from ca.csr import parse_csr
from ca.keys import new_private_key
from ca.ledger import CertificateKind, IssuedCertificate, Revocation, RevocationReason
from ca.memory import CaMemory
from ca.recording import Recorder, RecordingIssuer, Requester
from ca.registration import Registration
from ca.store.sqlite import SqliteLedger
from garrison.identity import TrustDomain

_RECORDS = 100_000
_BATCH = 1000
_CALLERS = 64
_TTL = timedelta(hours=1)
# Each round alternates between the two ways this often: other processes' load then falls on both.
_TURNS = 8
_REQUESTER = Requester("uid 1000", "unix")


def ca(run: Run) -> Section:
    """Measure what a record costs, and what many records cost."""
    now = datetime.now(UTC)
    lab = _Lab(Hierarchy.create(TrustDomain("cluster.local"), now=now).authority(), now)
    rounds = [asyncio.run(_issue(run, lab, number)) for number in range(run.rounds)]
    plain, recorded = Sample.of(one[0] for one in rounds), Sample.of(one[1] for one in rounds)
    starts, lists, size = _many(run, lab)
    kept = recorded.over(plain)
    return Section(
        "The CA",
        "One process. A signing request in PEM is parsed and verified, its key gets the SVID of a "
        "registration, which leaves as PEM: without a record, and with one on disk before it leaves, "
        f"{_CALLERS} callers at a time, {_TURNS} turns each in every round. Then a ledger with "
        f"{_RECORDS:,} certificates, all revoked: opening it until it can issue, and a new CRL of all of "
        "them, read, built, signed, checked and stored.",
        (
            Row("issued without a record", plain, "per CPU-second"),
            Row("issued with a record", recorded, "per CPU-second"),
            Row("with a record over without", kept, "times"),
            Row(f"start with {_RECORDS:,} records", starts, "CPU-seconds"),
            Row(f"CRL of {_RECORDS:,} entries", lists, "CPU-seconds"),
            Row("its size", size, "MB"),
        ),
        (
            Requirement("with a record over without", kept, 0.75, at_least=True),
            Requirement(f"start with {_RECORDS:,} records, in CPU-seconds", starts, 2, at_least=False),
            Requirement(f"CRL of {_RECORDS:,} entries, in CPU-seconds", lists, 1, at_least=False),
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
    # Spread over all values, as random serial numbers are.
    serial = (number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128
    issued = IssuedCertificate(
        serial=serial,
        issuer=key_identifier(lab.authority.issuer),
        kind=CertificateKind.X509_SVID,
        spiffe_id=lab.registration.spiffe_id,
        not_before=lab.now,
        not_after=lab.now + timedelta(days=365),
        issued_at=lab.now,
        requester="uid 1000",
        attested_by="unix",
        fingerprint=f"{serial:064x}",
    )
    return replace(issued, revocation=Revocation(lab.now, RevocationReason.KEY_COMPROMISE, "bench"))
