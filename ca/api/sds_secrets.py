"""Secrets as Envoy's messages. What Envoy would refuse is refused here: one spoils its whole context."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from ca.bundle import format_certificates
from ca.inspection import check_key_pair
from ca.keys import CaKey, check_public_key, private_key_pem
from garrison.errors import IssuanceError

TYPE_URL = f"type.googleapis.com/{Secret.DESCRIPTOR.full_name}"


@dataclass(frozen=True, slots=True)
class NamedSecret:
    """A secret to be sent; `version` changes exactly when its content does, and gives nothing of it away."""

    name: str
    version: str
    message: Any


def certificate_secret(name: str, chain: Sequence[x509.Certificate], key: CaKey) -> NamedSecret:
    """Return a chain, leaf first, with its key.

    Raises:
        IssuanceError: the key is not that of the leaf, or of a kind that Envoy does not take.

    """
    check_public_key(chain[0].public_key())
    check_key_pair(chain[0], key)
    message = Secret(name=name)
    message.tls_certificate.certificate_chain.inline_bytes = format_certificates(chain)
    message.tls_certificate.private_key.inline_bytes = private_key_pem(key)
    return NamedSecret(name, _digest(chain), message)


def roots_secret(
    name: str, roots: Sequence[x509.Certificate], crls: Sequence[x509.CertificateRevocationList] = ()
) -> NamedSecret:
    """Return what peers are verified with.

    Raises:
        IssuanceError: there is no root: Envoy would then take every certificate.

    """
    if not roots:
        raise IssuanceError(f"there are no roots for `{name}`")
    message = Secret(name=name)
    message.validation_context.trusted_ca.inline_bytes = format_certificates(roots)
    if crls:
        message.validation_context.crl.inline_bytes = b"".join(crl.public_bytes(Encoding.PEM) for crl in crls)
        # Without it Envoy wants a CRL of the root too, whose key is kept elsewhere, and refuses everybody.
        message.validation_context.only_verify_leaf_cert_crl = True
    return NamedSecret(name, _digest([*roots, *crls]), message)


def _digest(signed: Sequence[x509.Certificate | x509.CertificateRevocationList]) -> str:
    der = b"".join(one.public_bytes(Encoding.DER) for one in signed)
    return hashlib.sha256(der).hexdigest()[:16]
