"""`envoy.service.secret.v3.SecretDiscoveryService`: identities for Envoys on this machine.

| name asked for                      | secret                                                   |
| ----------------------------------- | -------------------------------------------------------- |
| `default`                           | the caller's first identity: chain and private key       |
| a SPIFFE ID the caller may have     | that identity: chain and private key                     |
| `ROOTCA`, or `spiffe://<our domain>` | the roots of our trust domain                           |
| `spiffe://<federated domain>`       | the roots of that trust domain                           |
| `file-cert:CERT~KEY`                | chain and private key from files in allowed folders      |
| `file-root:PATH`                    | roots from a file in an allowed folder                   |

Anything else is PERMISSION_DENIED: a name alone proves nothing. Whatever Envoy could refuse is checked before
it is sent, because one bad secret keeps Envoy from taking good ones of the same context.

The same over `AggregatedDiscoveryService` (ADS), where one stream asks for secrets by and by.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import structlog
from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)

from ca.api.identities import (
    MAX_SLEEP,
    Caller,
    EntitlementError,
    Identities,
    admit,
    admit_again,
    describe,
)
from ca.api.sds_files import FILE_INTERVAL, FILE_PREFIXES, FileSecrets, FileSource
from ca.api.sds_secrets import NamedSecret, certificate_secret, roots_secret
from ca.api.sds_subscription import (
    Delta,
    StateOfTheWorld,
    Subscription,
    build_discovery_response,
    check_type_url,
)
from ca.authority import root_of_nobody
from ca.bundle import SpiffeBundle
from ca.refusals import RefusalLog
from ca.registration import Registration
from ca.renewal import MIN_INTERVAL
from ca.svid_cache import HeldSvid
from garrison.errors import DependencyError, IssuanceError, RequestError
from garrison.identity import SpiffeId
from garrison.transport import StatusCode, StatusError

SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
AGGREGATED = "envoy.service.discovery.v3.AggregatedDiscoveryService"
DEFAULT = "default"
ROOTCA = "ROOTCA"

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

_Source = Registration | SpiffeBundle | FileSource
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


@dataclass(slots=True)
class _Sent:
    """What a stream was told last, by name, and when to look for something newer.

    `held` are names that the caller was told on another stream.
    """

    secrets: dict[str, NamedSecret] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    due: datetime | None = None


class SecretDiscovery:
    """Serves secrets to callers whose peer credentials entitle them.

    `files` are those that an operator lets callers name; `sends_crl` says whether CRLs go with our roots;
    `refusals` takes who was denied, and only logs it by default. Clock and sleep can be replaced.
    """

    def __init__(
        self,
        identities: Identities,
        *,
        files: FileSecrets | None = None,
        sends_crl: bool = True,
        refusals: RefusalLog | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._identities = identities
        self._files = files or FileSecrets(())
        self._sends_crl = sends_crl
        self._refusals = refusals or RefusalLog(None)
        self._now = now
        self._sleep = sleep
        self._closed = asyncio.Event()
        self.counters = SdsCounters()

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return the handlers for `grpc.aio.Server.add_generic_rpc_handlers`."""

        def streaming(run: Any, request: Any, response: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(run, request.FromString, response.SerializeToString)

        methods = {
            "StreamSecrets": streaming(self._stream_secrets, DiscoveryRequest, DiscoveryResponse),
            "DeltaSecrets": streaming(self._delta_secrets, DeltaDiscoveryRequest, DeltaDiscoveryResponse),
            "FetchSecrets": grpc.unary_unary_rpc_method_handler(
                self._fetch_secrets, DiscoveryRequest.FromString, DiscoveryResponse.SerializeToString
            ),
        }
        aggregated = {
            "StreamAggregatedResources": streaming(
                self._stream_aggregated, DiscoveryRequest, DiscoveryResponse
            ),
            "DeltaAggregatedResources": streaming(
                self._delta_aggregated, DeltaDiscoveryRequest, DeltaDiscoveryResponse
            ),
        }
        return (
            grpc.method_handlers_generic_handler(SERVICE, methods),
            grpc.method_handlers_generic_handler(AGGREGATED, aggregated),
        )

    def close(self) -> None:
        """End every stream, so that Envoys go to the server that takes over; they keep what they have."""
        self._closed.set()

    async def _stream_secrets(self, requests: AsyncIterator[Any], context: _Context) -> None:
        await self._answer("StreamSecrets", context, self._run(StateOfTheWorld(), requests, context))

    async def _delta_secrets(self, requests: AsyncIterator[Any], context: _Context) -> None:
        await self._answer("DeltaSecrets", context, self._run(Delta(), requests, context))

    async def _stream_aggregated(self, requests: AsyncIterator[Any], context: _Context) -> None:
        await self._answer(
            "StreamAggregatedResources",
            context,
            self._run(StateOfTheWorld(aggregated=True), requests, context),
        )

    async def _delta_aggregated(self, requests: AsyncIterator[Any], context: _Context) -> None:
        await self._answer(
            "DeltaAggregatedResources", context, self._run(Delta(aggregated=True), requests, context)
        )

    async def _fetch_secrets(self, request: Any, context: _Context) -> Any:
        return await self._answer("FetchSecrets", context, self._fetch(request, context))

    async def _answer(self, method: str, context: _Context, work: Awaitable[Any]) -> Any:
        """Await `work`; what it raises becomes a status, and only what is meant for the caller is said."""
        try:
            return await work
        except EntitlementError as error:
            self._note_denial(method, context.peer(), error)
            code, text = error.code, error.message
        except StatusError as error:
            code, text = error.code, error.message
        except RequestError as error:
            code, text = StatusCode.INVALID_ARGUMENT, str(error)
        except (IssuanceError, DependencyError) as error:
            # Nothing the caller did, and it may be over soon: Envoy asks again.
            self.counters.issue_failures += 1
            _log.error("sds issuance failed", peer=context.peer(), reason=str(error))
            code, text = StatusCode.UNAVAILABLE, f"it cannot be had now: {error}"
        except Exception:  # noqa: BLE001 - a bug here must not show the caller our insides
            _log.exception("sds call failed", peer=context.peer())
            code, text = StatusCode.INTERNAL, "internal error"
        return await context.abort(_GRPC_CODES[int(code)], text)

    async def _fetch(self, request: Any, context: _Context) -> Any:
        caller = admit(self._identities, context.peer())
        check_type_url(request.type_url)
        if not request.resource_names:
            raise RequestError("a request for secrets must name them")
        names = tuple(dict.fromkeys(request.resource_names))
        response = build_discovery_response(await self._secrets(caller, names, _Sent()), nonce="")
        self.counters.responses += 1
        return response

    async def _run(self, subscription: Subscription, requests: AsyncIterator[Any], context: _Context) -> None:
        caller = admit(self._identities, context.peer())
        sent = _Sent()
        self.counters.streams += 1
        reading = asyncio.ensure_future(anext(requests))
        closing = asyncio.ensure_future(self._closed.wait())
        change = asyncio.ensure_future(self._identities.changes.next())
        try:
            while not self._closed.is_set():
                timer = asyncio.ensure_future(self._until(sent.due))
                waited = {reading, closing, change, timer}
                try:
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    if timer.done():
                        timer.result()
                finally:
                    timer.cancel()
                if self._closed.is_set():
                    return
                if change.done():
                    change = asyncio.ensure_future(self._identities.changes.next())
                    caller = admit_again(self._identities, caller.credentials)
                answer: tuple[str, ...] = ()
                if reading.done():
                    try:
                        answer = self._receive(caller, subscription, reading.result(), sent)
                    except StopAsyncIteration:
                        return
                    reading = asyncio.ensure_future(anext(requests))
                # Also when a request came: a caller that keeps talking must not put renewal off.
                secrets = await self._news(caller, subscription, answer, sent)
                if secrets:
                    self.counters.responses += 1
                    await context.write(subscription.respond(secrets))
        finally:
            # Before anything is awaited: the call may be cancelled again there.
            self.counters.streams -= 1
            for task in (reading, closing, change):
                task.cancel()
            await asyncio.gather(reading, closing, change, return_exceptions=True)

    async def _news(
        self, caller: Caller, subscription: Subscription, answer: Sequence[str], sent: _Sent
    ) -> list[NamedSecret]:
        """Return what to send: what was asked for (`answer`), and what is not as it was last sent."""
        names = tuple(dict.fromkeys((*answer, *subscription.names)))
        found = {secret.name: secret for secret in await self._secrets(caller, names, sent)}
        changed = {
            name
            for name, secret in found.items()
            if name in sent.secrets and sent.secrets[name].version != secret.version
        }
        sent.secrets = found
        wanted = dict.fromkeys((*answer, *subscription.affected(changed)))
        return [found[name] for name in wanted]

    def _receive(
        self, caller: Caller, subscription: Subscription, request: Any, sent: _Sent
    ) -> tuple[str, ...]:
        received = subscription.receive(request)
        sent.held.update(received.held)
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

    async def _secrets(self, caller: Caller, names: Sequence[str], sent: _Sent) -> list[NamedSecret]:
        """Return the secrets called `names`; for one that was sent, the last one while there is no better.

        Raises:
            EntitlementError: a name is not one of the caller's; nothing was issued then.
            IssuanceError, DependencyError: one that was not sent before cannot be had.

        """
        # All names first: one that is refused must not leave another one's certificate issued for nothing.
        sources = {name: self._source(caller, name, sent) for name in names}
        found = []
        dues = []
        for name, source in sources.items():
            try:
                secret, due = await self._secret(caller, name, source)
            except (IssuanceError, DependencyError) as error:
                if name not in sent.secrets:
                    raise
                self.counters.issue_failures += 1
                _log.error("sds renewal failed", pid=caller.credentials.pid, name=name, reason=str(error))
                secret, due = sent.secrets[name], self._now() + MIN_INTERVAL
            found.append(secret)
            dues += [due] if due is not None else []
        sent.due = min(dues, default=None)
        return found

    def _source(self, caller: Caller, name: str, sent: _Sent) -> _Source:
        """Return what the secret called `name` is made of.

        Raises:
            EntitlementError: the caller may not have it.

        """
        if name == DEFAULT:
            return caller.registrations[0]
        if name.startswith(FILE_PREFIXES):
            return self._files.resolve(name, caller.credentials)
        bundles = self._identities.bundles(caller)
        if name == ROOTCA:
            return bundles[self._identities.trust_domain]
        try:
            spiffe_id = SpiffeId.parse(name)
        except ValueError:
            spiffe_id = None
        if spiffe_id is not None and not spiffe_id.segments:
            if spiffe_id.trust_domain in bundles:
                return bundles[spiffe_id.trust_domain]
            if name in sent.secrets or name in sent.held:
                # Envoy keeps what it was told before, also by the process before this one. So tell it that
                # nobody there is to be trusted any more.
                return SpiffeBundle()
        for registration in caller.registrations:
            if registration.spiffe_id == spiffe_id:
                return registration
        message = f"this caller ({describe(caller.credentials)}) may not have `{name}`"
        raise EntitlementError(message, caller.credentials, name=name)

    async def _secret(
        self, caller: Caller, name: str, source: _Source
    ) -> tuple[NamedSecret, datetime | None]:
        """Return the secret, checked, and when to look for a newer one.

        Raises:
            IssuanceError: the CA refuses.
            DependencyError: a file cannot be used.

        """
        match source:
            case Registration():
                held = await self._identities.svid(caller, source)
                return _svid_secret(name, held), held.renew_at
            case SpiffeBundle():
                ours = name in {ROOTCA, str(self._identities.trust_domain.spiffe_id)}
                crls = self._identities.crls() if ours and self._sends_crl else ()
                # Without roots Envoy would not verify at all.
                return roots_secret(name, source.x509_authorities or (root_of_nobody(),), crls), None
            case FileSource():
                return source.load(), self._now() + FILE_INTERVAL

    def _note_denial(self, method: str, peer: str, error: EntitlementError) -> None:
        self.counters.denials += 1
        self._refusals.add_local(
            error.refused,
            now=self._now(),
            by=error.who(peer),
            method=method,
            event="sds denied",
            about=error.described(peer),
        )

    async def _until(self, due: datetime | None) -> None:
        left = MAX_SLEEP if due is None else min(MAX_SLEEP, due - self._now())
        await self._sleep(max(0.0, left.total_seconds()))


def _svid_secret(name: str, held: HeldSvid) -> NamedSecret:
    return certificate_secret(name, held.svid.certificates, held.key)
