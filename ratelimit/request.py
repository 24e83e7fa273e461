"""`RateLimitRequest` -> descriptors; the only reader of rate-limit request messages."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from garrison.errors import RequestError
from ratelimit.algorithm import MAX_COUNT, UNITS, Limit
from ratelimit.descriptors import Descriptor
from ratelimit.protos import rls_pb2

# envoy.type.v3.RateLimitUnit, which has no week. Months and years are numbered as in the response.
_OVERRIDE_UNITS = {unit.wire: unit for unit in UNITS.values() if unit.name != "week"}
_OVERRIDE_SOURCE = "request"
_IS_NEGATIVE_HITS = 4


class Fault(StrEnum):
    """Why a request could not be decided."""

    MALFORMED_REQUEST = "malformed_request"
    EMPTY_DOMAIN = "empty_domain"
    NO_DESCRIPTORS = "no_descriptors"
    NO_ENTRIES = "no_entries"
    INVALID_OVERRIDE = "invalid_override"
    STORE_UNAVAILABLE = "store_unavailable"
    INTERNAL_ERROR = "internal_error"


class FaultError(RequestError):
    """A request that cannot be decided; `domain` is the one it names, if it can be read."""

    def __init__(self, fault: Fault, domain: str = "") -> None:
        super().__init__(fault.value)
        self.fault = fault
        self.domain = domain


class Request(NamedTuple):
    """What a caller asks; `message` is where it came from."""

    domain: str
    descriptors: Sequence[Descriptor]
    message: rls_pb2.RateLimitRequest


def parse_request(data: bytes) -> Request:
    """Return the request in `data`.

    Raises:
        FaultError: it cannot be decided, whatever the limits are.

    """
    try:
        message = rls_pb2.RateLimitRequest.FromString(data)
    except DecodeError as error:
        raise FaultError(Fault.MALFORMED_REQUEST) from error
    domain = message.domain
    if not domain:
        raise FaultError(Fault.EMPTY_DOMAIN)
    # hits_addend 0 is how proto3 says "absent" here; in a descriptor, where presence shows, 0 only looks.
    cost = message.hits_addend or 1
    try:
        descriptors = [_parse_descriptor(descriptor, cost) for descriptor in message.descriptors]
    except FaultError as error:
        error.domain = domain
        raise
    if not descriptors:
        raise FaultError(Fault.NO_DESCRIPTORS, domain)
    return Request(domain, descriptors, message)


def _parse_descriptor(descriptor: rls_pb2.RateLimitDescriptor, cost: int) -> Descriptor:
    entries = [(entry.key, entry.value) for entry in descriptor.entries]
    if not entries:
        raise FaultError(Fault.NO_ENTRIES)
    if descriptor.HasField("hits_addend"):
        cost = min(descriptor.hits_addend.value, MAX_COUNT)
    if descriptor.is_negative_hits:
        cost = -cost
    elif len(unknown := UnknownFieldSet(descriptor)) and _is_odd_refund(unknown):
        cost = 0
    if not descriptor.HasField("limit"):
        return Descriptor(entries, cost)
    override = _override(descriptor.limit.requests_per_unit, descriptor.limit.unit)
    if override is None:
        raise FaultError(Fault.INVALID_OVERRIDE)
    return Descriptor(entries, cost, override)


def _is_odd_refund(unknown: UnknownFieldSet) -> bool:
    """Return whether `is_negative_hits` is there as something else than a boolean.

    It is not taken for one, and the hits are not charged as if it were absent.
    """
    return any(unknown[index].field_number == _IS_NEGATIVE_HITS for index in range(len(unknown)))


@lru_cache(maxsize=4096)
def _override(requests_per_unit: int, unit_number: int) -> Limit | None:
    unit = _OVERRIDE_UNITS.get(unit_number)
    return Limit(requests_per_unit, unit, source=_OVERRIDE_SOURCE) if unit is not None else None
