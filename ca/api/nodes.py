"""`garrison.ca.v1.Nodes`: what `ca agent` asks for the workloads of its node.

A node is whoever has an SVID of ours that is registered, and workloads are its own if their entries name it
as parent. So a node can get identities for nobody else, and none at all once its entry is deleted or its
certificate revoked.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import structlog
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError, Message

from ca.api.evidence import describe
from ca.api.issuing import Issuing, check_same, parse_request
from ca.attestors import join_token
from ca.attestors.base import Attested, Reason, Refused
from ca.authority import X509Svid as IssuedSvid
from ca.budget import Budget
from ca.bundle import SpiffeBundle, format_spiffe_bundle
from ca.entitlement import Grant
from ca.ledger import Entry, LedgerCode, LedgerRefusalError
from ca.protos import nodes_pb2 as pb
from ca.recording import Requester
from ca.registration import Registration, Selector, SelectorKind
from garrison.errors import DependencyError, IssuanceError, RequestError
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport import Call, Method, Methods, StatusCode, StatusError

SERVICE = "garrison.ca.v1.Nodes"
ATTESTED_BY = "node"
MAX_SVIDS = 128
MAX_AUDIENCES = 16
# 128 signing requests of 16 KiB, and what is around them.
MAX_REQUEST_BYTES = 4 * 1024 * 1024
# What one node may ask, a second and at once: calls, and SVIDs. A node that starts wants all of them.
_CALLS = (20, 200)
_SVIDS = (200, 4000)

_log = structlog.get_logger()

# Returns a JWT-SVID that is recorded, and when it ends.
MintJwt = Callable[[Entry, Sequence[str], Requester, datetime], Awaitable[tuple[str, datetime]]]
_Message = TypeVar("_Message", bound=Message)


class Nodes:
    """Answers agents. `mint_jwt` makes JWT-SVIDs where the CA can.

    `bundle` returns the bundle of our trust domain, the one that is handed out everywhere, and `federated`
    those of others that operators configured; threads call them. The ledger may know more of others. `crls`
    returns what is published of our own trust domain (DER).
    """

    def __init__(
        self,
        issuing: Issuing,
        *,
        mint_jwt: MintJwt | None = None,
        bundle: Callable[[], SpiffeBundle] | None = None,
        federated: Callable[[], Mapping[TrustDomain, SpiffeBundle]] = dict,
        crls: Callable[[], Sequence[bytes]] = tuple,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._issuing = issuing
        self._mint_jwt = mint_jwt
        self._bundle = bundle
        self._federated = federated
        self._crls = crls
        self._monotonic_ns = monotonic_ns
        self._calls = Budget(*_CALLS)
        self._svids = Budget(*_SVIDS)

    def methods(self) -> Methods:
        """Return the methods by their paths."""
        return {
            f"/{SERVICE}/AttestNode": Method(self._attest_node),
            f"/{SERVICE}/FetchEntries": Method(self._fetch_entries),
            f"/{SERVICE}/SignSvids": Method(self._sign_svids),
            f"/{SERVICE}/FetchBundle": Method(self._fetch_bundle),
            f"/{SERVICE}/MintJwt": Method(self._mint),
        }

    async def _attest_node(self, message: bytes, call: Call) -> bytes:
        request = self._parse(pb.AttestNodeRequest, message, call, "AttestNode")
        issued = await self._issuing.issue(call, request.csr, method="AttestNode")
        if issued.attested.attested_by == join_token.ATTESTED_BY:
            await self._register(issued.svid.spiffe_id, issued.attested)
        roots = self._issuing.registry.issuer.authority.roots
        answer = pb.AttestNodeResponse(
            svid=_svid(issued.svid), roots=[root.public_bytes(Encoding.DER) for root in roots]
        )
        return answer.SerializeToString()

    async def _fetch_entries(self, message: bytes, call: Call) -> bytes:
        request = self._parse(pb.FetchEntriesRequest, message, call, "FetchEntries")
        node = await self._node(call, "FetchEntries")
        # Of what this node gets to see: entries of others must not make it fetch its own again.
        answer = pb.FetchEntriesResponse(entries=[_entry(one) for one in self._entries(node).values()])
        version = _version(answer)
        if request.version == version:
            answer = pb.FetchEntriesResponse(unchanged=True)
        answer.version = version
        return answer.SerializeToString()

    async def _sign_svids(self, message: bytes, call: Call) -> bytes:
        request = self._parse(pb.SignSvidsRequest, message, call, "SignSvids")
        node = await self._node(call, "SignSvids")
        wanted = request.svids
        if not 1 <= len(wanted) <= MAX_SVIDS:
            refused = Refused(Reason.BAD_REQUEST, f"1 to {MAX_SVIDS} SVIDs at once, not {len(wanted)}")
            raise self._refuse(refused, node, "SignSvids")
        if not self._svids.take(node, self._monotonic_ns(), len(wanted)):
            raise self._refuse(Refused(Reason.TOO_MANY, "too many SVIDs for this node"), node, "SignSvids")
        entries = self._entries(node)
        # Together, so that one flush of the ledger is for all of them.
        results = await asyncio.gather(*(self._sign(node, entries, one.entry_id, one.csr) for one in wanted))
        return pb.SignSvidsResponse(results=results).SerializeToString()

    async def _sign(self, node: SpiffeId, entries: Mapping[str, Entry], entry_id: str, csr: bytes) -> Any:
        try:
            entry = self._mine(node, entries, entry_id, "SignSvids")
            checked = parse_request(csr)
            if isinstance(checked, Refused):
                raise self._refuse(checked, node, "SignSvids")
            refused = check_same(checked, entry.registration.spiffe_id)
            if refused is not None:
                raise self._refuse(refused, node, "SignSvids")
            grant = Grant.of(entry.registration)
            requester = Requester(f"{node}, entry {entry.entry_id}", ATTESTED_BY)
            svid = await self._issuing.sign(
                grant, checked, ttl=grant.ttl, requester=requester, now=self._issuing.now()
            )
        except StatusError as error:
            return pb.SvidResult(code=int(error.code), reason=error.message)
        return pb.SvidResult(svid=_svid(svid))

    async def _fetch_bundle(self, message: bytes, call: Call) -> bytes:
        request = self._parse(pb.FetchBundleRequest, message, call, "FetchBundle")
        node = await self._node(call, "FetchBundle")
        mine = self._entries(node).values()
        wanted = {domain for one in mine for domain in one.registration.federates_with}
        try:
            bundles, sequence = await asyncio.to_thread(self._bundles, wanted)
        except DependencyError as error:
            raise StatusError(StatusCode.UNAVAILABLE, "the CA's ledger does not answer") from error
        answer, crls = pb.FetchBundleResponse(sequence=sequence, bundles=bundles), self._crls()
        version = _version(answer, *map(_digest, crls))
        if request.version == version:
            answer = pb.FetchBundleResponse(sequence=sequence, unchanged=True)
        else:
            answer.crls.extend(crls)
        answer.version = version
        return answer.SerializeToString()

    def _bundles(self, wanted: set[TrustDomain]) -> tuple[dict[str, bytes], int]:
        authority, ledger = self._issuing.registry.issuer.authority, self._issuing.registry.ledger
        if self._bundle is not None:
            own = self._bundle()
        else:
            own = SpiffeBundle(authority.roots, sequence=ledger.bundle_sequence() or None)
        found = {str(authority.trust_domain): format_spiffe_bundle(own).encode()}
        for other in ledger.federated():
            if other.trust_domain in wanted and other.document is not None:
                found[str(other.trust_domain)] = other.document
        for name, bundle in self._federated().items():
            if name in wanted:
                found[str(name)] = format_spiffe_bundle(bundle).encode()
        return found, own.sequence or 0

    async def _mint(self, message: bytes, call: Call) -> bytes:
        request = self._parse(pb.MintJwtRequest, message, call, "MintJwt")
        node = await self._node(call, "MintJwt")
        if self._mint_jwt is None:
            raise StatusError(StatusCode.UNIMPLEMENTED, "this CA makes no JWT-SVIDs")
        entry = self._mine(node, self._entries(node), request.entry_id, "MintJwt")
        audiences = tuple(dict.fromkeys(request.audiences))
        # SPIFFE JWT-SVID, section 3.2: a token without audience is good for nobody, or for anybody.
        if not 1 <= len(audiences) <= MAX_AUDIENCES or not all(audiences):
            refused = Refused(Reason.BAD_REQUEST, f"a JWT-SVID has 1 to {MAX_AUDIENCES} audiences")
            raise self._refuse(refused, node, "MintJwt")
        requester = Requester(f"{node}, entry {entry.entry_id}", ATTESTED_BY)
        try:
            token, ends = await self._mint_jwt(entry, audiences, requester, self._issuing.now())
        except RequestError as error:
            raise self._refuse(Refused(Reason.BAD_REQUEST, str(error)), node, "MintJwt") from error
        except IssuanceError as error:
            _log.error("ca issuance failed", spiffe_id=str(entry.registration.spiffe_id), reason=str(error))
            raise StatusError(StatusCode.UNAVAILABLE, f"no token can be made now: {error}") from error
        return pb.MintJwtResponse(token=token, expires_at=int(ends.timestamp())).SerializeToString()

    def _parse(self, kind: type[_Message], message: bytes, call: Call, method: str) -> _Message:
        problem = f"a request has at most {MAX_REQUEST_BYTES} bytes"
        if len(message) <= MAX_REQUEST_BYTES:
            try:
                return kind.FromString(message)
            except DecodeError:
                problem = f"the request is no {kind.__name__}"
        refused = Refused(Reason.BAD_REQUEST, problem)
        raise self._issuing.refuse(refused, now=self._issuing.now(), by=describe(call), method=method)

    async def _node(self, call: Call, method: str) -> SpiffeId:
        node = await self._issuing.attest_certificate(call, method=method)
        if not self._calls.take(node, self._monotonic_ns()):
            raise self._refuse(Refused(Reason.TOO_MANY, "too many calls of this node"), node, method)
        return node

    def _entries(self, node: SpiffeId) -> Mapping[str, Entry]:
        return self._issuing.registry.node_entries.get(node, {})

    def _mine(self, node: SpiffeId, entries: Mapping[str, Entry], entry_id: str, method: str) -> Entry:
        entry = entries.get(entry_id)
        if entry is None:
            # The same for one that is another node's: it is none of this one's business that there is one.
            refused = Refused(Reason.NOT_ENTITLED, f"`{entry_id[:64]}` is no entry of this node")
            raise self._refuse(refused, node, method)
        return entry

    def _refuse(self, refused: Refused, node: SpiffeId, method: str) -> StatusError:
        return self._issuing.refuse(refused, now=self._issuing.now(), by=str(node), method=method)

    async def _register(self, node: SpiffeId, attested: Attested) -> None:
        """Register a node that came with a join token, so that it can go on with its SVID."""
        registry = self._issuing.registry
        if registry.registrations.direct(node) is not None:
            return
        (token_id,) = (one.value for one in attested.selectors if one.kind is SelectorKind.JOIN_TOKEN)
        registration = Registration(node, (Selector(SelectorKind.X509_ID, str(node)),))
        entry = Entry(f"node-{token_id}", registration, self._issuing.now(), attested.requester)
        try:
            await asyncio.to_thread(registry.ledger.add_entry, entry)
        except LedgerRefusalError as error:
            if error.code is not LedgerCode.DUPLICATE:
                raise
        except DependencyError as error:
            raise StatusError(StatusCode.UNAVAILABLE, "the node cannot be registered now") from error
        _log.info("node registered", spiffe_id=str(node), by=attested.requester)
        try:
            await registry.refresh()
        except DependencyError as error:
            raise StatusError(StatusCode.UNAVAILABLE, "the CA's ledger does not answer") from error


def _version(answer: Message, *digests: bytes) -> str:
    whole = b"".join((answer.SerializeToString(deterministic=True), *digests))
    return hashlib.sha256(whole).hexdigest()[:32]


# A list may be long, is the same for a while, and every node asks again and again.
@functools.lru_cache(maxsize=4)
def _digest(crl: bytes) -> bytes:
    return hashlib.sha256(crl).digest()


def _svid(issued: IssuedSvid) -> Any:
    return pb.X509Svid(
        spiffe_id=str(issued.spiffe_id),
        certificates=[
            issued.leaf_der,
            *(one.public_bytes(Encoding.DER) for one in issued.certificates[1:]),
        ],
        expires_at=int(issued.not_after.timestamp()),
    )


def _entry(entry: Entry) -> Any:
    registration = entry.registration
    return pb.Entry(
        entry_id=entry.entry_id,
        spiffe_id=str(registration.spiffe_id),
        selectors=[str(one) for one in registration.selectors],
        svid_ttl=int(registration.svid_ttl.total_seconds()),
        dns_names=registration.dns_names,
        federates_with=[str(one) for one in registration.federates_with],
        hint=registration.hint,
    )
