"""Secrets as Envoy's messages. What Envoy would refuse is refused here: one spoils its whole context."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from ca import der
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
    return NamedSecret(name, _digest([_der(one) for one in chain]), message)


def roots_secret(name: str, roots: Sequence[x509.Certificate], crls: Sequence[bytes] = ()) -> NamedSecret:
    """Return what peers are verified with; CRLs are DER.

    Raises:
        IssuanceError: there is no root: Envoy would then take every certificate.

    """
    if not roots:
        raise IssuanceError(f"there are no roots for `{name}`")
    return _with_crls(name, tuple(roots), tuple(crls)) if crls else _roots(name, roots, ())


def _roots(name: str, roots: Sequence[x509.Certificate], crls: Sequence[bytes]) -> NamedSecret:
    message = Secret(name=name)
    message.validation_context.trusted_ca.inline_bytes = format_certificates(roots)
    if crls:
        message.validation_context.crl.inline_bytes = b"".join(der.pem("X509 CRL", one) for one in crls)
        # Without it Envoy wants a CRL of the root too, whose key is kept elsewhere, and refuses everybody.
        message.validation_context.only_verify_leaf_cert_crl = True
    return NamedSecret(name, _digest([*map(_der, roots), *crls]), message)


# Every stream asks whenever anything changes, and lists may be long. Two: our roots have two names.
_with_crls = functools.lru_cache(maxsize=2)(_roots)


def _digest(parts: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
