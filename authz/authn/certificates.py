"""A peer's certificate, verified here as well: X509-SVID, section 5, and RFC 5280.

By `cryptography`, and under Ed25519 keys, which that verifies nothing by, by `garrison.certificate_paths`.

Envoy reports the name of whoever completed its handshake. With `trust_chain_verification: ACCEPT_UNTRUSTED`,
or with one root too many, that may be anybody, and nothing in a `CheckRequest` shows it. Where Envoy includes
the certificate (`include_peer_certificate`), the name has to be proven by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from garrison.certificate_paths import UNREADABLE, PathError, find_path, has_ed25519_key, has_strong_key
from garrison.documents import Diagnostic
from garrison.identity import SpiffeId

# URL-encoded; a chain of RSA-4096 certificates is less than 10 KB for each, and Envoy sends the leaf alone.
MAX_CERTIFICATE_BYTES = 32 * 1024
# Certificates that were verified are not verified again until they expire. One entry is about 2 KB.
MAX_CACHED_CERTIFICATES = 10_000
# Verifying takes some 200 microseconds: who shows a bad certificate must not make us do it for each call.
REFUSED_SECONDS = 10.0
MAX_CACHED_REFUSALS = 1_000

# Envoy encodes newline, space, `+`, `/` and `=`; anything else that is visible stands for itself.
_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----\s*")


Key = TypeVar("Key")
Value = TypeVar("Value")
Kind = TypeVar("Kind", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """Who vouches for one trust domain: its roots, and the intermediates that Envoy leaves out."""

    roots: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...] = ()


_NOTHING = TrustBundle(())


class _Invalid(Exception):  # noqa: N818 - flow inside this module, never seen outside
    """The certificate proves nothing; the text says why."""


class CertificateVerifier:
    """Verifies peers' certificates against one generation of trust bundles, keyed by trust domain.

    A bundle vouches for its own trust domain only; without a root it vouches for nobody. With `required`, a
    peer with an identity must have a certificate. `version` names what the bundles were made from.
    """

    def __init__(
        self, bundles: Mapping[str, TrustBundle], *, required: bool = False, version: str = ""
    ) -> None:
        self.required = required
        self.version = version
        self.warnings: Sequence[Diagnostic] = ()
        self.bundles = dict(bundles)
        self._stores = {
            name: (
                Store(list(bundle.roots)),
                list(bundle.intermediates),
                any(map(has_ed25519_key, (*bundle.roots, *bundle.intermediates))),
            )
            for name, bundle in bundles.items()
            if bundle.roots
        }
        # What a certificate proves, from when until when; and why others were refused, until when.
        self._proved: dict[str, tuple[str, float, float]] = {}
        self._refused: dict[tuple[str, str], tuple[str, float]] = {}

    def with_federated(self, found: Mapping[str, TrustBundle]) -> CertificateVerifier:
        """Return one that verifies with these roots as well; the bundles here lend them their intermediates.

        Nothing that was verified is remembered: what was proven by a root may not be any more.
        """
        joined = {
            name: TrustBundle(
                bundle.roots, (*bundle.intermediates, *self.bundles.get(name, _NOTHING).intermediates)
            )
            for name, bundle in found.items()
        }
        return CertificateVerifier({**self.bundles, **joined}, required=self.required, version=self.version)

    def problem(self, encoded: str, identity: SpiffeId, now: float) -> str | None:
        """Return why the certificate does not prove `identity` at `now`; None when it does.

        `encoded` is the leaf as Envoy sends it, URL-encoded PEM; `now` is in seconds since the epoch.
        """
        name = str(identity)
        known = self._proved.get(encoded)
        if known is not None and known[0] == name and known[1] <= now < known[2]:
            return None
        refused = self._refused.get((encoded, name))
        if refused is not None and 0 < refused[1] - now <= REFUSED_SECONDS:
            return refused[0]
        try:
            begin, end = self._verify(encoded, identity, now)
        except _Invalid as error:
            if len(encoded) <= MAX_CERTIFICATE_BYTES:
                _put(self._refused, (encoded, name), (str(error), now + REFUSED_SECONDS), MAX_CACHED_REFUSALS)
            return str(error)
        _put(self._proved, encoded, (name, begin, end), MAX_CACHED_CERTIFICATES)
        return None

    def _verify(self, encoded: str, identity: SpiffeId, now: float) -> tuple[float, float]:
        leaf = _parse(encoded)
        _check_leaf(leaf, identity)
        name = identity.trust_domain.name
        if name not in self.bundles:
            raise _Invalid(f"there is no trust bundle for `{name}`")
        if name not in self._stores:
            raise _Invalid(
                f"there is no root of `{name}`: its federation has given none, or it was withdrawn"
            )
        store, intermediates, has_ed25519 = self._stores[name]
        moment = datetime.fromtimestamp(now, UTC)
        verifier = PolicyBuilder().store(store).time(moment).build_client_verifier()
        try:
            chain: Sequence[x509.Certificate] = verifier.verify(leaf, intermediates).chain
        except VerificationError as error:
            if not has_ed25519:
                # What the library adds in parentheses holds its own objects.
                why = str(error).partition(" (encountered")[0].removeprefix("validation failed: ")
                raise _Invalid(f"it does not verify: {why}") from None
            chain = self._walk(leaf, name, moment)
        except (*UNREADABLE, OverflowError) as error:
            raise _Invalid(f"it cannot be verified: {error}") from None
        return (
            max(one.not_valid_before_utc.timestamp() for one in chain),
            min(one.not_valid_after_utc.timestamp() for one in chain),
        )

    def _walk(self, leaf: x509.Certificate, name: str, at: datetime) -> Sequence[x509.Certificate]:
        """Return the path of an SVID under an Ed25519 key, all of which the library refuses."""
        bundle = self.bundles[name]
        try:
            return find_path(
                leaf,
                bundle.intermediates,
                bundle.roots,
                at,
                purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
                needs_ed25519=True,
            )
        except PathError as error:
            raise _Invalid(f"it does not verify: {error}") from None


def _put(kept: dict[Key, Value], key: Key, value: Value, most: int) -> None:
    if len(kept) >= most:
        kept.clear()
    kept[key] = value


def _parse(encoded: str) -> x509.Certificate:
    if len(encoded) > MAX_CERTIFICATE_BYTES:
        raise _Invalid(f"it has more than {MAX_CERTIFICATE_BYTES} bytes")
    if not _ENCODED.fullmatch(encoded):
        raise _Invalid("it is not URL-encoded")
    pem = unquote_to_bytes(encoded)
    if not _PEM.fullmatch(pem):
        raise _Invalid("it is not exactly one certificate in PEM")
    try:
        return x509.load_pem_x509_certificate(pem)
    except UNREADABLE:
        raise _Invalid("it is not a certificate") from None


def _check_leaf(leaf: x509.Certificate, identity: SpiffeId) -> None:
    """Check the rules of X509-SVID that RFC 5280 does not have (sections 2, 4 and 5)."""
    try:
        extensions = leaf.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise _Invalid("it has no SAN") from None
    except UNREADABLE:
        raise _Invalid("its extensions cannot be read") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise _Invalid(f"it has {len(uris)} URI SANs, and an SVID has exactly one")
    if uris[0] != str(identity):
        raise _Invalid("its SPIFFE ID is another one than Envoy reports")
    if any("\x00" in name for name in _texts(names)):
        raise _Invalid("one of its names has a NUL byte")
    if not has_strong_key(leaf):
        raise _Invalid("its key is neither RSA of 2048 bits or more, nor on a NIST curve, nor Ed25519")
    _check_usage(extensions)


def _texts(names: x509.SubjectAlternativeName) -> Iterable[str]:
    return (one.value for one in names if isinstance(one, x509.DNSName | x509.RFC822Name))


def _check_usage(extensions: x509.Extensions) -> None:
    constraints = _extension(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.value.ca:
        raise _Invalid("it is that of a CA, which never identifies a peer")
    usage = _extension(extensions, x509.KeyUsage)
    if usage is None or not usage.critical:
        raise _Invalid("it has no critical key usage")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise _Invalid("it may sign certificates or CRLs")
    if not usage.value.digital_signature:
        raise _Invalid("its key usage lacks digitalSignature")
    purposes = _extension(extensions, x509.ExtendedKeyUsage)
    if purposes is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in purposes.value:
        raise _Invalid("its extended key usage lacks clientAuth")


def _extension(extensions: x509.Extensions, kind: type[Kind]) -> x509.Extension[Kind] | None:
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def trust_bundle(
    certificates: Sequence[x509.Certificate], *, roots_are_federated: bool = False
) -> TrustBundle:
    """Return the bundle of these CA certificates: those that issued themselves are its roots.

    With `roots_are_federated` none of them is.

    Raises:
        ValueError: one of them is no CA, or none is a root.

    """
    roots = []
    for number, certificate in enumerate(certificates, 1):
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            is_root = certificate.issuer == certificate.subject
        except (*UNREADABLE, x509.ExtensionNotFound) as error:
            raise ValueError(f"certificate {number} is not that of a CA") from error
        if not constraints.ca:
            raise ValueError(f"certificate {number} is not that of a CA")
        if is_root:
            roots.append(certificate)
    if roots_are_federated:
        return TrustBundle((), tuple(one for one in certificates if one not in roots))
    if not roots:
        raise ValueError("there is no root: a certificate that issued itself")
    return TrustBundle(tuple(roots), tuple(one for one in certificates if one not in roots))


class Bundles(Protocol):
    """The bundles in force; read once for each call."""

    @property
    def current(self) -> CertificateVerifier | None:
        """What verifies; None where no bundle is configured, and then nothing is verified."""


class _NoBundles:
    """No bundle is configured."""

    current = None


NO_BUNDLES: Bundles = _NoBundles()
