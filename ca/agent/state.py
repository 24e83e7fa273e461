"""What an agent keeps on disk so that it need not attest again: its SVID with its key, and the roots.

One file holds the key and the certificates for it, so they always belong together. Nothing of workloads is
kept: their keys are in memory only.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca.atomic_files import write_file
from ca.authority import X509Svid
from ca.bundle import SpiffeBundle, format_spiffe_bundle, parse_certificates, parse_spiffe_bundle
from ca.inspection import check_key_pair, check_leaf
from ca.keys import PrivateKey, check_public_key, parse_private_key, private_key_pem
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError, DependencyError, IssuanceError
from garrison.private_files import read_private

NODE = "node.pem"
BUNDLE = "bundle.json"
_MAX_BYTES = 1024 * 1024
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class NodeSvid:
    """The node's own identity; with it the server knows who asks."""

    svid: X509Svid
    key: PrivateKey

    def is_valid(self, now: datetime) -> bool:
        """Tell whether it can still be shown."""
        return now < self.svid.not_after


class AgentState:
    """A directory of an agent. Only its user may look into it."""

    def __init__(self, directory: Path) -> None:
        """Make the directory if there is none.

        Raises:
            ConfigError: it cannot be made, or others can look into it.

        """
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = directory.stat().st_mode
        except OSError as error:
            raise _problem(directory, (error.strerror or str(error)).lower()) from error
        if mode & _OTHERS:
            message = f"others can look into it (mode {stat.S_IMODE(mode):04o}): `chmod 700 {directory}`"
            raise _problem(directory, message)

    def check_writable(self) -> None:
        """Refuse a directory that nothing can be written to.

        Raises:
            ConfigError: it is one.

        """
        probe = self.directory / ".probe"
        try:
            write_file(probe, b"", mode=0o600, replace=True)
            probe.unlink()
        except OSError as error:
            raise _problem(
                self.directory, f"cannot be written: {(error.strerror or str(error)).lower()}"
            ) from error

    def load_node(self) -> NodeSvid | None:
        """Return the node's SVID, also when it has expired; None if there is none yet.

        Raises:
            ConfigError: the file is there and cannot be used.

        """
        content = self._read(NODE)
        if content is None:
            return None
        path = self.directory / NODE
        try:
            certificates_at = content.index(b"-----BEGIN CERTIFICATE-----")
            key = parse_private_key(content[:certificates_at])
            check_public_key(key.public_key())
            certificates = parse_certificates(content[certificates_at:])
            check_key_pair(certificates[0], key)
            leaf = certificates[0]
            svid = X509Svid(check_leaf(leaf), certificates, leaf.public_bytes(Encoding.DER))
            return NodeSvid(svid, key)  # type: ignore[arg-type]  # checked
        except (ValueError, IssuanceError) as error:
            message = f"it is not what an agent wrote ({error}); remove it and attest this node again"
            raise _problem(path, message) from error

    def save_node(self, node: NodeSvid) -> None:
        """Keep the node's SVID.

        Raises:
            OSError: it cannot be written; what was there before still is.

        """
        content = private_key_pem(node.key) + node.svid.chain_pem
        write_file(self.directory / NODE, content, mode=0o600, replace=True)

    def load_roots(self) -> tuple[x509.Certificate, ...]:
        """Return the roots of our trust domain as the server told them last; none if it never did.

        Raises:
            ConfigError: the file is there and cannot be used.

        """
        content = self._read(BUNDLE)
        if content is None:
            return ()
        try:
            return parse_spiffe_bundle(content).x509_authorities
        except ValueError as error:
            raise _problem(self.directory / BUNDLE, f"{error}; remove it") from error

    def save_bundle(self, bundle: SpiffeBundle) -> None:
        """Keep the bundle of our trust domain.

        Raises:
            OSError: it cannot be written; what was there before still is.

        """
        content = format_spiffe_bundle(bundle).encode()
        write_file(self.directory / BUNDLE, content, mode=0o600, replace=True)

    def _read(self, name: str) -> bytes | None:
        path = self.directory / name
        try:
            return read_private(path, _MAX_BYTES)
        except FileNotFoundError:
            return None
        except DependencyError as error:
            raise _problem(path, str(error)) from error


def load_bootstrap(path: Path) -> tuple[x509.Certificate, ...]:
    """Return the roots that an operator put on this node, PEM or SPIFFE JSON.

    Raises:
        ConfigError: the file cannot be used.

    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise _problem(path, f"more than {_MAX_BYTES} bytes are no bundle")
        is_json = content.lstrip()[:1] == b"{"
        found = parse_spiffe_bundle(content).x509_authorities if is_json else parse_certificates(content)
    except OSError as error:
        raise _problem(path, (error.strerror or str(error)).lower()) from error
    except ValueError as error:
        raise _problem(path, str(error)) from error
    if not found:
        raise _problem(path, "it holds no root, so no server could be verified")
    return found


def _problem(path: Path, message: str) -> ConfigError:
    return ConfigError([Diagnostic(str(path), Position(1, 1), (), "agent_state", message)])
