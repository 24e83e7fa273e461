"""`garrison serve`: everything in one process, from settings to a drained exit.

With several workers there are several of these: each worker has the request path alone, the control process
everything else, with the workers in place of its request path.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import grpc
import structlog
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from authz.authn.certificates import CertificateVerifier, TrustBundle
from authz.bundles import TrustFile, load_bundles
from authz.environment import Environment
from authz.mixer.lists import MAX_LIST_BYTES
from authz.mixer.refresher import ListRefresher, list_fetch
from authz.service import Authorization, DestinationResolver
from authz.snapshot import Snapshot, load_snapshot
from ca.api.sds import AGGREGATED as ADS
from ca.api.sds import SERVICE as SDS
from ca.api.sds import SdsCounters, SecretDiscovery
from ca.api.sds_files import FileSecrets
from ca.api.workload import SERVICE as WORKLOAD
from ca.api.workload import WorkloadApi, WorkloadCounters
from ca.authorities import Authorities
from ca.authority import CERT_CHAIN, ROOT_CERT, Authority
from ca.authority_files import ISSUERS
from ca.federated import FederatedBundles, load_federated
from ca.jwt_key_store import JwtKeyStore
from ca.ledger import LedgerUnavailableError
from ca.local_identities import LocalIdentities
from ca.memory import CaMemory
from ca.passphrase import PassphraseSource
from ca.refusals import RefusalLog
from ca.rotation import Policy
from garrison.distribution.bundle import BundleFile
from garrison.distribution.cache import DiskCache
from garrison.distribution.follower import Follower
from garrison.distribution.policies import BundleCompiler
from garrison.documents import Diagnostic, DocumentCache, Position
from garrison.errors import ConfigError, IssuanceError
from garrison.fetching import Fetcher
from garrison.keys.cache import KeyCache
from garrison.keys.refresher import KeyRefresher, KeyStatus, key_fetch
from garrison.process.admin import AdminServer
from garrison.process.authenticators import Authenticators
from garrison.process.ca_services import SERVICES as CA_SERVICES
from garrison.process.ca_services import CaServices
from garrison.process.check_limits import CheckLimits
from garrison.process.control import ControlServer
from garrison.process.counter_pages import CounterPages
from garrison.process.counters import CounterOperator
from garrison.process.federation import Federation
from garrison.process.link import WorkerLink
from garrison.process.mixer_quotas import DOMAIN, StoreQuotas
from garrison.process.oidc import OidcPages
from garrison.process.pages import PageServer, only_get
from garrison.process.peer_trust import PeerTrust, as_message
from garrison.process.quota import build_store
from garrison.process.reload import Reloader, watch
from garrison.process.settings import Settings
from garrison.process.settings.policies import DistributionSettings
from garrison.process.workers import Children, SummedCollector, Workers
from garrison.telemetry.log import LineWriter
from garrison.telemetry.metrics import (
    AuthenticatorCollector,
    AuthorityCollector,
    DistributionCollector,
    FederationCollector,
    KeyCollector,
    RlqsCollector,
    ServerCollector,
    StoreCollector,
    WorkerCollector,
)
from garrison.transport.address import Scheme
from garrison.transport.h2 import Limits
from garrison.transport.health import SERVICE as HEALTH
from garrison.transport.health import Health
from garrison.transport.listeners import RequestServer, Transport
from garrison.transport.sockets import address_error
from garrison.transport.tls import TlsFiles, TlsGeneration
from ratelimit.compile import load_limits
from ratelimit.rlqs import SERVICE as RLQS
from ratelimit.rlqs import RateLimitQuotaService
from ratelimit.service import RateLimitService
from ratelimit.store.guard import GuardedStore
from ratelimit.tree import Limits as RateLimits

AUTHORIZATION = "envoy.service.auth.v3.Authorization"
RATE_LIMIT = "envoy.service.ratelimit.v3.RateLimitService"

log = structlog.get_logger()


class Server:
    """Builds every part from the settings, starts them in order, and stops them in reverse."""

    def __init__(
        self,
        settings: Settings,
        log_lines: LineWriter,
        *,
        link: WorkerLink | None = None,
        children: Children | None = None,
    ) -> None:
        """Load policies, limits and the CA.

        With a `link` this is a worker of the process at its other end, with `children` the control process.

        Raises:
            ConfigError: one of them cannot be used.

        """
        self._settings = settings
        self._log_lines = log_lines
        self._link = link
        self._children = children
        if children is not None:
            children.workers.changed = lambda: self._set_ready(ready=self._listening)
        self._sds: SecretDiscovery | None = None
        self._workload: WorkloadApi | None = None
        self._identities: LocalIdentities | None = None
        self._oidc: PageServer | None = None
        federated = [(one.trust_domain, one.file) for one in settings.federated_bundles]
        self._federated: Reloader[FederatedBundles] = Reloader(
            "federated_bundles",
            [path for _, path in federated],
            lambda _: load_federated(federated),
            self._use_federated,
        )
        self._providers = settings.providers()
        self._authenticators = Authenticators(settings.authenticators)
        fetcher = settings.keys.fetcher()
        self._keys = KeyRefresher(
            key_fetch(fetcher),
            settings.keys.rules(),
            KeyCache(settings.keys.cache) if settings.keys.cache else None,
        )
        self._lists = ListRefresher(
            list_fetch(Fetcher(max_bytes=MAX_LIST_BYTES, blocked=settings.keys.blocked_ranges))
        )
        self._peer_trust = PeerTrust(
            (one.trust_domain for one in settings.trust_bundles if one.federation), self._tell_workers
        )
        self._trust = _trust_reloader(settings, self._peer_trust)
        self._store = build_store(settings.rate_limit.store_options())
        self._stop = asyncio.Event()
        self._ready = self._listening = False
        self.health = Health([AUTHORIZATION, RATE_LIMIT])
        self._limits_in_force: RateLimits
        self._rate_limit = RateLimitService(
            lambda: self._limits_in_force,
            self._store,
            time.time_ns,
            settings.rate_limit.response_options(),
        )
        self._authorization = Authorization(
            DestinationResolver(settings.destinations(), settings.destination_from_host),
            time.time,
            settings.log.decisions,
            decision_log_lines=settings.log.decisions_per_second,
            providers=self._providers,
            environment=Environment(
                self._lists,
                self._keys,
                settings.failures(),
                self._peer_trust.in_force,
                self._authenticators.by_name,
                StoreQuotas(self._store, time.time_ns, settings.rate_limit.on_store_failure),
                CheckLimits(self._rate_limit, settings.rate_limit.response_options().headers),
            ),
            askers=settings.askers(),
        )
        cache, adapters = DocumentCache(), settings.adapters()
        self._policies: Reloader[Snapshot] = Reloader(
            "policies",
            settings.policies,
            lambda paths: load_snapshot(paths, settings.mesh, cache, adapters),
            self._use_policies,
            prepare=self._prepare,
            also=lambda snapshot: snapshot.policies.files,
        )
        self._rlqs = RateLimitQuotaService(
            RateLimits({}, ""),
            self._store,
            clock=time.time_ns,
            monotonic=time.monotonic_ns,
            options=settings.rlqs.options(shadow_mode=settings.rate_limit.shadow_mode),
        )
        self._limits_since = 0
        self._operator = CounterOperator(
            lambda: (self._limits_in_force, self._limits_since),
            self._store,
            time.time_ns,
            forget=self._have_forgotten,
            shadow_mode=settings.rate_limit.shadow_mode,
        )
        limits_options = settings.rate_limit.limits_options()
        self._limits: Reloader[RateLimits] = Reloader(
            "limits", settings.limits, lambda paths: load_limits(paths, limits_options), self._use_limits
        )
        self._follower = self._follow(settings.distribution, BundleCompiler(settings.mesh, adapters))
        if self._follower is None or settings.policies:
            self._policies.load()
        self._limits.load()
        self._authenticators.load()
        self._authority = _load_authority(settings) if settings.ca.dir else None
        self._memory: CaMemory | None = None
        self._ca: CaServices | None = None
        if self._authority is not None and link is None:
            self._memory = _open_memory(settings, self._authority)
        self._federation = (
            Federation(settings, self._memory, self._peer_trust.use_federation) if self._memory else None
        )
        if self._trust.paths:
            self._trust.load()
        if settings.federated_bundles:
            self._federated.load()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        request = self._request_path()
        control = ControlServer(
            self._settings.control.listen,
            self._settings.control.tls.files(),
            self._settings.control.unix_mode,
        )
        handlers, services = [self.health.handler, *self._rlqs.handlers()], [HEALTH, RLQS]
        if self._memory is not None:
            identities = self._local_identities(self._memory, control)
            # By whichever door somebody was refused, it is in one log.
            refusals = RefusalLog(self._memory.ledger)
            handlers += self._identity_handlers(identities, refusals)
            services += [SDS, ADS, WORKLOAD]
            self._ca = CaServices(self._settings, self._memory, control.process_of, identities, refusals)
            services += CA_SERVICES
        admin = self._admin()
        reloaders = [*self._reloaders(), *self._certificates(request, control)]
        watching = asyncio.create_task(watch(reloaders, self._stop))
        if self._follower is not None:
            await self._follower.restore()
        if self._children is None:
            await self._policies.prepare(self._policies.current)
        fetchers = (self._lists, self._keys) if self._children is None else ()
        fetching = asyncio.gather(*(fetcher.run() for fetcher in fetchers))
        following = asyncio.gather(
            self._follower.run() if self._follower else asyncio.sleep(0),
            self._follow_ledger(),
            self._ca.run() if self._ca else asyncio.sleep(0),
            self._federation.run() if self._federation else asyncio.sleep(0),
        )
        try:
            if self._follower is not None:
                await self._follower.attempt()
            if self._children is not None and self._children.store is not None:
                await self._children.store.start()
            if isinstance(self._store, GuardedStore):
                await self._store.start([*self._limits_in_force.domains, DOMAIN])
            if self._link is None:
                await self._start_ca()
                methods = {**self.health.methods, **(self._ca.methods if self._ca is not None else {})}
                await control.start(methods, handlers, services)
            await request.start()
            self._set_ready(ready=True)
            self._announce(request.addresses, control.addresses, admin)
            await self._stop.wait()
            await self._drain(request, control)
        finally:
            self._stop.set()
            fetching.cancel()
            following.cancel()
            await asyncio.gather(watching, fetching, following, return_exceptions=True)
            await self._close()
            admin.close()
        log.info("stopped")

    async def _start_ca(self) -> None:
        if self._ca is not None:
            await self._ca.start()

    async def _drain(self, request: RequestServer | Workers, control: ControlServer) -> None:
        grace = self._settings.drain_grace.total_seconds()
        log.info("draining", grace_seconds=grace)
        self._set_ready(ready=False)
        self.health.close()
        self._rlqs.close()
        for service in (self._sds, self._workload):
            if service is not None:
                service.close()
        draining = [request.drain(grace), control.drain(grace)]
        if self._ca is not None:
            draining.append(self._ca.drain(grace))
        await asyncio.gather(*draining)

    async def _close(self) -> None:
        for provider in self._providers.values():
            await provider.close()
        await self._authenticators.close()
        if self._ca is not None:
            await self._ca.close()
        if self._federation is not None:
            self._federation.close()
        if self._memory is not None:
            await asyncio.to_thread(self._memory.close)
        if isinstance(self._store, GuardedStore):
            await self._store.close()
        if self._children is not None:
            await self._children.stop()
        if self._oidc is not None:
            self._oidc.close()

    async def _follow_ledger(self) -> None:
        if self._memory is not None and (identities := self._identities) is not None:
            await self._memory.run(
                identities.use_registrations, identities.tell_bundle, reissue=identities.rotate
            )

    def _request_path(self) -> RequestServer | Workers:
        if self._children is not None:
            return self._children.workers
        return RequestServer(
            Transport(self._settings.request.transport),
            self._settings.request.listen,
            {**self._authorization.methods(), **self._rate_limit.methods(), **self.health.methods},
            tls=self._settings.request.tls.files(),
            limits=Limits(max_message_bytes=self._settings.request.max_message_bytes),
            unix_mode=self._settings.request.unix_mode,
        )

    def _admin(self) -> AdminServer | WorkerLink:
        """Return what shows metrics and health: pages, or the link to who has pages."""
        registry, loop = self._registry(), asyncio.get_running_loop()
        if self._link is not None:
            self._link.serve_metrics(lambda: generate_latest(registry).decode())
            self._peer_trust.follow(self._link)
            self._link.serve_forget(lambda keys: asyncio.run_coroutine_threadsafe(self._forget(keys), loop))
            return self._link
        if self._children is not None:
            control, registry = registry, CollectorRegistry()
            registry.register(SummedCollector(control, self._children.workers))
        listen = self._settings.admin.listen
        counters = CounterPages(self._operator, loop, listen.host)
        return AdminServer(
            listen,
            registry,
            lambda: self._ready,
            _version(),
            details=self._health_details,
            counters=counters,
            pages=self._memory.page if self._memory is not None else lambda _: None,
        )

    def _tell_workers(self, federated: Mapping[str, TrustBundle]) -> None:
        if self._children is not None:
            self._children.workers.tell_bundles(as_message(federated))

    async def _forget(self, keys: Sequence[str]) -> None:
        self._store.forget(keys)

    async def _have_forgotten(self, keys: Sequence[str]) -> None:
        if self._children is not None:
            await self._children.workers.forget(keys)

    def _local_identities(self, memory: CaMemory, control: ControlServer) -> LocalIdentities:
        settings = self._settings.ca
        assert settings.dir is not None  # noqa: S101 - there is a CA
        identities = LocalIdentities(
            memory.registrations,
            memory.issuer,
            peer_credentials=control.credentials,
            jwt_keys=JwtKeyStore(
                settings.dir, passphrase=_passphrase(self._settings), lifetime=settings.jwt_key_lifetime
            ),
            number=memory.bundle_sequence,
            token_issuer=settings.oidc.issuer,
            crls=lambda: [one.der for one in memory.crls],
            clock_problem=lambda: memory.clock_problem,
            intermediates=memory.published_intermediates,
        )
        if self._federation is not None:
            self._federation.serve(identities)
        self._identities = identities
        if settings.oidc.listen is not None:
            pages = OidcPages(identities.bundle, settings.oidc.issuer)
            address, tls = settings.oidc.listen, settings.oidc.tls.files()
            try:
                self._oidc = PageServer(
                    "oidc", address, only_get(pages.page), tls if address.scheme is Scheme.TLS else None
                )
            except OSError as error:
                raise address_error(address, f"cannot listen: {error.strerror or error}") from error
            log.info("oidc_listening", address=str(self._oidc.address))
        return identities

    def _identity_handlers(
        self, identities: LocalIdentities, refusals: RefusalLog
    ) -> list[grpc.GenericRpcHandler]:
        files = FileSecrets(self._settings.ca.sds_file_folders)
        self._sds = SecretDiscovery(
            identities, files=files, sends_crl=self._settings.ca.crl_in_sds, refusals=refusals
        )
        self._workload = WorkloadApi(identities, refusals=refusals)
        return [*self._sds.handlers(), *self._workload.handlers()]

    def _use_federated(self, federated: FederatedBundles) -> None:
        if self._federation is not None:
            self._federation.use_files(federated.bundles)

    def _certificates(
        self, request: RequestServer | Workers, control: ControlServer
    ) -> list[Reloader[TlsGeneration]]:
        """Return who follows the TLS files of what this process serves."""
        found: list[Reloader[TlsGeneration]] = []
        files = self._settings.request.tls.files()
        if files is not None and isinstance(request, RequestServer):
            found.append(_tls_reloader("request_tls", files, request.reload_tls))
        files = self._settings.control.tls.files()
        if files is not None and self._link is None:
            found.append(_tls_reloader("control_tls", files, control.reload_tls))
        files = self._settings.ca.oidc.tls.files()
        if files is not None and self._oidc is not None:
            found.append(_tls_reloader("oidc_tls", files, self._oidc.reload_tls))
        if self._ca is not None and self._ca.files is not None:
            found.append(_tls_reloader("ca_tls", self._ca.files, self._ca.reload_tls))
        return found

    async def _prepare(self, snapshot: Snapshot) -> None:
        """Fetch what the snapshot needs and nobody needed before."""
        await asyncio.gather(
            self._lists.prepare(snapshot.policies.mixer.sources),
            self._keys.prepare(snapshot.policies.key_sources),
        )

    def _use_policies(self, snapshot: Snapshot) -> None:
        self._authorization.use(snapshot)
        if self._limits.current is not None:
            self._tell_unknown_domains(snapshot, self._limits.current)
        self._lists.retain(snapshot.policies.mixer.sources)
        self._keys.retain(snapshot.policies.key_sources)
        if self._listening and not self._ready:
            self._set_ready(ready=True)

    def _follow(self, distribution: DistributionSettings, compiler: BundleCompiler) -> Follower | None:
        """Return who follows the channel of the settings, None without one."""
        address, ca = distribution.redis, distribution.redis_ca
        if address is None:
            return None

        async def install(files: Sequence[BundleFile]) -> str:
            refused = await self._policies.replace(lambda: compiler.compile(files))
            if refused is not None:
                raise refused
            assert self._policies.current is not None  # noqa: S101 - it was put there
            return self._policies.current.version

        cache = DiskCache(distribution.cache, distribution.channel) if distribution.cache else None
        return Follower(
            distribution.followed(f"{socket.gethostname()}:{os.getpid()}"),
            lambda: address.connect_async(ca),
            install,
            cache,
            clock=time.time,
            jitter=random.random,
        )

    def _use_limits(self, limits: RateLimits) -> None:
        self._limits_in_force, self._limits_since = limits, time.time_ns()
        self._rlqs.use(limits)
        if self._authorization.snapshot is not None:
            self._tell_unknown_domains(self._authorization.snapshot, limits)

    def _tell_unknown_domains(self, snapshot: Snapshot, limits: RateLimits) -> None:
        """Log which policies charge what nothing limits: as for Envoy's own calls, that is no error."""
        for policy in snapshot.policies.limits:
            if policy.rules.domain not in limits.domains:
                log.warning("rate_limit_domain_unknown", domain=policy.rules.domain, policy=policy.title)

    def _set_ready(self, *, ready: bool) -> None:
        self._listening = ready
        # Without policies every call is denied: better to get none.
        decides = self._authorization.snapshot is not None
        if self._children is not None:
            decides = self._children.workers.any_ready
        self._ready = ready and decides
        self.health.set_serving(serving=self._ready)
        if self._link is not None:
            self._link.tell_ready(ready=self._ready)

    def _announce(self, request: Any, control: Any, admin: AdminServer | WorkerLink) -> None:
        if isinstance(admin, WorkerLink):
            admin.tell_addresses([str(address) for address in request])
            log.info("worker_listening", pid=os.getpid(), request=[str(address) for address in request])
            return
        log.info(
            "ready",
            pid=os.getpid(),
            request=[str(address) for address in request],
            control=[str(address) for address in control],
            ca=[str(address) for address in self._ca.addresses] if self._ca is not None else [],
            admin=str(admin.address),
            snapshot=self._policies.current.version if self._policies.current else "",
        )

    def _registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        registry.register(
            ServerCollector(
                decisions=lambda: {
                    (verdict.value, code.value): count
                    for (verdict, code), count in list(self._authorization.decisions.items())
                },
                rate_limits=self._rate_limit_counts,
                rule_hits=self._rule_hits,
                reloads=lambda: {
                    (reloader.kind, result): count
                    for reloader in self._reloaders()
                    for result, count in reloader.results.items()
                },
                snapshots=lambda: {
                    reloader.kind: reloader.current.version
                    for reloader in self._reloaders()
                    if reloader.current is not None
                },
                left_out=lambda: {
                    ("decisions_per_second",): self._authorization.unlogged,
                    ("nobody_reads",): self._log_lines.dropped,
                },
                sds=self._sds_counts,
                workload=lambda: _counted(self._workload.counters) if self._workload else {},
                refused_buckets=lambda: self._store.refused,
                resets=lambda: {(result,): count for result, count in self._operator.resets.items()},
                ready=lambda: self._ready,
            )
        )
        if (children := self._children) is not None:
            registry.register(
                WorkerCollector(
                    ready=children.workers.ready,
                    restarts=children.workers.restarts,
                    silent=children.workers.silent,
                    store_restarts=lambda: children.store.restarts if children.store else 0,
                )
            )
        registry.register(KeyCollector(self._key_status))
        if (memory := self._memory) is not None:
            registry.register(AuthorityCollector(memory.seconds_left, memory.counts, memory.rotations))
        if self._ca is not None:
            registry.register(self._ca.collector())
        if self._federation is not None:
            registry.register(FederationCollector(self._federation.federator.status))
        registry.register(
            AuthenticatorCollector(
                answers=self._authenticators.results,
                breakers=self._authenticators.breakers,
                remembered=self._authenticators.remembered,
            )
        )
        if isinstance(store := self._store, GuardedStore):
            registry.register(
                StoreCollector(
                    breakers=lambda: Counter(breaker.state.value for breaker in store.breakers()),
                    failures=lambda: dict(store.failures),
                    local_answers=lambda: {answer.value: n for answer, n in store.local_answers.items()},
                )
            )
        quotas = self._rlqs.quotas
        registry.register(
            RlqsCollector(
                streams=lambda: len(quotas.streams),
                buckets=lambda: quotas.buckets,
                actions=quotas.actions,
                reported=quotas.reported,
                refused=quotas.refused,
            )
        )
        if (follower := self._follower) is not None:
            registry.register(
                DistributionCollector(
                    connected=lambda: follower.connected,
                    bundles=lambda: dict(follower.results),
                    in_force=lambda: (
                        (follower.in_force.version, follower.in_force.sequence) if follower.in_force else None
                    ),
                )
            )
        return registry

    def _key_status(self) -> list[KeyStatus]:
        return [*self._keys.status(), *(self._ca.key_status() if self._ca is not None else ())]

    def _reloaders(self) -> list[Reloader[Any]]:
        if self._children is not None:
            # The others were loaded to find mistakes; workers follow them.
            return [self._limits, self._federated]
        return [
            self._policies,
            self._limits,
            self._trust,
            self._federated,
            *self._authenticators.reloaders,
        ]

    def _health_details(self) -> dict[str, str]:
        details = self._children.describe() if self._children is not None else {}
        if isinstance(self._store, GuardedStore):
            details["rate_limit_store"] = self._store.describe()
        if self._memory is not None:
            details["ca"] = self._memory.describe()
        return details

    def _sds_counts(self) -> dict[tuple[str, ...], int]:
        if self._sds is None:
            return {}
        counts = _counted(self._sds.counters)
        if self._identities is not None:
            counts["issue_failures",] += self._identities.refused_renewals
        return counts

    def _rate_limit_counts(self) -> dict[tuple[str, ...], int]:
        return {
            (domain, outcome): count
            for domain, counters in list(self._rate_limit.counters().items())
            for outcome, count in asdict(counters).items()
        }

    def _rule_hits(self) -> dict[tuple[str, ...], int]:
        return {
            (domain, rule, outcome): count
            for (domain, rule), hits in self._rate_limit.statistics.hits().items()
            for outcome, count in asdict(hits).items()
        }


def _counted(counters: SdsCounters | WorkloadCounters) -> dict[tuple[str, ...], int]:
    return {(name,): count for name, count in asdict(counters).items() if name != "streams"}


def _tls_reloader(kind: str, files: TlsFiles, use: Callable[[TlsFiles], None]) -> Reloader[TlsGeneration]:
    """Return what follows renewed TLS files; the server has read them once before."""
    reloader: Reloader[TlsGeneration] = Reloader(
        kind, files.paths, lambda _: TlsGeneration.of(files), lambda _: use(files)
    )
    return reloader


def _trust_reloader(settings: Settings, trust: PeerTrust) -> Reloader[CertificateVerifier]:
    files, required = _bundle_files(settings), settings.require_peer_certificate
    return Reloader(
        "trust_bundles",
        [file.path for file in files],
        lambda _: load_bundles(files, required=required, federated=trust.wanted),
        trust.use_files,
    )


def _bundle_files(settings: Settings) -> list[TrustFile]:
    """Return the files of all trust bundles; our own CA vouches for our trust domain."""
    files = [TrustFile(one.trust_domain, one.file) for one in settings.trust_bundles if one.file is not None]
    files += [
        TrustFile(one.trust_domain, one.intermediates, has_roots=False)
        for one in settings.trust_bundles
        if one.intermediates is not None
    ]
    if settings.ca.dir is not None:
        files.append(TrustFile(settings.trust_domain, settings.ca.dir / ROOT_CERT))
        # A chain may end in roots that nobody was meant to trust.
        files.append(TrustFile(settings.trust_domain, settings.ca.dir / CERT_CHAIN, has_roots=False))
        # Of the authorities before and after the one that signs, once there are any.
        others = settings.ca.dir / ISSUERS
        files.append(TrustFile(settings.trust_domain, others, has_roots=False, optional=True))
    return files


def _load_authority(settings: Settings) -> Authority:
    assert settings.ca.dir is not None  # noqa: S101 - the caller looked
    authority = Authority.load(settings.ca.dir, _passphrase(settings).to_read)
    if authority.trust_domain != settings.trust_domain:
        message = f"this CA is for `{authority.trust_domain}`, the settings say `{settings.trust_domain}`"
        where = Diagnostic(str(settings.ca.dir), Position(1, 1), ("trust_domain",), "trust_domain", message)
        raise ConfigError([where])
    return authority


def _passphrase(settings: Settings) -> PassphraseSource:
    return PassphraseSource(settings.ca.passphrase_file, os.environ, option="ca.passphrase_file")


def _open_memory(settings: Settings, authority: Authority) -> CaMemory:
    assert settings.ca.dir is not None  # noqa: S101 - there is an authority
    place = settings.ca.ledger_place()

    def warn(problem: str) -> None:
        log.warning("ledger unsafe", reason=problem)

    try:
        ledger = place.open(settings.ca.dir, authority.trust_domain, warn=warn)
        policy = Policy(overlap=settings.ca.rotation.overlap)
        authorities = Authorities(settings.ca.dir, ledger, _passphrase(settings).to_read, policy=policy)
        return CaMemory(
            ledger,
            authority,
            settings.registrations(),
            authorities=authorities,
            rotate=settings.ca.rotation.enabled,
        )
    except (LedgerUnavailableError, IssuanceError, OSError) as error:
        where = Diagnostic(place.name(settings.ca.dir), Position(1, 1), (), "ledger", str(error))
        raise ConfigError([where]) from error


def _version() -> dict[str, Any]:
    return {"version": version("garrison"), "pid": os.getpid()}
