"""Bundles of other trust domains, from files that somebody keeps current."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ca.bundle import SpiffeBundle, parse_certificates, parse_spiffe_bundle
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError
from garrison.identity import TrustDomain

_MAX_FILE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FederatedBundles:
    """One generation of bundles by trust domain; never merged. `version` is a hash of the files."""

    bundles: Mapping[TrustDomain, SpiffeBundle]
    version: str
    warnings: tuple[Diagnostic, ...] = ()


def load_federated(files: Sequence[tuple[TrustDomain, Path]]) -> FederatedBundles:
    """Return what the files hold: a SPIFFE bundle, or roots in PEM, which verify X509-SVIDs only.

    Raises:
        ConfigError: a file cannot be read or used; every problem is in it.

    """
    bundles: dict[TrustDomain, SpiffeBundle] = {}
    problems: list[Diagnostic] = []
    digest = hashlib.sha256()
    for trust_domain, path in files:
        try:
            content = _read(path)
            bundles[trust_domain] = parse_bundle(content)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            problems.append(_problem(path, "unreadable", f"cannot be read: {reason}"))
        except ValueError as error:
            problems.append(_problem(path, "bad_bundle", str(error)))
        else:
            digest.update(hashlib.sha256(f"{trust_domain}\0".encode() + content).digest())
    if problems:
        raise ConfigError(problems)
    return FederatedBundles(bundles, digest.hexdigest()[:12])


def parse_bundle(content: bytes) -> SpiffeBundle:
    """Return what `content` holds: a SPIFFE bundle, or roots in PEM.

    Raises:
        ValueError: it is neither, or holds certificates in PEM of which none is a root.

    """
    if content.lstrip().startswith(b"{"):
        return parse_spiffe_bundle(content)
    # Who issued itself is a root; an intermediate must not be trusted on its own.
    roots = tuple(one for one in parse_certificates(content) if one.issuer == one.subject)
    if not roots:
        raise ValueError("it holds no root, only certificates that others issued")
    return SpiffeBundle(roots)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {_MAX_FILE_BYTES} bytes")
    return content


def _problem(path: Path, code: str, message: str) -> Diagnostic:
    return Diagnostic(str(path), Position(1, 1), (), code, message)
