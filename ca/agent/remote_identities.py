"""What callers of this node may have, from a server elsewhere: `Identities` for SDS and the Workload API.

Renewal happens in one place, `keep`, for all SVIDs at once; callers get what is held. So they notice neither
the server's absence nor its return, as long as their SVIDs live.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from cryptography import x509

from ca.agent.node import Node, NotAttestedError, parse_svid, signing_request
from ca.agent.schedule import MIN_PAUSE, Attempts, pause_after, renewal_time
from ca.agent.server import MAX_PAUSE, NodesServer, ServerAwayError, ServerRefusedError
from ca.agent.state import AgentState, NodeSvid
from ca.api.identities import Caller, Changes
from ca.attestation import Registrations, selectors_of
from ca.bundle import SpiffeBundle, parse_spiffe_bundle
from ca.jwt_svid import validate_jwt_svid
from ca.keys import PrivateKey, new_private_key
from ca.protos import nodes_pb2 as pb
from ca.registration import Registration
from ca.renewal import MIN_INTERVAL
from ca.svid_cache import HeldSvid
from garrison.errors import ConfigError, DependencyError, IssuanceError, RequestError
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport import StatusCode, StatusError
from garrison.transport.unix_peer import PeerCredentials

SYNC_INTERVAL = timedelta(seconds=5)
# What the server takes in one call.
MAX_BATCH = 128
# Tokens are kept until half their life is over; more callers than that are asked for anew.
_MAX_TOKENS = 1024

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    got_at: datetime
    ends: datetime


class RemoteIdentities:
    """`Identities` of a node. For one event loop; clock and randomness can be replaced.

    `peer_credentials` maps a gRPC peer to the process behind it (`PeerCredentialListener.credentials`);
    `use_roots` hears the roots of our trust domain, with which the server is verified as well.
    """

    def __init__(
        self,
        server: NodesServer,
        node: Node,
        state: AgentState,
        *,
        peer_credentials: Callable[[str], PeerCredentials | None],
        use_roots: Callable[[Sequence[x509.Certificate]], None] = lambda _: None,
        sync_interval: timedelta = SYNC_INTERVAL,
        longest_pause: timedelta = MAX_PAUSE,
        new_key: Callable[[], PrivateKey] = new_private_key,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.changes = Changes()
        self.problem = "the server was not reached yet"
        self.renewals = 0
        self._cast_out = False
        self._trouble = 0
        self._server = server
        self._node = node
        self._state = state
        self._peer_credentials = peer_credentials
        self._use_roots = use_roots
        self._sync_interval = sync_interval
        self._longest_pause = longest_pause
        self._new_key = new_key
        self._now = now
        self._chance = chance
        # None: not known, which is something else than nobody.
        self._entries: dict[Registration, str] | None = None
        self._registrations = Registrations()
        self._entries_version = ""
        self._bundles: dict[TrustDomain, SpiffeBundle] = {}
        self._bundle_version = ""
        self._crls: tuple[bytes, ...] = ()
        self._trust_domain: TrustDomain | None = None
        self._held: dict[Registration, HeldSvid] = {}
        self._attempts: dict[Registration, Attempts] = {}
        self._signing: dict[Registration, asyncio.Future[HeldSvid]] = {}
        self._waiting: list[Registration] = []
        self._working: set[asyncio.Task[None]] = set()
        self._tokens: dict[tuple[Registration, tuple[str, ...]], _Token] = {}

    @property
    def trust_domain(self) -> TrustDomain:
        """The trust domain of this node; see `Identities`."""
        if self._trust_domain is None:
            raise self._not_yet()
        return self._trust_domain

    @property
    def is_serving(self) -> bool:
        """Whether callers get answers: entries and bundle are known, and something can be given or got."""
        if self._entries is None or self._trust_domain not in self._bundles or self._cast_out:
            return False
        now, node = self._now(), self._node.svid
        is_node = node is not None and node.is_valid(now)
        return is_node or any(now < held.svid.not_after for held in self._held.values())

    def attest(self, peer: str) -> PeerCredentials | None:
        """Return who is behind `peer`; see `Identities`."""
        return self._peer_credentials(peer)

    def entitled(self, credentials: PeerCredentials) -> tuple[Registration, ...]:
        """Return the entries of this node whose selectors the process meets; see `Identities`.

        Raises:
            StatusError: they are not known yet.

        """
        if self._entries is None:
            raise self._not_yet()
        parent = self._node.svid.svid.spiffe_id if self._node.svid is not None else None
        if parent is None:
            return ()
        return self._registrations.entitled(selectors_of(credentials), parent)

    def crls(self) -> tuple[bytes, ...]:
        """Return the CRLs as the server sent them last; see `Identities`."""
        return self._crls

    async def svid(self, caller: Caller, registration: Registration) -> HeldSvid:  # noqa: ARG002 - the same to all
        """Return the SVID that is held; without one that is valid, ask for it; see `Identities`.

        `renew_at` is when to look again if nothing changed before.
        """
        now = self._now()
        held = self._held.get(registration)
        if held is None or now >= held.svid.not_after:
            held = await self._sign(registration)
        # `keep` renews. Who looks again earlier finds the same, so it must not look in a tight loop.
        return replace(held, renew_at=min(held.svid.not_after, max(held.renew_at, now + MIN_INTERVAL)))

    def bundles(self, caller: Caller) -> Mapping[TrustDomain, SpiffeBundle]:
        """Return our bundle, and those that the caller's entries federate with; see `Identities`.

        Raises:
            StatusError: ours is not known yet.

        """
        own = self._bundles.get(self.trust_domain)
        if own is None:
            raise self._not_yet()
        wanted = {domain for one in caller.registrations for domain in one.federates_with}
        others = {name: one for name, one in self._bundles.items() if name in wanted}
        return {self.trust_domain: own, **others}

    async def sign_jwt(self, caller: Caller, registration: Registration, audience: Sequence[str]) -> str:
        """Return a token from the server, or one from before that has half its life; see `Identities`.

        Raises:
            ServerAwayError: the server does not answer, and there is no token that is good.

        """
        now = self._now()
        name = (registration, tuple(audience))
        kept = self._tokens.get(name)
        if kept is not None and now < kept.got_at + (kept.ends - kept.got_at) / 2:
            return kept.text
        try:
            found = await self._mint(caller, registration, audience, now)
        except ServerAwayError:
            if kept is not None and now < kept.ends - MIN_INTERVAL:
                return kept.text
            raise
        if len(self._tokens) >= _MAX_TOKENS:
            self._tokens.clear()
        self._tokens[name] = found
        return found.text

    async def keep(self) -> timedelta:
        """Do what is to be done now, once; return how long to wait before the next time.

        Whatever fails is noted in `problem`, logged, and tried again.

        Raises:
            NotAttestedError, ConfigError: this node has no identity, holds nothing, and cannot help itself.

        """
        try:
            node = await self._node.ensure()
            await self._sync(node)
            await self._renew()
        except ServerRefusedError as error:
            if error.is_about_us:
                self._forget_all(error)
            else:
                self._complain(f"the server refuses: {error}")
        except ServerAwayError as error:
            self._complain(str(error), is_logged=True)
        except (DependencyError, IssuanceError) as error:
            self._complain(str(error))
        except (NotAttestedError, ConfigError) as error:
            if self._entries is None:
                raise
            self._complain(str(error))
        else:
            self._complain("")
            self._cast_out = False
        self._drop_expired()
        return self._pause()

    def status(self) -> dict[str, Any]:
        """Return how this node is doing, as plain values."""
        node, attempts = self._node.svid, self._server.attempts
        own = self._bundles.get(self._trust_domain) if self._trust_domain is not None else None
        return {
            "serving": self.is_serving,
            "problem": self.problem,
            "node": str(node.svid.spiffe_id) if node is not None else None,
            "node_expires_at": _text(node.svid.not_after) if node is not None else None,
            "node_renews_at": _text(self._node.renew_at),
            "last_contact": _text(self._server.last_contact),
            "last_error": self._server.last_error,
            "failures": attempts.failures,
            "asked_again_at": _text(attempts.not_before),
            "bundle_sequence": own.sequence if own is not None else None,
            "entries": len(self._entries) if self._entries is not None else None,
            "renewals": self.renewals,
            "svids": [
                {
                    "spiffe_id": str(one.spiffe_id),
                    "expires_at": _text(held.svid.not_after),
                    "renews_at": _text(held.renew_at),
                }
                for one, held in self._held.items()
            ],
        }

    async def close(self) -> None:
        """Stop what is being asked for."""
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def _sync(self, node: NodeSvid) -> None:
        domain = node.svid.spiffe_id.trust_domain
        entries = await self._server.call(
            pb.FetchEntriesRequest(version=self._entries_version), pb.FetchEntriesResponse, node=node
        )
        changed = self._trust_domain != domain
        self._trust_domain = domain
        try:
            # First the bundle: SVIDs of new entries are verified with it, and it has what they federate with.
            bundle = await self._server.call(
                pb.FetchBundleRequest(version=self._bundle_version), pb.FetchBundleResponse, node=node
            )
            if not bundle.unchanged:
                self._use_bundles(domain, bundle)
                changed = True
        finally:
            # Whatever is wrong with the bundle: who has lost an entry must not keep it for that.
            if self._entries is None or not entries.unchanged:
                self._use_entries(node, entries)
                changed = True
            if changed:
                self.changes.tell()

    def _use_bundles(self, domain: TrustDomain, answer: pb.FetchBundleResponse) -> None:
        """Take over our bundle and those of others that are well-formed.

        Raises:
            IssuanceError: ours is malformed, has no roots, or is not there, or a CRL is malformed; nothing
                is taken over.

        """
        found: dict[TrustDomain, SpiffeBundle] = {}
        for name, text in answer.bundles.items():
            try:
                found[TrustDomain.parse(name)] = parse_spiffe_bundle(text)
            except ValueError as error:
                # A partner's mistake must not keep our own roots from coming.
                _log.error("bundle not understood", trust_domain=name, reason=str(error))
        if domain not in found or not found[domain].x509_authorities:
            raise IssuanceError(f"the server sent no roots of `{domain}`")
        try:
            for one in answer.crls:
                x509.load_der_x509_crl(one)
        except ValueError as error:
            raise IssuanceError("the server sent a malformed CRL") from error
        self._bundles, self._crls = found, tuple(answer.crls)
        self._bundle_version = answer.version
        self._use_roots(found[domain].x509_authorities)
        try:
            self._state.save_bundle(found[domain])
        except OSError as error:
            _log.error("bundle not kept", reason=(error.strerror or str(error)).lower())

    def _use_entries(self, node: NodeSvid, answer: pb.FetchEntriesResponse) -> None:
        found: dict[Registration, str] = {}
        for one in answer.entries:
            try:
                found[_registration(one, node.svid.spiffe_id)] = one.entry_id
            except (ValueError, OverflowError) as error:
                _log.error("entry not understood", entry_id=one.entry_id, reason=str(error))
        self._entries, self._registrations = found, Registrations(found)
        self._entries_version = answer.version
        for kept in (self._held, self._attempts):
            for gone in kept.keys() - found.keys():
                del kept[gone]
        self._tokens = {name: token for name, token in self._tokens.items() if name[0] in found}
        _log.info("entries changed", entries=len(found))

    async def _renew(self) -> None:
        """Renew what is due and get what is missing, so that callers find it when the server is away."""
        now = self._now()
        due = [
            one
            for one in self._entries or ()
            if self._attempts.get(one, Attempts()).may_try(now)
            and ((held := self._held.get(one)) is None or now >= min(held.renew_at, held.svid.not_after))
        ]
        results = await asyncio.gather(*(self._sign(one) for one in due), return_exceptions=True)
        for one, result in zip(due, results, strict=True):
            if isinstance(result, ServerAwayError | ServerRefusedError):
                raise result
            if isinstance(result, IssuanceError):
                _log.error("renewal failed", spiffe_id=str(one.spiffe_id), reason=str(result))
            elif isinstance(result, BaseException):
                raise result
        if any(isinstance(result, HeldSvid) for result in results):
            self.changes.tell()

    async def _sign(self, registration: Registration) -> HeldSvid:
        """Return a new SVID. Who asks for it at the same time gets the same; others share the call.

        Raises:
            IssuanceError: the server refuses it, or what it sent is no good.
            ServerAwayError: it does not answer.

        """
        future = self._signing.get(registration)
        if future is None:
            if self._entries is None or registration not in self._entries:
                raise IssuanceError(f"`{registration.spiffe_id}` is not this node's any more")
            if not self._attempts.get(registration, Attempts()).may_try(self._now()):
                raise IssuanceError("it was refused a moment ago, and is asked for again soon")
            future = asyncio.get_running_loop().create_future()
            self._signing[registration] = future
            self._waiting.append(registration)
            if len(self._waiting) == 1:
                # After this turn of the loop: what else is wanted in it goes with the same call.
                asyncio.get_running_loop().call_soon(self._send)
        return await asyncio.shield(future)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        task = asyncio.get_running_loop().create_task(self._sign_batches(waiting))
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _sign_batches(self, wanted: Sequence[Registration]) -> None:
        for start in range(0, len(wanted), MAX_BATCH):
            batch = wanted[start : start + MAX_BATCH]
            try:
                results = await self._sign_batch(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits must not wait for ever
                results = [error] * len(batch)
            except asyncio.CancelledError:
                for one in wanted[start:]:
                    self._signing.pop(one).cancel()
                raise
            for one, result in zip(batch, results, strict=True):
                future = self._signing.pop(one)
                if future.cancelled():
                    continue
                if isinstance(result, HeldSvid):
                    future.set_result(result)
                else:
                    future.set_exception(result)
                    future.exception()  # nobody may be waiting any more

    async def _sign_batch(self, batch: Sequence[Registration]) -> list[HeldSvid | Exception]:
        node = self._node.svid
        if node is None or not node.is_valid(self._now()):
            raise ServerAwayError("this node's own SVID has expired")
        entries = self._entries or {}
        keys = [self._new_key() for _ in batch]
        request = pb.SignSvidsRequest(
            svids=[
                pb.SvidRequest(entry_id=entries.get(one, ""), csr=signing_request(key))
                for one, key in zip(batch, keys, strict=True)
            ]
        )
        answer = await self._server.call(request, pb.SignSvidsResponse, node=node)
        if len(answer.results) != len(batch):
            raise IssuanceError("the server answered for another number of SVIDs than was asked for")
        return [
            self._result(one, key, result)
            for one, key, result in zip(batch, keys, answer.results, strict=True)
        ]

    def _result(self, wanted: Registration, key: PrivateKey, result: pb.SvidResult) -> HeldSvid | Exception:
        now = self._now()
        try:
            if result.code:
                raise IssuanceError(f"the server refuses it: {result.reason}")  # noqa: TRY301 - one way out
            own = self._bundles[self.trust_domain]
            # Envoy refuses everything of a context that once got a bad secret, good ones too.
            svid = parse_svid(result.svid, key, own.x509_authorities, wanted.spiffe_id, now)
        except IssuanceError as error:
            before = self._attempts.get(wanted, Attempts())
            self._attempts[wanted] = before.failed(now, self._longest_pause, self._chance())
            return error
        held = HeldSvid(svid, key, renewal_time(now, svid.not_after, self._chance()))
        self._attempts.pop(wanted, None)
        # It may have been deleted meanwhile.
        if self._entries is not None and wanted in self._entries:
            self._held[wanted] = held
            self.renewals += 1
        return held

    async def _mint(
        self, caller: Caller, registration: Registration, audience: Sequence[str], now: datetime
    ) -> _Token:
        node = self._node.svid
        if node is None or not node.is_valid(now):
            raise ServerAwayError("this node's own SVID has expired")
        request = pb.MintJwtRequest(
            entry_id=(self._entries or {}).get(registration, ""), audiences=list(audience)
        )
        try:
            answer = await self._server.call(request, pb.MintJwtResponse, node=node)
        except ServerRefusedError as error:
            raise IssuanceError(f"the server makes no token: {error}") from error
        try:
            found = validate_jwt_svid(answer.token, audience[0], self.bundles(caller), now=now)
        except RequestError as error:
            # Its key may be newer than our bundle, which is fetched every few seconds.
            raise IssuanceError(f"the server's token is no good: {error}") from error
        if found.spiffe_id != registration.spiffe_id:
            raise IssuanceError(f"the server sent a token of `{found.spiffe_id}`")
        return _Token(answer.token, now, datetime.fromtimestamp(int(found.claims["exp"]), UTC))

    def _forget_all(self, error: ServerRefusedError) -> None:
        """Hand out nothing any more: the server does not know this node, or knows better."""
        self._complain(
            f"the server refuses this node ({error}): its SVID was revoked, or its registration deleted. If "
            "that was not meant, register it again; for a revoked one stop the agent, empty "
            f"`{self._state.directory}` and attest with a new join token"
        )
        self._cast_out = True
        if self._entries != {}:
            self._entries, self._registrations = {}, Registrations()
            self._entries_version = ""
            self._held.clear()
            self._tokens.clear()
            self._attempts.clear()
            self.changes.tell()

    def _complain(self, problem: str, *, is_logged: bool = False) -> None:
        # Once, not with every try.
        self._trouble = self._trouble + 1 if problem else 0
        if problem != self.problem:
            if problem and not is_logged:
                _log.warning("agent in trouble", reason=problem)
            elif not problem:
                _log.info("agent in order")
            self.problem = problem

    def _drop_expired(self) -> None:
        now = self._now()
        self._held = {one: held for one, held in self._held.items() if now < held.svid.not_after}

    def _pause(self) -> timedelta:
        now, not_before = self._now(), self._server.attempts.not_before
        if not_before is not None:
            return max(MIN_PAUSE, not_before - now)
        interval = self._sync_interval * (0.9 + 0.2 * self._chance())
        if self._trouble:
            # Every refusal is a record in the server's audit log.
            return max(interval, pause_after(self._trouble, self._longest_pause, self._chance()))
        dues = [held.renew_at for held in self._held.values()]
        dues += [self._node.renew_at] if self._node.renew_at is not None else []
        # What is overdue was tried just now, and is tried again with the next look.
        following = min((due - now for due in dues if due > now), default=interval)
        return max(MIN_PAUSE, min(interval, following))

    def _not_yet(self) -> StatusError:
        return StatusError(StatusCode.UNAVAILABLE, f"this node's agent knows nothing yet: {self.problem}")


def _registration(entry: pb.Entry, node: SpiffeId) -> Registration:
    """Return an entry as a registration of this node.

    Raises:
        ValueError, OverflowError: it is none.

    """
    return Registration.parse(
        entry.spiffe_id,
        list(entry.selectors),
        timedelta(seconds=entry.svid_ttl),
        list(entry.dns_names),
        parent_id=str(node),
        federates_with=list(entry.federates_with),
        hint=entry.hint,
    )


def _text(moment: datetime | None) -> str | None:
    return f"{moment:%FT%TZ}" if moment is not None else None
