"""What is wrong with a certificate, or with the way a CA is kept, and what may become so.

Errors break a rule (X509-SVID, RFC 5280, our key policy); warnings are lawful, but somebody should know.
Of certificates everything is looked at, not the first mistake only.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from ca.authority import ROOT_KEY, CaCertificates, load_encryption
from ca.authority_files import key_files
from ca.inspection import check_leaf, check_signing
from ca.issuer import MAX_TTL
from ca.key_encryption import PLAIN
from ca.keys import check_ca_public_key, check_public_key
from ca.verification import verify_chain
from garrison.documents import Severity
from garrison.errors import ConfigError, IssuanceError

MAX_CA_LIFE = timedelta(days=3660)
# RFC 5280, 4.1.2.2.
_MAX_SERIAL_BYTES = 20
_MIN_SERIAL_BITS = 64
# A CA that has less of its life left needs a successor, while SVIDs still get their full life from it.
SUCCESSOR_DUE = 1 / 6


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about `where`; `code` is stable."""

    where: str
    severity: Severity
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.severity.value}: {self.message} [{self.code}]"

    def as_json(self) -> dict[str, str]:
        """Return the finding as JSON data."""
        return {name: str(value) for name, value in asdict(self).items()}


def lint_certificate(certificate: x509.Certificate, where: str, now: datetime) -> list[Finding]:
    """Return what is wrong with a certificate, or doubtful."""
    try:
        found = list(_certificate(certificate, now))
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        found = [(Severity.ERROR, "malformed", f"it cannot be read whole: {error}")]
    return [Finding(where, *one) for one in found]


_Found = Iterator[tuple[Severity, str, str]]


def _certificate(certificate: x509.Certificate, now: datetime) -> _Found:
    is_ca = _is_ca(certificate)
    try:
        if is_ca:
            if check_signing(certificate) is None:
                yield (
                    Severity.WARNING,
                    "no_trust_domain",
                    "a signing certificate should have its trust domain as URI",
                )
            check_ca_public_key(certificate.public_key())
        else:
            check_leaf(certificate)
            check_public_key(certificate.public_key())
    except IssuanceError as error:
        yield Severity.ERROR, "profile", str(error)
    yield from _signature(certificate)
    yield from _time(certificate, now, is_ca=is_ca)
    yield from _extensions(certificate, is_ca=is_ca)


def _is_ca(certificate: x509.Certificate) -> bool:
    basic = _extension(certificate, x509.BasicConstraints)
    return basic is not None and isinstance(basic.value, x509.BasicConstraints) and basic.value.ca


def _signature(certificate: x509.Certificate) -> _Found:
    # Ed25519 has none of its own choice.
    used = certificate.signature_hash_algorithm
    if used is not None and not isinstance(used, SHA256 | SHA384 | SHA512):
        yield Severity.ERROR, "weak_signature", f"it is signed with {used.name}"
    serial = certificate.serial_number
    if serial <= 0 or serial.bit_length() > 8 * _MAX_SERIAL_BYTES - 1:
        yield Severity.ERROR, "serial", "a serial number is positive and has at most 20 bytes"
    elif serial.bit_length() < _MIN_SERIAL_BITS - 8:
        yield Severity.WARNING, "short_serial", "its serial number is so short that it may be guessed"


def _time(certificate: x509.Certificate, now: datetime, *, is_ca: bool) -> _Found:
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    life = ends - starts
    if life <= timedelta(0):
        yield Severity.ERROR, "validity", "it ends before it starts"
    elif now > ends:
        yield Severity.ERROR, "expired", f"it expired at {ends:%FT%TZ}"
    elif now < starts:
        yield Severity.ERROR, "not_yet_valid", f"it is not valid before {starts:%FT%TZ}: is the clock right?"
    elif is_ca and ends - now < life * SUCCESSOR_DUE:
        yield Severity.WARNING, "ends_soon", f"it ends at {ends:%FT%TZ}: make its successor"
    if is_ca and life > MAX_CA_LIFE:
        yield (
            Severity.WARNING,
            "long_life",
            f"a CA should live at most {MAX_CA_LIFE.days} days, not {life.days}",
        )
    if not is_ca and life > MAX_TTL + timedelta(hours=1):
        yield Severity.WARNING, "long_life", f"an SVID should live at most {MAX_TTL}, this one lives {life}"


def _extensions(certificate: x509.Certificate, *, is_ca: bool) -> _Found:
    basic = _extension(certificate, x509.BasicConstraints)
    if is_ca and basic is not None and not basic.critical:
        yield Severity.ERROR, "not_critical", "a CA's basic constraints must be critical (RFC 5280, 4.2.1.9)"
    limits = basic.value if basic is not None else None
    if is_ca and isinstance(limits, x509.BasicConstraints) and limits.path_length is None:
        yield Severity.WARNING, "no_path_length", "it may sign further CAs without limit"
    self_signed = certificate.issuer == certificate.subject
    if is_ca and _extension(certificate, x509.SubjectKeyIdentifier) is None:
        yield Severity.ERROR, "no_key_identifier", "a CA needs a subject key identifier (RFC 5280, 4.2.1.2)"
    if not self_signed and _extension(certificate, x509.AuthorityKeyIdentifier) is None:
        yield (
            Severity.ERROR,
            "no_key_identifier",
            "an authority key identifier is missing (RFC 5280, 4.2.1.1)",
        )
    if is_ca and not certificate.subject.rdns:
        yield Severity.ERROR, "no_subject", "a CA needs a subject (RFC 5280, 4.1.2.6)"
    if is_ca and _extension(certificate, x509.NameConstraints) is not None:
        message = "some verifiers refuse every chain with name constraints for URIs"
        yield Severity.WARNING, "name_constraints", message
    if is_ca:
        return
    if _extension(certificate, x509.ExtendedKeyUsage) is None:
        yield Severity.WARNING, "no_extended_usage", "a leaf should have serverAuth and clientAuth"
    usage = _extension(certificate, x509.KeyUsage)
    encipher = usage is not None and isinstance(usage.value, x509.KeyUsage) and usage.value.key_encipherment
    if encipher and isinstance(certificate.public_key(), ec.EllipticCurvePublicKey):
        yield Severity.WARNING, "key_encipherment", "keyEncipherment means nothing for an EC key"
    if certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME):
        yield Severity.WARNING, "common_name", "a common name may be taken for an identity by old software"


def _extension(
    certificate: x509.Certificate, kind: type[x509.ExtensionType]
) -> x509.Extension[x509.ExtensionType] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def lint_directory(directory: Path, now: datetime) -> list[Finding]:
    """Return what is wrong with a CA's directory: its certificates, and how its keys are kept.

    No key is decrypted.

    Raises:
        ConfigError: it holds no CA that can be read.

    """
    public = CaCertificates.load(directory)
    found = []
    for certificate in dict.fromkeys((*public.roots, *public.chain)):
        name = certificate.subject.rfc4514_string()
        found += lint_certificate(certificate, f"{directory}: {name}", now)
    if not any(_chain_holds(public, root) for root in public.roots):
        message = "the intermediate does not verify under any of the roots"
        found.append(Finding(str(directory), Severity.ERROR, "unverified_chain", message))
    for name in key_files(directory):
        found += _key_file(directory / name)
        if name.endswith(ROOT_KEY):
            message = "the root's key is not needed here: move it off this machine"
            found.append(Finding(str(directory / name), Severity.WARNING, "root_key_here", message))
    if stat.S_IMODE(directory.stat().st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        message = "others can write to the directory: chmod 700"
        found.append(Finding(str(directory), Severity.ERROR, "open_directory", message))
    return found


def _chain_holds(public: CaCertificates, root: x509.Certificate) -> bool:
    """Tell whether each link of the chain signed the one before it, and `root` the last."""
    links = (*public.chain, root)
    moment = max(link.not_valid_before_utc for link in links)
    try:
        verify_chain(public.certificate, public.chain[1:], [root], moment, any_leaf=True)
    except IssuanceError:
        return False
    return True


def _key_file(path: Path) -> list[Finding]:
    found = []
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = f"others can read or write the key (mode {mode:04o}): chmod 600"
        found.append(Finding(str(path), Severity.ERROR, "open_key", message))
    try:
        encryption = load_encryption(path)
    except ConfigError as error:
        return [*found, Finding(str(path), Severity.ERROR, "bad_key", error.diagnostics[0].message)]
    if encryption == PLAIN:
        message = "the key is not encrypted: `ca passphrase` does that"
        found.append(Finding(str(path), Severity.WARNING, "plain_key", message))
    elif encryption.weak:
        message = f"the passphrase is quick to guess ({encryption.text}): `ca passphrase` writes it anew"
        found.append(Finding(str(path), Severity.WARNING, "weak_encryption", message))
    return found
