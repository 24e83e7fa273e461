"""Does a chain end in one of these roots? By the library, and by `garrison.certificate_paths` for Ed25519."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.x509 import verification

from ca.inspection import check_leaf, check_signing
from ca.keys import check_ca_public_key
from garrison.certificate_paths import PathError, find_path, has_ed25519_key
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

# Root, two intermediates and a leaf are usual; more than these are only there to keep us busy.
MAX_CERTIFICATES = 16


def verify_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    at: datetime,
    *,
    any_leaf: bool = False,
) -> tuple[x509.Certificate, ...]:
    """Return the chain from `leaf` to the one of `roots` under which it verifies at the moment `at`.

    With `any_leaf` it may be a CA itself. Only `roots` are trusted, never those of the system. Whether the
    leaf is an SVID is not looked at.

    Raises:
        IssuanceError: it does not verify, or there are more than `MAX_CERTIFICATES`.

    """
    if len(intermediates) > MAX_CERTIFICATES:
        raise IssuanceError(f"a chain has at most {MAX_CERTIFICATES} certificates")
    if not roots:
        raise IssuanceError("there is no root to verify with")
    if any_leaf or any(map(has_ed25519_key, (*intermediates, *roots))):
        return _walk(leaf, intermediates, roots, at)
    builder = verification.PolicyBuilder().store(verification.Store(list(roots))).time(at)
    try:
        return tuple(builder.build_client_verifier().verify(leaf, list(intermediates)).chain)
    except (verification.VerificationError, ValueError, x509.DuplicateExtension) as error:
        _explain_validity((leaf, *intermediates), at)
        reason = str(error).removeprefix("validation failed: ")
        raise IssuanceError(f"the chain does not verify under these roots: {reason}") from error


def verify_svid(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    at: datetime,
) -> tuple[SpiffeId, tuple[x509.Certificate, ...]]:
    """Return the identity of an X509-SVID and its chain to one of `roots` (X509-SVID, 5).

    `roots` are the bundle of the identity's own trust domain. One that names another domain proves nothing
    about this one.

    Raises:
        IssuanceError: a rule of the standard is broken, or the chain does not verify; the message says which.

    """
    spiffe_id = check_leaf(leaf)
    for kind, signing in (("the chain", intermediates), ("the bundle", roots)):
        for certificate in signing:
            named = check_signing(certificate)
            if named not in {None, spiffe_id.trust_domain}:
                raise IssuanceError(
                    f"{kind} holds a signing certificate of `{named}`, not of `{spiffe_id.trust_domain}`"
                )
    return spiffe_id, verify_chain(leaf, intermediates, roots, at)


def _walk(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    at: datetime,
) -> tuple[x509.Certificate, ...]:
    def check_issuer(issuer: x509.Certificate) -> None:
        try:
            check_signing(issuer)
            check_ca_public_key(issuer.public_key())
        except IssuanceError as error:
            raise PathError(str(error)) from error

    try:
        return find_path(leaf, intermediates, roots, at, check_issuer=check_issuer)
    except PathError as error:
        raise IssuanceError(f"the chain does not verify under these roots: {error}") from error


def _explain_validity(certificates: Sequence[x509.Certificate], at: datetime) -> None:
    for certificate in certificates:
        if at > certificate.not_valid_after_utc:
            raise IssuanceError(
                f"a certificate expired at {certificate.not_valid_after_utc:%FT%TZ}, the time is {at:%FT%TZ}"
            )
        if at < certificate.not_valid_before_utc:
            raise IssuanceError(
                f"a certificate is not valid before {certificate.not_valid_before_utc:%FT%TZ}, "
                f"the time is {at:%FT%TZ}: is the clock right?"
            )
