"""What the audit log says about each change, and how a ledger words a refusal: the same for every store."""

from __future__ import annotations

from datetime import datetime

from ca.audit import Details
from ca.ledger import (
    MAX_PAGE,
    Entry,
    FederatedBundle,
    IssuedCertificate,
    JoinToken,
    KeyState,
    LedgerCode,
    LedgerRefusalError,
    Revocation,
    RevocationReason,
    SigningKey,
    StateChange,
    StoredCrl,
)
from garrison.identity import SpiffeId, TrustDomain


def of_issued(one: IssuedCertificate) -> Details:
    """Return the details of `certificate_issued`."""
    return {
        "attested_by": one.attested_by,
        "issuer": one.issuer,
        "kind": one.kind,
        # Whole seconds, UTC; formatting takes five times as long.
        "not_after": f"{one.not_after.isoformat()[:19]}Z",
        "serial": one.serial_text,
        "sha256": one.fingerprint,
        "spiffe_id": str(one.spiffe_id),
    }


def of_revoked(one: IssuedCertificate, reason: RevocationReason) -> Details:
    """Return the details of `certificate_revoked`."""
    return {
        "issuer": one.issuer,
        "reason": reason,
        "serial": one.serial_text,
        "spiffe_id": str(one.spiffe_id),
    }


def of_crl(crl: StoredCrl) -> Details:
    """Return the details of `crl_published`."""
    return {"issuer": crl.issuer, "next_update": f"{crl.next_update:%FT%TZ}", "number": crl.number}


def of_forgotten(count: int, before: datetime) -> Details:
    """Return the details of `certificates_forgotten`."""
    return {"count": count, "expired_before": f"{before:%FT%TZ}"}


def check_forgetting(before: datetime, most: int, now: datetime) -> None:
    """Refuse to forget what may not have ended, or more at once than others can wait for.

    Raises:
        ValueError: it is so.

    """
    if before >= now:
        raise ValueError(f"what ends at {before:%FT%TZ} has not ended yet")
    if not 1 <= most <= MAX_PAGE:
        raise ValueError(f"1 to {MAX_PAGE} certificates are forgotten at once, not {most}")


def of_entry(entry: Entry) -> Details:
    """Return the details of `entry_created`."""
    registration = entry.registration
    return {
        "dns_names": registration.dns_names,
        "entry": entry.entry_id,
        "federates_with": tuple(str(domain) for domain in registration.federates_with),
        "jwt_ttl_seconds": int(registration.jwt_ttl.total_seconds()),
        "parent_id": "" if registration.parent_id is None else str(registration.parent_id),
        "selectors": tuple(str(selector) for selector in registration.selectors),
        "spiffe_id": str(registration.spiffe_id),
        "svid_ttl_seconds": int(registration.svid_ttl.total_seconds()),
    }


def of_token(token: JoinToken) -> Details:
    """Return the details of `token_created`."""
    return {
        "expires_at": f"{token.expires_at:%FT%TZ}",
        "spiffe_id": str(token.spiffe_id),
        "token": token.token_id,
    }


def of_burn(token: str, outcome: SpiffeId | LedgerRefusalError) -> Details:
    """Return the details of `token_burned`, or of `token_refused`."""
    if isinstance(outcome, LedgerRefusalError):
        return {"reason": outcome.code, "token": token[:16]}
    return {"spiffe_id": str(outcome), "token": token[:16]}


def of_key(key: SigningKey) -> Details:
    """Return the details of `key_added`."""
    return {"key": key.key_id, "not_after": f"{key.not_after:%FT%TZ}", "state": key.state, "use": key.use}


def of_state(change: StateChange) -> Details:
    """Return the details of `key_state_changed`."""
    return {"after": change.after, "before": change.before, "key": change.key_id, "use": change.use}


def of_federated(bundle: FederatedBundle) -> Details:
    """Return the details of `federation_set`."""
    return {
        "profile": bundle.profile,
        "sequence": bundle.sequence,
        "trust_domain": str(bundle.trust_domain),
        "url": bundle.url,
    }


def serial_refusal(one: IssuedCertificate | None) -> LedgerRefusalError:
    """Return why a certificate, or one of several (None), is not recorded."""
    which = f" {one.serial_text}" if one is not None else ""
    message = f"serial number{which} is used already, so this is not issued"
    return LedgerRefusalError(LedgerCode.DUPLICATE, message)


def unknown_certificate(issuer: str, serial: int) -> LedgerRefusalError:
    """Return why a certificate is not revoked that was never recorded."""
    return LedgerRefusalError(LedgerCode.UNKNOWN, f"no certificate {serial:x} of {issuer} is known")


def revoked_already(serial: int, revocation: Revocation) -> LedgerRefusalError:
    """Return why a certificate is not revoked a second time."""
    message = f"certificate {serial:x} was revoked at {revocation.at:%FT%TZ} already"
    return LedgerRefusalError(LedgerCode.ALREADY_REVOKED, message)


def crl_refusal(crl: StoredCrl, stored: int) -> LedgerRefusalError:
    """Return why a CRL is not stored."""
    return LedgerRefusalError(LedgerCode.STATE_CHANGED, f"CRL {crl.number} cannot follow CRL {stored}")


def entry_refusal(entry: Entry) -> LedgerRefusalError:
    """Return why a registration is not added."""
    message = f"`{entry.registration.spiffe_id}` has these selectors already, or the id is taken"
    return LedgerRefusalError(LedgerCode.DUPLICATE, message)


def unknown_entry(entry_id: str) -> LedgerRefusalError:
    """Return why a registration is not deleted."""
    return LedgerRefusalError(LedgerCode.UNKNOWN, f"there is no entry `{entry_id}`")


def token_duplicate() -> LedgerRefusalError:
    """Return why a token is not added."""
    return LedgerRefusalError(LedgerCode.DUPLICATE, "there is such a token already")


def token_refusal(token: JoinToken | None) -> LedgerRefusalError:
    """Return why a token is not burnt."""
    if token is None:
        return LedgerRefusalError(LedgerCode.TOKEN_UNKNOWN, "the join token is not known")
    if token.used_at is not None:
        return LedgerRefusalError(
            LedgerCode.TOKEN_USED, f"the join token was used at {token.used_at:%FT%TZ} already"
        )
    return LedgerRefusalError(
        LedgerCode.TOKEN_EXPIRED, f"the join token expired at {token.expires_at:%FT%TZ}"
    )


def unknown_token(token: str) -> LedgerRefusalError:
    """Return why a token is not deleted."""
    return LedgerRefusalError(LedgerCode.UNKNOWN, f"there is no join token `{token[:16]}`")


def key_refusal(key: SigningKey) -> LedgerRefusalError:
    """Return why a signing key is not added."""
    return LedgerRefusalError(LedgerCode.DUPLICATE, f"there is a {key.use} key `{key.key_id}` already")


def state_refusal(change: StateChange, state: KeyState | None) -> LedgerRefusalError:
    """Return why a signing key does not change from `state`; None: there is no such key."""
    if state is None:
        return LedgerRefusalError(LedgerCode.UNKNOWN, f"there is no {change.use} key `{change.key_id}`")
    message = f"the {change.use} key `{change.key_id}` is {state}, not {change.before}"
    return LedgerRefusalError(LedgerCode.STATE_CHANGED, message)


def unknown_domain(name: str) -> LedgerRefusalError:
    """Return why another trust domain is not forgotten."""
    return LedgerRefusalError(LedgerCode.UNKNOWN, f"there is no federation with `{name}`")


def federation_duplicate(trust_domain: TrustDomain) -> LedgerRefusalError:
    """Return why a federation is not created."""
    return LedgerRefusalError(LedgerCode.DUPLICATE, f"there is a federation with `{trust_domain}` already")


def federation_changed(trust_domain: TrustDomain) -> LedgerRefusalError:
    """Return why a federation is not replaced."""
    return LedgerRefusalError(
        LedgerCode.STATE_CHANGED, f"the federation with `{trust_domain}` was changed or deleted meanwhile"
    )
