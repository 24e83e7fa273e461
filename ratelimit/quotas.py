"""Who subscribes to which quota, what each has been told, and what is due: RLQS without a socket.

A stream (one Envoy) subscribes to a bucket by reporting it. Buckets whose ids lead to the same counter share
one quota. Whatever changes what an Envoy should know marks the bucket as due in its stream; the answer is
worked out when it is taken to be written, so a stream that reads slowly gets the latest one and holds no more
than one for each bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache

from garrison.errors import RequestError
from ratelimit.algorithm import SECOND, Algorithm, Limit, Outcome
from ratelimit.bucket_ids import BucketKey, Place, find
from ratelimit.charge import Spend
from ratelimit.descriptors import finish_key
from ratelimit.quota_shares import Blanket, QuotaShares, Terms, terms_of
from ratelimit.rlqs_messages import Abandon, Action, Reports, TokenBucket, Usage
from ratelimit.tree import Limits

# Reports come every five seconds, so they say in which window their calls were only if it is a longer one.
COUNTED_WINDOW = 30 * SECOND
# An Envoy reports a bucket for ever; after so long without a call it is told to forget it.
IDLE = 60 * SECOND
_SWEPT_AT_ONCE = 100
# Shorter than that, a report says nothing about a rate.
_LEAST_ELAPSED = SECOND


@dataclass(frozen=True, slots=True)
class QuotaOptions:
    """How quotas are given out.

    `ttl_seconds` is how long an assignment is valid. This process gives out one of `replicas` equal parts of
    every limit. Of buckets there are at most `max_buckets` in one stream, and `max_total_buckets` in all. In
    `shadow_mode` nothing is denied.
    """

    ttl_seconds: int = 15
    replicas: int = 1
    max_streams: int = 1000
    max_buckets: int = 10_000
    max_total_buckets: int = 100_000
    shadow_mode: bool = False


@dataclass(slots=True)
class QuotaCounters:
    """What happened since the start, beside what is reported."""

    token_bucket: int = 0
    allow_all: int = 0
    deny_all: int = 0
    abandon: int = 0
    refused_streams: int = 0
    refused_buckets: int = 0
    malformed: int = 0


@dataclass(eq=False, slots=True)
class Quota:
    """What is divided: the terms, the shares, and the counters that RLS counts the same calls in."""

    domain: str
    path: str
    terms: Terms
    shares: QuotaShares[Subscription]
    counted: tuple[tuple[str, Limit], ...]
    uncharged: int = 0

    def take_spends(self, first: int) -> list[Spend]:
        """Return what is to be charged for the calls reported so far; spends are numbered from `first`."""
        cost, self.uncharged = self.uncharged, 0
        return [
            Spend(key, limit, cost, first + index, domain=self.domain)
            for index, (key, limit) in enumerate(self.counted)
        ]

    def put_back(self, spends: Sequence[Spend]) -> None:
        """Take note that the store could not tell: the same calls are charged with the next ones."""
        self.uncharged += spends[0].cost

    def charged(self, spends: Sequence[Spend], outcomes: Sequence[Outcome], replicas: int) -> None:
        """Adapt what there is to divide to what the counters have left, RLS calls included.

        What a fixed window has left is spread over what is left of it. Where nobody looked, because the store
        was away, calls are charged with the next ones.
        """
        if not all(outcome.is_known for outcome in outcomes):
            self.put_back(spends)
            return
        capacity = self.terms.units
        for spend, outcome in zip(spends, outcomes, strict=True):
            if spend.limit.algorithm is Algorithm.FIXED_WINDOW:
                left = self.terms.units_of(outcome.remaining, outcome.reset) // replicas
                capacity = min(capacity, left)
        self.shares.capacity = capacity


@dataclass(eq=False, slots=True)
class Subscription:
    """One bucket of one stream: what it is bound to, and what was reported of it."""

    stream: Stream
    key: BucketKey
    limits: Limits | None
    quota: Quota | None
    blanket: Blanket
    since: int
    used: int
    calls: int = 0


@dataclass(eq=False, slots=True)
class Stream:
    """One Envoy. `wake` is called when something becomes due."""

    wake: Callable[[], None]
    domain: str = ""
    subscriptions: dict[BucketKey, Subscription] = field(default_factory=dict)
    # What to tell it; None stands for what the subscription comes to by then.
    due: dict[BucketKey, Action | None] = field(default_factory=dict)

    def mark(self, key: BucketKey) -> None:
        """Let the Envoy be told soon, without its having asked."""
        self.due[key] = None
        self.wake()


class Quotas:
    """All streams. Times are nanoseconds of a monotonic clock."""

    def __init__(self, limits: Limits, options: QuotaOptions) -> None:
        self.counters = QuotaCounters()
        self.streams: set[Stream] = set()
        self.buckets = 0
        self._limits = limits
        self._options = options
        self._quotas: dict[str, Quota] = {}
        self._reported: dict[str, list[int]] = {}
        # Quotas without subscriptions, until what their Envoys had has run out.
        self._unused: dict[str, Quota] = {}

    def reported(self) -> dict[tuple[str, ...], int]:
        """Return calls by configured domain (`""` has those of others) and what Envoys did with them."""
        names = ("allowed", "denied")
        return {
            (domain, name): count
            for domain, counts in list(self._reported.items())
            for name, count in zip(names, counts, strict=True)
        }

    def actions(self) -> dict[tuple[str, ...], int]:
        """Return how many buckets were told what."""
        counted = asdict(self.counters)
        return {(name,): counted[name] for name in ("token_bucket", "allow_all", "deny_all", "abandon")}

    def refused(self) -> dict[tuple[str, ...], int]:
        """Return how often what was refused."""
        counters = self.counters
        return {
            ("streams",): counters.refused_streams,
            ("buckets",): counters.refused_buckets,
            ("malformed",): counters.malformed,
        }

    def use(self, limits: Limits) -> None:
        """Put other limits into force; every Envoy is told what that comes to."""
        self._limits = limits
        for stream in self.streams:
            stream.due.update(dict.fromkeys(stream.subscriptions))
            stream.wake()

    def open(self, stream: Stream) -> bool:
        """Add a stream; return False if there are too many."""
        if len(self.streams) >= self._options.max_streams:
            self.counters.refused_streams += 1
            return False
        self.streams.add(stream)
        return True

    def close(self, stream: Stream, now: int) -> None:
        """Remove a stream; what its Envoy has been assigned counts until it has run out."""
        self.streams.discard(stream)
        for subscription in stream.subscriptions.values():
            self._leave(subscription, now)
        self.buckets -= len(stream.subscriptions)
        stream.subscriptions = {}
        stream.due = {}

    def receive(self, stream: Stream, reports: Reports, now: int) -> list[Quota]:
        """Take in what a stream reports; return the quotas whose counters have to be charged.

        The answers are due, and should be taken once that is done.

        Raises:
            RequestError: the stream has no domain, or another one.

        """
        if reports.domain and not stream.domain:
            stream.domain = reports.domain
        if not stream.domain:
            raise RequestError("the first report of a stream names its domain")
        if reports.domain not in ("", stream.domain):
            raise RequestError("a stream has one domain")
        self._sweep(now)
        label = stream.domain if stream.domain in self._limits.domains else ""
        counted = self._reported.setdefault(label, [0, 0])
        touched: dict[Quota, None] = {}
        for usage in reports.usages:
            counted[0] += usage.allowed
            counted[1] += usage.denied
            subscription = stream.subscriptions.get(usage.key)
            if subscription is None:
                subscription = self._subscribe(stream, usage, now)
                if subscription is None:
                    continue
            else:
                self._report(subscription, usage, now)
            quota = subscription.quota
            if quota is not None and quota.counted:
                quota.uncharged += usage.allowed
                touched[quota] = None
        # One report may name as many as it may have, beside those that are subscribed to.
        if len(stream.due) > 3 * self._options.max_buckets:
            raise RequestError("the stream names new buckets faster than it reads answers")
        return list(touched)

    def take(self, stream: Stream, most: int, now: int) -> list[tuple[BucketKey, Action]]:
        """Return up to `most` of what is due, which is going to be written now."""
        taken: list[tuple[BucketKey, Action]] = []
        while stream.due and len(taken) < most:
            key = next(iter(stream.due))
            action = stream.due.pop(key)
            if action is None:
                subscription = stream.subscriptions.get(key)
                if subscription is None:
                    continue
                action = self._answer(subscription, now)
            taken.append((key, action))
        return taken

    def delivered(self, stream: Stream, taken: Iterable[tuple[BucketKey, Action]], now: int) -> None:
        """Take note that what was taken has been written."""
        for key, action in taken:
            subscription = stream.subscriptions.get(key)
            if subscription is not None and subscription.quota is not None:
                subscription.quota.shares.delivered(subscription, now)
            name = "abandon" if isinstance(action, Abandon) else "token_bucket"
            name = action.value if isinstance(action, Blanket) else name
            setattr(self.counters, name, getattr(self.counters, name) + 1)

    def _answer(self, subscription: Subscription, now: int) -> Action:
        if subscription.limits is not self._limits:
            self._bind(subscription, now)
        quota = subscription.quota
        if quota is None:
            return subscription.blanket
        share = quota.shares.assign(subscription, now)
        if not share:
            return Blanket.DENY_ALL
        return TokenBucket(quota.terms.burst_of(share), share, quota.terms.interval_seconds)

    def _subscribe(self, stream: Stream, usage: Usage, now: int) -> Subscription | None:
        """Return a new subscription, None if there is no room: then the bucket gets an answer, no share."""
        options = self._options
        if (
            len(stream.subscriptions) >= options.max_buckets
            or self.buckets + len(self._unused) >= options.max_total_buckets
        ):
            self.counters.refused_buckets += 1
            _, terms = self._look_up(stream.domain, usage.key)
            stream.due[usage.key] = terms if isinstance(terms, Blanket) else Blanket.DENY_ALL
            return None
        subscription = Subscription(stream, usage.key, None, None, Blanket.DENY_ALL, now, now)
        stream.subscriptions[usage.key] = subscription
        self.buckets += 1
        # An Envoy that comes back reports what it has done since it lost the stream.
        known = usage.elapsed >= _LEAST_ELAPSED
        self._bind(subscription, now, (usage.allowed + usage.denied, usage.elapsed) if known else None)
        stream.due[usage.key] = None
        return subscription

    def _report(self, subscription: Subscription, usage: Usage, now: int) -> None:
        quota = subscription.quota
        subscription.calls += usage.allowed + usage.denied
        elapsed = now - subscription.since
        demand = None
        if elapsed >= _LEAST_ELAPSED:
            if quota is not None:
                demand = quota.terms.units_of(subscription.calls, elapsed)
            subscription.since, subscription.calls = now, 0
        if quota is not None and quota.shares.report(subscription, demand, now):
            _tell(quota, quota.shares.is_short, subscription, now)
        if usage.allowed or usage.denied:
            subscription.used = now
        elif now - subscription.used >= IDLE:
            self._leave(subscription, now)
            del subscription.stream.subscriptions[subscription.key]
            self.buckets -= 1
            subscription.stream.due[subscription.key] = Abandon()
            return
        subscription.stream.due[subscription.key] = None

    def _look_up(self, domain_name: str, key: BucketKey) -> tuple[Place | None, Terms | Blanket]:
        domain = self._limits.domains.get(domain_name)
        place = find(domain, key) if domain is not None else None
        # As in RLS: no rule, no limit.
        if place is None or self._options.shadow_mode:
            return None, Blanket.ALLOW_ALL
        return place, _terms_of(place.node.limits, self._options.replicas)

    def _bind(self, subscription: Subscription, now: int, rate: tuple[int, int] | None = None) -> None:
        """Bind a subscription to the limits in force; `rate` is calls in nanoseconds, if that is known."""
        subscription.limits = self._limits
        place, terms = self._look_up(subscription.stream.domain, subscription.key)
        old = subscription.quota
        if place is None or isinstance(terms, Blanket):
            self._leave(subscription, now)
            subscription.blanket = terms if isinstance(terms, Blanket) else Blanket.DENY_ALL
            return
        counted = _counters(place)
        quota = self._quotas.get(place.path)
        if quota is None:
            shares: QuotaShares[Subscription] = QuotaShares(terms.units, self._options.ttl_seconds * SECOND)
            quota = Quota(subscription.stream.domain, place.path, terms, shares, counted)
            self._quotas[place.path] = quota
        elif quota.terms != terms:
            self._renew(quota, terms, now)
        quota.counted = counted
        if old is quota:
            return
        self._leave(subscription, now)
        subscription.quota = quota
        quota.shares.join(subscription, terms.units_of(*rate) if rate else None, now)
        _tell(quota, quota.shares.is_lowered, subscription, now)

    def _renew(self, quota: Quota, terms: Terms, now: int) -> None:
        """Start anew under other terms: what was assigned before was right then, and is replaced at once."""
        old = quota.shares
        quota.shares = QuotaShares(terms.units, self._options.ttl_seconds * SECOND)
        for member in old:
            demand = old.demand(member)
            if demand is not None:
                demand = demand * terms.interval_seconds // quota.terms.interval_seconds
            quota.shares.join(member, demand, now)
        quota.terms = terms

    def _leave(self, subscription: Subscription, now: int) -> None:
        quota, subscription.quota = subscription.quota, None
        if quota is not None:
            quota.shares.leave(subscription, now)
            if not len(quota.shares):
                self._unused[quota.path] = quota

    def _sweep(self, now: int) -> None:
        """Forget quotas that nobody uses any more: those that have been unused longest, a few at a time."""
        for _ in range(min(len(self._unused), _SWEPT_AT_ONCE)):
            path = next(iter(self._unused))
            quota = self._unused.pop(path)
            if len(quota.shares):
                continue
            quota.shares.sweep(now)
            if quota.shares.is_empty:
                del self._quotas[path]
            else:
                self._unused[path] = quota


def _tell(quota: Quota, concerns: Callable[[Subscription, int], bool], but: Subscription, now: int) -> None:
    """Let those know whom a change that came from another one concerns."""
    for other in quota.shares:
        if other is not but and concerns(other, now):
            other.stream.mark(other.key)


@lru_cache(maxsize=4096)
def _terms_of(limits: tuple[Limit, ...], replicas: int) -> Terms | Blanket:
    return terms_of(limits, replicas)


def _counters(place: Place) -> tuple[tuple[str, Limit], ...]:
    """Return the counters of RLS that reported calls are added to, each with the limit they are added by.

    Adding never fails: what a limit does not have left is taken as far as it goes.
    """
    return tuple(
        (finish_key(limit.kind, place.path), _counting(limit))
        for limit in place.node.limits
        if limit.unit.window >= COUNTED_WINDOW and limit.algorithm is not Algorithm.CONCURRENCY
    )


@lru_cache(maxsize=4096)
def _counting(limit: Limit) -> Limit:
    return replace(limit, shadow_mode=True, quota_mode=False, best_effort=not limit.counts_denied, lease=0)
