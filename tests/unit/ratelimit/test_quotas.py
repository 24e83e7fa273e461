"""Streams, buckets and quotas without a socket: who is told what, and when."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.rate_limit_quota.v3 import rlqs_pb2
from support.ratelimit import limits_of
from support.rlqs import Bucket, described, first, reports

from garrison.errors import RequestError
from ratelimit.algorithm import SECOND, Outcome
from ratelimit.bucket_ids import BucketKey, bucket_key
from ratelimit.quotas import IDLE, Quota, QuotaOptions, Quotas, Stream
from ratelimit.rlqs_messages import build_response, parse_reports

CONFIG = """
domain: d
descriptors:
- key: tenant
  rate_limit: {unit: second, requests_per_unit: 64}
- key: hourly
  rate_limit: {unit: hour, requests_per_unit: 3600}
- key: plan
  value: free*
  share_threshold: true
  rate_limit: {unit: second, requests_per_unit: 64}
- {key: open, rate_limit: {unlimited: true}}
- {key: shut, rate_limit: {unit: day, requests_per_unit: 0}}
- {key: dark, shadow_mode: true, rate_limit: {unit: day, requests_per_unit: 0}}
- {key: places, rate_limit: {unit: minute, requests_per_unit: 5, algorithm: concurrency}}
"""
TENANT: Bucket = {"tenant": "a"}
HOURLY: Bucket = {"hourly": "a"}


class Lab:
    """Quotas, a clock, and streams that read at once."""

    def __init__(self, config: str = CONFIG, **options: Any) -> None:
        self.now = 1_000 * SECOND
        self.quotas = Quotas(limits_of(config), QuotaOptions(**options))
        self.touched: list[Quota] = []

    def stream(self) -> Stream:
        """Open a stream."""
        stream = Stream(lambda: None)
        assert self.quotas.open(stream)
        return stream

    def report(self, stream: Stream, message: rlqs_pb2.RateLimitQuotaUsageReports) -> None:
        """Let a report arrive."""
        (parsed,) = parse_reports(message.SerializeToString(), 100)
        self.touched = self.quotas.receive(stream, parsed, self.now)

    def read(self, stream: Stream) -> dict[BucketKey, Any]:
        """Return what a stream is told."""
        taken = self.quotas.take(stream, 100, self.now)
        self.quotas.delivered(stream, taken, self.now)
        return described(rlqs_pb2.RateLimitQuotaResponse.FromString(build_response(taken, 15)))

    def tell(self, stream: Stream, message: rlqs_pb2.RateLimitQuotaUsageReports) -> Any:
        """Let a report of one bucket arrive and return what it is answered."""
        self.report(stream, message)
        (answer,) = self.read(stream).values()
        return answer

    def rounds(self, count: int, *loads: tuple[Stream, int], bucket: Bucket = TENANT) -> list[float]:
        """Let streams report calls a second, every five seconds; return the rates that they have in the end."""
        rates: list[float] = []
        for _ in range(count):
            self.now += 5 * SECOND
            rates = []
            for stream, calls in loads:
                answer = self.tell(stream, reports((bucket, 5 * calls, 0)))
                rates.append(0.0 if answer == "deny" else answer[0])
        return rates


@pytest.mark.parametrize(
    ("bucket", "answer"),
    [
        ({"open": "x"}, "allow"),
        ({"dark": "x"}, "allow"),
        ({"unknown": "x"}, "allow"),
        ({"tenant": "a", "unknown": "x"}, "allow"),
        ({"shut": "x"}, "deny"),
        ({"places": "x"}, "deny"),
    ],
)
def test_buckets_without_a_share(bucket: Bucket, answer: str) -> None:
    """Without a limit in force all is allowed, as in RLS; with one of none, or of places, all is denied."""
    lab = Lab()
    stream = lab.stream()
    assert lab.tell(stream, first(bucket)) == answer
    lab.now += 5 * SECOND
    assert lab.tell(stream, reports((bucket, 3, 1))) == answer


def test_an_unknown_domain_is_not_limited() -> None:
    """As in RLS."""
    lab = Lab()
    assert lab.tell(lab.stream(), first(TENANT, domain="other")) == "allow"
    assert lab.quotas.reported() == {("", "allowed"): 1, ("", "denied"): 0}


def test_in_shadow_mode_nothing_is_denied() -> None:
    """`rate_limit.shadow_mode` holds for RLQS too."""
    lab = Lab(shadow_mode=True)
    assert lab.tell(lab.stream(), first({"shut": "x"})) == "allow"


def test_a_newcomer_starts_with_half_and_gets_what_there_is() -> None:
    """One Envoy: half of the limit until its demand is known, then all but the sixteenth for newcomers."""
    lab = Lab()
    stream = lab.stream()
    assert lab.tell(stream, first(TENANT)) == (32.0, 32)
    assert lab.rounds(1, (stream, 200)) == [60.0]


def test_demand_divides() -> None:
    """A busy Envoy gets what a quiet one does not use; both get what they need."""
    lab = Lab()
    busy, quiet = lab.stream(), lab.stream()
    for stream in (busy, quiet):
        lab.tell(stream, first(TENANT))
    rates = lab.rounds(4, (busy, 500), (quiet, 4))
    assert sum(rates) == pytest.approx(60)
    assert rates[1] == pytest.approx(5, rel=0.01)


def test_a_demand_that_nobody_has_takes_no_more_than_a_fair_part() -> None:
    """An Envoy that lies, or is lied to, cannot starve another one."""
    lab = Lab()
    liar, honest = lab.stream(), lab.stream()
    for stream in (liar, honest):
        lab.tell(stream, first(TENANT))
    assert lab.rounds(4, (liar, 2**60), (honest, 24)) == [pytest.approx(30), pytest.approx(30)]


def test_an_envoy_that_comes_is_told_and_lowers_the_others_at_once() -> None:
    """Who has more than it should is told without having asked; what it has counts until it reports again."""
    lab = Lab()
    old, new = lab.stream(), lab.stream()
    lab.tell(old, first(TENANT))
    lab.rounds(2, (old, 500))
    lab.report(new, first(TENANT))
    assert lab.read(old) == {bucket_key(TENANT): (30.0, 30)}
    rate, _ = lab.read(new)[bucket_key(TENANT)]
    assert 0 < rate <= 2
    lab.now += 3 * SECOND
    lab.report(old, reports((TENANT, 90, 0)))
    assert bucket_key(TENANT) in new.due, "what got free is given to who needs it"
    rate, _ = lab.read(new)[bucket_key(TENANT)]
    assert rate > 10


def test_what_an_envoy_had_when_it_left_is_given_out_when_it_has_run_out() -> None:
    """It may only have lost its connection."""
    lab = Lab()
    gone, stays = lab.stream(), lab.stream()
    for stream in (gone, stays):
        lab.tell(stream, first(TENANT))
    lab.rounds(4, (gone, 500), (stays, 500))
    lab.quotas.close(gone, lab.now)
    assert lab.rounds(2, (stays, 500)) == [30.0]
    assert lab.rounds(2, (stays, 500)) == [60.0]


def test_an_envoy_that_comes_back_says_what_it_did() -> None:
    """After a lost connection the first report has a time elapsed: the demand is known at once."""
    lab = Lab()
    stream = lab.stream()
    assert lab.tell(stream, reports((TENANT, 100, 400), elapsed=5)) == (60.0, 60)


def test_values_that_share_a_threshold_share_a_quota() -> None:
    """Two buckets of one stream that are one counter get no more than its limit together."""
    lab = Lab()
    stream = lab.stream()
    one, two = {"plan": "free-1"}, {"plan": "free-2"}
    lab.report(stream, first(one, two))
    assert sum(rate for rate, _ in lab.read(stream).values()) <= 64
    for _ in range(4):
        lab.now += 5 * SECOND
        lab.report(stream, reports((one, 500, 0), (two, 500, 0)))
        rates = [rate for rate, _ in lab.read(stream).values()]
    assert rates == [30.0, 30.0]


def test_reported_calls_are_charged_where_windows_are_long() -> None:
    """An hour's counter gets what was allowed; a second's cannot, since nobody knows in which it was."""
    lab = Lab()
    stream = lab.stream()
    lab.report(stream, first(TENANT, HOURLY))
    (quota,) = lab.touched
    (spend,) = quota.take_spends(0)
    assert (spend.key, spend.cost) == ("hour|d|hourly=a", 1)
    assert spend.limit.shadow_mode
    lab.now += 5 * SECOND
    lab.report(stream, reports((HOURLY, 7, 9)))
    assert [spend.cost for spend in quota.take_spends(0)] == [7]
    assert [spend.cost for spend in quota.take_spends(0)] == [0]
    quota.put_back([spend._replace(cost=7)])
    assert [spend.cost for spend in quota.take_spends(0)] == [7]


def test_what_rls_takes_is_not_given_out() -> None:
    """What a fixed window has left is spread over what is left of it."""
    lab = Lab()
    stream = lab.stream()
    lab.tell(stream, first(HOURLY))
    (quota,) = lab.touched
    spends = quota.take_spends(0)
    lab.rounds(1, (stream, 500), bucket=HOURLY)
    quota.charged(spends, [Outcome(allowed=True, remaining=400, reset=800 * SECOND)], 1)
    assert lab.rounds(1, (stream, 500), bucket=HOURLY) == [pytest.approx(0.5 * 15 / 16, rel=0.01)]
    quota.charged(spends, [Outcome(allowed=False, remaining=0, reset=800 * SECOND)], 1)
    assert lab.rounds(1, (stream, 500), bucket=HOURLY) == [0.0]
    quota.charged(spends, [Outcome(allowed=True, remaining=3600, reset=3600 * SECOND)], 1)
    assert lab.rounds(1, (stream, 500), bucket=HOURLY) == [pytest.approx(15 / 16, rel=0.01)]


def test_calls_that_nobody_counted_are_counted_later() -> None:
    """A store that is away answers for a limit without looking: that says nothing about what is left."""
    lab = Lab()
    stream = lab.stream()
    lab.tell(stream, first(HOURLY))
    (quota,) = lab.touched
    spends = quota.take_spends(0)
    assert [spend.domain for spend in spends] == ["d"]
    quota.charged(spends, [Outcome(allowed=True, remaining=0, reset=SECOND, is_known=False)], 1)
    assert quota.shares.capacity == quota.terms.units
    assert [spend.cost for spend in quota.take_spends(0)] == [1]


def test_other_limits_are_told_at_once() -> None:
    """A change reaches every Envoy without its asking, in full: the old assignments end with it."""
    lab = Lab()
    one, two = lab.stream(), lab.stream()
    for stream in (one, two):
        lab.report(stream, first(TENANT, {"shut": "x"}))
        lab.read(stream)
    lab.rounds(3, (one, 500), (two, 500))
    changed = CONFIG.replace("requests_per_unit: 64", "requests_per_unit: 16").replace(
        "day, requests_per_unit: 0", "second, requests_per_unit: 8"
    )
    lab.quotas.use(limits_of(changed))
    told = [lab.read(stream) for stream in (one, two)]
    assert [answers[bucket_key(TENANT)] for answers in told] == [(7.5, 7), (7.5, 7)]
    assert all(answers[bucket_key({"shut": "x"})] != "deny" for answers in told)


def test_a_limit_that_is_gone_allows_all() -> None:
    """Every Envoy that had a share of it is told."""
    lab = Lab()
    stream = lab.stream()
    lab.tell(stream, first(TENANT))
    lab.quotas.use(limits_of("domain: d\n"))
    assert lab.read(stream) == {bucket_key(TENANT): "allow"}
    lab.quotas.use(limits_of(CONFIG))
    assert lab.read(stream)[bucket_key(TENANT)] != "allow"


def test_a_reload_that_changes_nothing_keeps_the_books() -> None:
    """What was assigned before still counts, so two loads in a row grant nothing twice."""
    lab = Lab()
    one, two = lab.stream(), lab.stream()
    lab.tell(one, first(TENANT))
    lab.rounds(2, (one, 500))
    lab.quotas.use(limits_of(CONFIG))
    rate, _ = lab.tell(two, first(TENANT))
    assert rate <= 2


def test_a_bucket_without_calls_is_given_up() -> None:
    """Envoy would report it for ever; told to forget it, it comes back with the next call."""
    lab = Lab()
    stream = lab.stream()
    lab.tell(stream, first(TENANT))
    for _ in range(IDLE // (5 * SECOND) - 1):
        lab.now += 5 * SECOND
        assert lab.tell(stream, reports((TENANT, 0, 0))) not in {"abandon", "deny"}
    lab.now += 5 * SECOND
    assert lab.tell(stream, reports((TENANT, 0, 0))) == "abandon"
    assert lab.quotas.buckets == 0
    assert lab.tell(stream, first(TENANT)) != "abandon"


def test_a_bucket_beyond_the_bound_is_denied_or_as_free_as_it_is() -> None:
    """No share for it, and nothing is kept; buckets that are known are served as before."""
    for options in (QuotaOptions(max_buckets=1), QuotaOptions(max_total_buckets=1)):
        lab = Lab()
        lab.quotas = Quotas(limits_of(CONFIG), options)
        stream = lab.stream()
        lab.report(stream, first(TENANT, {"tenant": "b"}, {"open": "x"}))
        told = list(lab.read(stream).values())
        assert [told[0] != "deny", *told[1:]] == [True, "deny", "allow"]
        assert lab.quotas.buckets == 1
        assert lab.quotas.refused()["buckets",] == 2
        assert lab.rounds(1, (stream, 500)) == [60.0]


def test_streams_beyond_the_bound_are_refused() -> None:
    """And have a place once another one has left."""
    lab = Lab(max_streams=1)
    stream = lab.stream()
    assert not lab.quotas.open(Stream(lambda: None))
    lab.quotas.close(stream, lab.now)
    lab.stream()
    assert lab.quotas.refused()["streams",] == 1


def test_a_stream_that_does_not_read_holds_one_answer_for_each_bucket() -> None:
    """However often it reports; one that goes on naming new buckets is ended."""
    lab = Lab(max_buckets=2)
    stream = lab.stream()
    for _ in range(50):
        lab.report(stream, first(TENANT))
    assert len(stream.due) == 1
    for number in range(5):
        lab.report(stream, first({"tenant": str(number)}))
    with pytest.raises(RequestError, match="faster"):
        lab.report(stream, first({"tenant": "one too many"}))


def test_a_stream_has_one_domain() -> None:
    """Its first report names it, a later one may leave it out, none may change it."""
    lab = Lab()
    stream = lab.stream()
    with pytest.raises(RequestError, match="names its domain"):
        lab.report(stream, first(TENANT, domain=""))
    lab.report(stream, first(TENANT))
    lab.report(stream, first(TENANT, domain=""))
    with pytest.raises(RequestError, match="one domain"):
        lab.report(stream, first(TENANT, domain="e"))


def test_replicas_give_out_their_part() -> None:
    """Four Garrisons: each gives out a quarter."""
    lab = Lab(replicas=4)
    stream = lab.stream()
    lab.tell(stream, first(TENANT))
    assert lab.rounds(2, (stream, 500)) == [15.0]


def test_nothing_is_kept_for_what_is_gone() -> None:
    """Quotas are forgotten once nobody uses them and what was assigned has run out."""
    lab = Lab()
    for number in range(5):
        stream = lab.stream()
        lab.tell(stream, first({"tenant": str(number)}))
        lab.quotas.close(stream, lab.now)
    assert len(lab.quotas._quotas) == 5
    lab.now += 30 * SECOND
    lab.tell(lab.stream(), first(TENANT))
    assert list(lab.quotas._quotas) == ["|d|tenant=a"]
    assert not lab.quotas._unused


def test_reports_and_actions_are_counted() -> None:
    """By configured domain, and by what buckets are told."""
    lab = Lab()
    stream = lab.stream()
    lab.report(stream, reports((TENANT, 5, 2), ({"shut": "x"}, 0, 3), ({"open": "x"}, 1, 0)))
    lab.read(stream)
    assert lab.quotas.reported() == {("d", "allowed"): 6, ("d", "denied"): 5}
    assert lab.quotas.actions() == {
        ("token_bucket",): 1,
        ("allow_all",): 1,
        ("deny_all",): 1,
        ("abandon",): 0,
    }
