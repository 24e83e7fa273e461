"""Trust bundles: PEM files -> what verifies peers' certificates. The edge of `authz.authn.certificates`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from authz.authn.certificates import CertificateVerifier, trust_bundle
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError
from garrison.identity import TrustDomain

# The largest public set of roots has about 250 KB.
_MAX_FILE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TrustFile:
    """Certificates of CAs; without `has_roots`, those that issued themselves do not count.

    An `optional` one may be missing.
    """

    trust_domain: TrustDomain
    path: Path
    has_roots: bool = True
    optional: bool = False


class TrustBundles:
    """The bundles in force; `use` swaps them for the next call."""

    def __init__(self) -> None:
        self.current: CertificateVerifier | None = None

    def use(self, verifier: CertificateVerifier) -> None:
        """Verify with `verifier` from the next call on."""
        self.current = verifier


def load_bundles(
    files: Sequence[TrustFile], *, required: bool, federated: Collection[TrustDomain] = ()
) -> CertificateVerifier:
    """Return what verifies with these files; those of one trust domain are one bundle.

    Those of `federated` have no roots yet, and files for them hold intermediates only.

    Raises:
        ConfigError: a file cannot be read, holds something else than certificates of CAs, or a trust domain
            has no root; every problem is in it.

    """
    found: dict[TrustDomain, list[x509.Certificate]] = {one: [] for one in federated}
    last: dict[TrustDomain, Path] = {}
    problems: list[Diagnostic] = []
    digest = hashlib.sha256()
    for file in files:
        trust_domain, path = file.trust_domain, file.path
        try:
            content = _read(path)
            certificates = x509.load_pem_x509_certificates(content)
            if not file.has_roots:
                certificates = [one for one in certificates if one.issuer != one.subject]
            found.setdefault(trust_domain, []).extend(certificates)
        except OSError as error:
            if file.optional and isinstance(error, FileNotFoundError):
                continue
            reason = (error.strerror or str(error)).lower()
            problems.append(_problem(path, "unreadable", f"cannot be read: {reason}"))
        except (ValueError, x509.InvalidVersion) as error:
            problems.append(_problem(path, "bad_certificate", f"holds no certificates in PEM: {error}"))
        else:
            last[trust_domain] = path
            digest.update(hashlib.sha256(trust_domain.name.encode() + b"\0" + content).digest())
    bundles = {}
    for trust_domain, certificates in found.items():
        is_federated = trust_domain in federated
        if trust_domain in last or is_federated:
            try:
                bundles[trust_domain.name] = trust_bundle(certificates, roots_are_federated=is_federated)
            except ValueError as error:
                problems.append(_problem(last[trust_domain], "bad_bundle", str(error)))
    if problems:
        raise ConfigError(problems)
    return CertificateVerifier(bundles, required=required, version=digest.hexdigest()[:12])


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"it has more than {_MAX_FILE_BYTES} bytes")
    return content


def _problem(path: Path, code: str, message: str) -> Diagnostic:
    return Diagnostic(str(path), Position(1, 1), (), code, message)
