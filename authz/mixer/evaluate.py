"""One call against the rules of its destination: what Mixer's Check would answer, closed where it was open.

Pure: attributes, the time and the lists come in as arguments. Mixer grants nothing: without a denial the
call goes on to whatever else decides.

A match that cannot be evaluated (something it looks at is absent) neither matches nor fails to: the rule's
actions are asked as if it had matched, so that a denial cannot be escaped by leaving something out; its
header operations are not made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from authz.attributes import Attributes
from authz.decision import Decision, ReasonCode, deny
from authz.mixer.attributes import CallAttributes
from authz.mixer.expression import EvaluationError, Value
from authz.mixer.lists import EntryList, InvalidValueError, ListSource
from authz.mixer.quotas import QuotaAdapter
from authz.mixer.rules import (
    Action,
    Denier,
    DestinationRules,
    DirectResponse,
    HeaderTemplate,
    Instance,
    ListChecker,
    Rule,
)

# google.rpc.Code by number: its name and the HTTP status that Istio's proxy made of it.
STATUSES: Sequence[tuple[str, int]] = (
    ("OK", 200),
    ("CANCELLED", 499),
    ("UNKNOWN", 500),
    ("INVALID_ARGUMENT", 400),
    ("DEADLINE_EXCEEDED", 504),
    ("NOT_FOUND", 404),
    ("ALREADY_EXISTS", 409),
    ("PERMISSION_DENIED", 403),
    ("RESOURCE_EXHAUSTED", 429),
    ("FAILED_PRECONDITION", 400),
    ("ABORTED", 409),
    ("OUT_OF_RANGE", 400),
    ("UNIMPLEMENTED", 501),
    ("INTERNAL", 500),
    ("UNAVAILABLE", 503),
    ("DATA_LOSS", 500),
    ("UNAUTHENTICATED", 401),
)
OK, INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, INTERNAL, UNAVAILABLE = 0, 3, 5, 7, 13, 14

# When no adapter ran (Mixer's dispatcher).
DEFAULT_VALID_DURATION = timedelta(minutes=1)
DEFAULT_VALID_USE_COUNT = 10_000

# Values from the call end up in bodies and log lines.
_MAX_SHOWN = 256
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_NOT_IN_HEADERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")


class Lists(Protocol):
    """Where fetched lists are read from; `ListRefresher` is one."""

    def current(self, source: ListSource) -> EntryList | None:
        """Return the list to decide by, None when there is none."""


@dataclass(frozen=True, slots=True)
class HeaderOperation:
    """A header operation, ready to be made: REPLACE, REMOVE or APPEND; `value` is empty for REMOVE."""

    name: str
    operation: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class MixerResult:
    """What Mixer says to a call.

    `decision` is a denial or None. `status` is a google.rpc code, `message` what all denying handlers said.
    How long and how often the result may be used again is the least of what the handlers said.
    """

    decision: Decision | None = None
    status: int = OK
    message: str = ""
    valid_duration: timedelta = DEFAULT_VALID_DURATION
    valid_use_count: int = DEFAULT_VALID_USE_COUNT
    request_headers: tuple[HeaderOperation, ...] = ()
    response_headers: tuple[HeaderOperation, ...] = ()
    direct_response: DirectResponse | None = None


_NOTHING_RAN = MixerResult()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one handler said to one instance. `detail` is for operators, `message` for the caller."""

    status: int
    message: str
    valid_duration: int = 0
    valid_use_count: int = 0
    direct_response: DirectResponse | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Asked:
    """An outcome with where it came from; `doubt` says why the rule's match could not be told."""

    rule: Rule
    action: Action
    outcome: _Outcome
    doubt: str


def check(rules: DestinationRules, attributes: Attributes, now: float, lists: Lists) -> MixerResult:
    """Return what `rules` say to a call; `now` in seconds since the epoch. Every handler is asked."""
    if not rules.rules:
        return _NOTHING_RAN
    call = CallAttributes(attributes, now, rules.types)
    asked: list[_Asked] = []
    matched: list[Rule] = []
    for rule in rules.rules:
        doubt = ""
        if rule.match is not None:
            try:
                if rule.match.evaluate(call) is not True:
                    continue
            except EvaluationError as error:
                doubt = str(error)
        if not doubt and (rule.request_headers or rule.response_headers):
            matched.append(rule)
        for action in rule.actions:
            asked += [
                _Asked(rule, action, _ask(action, instance, call, lists), doubt)
                for instance in action.instances
            ]
    denials = [one for one in asked if one.outcome.status != OK]
    if denials:
        return _denied(asked, denials)
    return _passed(asked, matched, call)


def _ask(action: Action, instance: Instance, call: CallAttributes, lists: Lists) -> _Outcome:
    adapter = action.handler.adapter
    assert not isinstance(adapter, QuotaAdapter)  # noqa: S101 - compiled to actions of their own
    try:
        value = None if instance.value is None else str(instance.value.evaluate(call))
        if isinstance(adapter, Denier):
            return _Outcome(
                adapter.status,
                adapter.message,
                adapter.valid_duration,
                adapter.valid_use_count,
                adapter.direct_response,
            )
        return _look_up(adapter, value or "", lists)
    except EvaluationError as error:
        return _Outcome(INTERNAL, "the check could not be made", detail=f"{instance.name}: {error}")


def _look_up(checker: ListChecker, value: str, lists: Lists) -> _Outcome:
    status, message = OK, ""
    try:
        # What is listed here is on the list whatever the provider says, also while it says nothing.
        listed = checker.overrides.holds(value)
        if not listed and checker.source is not None:
            entries = lists.current(checker.source)
            if entries is None:
                detail = f"the list from `{checker.source.url}` was not fetched or is too old"
                return _Outcome(UNAVAILABLE, "the list is not available", detail=detail)
            listed = entries.holds(value)
        if listed and checker.blacklist:
            status, message = PERMISSION_DENIED, f"{value} is blacklisted"
        elif not listed and not checker.blacklist:
            status, message = NOT_FOUND, f"{value} is not whitelisted"
    except InvalidValueError as error:
        status, message = INVALID_ARGUMENT, str(error)
    return _Outcome(status, message, checker.valid_duration, checker.valid_use_count)


def _denied(asked: Sequence[_Asked], denials: Sequence[_Asked]) -> MixerResult:
    """Return the denial: the first failing status, with what all failing handlers said."""
    first = denials[0]
    name, http_status = STATUSES[first.outcome.status]
    said = ", ".join(f"{one.action.handler.name}:{_shown(one.outcome.message)}" for one in denials)
    direct = first.outcome.direct_response
    public = f"{name}:{said}"
    if direct is not None:
        http_status, public = direct.code or http_status, direct.body
    reason = f"{name}: {said}"
    if first.outcome.detail:
        reason += f"; {_shown(first.outcome.detail)}"
    if first.doubt:
        reason += f"; whether the rule matches is not known: {_shown(first.doubt)}"
    decision = deny(
        ReasonCode.MIXER_DENIED,
        reason,
        http_status=http_status,
        public=public,
        policy=first.rule.policy,
        rule=first.action.index,
        field_path=f"spec.actions[{first.action.index}]",
    )
    duration, count = _validity(asked)
    return MixerResult(decision, first.outcome.status, said, duration, count, direct_response=direct)


def _passed(asked: Sequence[_Asked], matched: Sequence[Rule], call: CallAttributes) -> MixerResult:
    if not asked and not matched:
        return _NOTHING_RAN
    request: list[HeaderOperation] = []
    response: list[HeaderOperation] = []
    for rule in matched:
        try:
            request += _operations(rule.request_headers, call)
            response += _operations(rule.response_headers, call)
        except EvaluationError as error:
            decision = deny(
                ReasonCode.MIXER_DENIED,
                f"INTERNAL: a header operation could not be made: {_shown(str(error))}",
                http_status=STATUSES[INTERNAL][1],
                public="INTERNAL:a header operation could not be made",
                policy=rule.policy,
                field_path="spec",
            )
            return MixerResult(decision, INTERNAL, "a header operation could not be made", timedelta(), 0)
    duration, count = _validity(asked)
    return MixerResult(None, OK, "", duration, count, tuple(request), tuple(response))


def _validity(asked: Sequence[_Asked]) -> tuple[timedelta, int]:
    if not asked:
        return DEFAULT_VALID_DURATION, DEFAULT_VALID_USE_COUNT
    nanoseconds = min(one.outcome.valid_duration for one in asked)
    return timedelta(microseconds=nanoseconds // 1000), min(one.outcome.valid_use_count for one in asked)


def _operations(templates: Sequence[HeaderTemplate], call: CallAttributes) -> list[HeaderOperation]:
    """Return the operations with their values for this call.

    A REPLACE by nothing removes: were it left out, the caller's own value would go through.
    """
    operations: list[HeaderOperation] = []
    for template in templates:
        if template.operation == "REMOVE":
            operations.append(HeaderOperation(template.name, "REMOVE"))
            continue
        values = [
            value for one in template.values if (value := _header_value(template.name, one.evaluate(call)))
        ]
        if template.operation == "REPLACE":
            head = values[:1]
            operations.append(HeaderOperation(template.name, "REPLACE" if head else "REMOVE", *head))
            values = values[1:]
        operations += [HeaderOperation(template.name, "APPEND", value) for value in values]
    return operations


def _header_value(name: str, value: Value) -> str:
    text = str(value)
    if _NOT_IN_HEADERS.search(text):
        raise EvaluationError(f"the value for header `{name}` has characters that headers cannot have")
    return text


def _shown(text: str) -> str:
    """Return text from a call as it may stand in bodies and logs."""
    return _CONTROL.sub("\ufffd", text[:_MAX_SHOWN])
