"""Answers that are put together by hand are byte for byte those of the messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ratelimit.algorithm import SECOND, UNITS, Limit, Outcome
from ratelimit.compile import times, window_unit
from ratelimit.limiter import Decision, Status
from ratelimit.protos import rls_pb2
from ratelimit.request import Fault, Request
from ratelimit.response import ResponseOptions, build_fault, build_response, build_unlimited
from ratelimit.tree import Unlimited

REQUEST = Request("d", [], rls_pb2.RateLimitRequest(domain="d"))
UNIT = st.one_of(
    st.sampled_from(list(UNITS.values())),
    st.builds(times, st.sampled_from(list(UNITS.values())), st.integers(1, 2**32 - 1)),
    st.builds(window_unit, st.integers(1, 10**9).map(lambda milliseconds: milliseconds * 10**6)),
)
LIMIT = st.builds(
    Limit,
    requests_per_unit=st.sampled_from([0, 1, 127, 128, 2**32 - 1]),
    unit=UNIT,
    name=st.text(alphabet="ab -", max_size=200),
)
OUTCOME = st.tuples(
    st.booleans(), st.sampled_from([0, 1, 127, 128, 16_384, 2**32 - 1, 2**40]), st.integers(1, 10**19)
).map(lambda parts: Outcome(*parts))
STATUS = st.one_of(
    st.tuples(LIMIT, OUTCOME, st.booleans()).map(lambda parts: Status(*parts)),
    st.builds(lambda limit: Status(limit, None, over_limit=False), LIMIT),
    st.just(Status(Unlimited(), None, over_limit=False)),
    st.just(Status(None, None, over_limit=False)),
)


@given(over=st.booleans(), statuses=st.lists(STATUS, max_size=5))
def test_bytes_are_those_of_the_messages(over: bool, statuses: list[Status]) -> None:
    """What is sent is what the messages with the same fields would have been written as."""
    expected = rls_pb2.RateLimitResponse(overall_code=2 if over else 1)
    for rule, outcome, over_limit, _ in statuses:
        status = expected.statuses.add(code=2 if over_limit else 1)
        if isinstance(rule, Limit) and outcome is not None:
            current = status.current_limit
            current.requests_per_unit = rule.requests_per_unit
            current.unit, current.name = rule.unit.wire, rule.name
            if rule.unit.multiplier != 1:
                current.unit_multiplier.value = rule.unit.multiplier
            status.limit_remaining = min(outcome.remaining, 2**32 - 1)
            status.duration_until_reset.seconds = -(-outcome.reset // SECOND)
        elif isinstance(rule, Unlimited):
            status.limit_remaining = 2**32 - 1
    answer = build_response(Decision(over, False, statuses), REQUEST, ResponseOptions())
    assert answer == expected.SerializeToString(deterministic=True)


def test_other_answers() -> None:
    """Domains without limits have bare statuses; a fault has none."""
    bare = rls_pb2.RateLimitResponse.FromString(build_unlimited(2))
    assert [status.code for status in bare.statuses] == [1, 1]
    fault = rls_pb2.RateLimitResponse.FromString(build_fault(Fault.EMPTY_DOMAIN))
    assert (fault.overall_code, len(fault.statuses)) == (2, 0)
