"""Join tokens: whoever brings one becomes what it says, once."""

from __future__ import annotations

import re
from datetime import datetime

from ca.attestors.base import Attested, Reason, Refused, selectors
from ca.ledger import Ledger, LedgerCode, LedgerRefusalError, token_hash
from ca.registration import SelectorKind
from garrison.identity import TrustDomain

ATTESTED_BY = "join_token"
# What `ca token create` prints: 32 random bytes in base64url. A JWT has dots, so it is never taken for one.
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")

_REASONS = {
    LedgerCode.TOKEN_UNKNOWN: Reason.TOKEN_UNKNOWN,
    LedgerCode.TOKEN_EXPIRED: Reason.TOKEN_EXPIRED,
    LedgerCode.TOKEN_USED: Reason.TOKEN_USED,
}


def is_join_token(text: str) -> bool:
    """Tell whether `text` has the form of a join token's secret."""
    return _SECRET.fullmatch(text) is not None


def attest_join_token(
    secret: str, ledger: Ledger, trust_domain: TrustDomain, *, now: datetime, by: str
) -> Attested | Refused:
    """Use up the token and return what its bearer has proved. `by` is who brings it, for the audit log.

    The token is gone also when nothing is issued afterwards.

    Raises:
        LedgerUnavailableError: the ledger does not answer; the token is not used up.
        ClockError: by the ledger, `now` is in the past; the token is not used up.

    """
    hashed = token_hash(secret)
    try:
        grant = ledger.burn_token(hashed, now=now, by=by)
    except LedgerRefusalError as error:
        return Refused(_REASONS.get(error.code, Reason.TOKEN_UNKNOWN), str(error))
    if grant.spiffe_id.trust_domain != trust_domain:
        return Refused(Reason.FOREIGN_TRUST_DOMAIN, f"join token {grant.token_id} is of another domain")
    return Attested(
        selectors([(SelectorKind.JOIN_TOKEN, grant.token_id)]),
        f"join token {grant.token_id}, {by}",
        ATTESTED_BY,
        grant.spiffe_id,
    )
