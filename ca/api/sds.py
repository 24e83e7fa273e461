"""`envoy.service.secret.v3.SecretDiscoveryService`: identities for Envoys on this machine.

| name asked for                      | secret                                                   |
| ----------------------------------- | -------------------------------------------------------- |
| `default`                           | the caller's first identity: chain and private key       |
| a SPIFFE ID the caller may have     | that identity: chain and private key                     |
| `ROOTCA`, or `spiffe://<our domain>` | the roots of our trust domain                           |

Anything else is PERMISSION_DENIED: a name alone proves nothing. Keys are made here for each stream, are
never written anywhere, and are replaced together with their certificates.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import structlog
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)

from ca.api.sds_subscription import (
    Delta,
    NamedSecret,
    StateOfTheWorld,
    Subscription,
    build_discovery_response,
    check_type_url,
)
from ca.attestation import entitled, selectors_of
from ca.authority import Authority
from ca.inspection import check_key_pair
from ca.keys import private_key_pem
from ca.recording import RecordingIssuer, Requester
from ca.registration import Registration
from ca.svid_cache import HeldSvid, SvidCache
from garrison.errors import IssuanceError, RequestError
from garrison.transport import StatusCode, StatusError
from garrison.transport.unix_peer import PeerCredentials

SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
DEFAULT = "default"
ROOTCA = "ROOTCA"

# A timer counts the time the machine is awake; certificates end by the clock on the wall.
_MAX_SLEEP = timedelta(minutes=1)
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

_Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger()


@dataclass(slots=True)
class SdsCounters:
    """What happened since the start; `streams` are those open now."""

    streams: int = 0
    responses: int = 0
    nacks: int = 0
    denials: int = 0
    issue_failures: int = 0


@dataclass(frozen=True, slots=True)
class _Caller:
    """An attested caller and what it may have."""

    credentials: PeerCredentials
    registrations: tuple[Registration, ...]


@dataclass(slots=True, eq=False)
class _Signal:
    """What a stream is told by others: that there is something new, and whether it is to rotate."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    rotate: bool = False
    bundle: bool = False

    def clear(self) -> None:
        self.event.clear()
        self.rotate = self.bundle = False


class SecretDiscovery:
    """Serves secrets to callers whose peer credentials entitle them.

    `peer_credentials` maps a gRPC peer to the process behind it (`PeerCredentialListener.credentials`);
    a caller it does not know gets nothing. `crl_pem` returns what goes with the roots, nothing by default.
    Clock, sleep and randomness can be replaced.
    """

    def __init__(
        self,
        issuer: RecordingIssuer,
        registrations: Sequence[Registration],
        *,
        peer_credentials: Callable[[str], PeerCredentials | None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        crl_pem: Callable[[], bytes] = bytes,
    ) -> None:
        self._issuer = issuer
        self._registrations = tuple(registrations)
        self._peer_credentials = peer_credentials
        self._now = now
        self._sleep = sleep
        self._jitter = jitter
        self._crl_pem = crl_pem
        self._signals: set[_Signal] = set()
        self._closed = False
        self.counters = SdsCounters()

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return the handlers for `grpc.aio.Server.add_generic_rpc_handlers`."""
        methods = {
            "StreamSecrets": grpc.stream_stream_rpc_method_handler(
                self._stream_secrets, DiscoveryRequest.FromString, DiscoveryResponse.SerializeToString
            ),
            "DeltaSecrets": grpc.stream_stream_rpc_method_handler(
                self._delta_secrets,
                DeltaDiscoveryRequest.FromString,
                DeltaDiscoveryResponse.SerializeToString,
            ),
            "FetchSecrets": grpc.unary_unary_rpc_method_handler(
                self._fetch_secrets, DiscoveryRequest.FromString, DiscoveryResponse.SerializeToString
            ),
        }
        return (grpc.method_handlers_generic_handler(SERVICE, methods),)

    def rotate(self) -> None:
        """Replace every key and SVID now, and push them."""
        for signal in self._signals:
            signal.rotate = True
            signal.event.set()

    def use_registrations(self, registrations: Sequence[Registration]) -> None:
        """Give out these from now on; a stream that asks for what it may not have any more is ended."""
        self._registrations = tuple(registrations)
        for signal in self._signals:
            signal.event.set()

    def push_bundle(self) -> None:
        """Send the trust bundle again to who subscribes to it: it or its CRL is new."""
        for signal in self._signals:
            signal.bundle = True
            signal.event.set()

    def close(self) -> None:
        """End every stream, so that Envoys go to the server that takes over; they keep what they have."""
        self._closed = True
        self.rotate()

    async def _stream_secrets(self, requests: AsyncIterator[Any], context: _Context) -> None:
        await self._answer(context, self._run(StateOfTheWorld(), requests, context))

    async def _delta_secrets(self, requests: AsyncIterator[Any], context: _Context) -> None:
        await self._answer(context, self._run(Delta(), requests, context))

    async def _fetch_secrets(self, request: Any, context: _Context) -> Any:
        return await self._answer(context, self._fetch(request, context))

    async def _answer(self, context: _Context, work: Awaitable[Any]) -> Any:
        """Await `work`; what it raises becomes a status, and only what is meant for the caller is said."""
        try:
            return await work
        except StatusError as error:
            code, text = error.code, error.message
        except RequestError as error:
            code, text = StatusCode.INVALID_ARGUMENT, str(error)
        except IssuanceError as error:
            # Nothing the caller did, and it may be over soon: Envoy asks again.
            self.counters.issue_failures += 1
            _log.error("sds issuance failed", peer=context.peer(), reason=str(error))
            code, text = StatusCode.UNAVAILABLE, f"the CA cannot issue: {error}"
        except Exception:  # noqa: BLE001 - a bug here must not show the caller our insides
            _log.exception("sds call failed", peer=context.peer())
            code, text = StatusCode.INTERNAL, "internal error"
        return await context.abort(_GRPC_CODES[int(code)], text)

    async def _fetch(self, request: Any, context: _Context) -> Any:
        caller = self._attest(context)
        check_type_url(request.type_url)
        if not request.resource_names:
            raise RequestError("a request for secrets must name them")
        names = tuple(dict.fromkeys(request.resource_names))
        cache = self._cache(caller)
        response = build_discovery_response(await self._secrets(caller, cache, names), nonce="")
        self.counters.responses += 1
        return response

    async def _run(self, subscription: Subscription, requests: AsyncIterator[Any], context: _Context) -> None:
        caller = self._attest(context)
        cache = self._cache(caller)
        signal = _Signal()
        self._signals.add(signal)
        self.counters.streams += 1
        reading = asyncio.ensure_future(anext(requests))
        told = asyncio.ensure_future(signal.event.wait())
        try:
            while not self._closed:
                timer = asyncio.ensure_future(self._until_due(cache))
                try:
                    await asyncio.wait({reading, told, timer}, return_when=asyncio.FIRST_COMPLETED)
                    if timer.done():
                        timer.result()
                finally:
                    timer.cancel()
                if self._closed:
                    return
                answer: tuple[str, ...] = ()
                if reading.done():
                    try:
                        answer = self._receive(caller, subscription, reading.result())
                    except StopAsyncIteration:
                        return
                    reading = asyncio.ensure_future(anext(requests))
                changed: set[str] = set()
                rotate = signal.rotate
                if signal.event.is_set():
                    if signal.bundle:
                        changed |= {ROOTCA, str(self._issuer.authority.trust_domain.spiffe_id)}
                    # Before anything is awaited: what is told meanwhile counts the next time.
                    signal.clear()
                    told = asyncio.ensure_future(signal.event.wait())
                    again = self._attest(context)
                    if again.registrations != caller.registrations:
                        caller, cache = again, self._cache(again)
                        changed |= set(subscription.names)
                # Also when a request came: a caller that keeps talking must not put renewal off.
                changed |= await self._renew(caller, cache, all_of_them=rotate)
                wanted = dict.fromkeys((*answer, *subscription.affected(changed)))
                if wanted:
                    secrets = await self._secrets(caller, cache, tuple(wanted))
                    self.counters.responses += 1
                    await context.write(subscription.respond(secrets))
        finally:
            # Before anything is awaited: the call may be cancelled again there.
            self._signals.discard(signal)
            self.counters.streams -= 1
            reading.cancel()
            told.cancel()
            await asyncio.gather(reading, told, return_exceptions=True)

    def _attest(self, context: _Context) -> _Caller:
        peer = context.peer()
        credentials = self._peer_credentials(peer)
        if credentials is None:
            self.counters.denials += 1
            _log.warning("sds denied", peer=peer, reason="no peer credentials")
            raise StatusError(
                StatusCode.PERMISSION_DENIED,
                "secrets are given only over the Unix socket, where the caller can be attested",
            )
        registrations = entitled(self._registrations, selectors_of(credentials))
        if not registrations:
            self._denied(credentials, reason="no registration matches")
            raise StatusError(
                StatusCode.PERMISSION_DENIED,
                f"no registration matches this caller ({_describe(credentials)})",
            )
        return _Caller(credentials, registrations)

    def _denied(self, credentials: PeerCredentials, **fields: object) -> None:
        self.counters.denials += 1
        _log.warning(
            "sds denied",
            pid=credentials.pid,
            uid=credentials.uid,
            gid=credentials.gid,
            path=credentials.path,
            **fields,
        )

    def _receive(self, caller: _Caller, subscription: Subscription, request: Any) -> tuple[str, ...]:
        received = subscription.receive(request)
        if received.refusal is not None:
            self.counters.nacks += 1
            _log.warning(
                "sds response refused",
                pid=caller.credentials.pid,
                uid=caller.credentials.uid,
                path=caller.credentials.path,
                names=subscription.names,
                reason=received.refusal,
            )
        return received.answer

    def _identity(self, caller: _Caller, name: str) -> Registration | None:
        """Return the registration that `name` stands for; None for the trust bundle.

        Raises:
            StatusError: the caller is not entitled to what it names.

        """
        if name == DEFAULT:
            return caller.registrations[0]
        if name in {ROOTCA, str(self._issuer.authority.trust_domain.spiffe_id)}:
            return None
        for registration in caller.registrations:
            if str(registration.spiffe_id) == name:
                return registration
        self._denied(caller.credentials, name=name, reason="not entitled to this name")
        raise StatusError(
            StatusCode.PERMISSION_DENIED,
            f"this caller ({_describe(caller.credentials)}) may not have `{name}`",
        )

    async def _renew(self, caller: _Caller, cache: SvidCache, *, all_of_them: bool) -> set[str]:
        """Renew what is due, and return the names whose secrets changed."""
        renewed, refused = await cache.renew(self._now(), all_of_them=all_of_them)
        for error in refused:
            self.counters.issue_failures += 1
            _log.error("sds renewal failed", pid=caller.credentials.pid, reason=str(error))
        names = {str(spiffe_id) for spiffe_id in renewed}
        if caller.registrations[0].spiffe_id in renewed:
            names.add(DEFAULT)
        return names

    def _cache(self, caller: _Caller) -> SvidCache:
        requester = Requester(f"{_describe(caller.credentials)}, pid {caller.credentials.pid}", "unix")
        return SvidCache(self._issuer.for_registration(requester), random=self._jitter)

    async def _secrets(self, caller: _Caller, cache: SvidCache, names: Sequence[str]) -> list[NamedSecret]:
        # All names first: one that is refused must not leave another one's certificate issued for nothing.
        identities = {name: self._identity(caller, name) for name in names}
        return [
            _bundle_secret(name, self._issuer.authority, self._crl_pem())
            if registration is None
            else _svid_secret(name, await cache.get(registration, self._now()))
            for name, registration in identities.items()
        ]

    async def _until_due(self, cache: SvidCache) -> None:
        due = cache.next_renewal
        left = _MAX_SLEEP if due is None else min(_MAX_SLEEP, due - self._now())
        await self._sleep(max(0.0, left.total_seconds()))


def _svid_secret(name: str, held: HeldSvid) -> NamedSecret:
    check_key_pair(held.svid.leaf, held.key)
    message = Secret(name=name)
    message.tls_certificate.certificate_chain.inline_bytes = held.svid.chain_pem
    message.tls_certificate.private_key.inline_bytes = private_key_pem(held.key)
    return NamedSecret(name, _digest(held.svid.leaf.public_bytes(Encoding.DER)), message)


def _bundle_secret(name: str, authority: Authority, crl_pem: bytes) -> NamedSecret:
    bundle = authority.bundle_pem()
    message = Secret(name=name)
    message.validation_context.trusted_ca.inline_bytes = bundle
    if crl_pem:
        message.validation_context.crl.inline_bytes = crl_pem
        # Without it Envoy wants a CRL of the root too, whose key is kept elsewhere, and refuses everybody.
        message.validation_context.only_verify_leaf_cert_crl = True
    return NamedSecret(name, _digest(bundle + crl_pem), message)


def _digest(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


def _describe(credentials: PeerCredentials) -> str:
    path = credentials.path or "an unknown executable"
    return f"uid {credentials.uid}, gid {credentials.gid}, {path}"
