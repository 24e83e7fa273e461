"""A CA that serves its gRPC methods over real TLS and a real Unix socket, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ca.api.issuing import Attestors, Issuing
from ca.api.istio_csr import SERVICE as ISTIO
from ca.api.istio_csr import IstioCertificates
from ca.api.nodes import SERVICE as NODES
from ca.api.nodes import MintJwt, Nodes
from ca.attestors.jwt import JwtAttestor, TrustedIssuer
from ca.authority import Authority, Hierarchy
from ca.bundle import SpiffeBundle, format_certificates
from ca.keys import PrivateKey, new_private_key, private_key_pem
from ca.ledger import Entry, JoinToken, token_hash
from ca.memory import CaMemory
from ca.protos import nodes_pb2 as pb
from ca.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from ca.refusals import RefusalLog
from ca.registration import Registration
from ca.store.sqlite import SqliteLedger
from garrison.identity import SpiffeId, TrustDomain
from garrison.process.control import ControlServer
from garrison.transport import Peer
from garrison.transport.address import Address
from garrison.transport.h2 import Limits
from garrison.transport.listeners import RequestServer, Transport
from garrison.transport.tls import TlsFiles
from garrison.transport.unix_peer import PeerCredentials

DOMAIN = TrustDomain("cluster.local")
TIMEOUT = 20


@dataclass
class Clock:
    """The real time, and how far off it is."""

    off: timedelta = timedelta(0)

    def now(self) -> datetime:
        """Return the time."""
        return datetime.now(UTC) + self.off


@dataclass
class Holder:
    """A private key, and the certificates for it once there are some."""

    key: PrivateKey = field(default_factory=new_private_key)
    chain: list[x509.Certificate] = field(default_factory=list)

    def csr(self, *uris: str) -> bytes:
        """Return a signing request that asks for `uris`."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
            builder = builder.add_extension(names, critical=True)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    @property
    def credentials(self) -> tuple[bytes, bytes]:
        """The key and the chain, as PEM."""
        return private_key_pem(self.key), format_certificates(self.chain)

    def take(self, certificates: Sequence[str | bytes]) -> None:
        """Keep a chain: PEM or DER, leaf first, without root."""
        self.chain = [
            x509.load_pem_x509_certificate(one.encode())
            if isinstance(one, str)
            else x509.load_der_x509_certificate(one)
            for one in certificates
        ]


@dataclass
class CaLab:
    """A CA with its ledger, and where it listens: TLS with optional client certificates, and a Unix socket."""

    authority: Authority
    ledger: SqliteLedger
    memory: CaMemory
    refusals: RefusalLog
    issuing: Issuing
    clock: Clock
    tls: Address
    socket: Path

    def channel(self, holder: Holder | None = None) -> grpc.aio.Channel:
        """Return a channel over TLS, with the holder's certificate if there is one."""
        key, chain = holder.credentials if holder is not None else (None, None)
        roots = self.authority.bundle_pem()
        return grpc.aio.secure_channel(
            f"localhost:{self.tls.port}", grpc.ssl_channel_credentials(roots, key, chain)
        )

    def local(self) -> grpc.aio.Channel:
        """Return a channel over the Unix socket."""
        return grpc.aio.insecure_channel(f"unix:{self.socket}")

    def token(self, spiffe_id: str, secret: str, life: timedelta = timedelta(minutes=10)) -> str:
        """Make a join token; return its secret."""
        now = self.clock.now()
        self.ledger.add_token(
            JoinToken(token_hash(secret), SpiffeId.parse(spiffe_id), now, now + life, "test")
        )
        return secret

    async def register(self, entry_id: str, spiffe_id: str, *selectors: str, **options: Any) -> None:
        """Register somebody."""
        registration = Registration.parse(spiffe_id, selectors, **options)
        self.ledger.add_entry(Entry(entry_id, registration, self.clock.now(), "test"))
        await self.memory.refresh()

    async def denials(self, expected: int) -> list[dict[str, Any]]:
        """Return what the audit log says of refusals, once there are so many."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                found = [one.fields() for one in self.ledger.audit() if one.event == "issuance_denied"]
                if len(found) >= expected:
                    return found
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def ca_lab(
    folder: Path,
    *configured: Registration,
    issuers: Sequence[TrustedIssuer] = (),
    hierarchy: Hierarchy | None = None,
    max_ttl: timedelta = timedelta(hours=24),
    transport: Transport = Transport.NGH2,
    mint_jwt: MintJwt | None = None,
    bundle: Callable[[], SpiffeBundle] | None = None,
    federated: Callable[[], Mapping[TrustDomain, SpiffeBundle]] = dict,
    attestors: Attestors | None = None,
    ledger_in: Path | None = None,
) -> AsyncIterator[CaLab]:
    """Run a CA; its ledger is in `ledger_in` or `folder`. Over grpcio no client certificates are asked for."""
    clock = Clock()
    authority = (hierarchy or Hierarchy.create(DOMAIN, now=clock.now())).authority()
    ledger = SqliteLedger.of(ledger_in or folder)
    memory = CaMemory(ledger, authority, configured, now=clock.now)
    refusals = RefusalLog(ledger)
    control = ControlServer([Address.parse(f"unix://{folder}/ca.sock")], None, 0o600)

    def process_of(peer: Peer) -> PeerCredentials | None:
        return control.process_of(peer)

    attestors = attestors or Attestors(JwtAttestor(issuers), None, process_of)
    issuing = Issuing(memory, attestors, refusals, max_ttl=max_ttl, now=clock.now)
    methods = {
        **IstioCertificates(issuing).methods(),
        **Nodes(
            issuing,
            mint_jwt=mint_jwt,
            bundle=bundle,
            federated=federated,
            crls=lambda: [one.der for one in memory.crls],
        ).methods(),
    }
    files = server_files(folder, authority, is_client_optional=transport is Transport.NGH2)
    server = RequestServer(
        transport,
        [Address.parse("tls://127.0.0.1:0")],
        methods,
        tls=files,
        limits=Limits(max_message_bytes=8 * 1024 * 1024),
    )
    await server.start()
    await control.start(methods, (), ())
    try:
        yield CaLab(
            authority, ledger, memory, refusals, issuing, clock, server.addresses[0], folder / "ca.sock"
        )
    finally:
        await server.drain(1)
        await control.drain(1)
        refusals.close()
        memory.close()


def server_files(folder: Path, authority: Authority, *, is_client_optional: bool) -> TlsFiles:
    """Return the files of a TLS server of this CA, with a certificate of its own."""
    holder = Holder()
    svid = authority.issue(
        SpiffeId(authority.trust_domain, ("garrison",)),
        holder.key.public_key(),
        now=datetime.now(UTC),
        ttl=timedelta(hours=1),
        dns_names=["localhost"],
    )
    (folder / "tls.pem").write_bytes(svid.chain_pem)
    (folder / "tls.key").write_bytes(private_key_pem(holder.key))
    (folder / "roots.pem").write_bytes(authority.bundle_pem())
    if not is_client_optional:
        return TlsFiles(folder / "tls.pem", folder / "tls.key")
    return TlsFiles(folder / "tls.pem", folder / "tls.key", folder / "roots.pem", is_client_optional=True)


def bearer(token: str) -> tuple[str, str]:
    """Return the metadata that brings a token."""
    return ("authorization", f"Bearer {token}")


async def create(
    channel: grpc.aio.Channel,
    csr: bytes | str,
    *metadata: tuple[str, str],
    seconds: int = 0,
    fields: dict[str, Any] | None = None,
) -> list[str]:
    """Call CreateCertificate; return the chain."""
    request = IstioCertificateRequest(
        csr=csr.decode() if isinstance(csr, bytes) else csr, validity_duration=seconds
    )
    request.metadata.update(fields or {})
    answer = await channel.unary_unary(
        f"/{ISTIO}/CreateCertificate",
        IstioCertificateRequest.SerializeToString,
        IstioCertificateResponse.FromString,
    )(request, metadata=metadata, timeout=TIMEOUT)
    return list(answer.cert_chain)


async def node_call(channel: grpc.aio.Channel, method: str, request: Any, *metadata: tuple[str, str]) -> Any:
    """Call a method of `Nodes`."""
    answer = getattr(pb, f"{method}Response")
    return await channel.unary_unary(
        f"/{NODES}/{method}", type(request).SerializeToString, answer.FromString
    )(request, metadata=metadata, timeout=TIMEOUT)


async def refusal(work: Any) -> tuple[grpc.StatusCode, str]:
    """Return the status that a call ends with, which must not be OK."""
    try:
        found = await work
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError(f"it was answered: {found}")


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Return a test that runs `test` in an event loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run
