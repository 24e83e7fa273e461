"""Trust bundles: what one trust domain is verified with, as PEM and in the SPIFFE bundle format."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from ca.keys import MAX_RSA_BITS, MIN_RSA_BITS, PublicKey
from garrison.identity import TrustDomain

# How often a consumer should ask again; the SPIFFE default.
REFRESH_HINT_SECONDS = 300
# `spiffe_sequence` is a 64-bit number (SPIFFE Trust Domain and Bundle, 4.1.1).
MAX_SEQUENCE = 2**63 - 1
# A few hundred certificates: more than any trust domain has roots.
MAX_PEM_BYTES = 1024 * 1024
# Our own member of a bundle, which others ignore (RFC 7517, section 5): issuing certificates under its roots,
# for those who see the leaf alone, as behind Envoy's `include_peer_certificate`.
INTERMEDIATES = "garrison_x509_intermediates"

_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# RFC 7518, section 6.2.1.1.
_CURVES: Mapping[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_CURVE_NAMES = {curve.name: name for name, curve in _CURVES.items()}


@dataclass(frozen=True, slots=True)
class JwtAuthority:
    """A key that JWT-SVIDs are verified with, under the name that their headers give it."""

    kid: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class SpiffeBundle:
    """What SVIDs of one trust domain are verified with; with nothing in it, none of them is good.

    `sequence` rises with every change of the keys; `refresh_hint` is how often to look again, in seconds.
    `x509_intermediates` help to find a path to an authority; nothing is trusted for their sake.
    """

    x509_authorities: tuple[x509.Certificate, ...] = ()
    jwt_authorities: tuple[JwtAuthority, ...] = ()
    sequence: int | None = None
    refresh_hint: int | None = None
    x509_intermediates: tuple[x509.Certificate, ...] = ()

    @property
    def digest(self) -> str:
        """A hash of the keys in it: it changes when they do."""
        return hashlib.sha256(json.dumps(_keys(self), sort_keys=True).encode()).hexdigest()


def parse_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates in `pem`, in order; text between the blocks is skipped, as openssl writes it.

    Raises:
        ValueError: there is none, one is malformed, or there is a block of another type.

    """
    blocks = _PEM_CERTIFICATE.findall(pem)
    if not blocks:
        raise ValueError("it holds no PEM certificate")
    if pem.count(b"-----BEGIN ") != len(blocks):
        raise ValueError("it holds something other than certificates")
    try:
        with _strictly():
            return tuple(x509.load_pem_x509_certificate(block) for block in blocks)
    except (ValueError, x509.InvalidVersion, CryptographyDeprecationWarning) as error:
        raise ValueError("it holds a malformed certificate") from error


def format_certificates(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return `certificates` as PEM blocks, each ending in a newline."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def format_der(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return `certificates` in DER, one after the other, as the Workload API has them."""
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def format_spiffe_bundle(bundle: SpiffeBundle) -> str:
    """Return `bundle` as a JWK set (SPIFFE Trust Domain and Bundle, section 4).

    Entries for X509-SVIDs have `x5c` with exactly one certificate and no `kid`, those for JWT-SVIDs a `kid`
    (section 4.2).
    """
    numbers = {"spiffe_sequence": bundle.sequence, "spiffe_refresh_hint": bundle.refresh_hint}
    document: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if bundle.x509_intermediates:
        document[INTERMEDIATES] = [_der_text(one) for one in bundle.x509_intermediates]
    return json.dumps({**document, "keys": _keys(bundle)}, indent=2)


def format_jwk_set(authorities: Iterable[JwtAuthority]) -> str:
    """Return keys for JWT-SVIDs as the plain JWK set of the Workload API (its section 6.2.2)."""
    return json.dumps({"keys": [_jwt_key(authority) for authority in authorities]})


def parse_spiffe_bundle(text: str | bytes) -> SpiffeBundle:
    """Return what a SPIFFE bundle holds.

    Entries of an unknown `use`, `kty` or curve, with a key too weak to count, for X509-SVIDs without a
    certificate and for JWT-SVIDs without `kid` are skipped; only the first certificate of an entry counts
    (section 4.2.2). Unknown members are ignored.

    Raises:
        ValueError: it is not a bundle: no object in JSON (UTF-8) with `keys`, a member twice, a number out of
            its range, two keys of one `kid`, a malformed certificate or key.

    """
    try:
        return _parse_bundle(_load_json(text))
    except _MALFORMED as error:
        raise ValueError("it is not a SPIFFE bundle") from error


def parse_bundle_map(text: str | bytes) -> dict[TrustDomain, SpiffeBundle]:
    """Return the bundles of a bundle map (section 4.3), whose refresh hints do not count.

    Raises:
        ValueError: it is not a bundle map: as for a bundle, or a name that is no trust domain.

    """
    try:
        found = _load_json(text)["trust_domains"].items()
        parsed = {TrustDomain.parse(name): _parse_bundle(document) for name, document in found}
    except _MALFORMED as error:
        raise ValueError("it is not a SPIFFE bundle map") from error
    return {
        name: SpiffeBundle(one.x509_authorities, one.jwt_authorities, one.sequence)
        for name, one in parsed.items()
    }


_MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
    x509.InvalidVersion,
    CryptographyDeprecationWarning,
)


def public_jwk(key: PublicKey | ed25519.Ed25519PublicKey) -> dict[str, str]:
    """Return the members of a JWK that are the public key itself (RFC 7518, section 6)."""
    match key:
        case ec.EllipticCurvePublicKey():
            numbers, size = key.public_numbers(), (key.key_size + 7) // 8
            curve = _CURVE_NAMES[key.curve.name]
            return {"kty": "EC", "crv": curve, "x": _b64(numbers.x, size), "y": _b64(numbers.y, size)}
        case rsa.RSAPublicKey():
            modulus, exponent = key.public_numbers().n, key.public_numbers().e
            return {
                "kty": "RSA",
                "n": _b64(modulus, (modulus.bit_length() + 7) // 8),
                "e": _b64(exponent, (exponent.bit_length() + 7) // 8),
            }
        case ed25519.Ed25519PublicKey():
            # RFC 8037, 2.
            return {"kty": "OKP", "crv": "Ed25519", "x": _b64(int.from_bytes(key.public_bytes_raw()), 32)}


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; for `json.loads`, which would keep the last of two members silently.

    Raises:
        ValueError: a member stands twice.

    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member stands twice")
    return found


def refuse_constant(name: str) -> Any:
    """Refuse `NaN` and its like, which are not JSON; for `json.loads`.

    Raises:
        ValueError: always.

    """
    raise ValueError(f"`{name}` is not JSON")


def decode_base64url(text: str) -> bytes:
    """Return what `text` encodes, base64url without padding and in its one spelling (RFC 7515, section 2).

    Raises:
        ValueError: it is not that.

    """
    try:
        found = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("it is not base64url") from error
    if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != text:
        raise ValueError("it is not base64url")
    return found


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """Raise for what the library still tolerates with a warning, such as a negative serial number."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        yield


def _load_json(text: str | bytes) -> Any:
    if isinstance(text, bytes | bytearray):
        text = text.decode("utf-8")  # `json` would take UTF-16 as well
    return json.loads(text, object_pairs_hook=unique_members, parse_constant=refuse_constant)


def _parse_bundle(document: Any) -> SpiffeBundle:
    certificates: list[x509.Certificate] = []
    authorities: dict[str, JwtAuthority] = {}
    intermediates = document.get(INTERMEDIATES, [])
    if not isinstance(document["keys"], list) or not isinstance(intermediates, list):
        raise TypeError("what should be a list is none")
    for entry in document["keys"]:
        use, kid = entry.get("use"), entry.get("kid")
        if use == "x509-svid" and entry.get("x5c"):
            certificates.append(_parse_certificate(entry["x5c"][0]))
        elif use == "jwt-svid" and kid:
            if not isinstance(kid, str) or kid in authorities:
                raise ValueError("a `kid` is not a text, or stands twice")
            key = _parse_jwk(entry)
            if key is not None:
                authorities[kid] = JwtAuthority(kid, key)
    return SpiffeBundle(
        tuple(certificates),
        tuple(authorities.values()),
        _number(document, "spiffe_sequence"),
        _number(document, "spiffe_refresh_hint"),
        tuple(map(_parse_certificate, intermediates)),
    )


def _parse_certificate(text: str) -> x509.Certificate:
    with _strictly():
        return x509.load_der_x509_certificate(base64.b64decode(text, validate=True))


def _number(document: Mapping[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_SEQUENCE):
        raise ValueError(f"`{name}` is not a whole number in its range")
    return value


def _parse_jwk(entry: Mapping[str, Any]) -> PublicKey | None:
    """Return the key of a JWK; None if it is of a kind that is not used here."""
    match entry.get("kty"):
        case "EC" if entry["crv"] in _CURVES:
            curve = _CURVES[entry["crv"]]
            x, y = (decode_base64url(entry[name]) for name in ("x", "y"))
            if {len(x), len(y)} != {(curve.key_size + 7) // 8}:
                raise ValueError("a coordinate has another length than its curve")  # RFC 7518, 6.2.1.2
            numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve)
            return numbers.public_key()
        case "RSA":
            modulus, exponent = (int.from_bytes(decode_base64url(entry[name])) for name in ("n", "e"))
            if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS:
                return None
            return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    return None


def _keys(bundle: SpiffeBundle) -> list[dict[str, Any]]:
    roots = [
        {"use": "x509-svid", **_certificate_jwk(root), "x5c": [_der_text(root)]}
        for root in bundle.x509_authorities
    ]
    return [*roots, *map(_jwt_key, bundle.jwt_authorities)]


def _der_text(certificate: x509.Certificate) -> str:
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


def _certificate_jwk(certificate: x509.Certificate) -> dict[str, str]:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey | ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVE_NAMES
    ):
        return public_jwk(key)
    raise ValueError("a root has a key that a JWK set is not made with here")


def _jwt_key(authority: JwtAuthority) -> dict[str, str]:
    return {"use": "jwt-svid", "kid": authority.kid, **public_jwk(authority.key)}


def _b64(number: int, size: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(size)).rstrip(b"=").decode()
