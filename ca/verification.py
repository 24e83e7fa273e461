"""Does a chain end in one of these roots? By the library, and by hand only where it has no answer: Ed25519.

The library's verifier refuses every chain with an Ed25519 key, as the public web's rules do. Those chains are
walked here by RFC 5280, 6.1, without what an SVID has no use for: name constraints and policies are refused
when they are critical or narrow anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509 import verification

from ca.inspection import check_leaf, check_signing
from ca.keys import check_ca_public_key
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

# Root, two intermediates and a leaf are usual; more than these are only there to keep us busy.
MAX_CERTIFICATES = 16
_UNDERSTOOD = {
    x509.BasicConstraints.oid,
    x509.KeyUsage.oid,
    x509.ExtendedKeyUsage.oid,
    x509.SubjectAlternativeName.oid,
    x509.SubjectKeyIdentifier.oid,
    x509.AuthorityKeyIdentifier.oid,
}


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
    if any_leaf or any(_is_ed25519(one) for one in (*intermediates, *roots)):
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
    _check_link(leaf, at)
    paths: list[tuple[x509.Certificate, ...]] = [(leaf,)]
    refused: IssuanceError | None = None
    # Each round makes every path one longer, by certificates that it does not hold yet.
    for _ in range(len(intermediates) + 1):
        longer: list[tuple[x509.Certificate, ...]] = []
        for path in paths:
            for issuer in (*roots, *intermediates):
                if issuer in path or issuer.subject != path[-1].issuer:
                    continue
                try:
                    _check_issuer(issuer, path, at)
                except IssuanceError as error:
                    refused = error
                    continue
                if issuer in roots:
                    return (*path, issuer)
                longer.append((*path, issuer))
        paths = longer[:MAX_CERTIFICATES]
    reason = str(refused) if refused is not None else "its issuer is not among them"
    raise IssuanceError(f"the chain does not verify under these roots: {reason}") from refused


def _check_issuer(issuer: x509.Certificate, path: Sequence[x509.Certificate], at: datetime) -> None:
    """Refuse `issuer` as the next after `path` (RFC 5280, 6.1.4 (k) to (n))."""
    _check_link(issuer, at)
    check_signing(issuer)
    check_ca_public_key(issuer.public_key())
    basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    # Section 4.2.1.9: self-issued certificates do not count, nor does the leaf.
    below = sum(1 for link in path[1:] if link.subject != link.issuer)
    if basic.path_length is not None and basic.path_length < below:
        raise IssuanceError(f"`{issuer.subject.rfc4514_string()}` allows fewer certificates below it")
    try:
        path[-1].verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise IssuanceError("a signature in the chain does not verify") from error


def _check_link(certificate: x509.Certificate, at: datetime) -> None:
    _explain_validity([certificate], at)
    try:
        extensions = list(certificate.extensions)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise IssuanceError("the certificate's extensions are malformed") from error
    for extension in extensions:
        narrows = isinstance(extension.value, x509.NameConstraints)
        if narrows or (extension.critical and extension.oid not in _UNDERSTOOD):
            raise IssuanceError(f"extension {extension.oid.dotted_string} of a certificate is not understood")


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


def _is_ed25519(certificate: x509.Certificate) -> bool:
    try:
        return isinstance(certificate.public_key(), ed25519.Ed25519PublicKey)
    except (ValueError, UnsupportedAlgorithm):
        return False
