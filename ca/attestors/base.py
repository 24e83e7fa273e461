"""What an attestor comes to: what is proved of a caller, or why nothing is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ca.registration import Selector, SelectorKind
from garrison.identity import SpiffeId

# Values of one claim that are looked at; a token with more is not about membership.
MAX_VALUES = 256


class Reason(StrEnum):
    """Why a caller gets nothing: stable, a label of the metric and a detail of the audit record."""

    NO_EVIDENCE = "no_evidence"
    PLAINTEXT = "plaintext"
    MALFORMED = "malformed"
    UNKNOWN_ISSUER = "unknown_issuer"
    NO_KEYS = "no_keys"
    BAD_SIGNATURE = "bad_signature"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    WRONG_AUDIENCE = "wrong_audience"
    WRONG_TYPE = "wrong_type"
    NOT_AUTHENTICATED = "not_authenticated"
    TOKEN_UNKNOWN = "token_unknown"
    TOKEN_EXPIRED = "token_expired"
    TOKEN_USED = "token_used"
    FOREIGN_TRUST_DOMAIN = "foreign_trust_domain"
    NOT_ISSUED_HERE = "not_issued_here"
    REVOKED = "revoked"
    NOT_REGISTERED = "not_registered"
    AMBIGUOUS = "ambiguous"
    NOT_ENTITLED = "not_entitled"
    IMPERSONATION = "impersonation"
    BAD_REQUEST = "bad_request"
    TOO_MANY = "too_many"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Attested:
    """What is proved of a caller.

    `requester` and `attested_by` are for the record of what it gets (`IssuedCertificate`). `identity` is what
    the evidence itself names: that of a join token, or of the SVID that is shown.
    """

    selectors: frozenset[Selector]
    requester: str
    attested_by: str
    identity: SpiffeId | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing is proved; `detail` is for operators and holds no secret."""

    reason: Reason
    detail: str


def selectors(pairs: Iterable[tuple[SelectorKind, str]]) -> frozenset[Selector]:
    """Return the selectors that can be registered; a value that no registration can have meets none."""
    found: set[Selector] = set()
    for kind, value in pairs:
        try:
            found.add(Selector.parse(f"{kind}:{value}"))
        except ValueError:
            continue
    return frozenset(found)
