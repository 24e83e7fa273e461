"""Keys and tokens for tests. Tokens are put together by hand where a library would refuse to."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.checks import NOW

ISSUER = "https://issuer.example"

_FAMILIES: dict[str, Any] = {
    "RS256": jwt.algorithms.RSAAlgorithm,
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
}


@dataclass(frozen=True)
class Signer:
    """A private key with the algorithm and key ID it signs with."""

    key: Any
    algorithm: str
    kid: str = "k1"

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """Return the public key as a JWK."""
        members: dict[str, Any] = _FAMILIES[self.algorithm].to_jwk(self.key.public_key(), as_dict=True)
        members.pop("key_ops", None)
        return {**members, "kid": self.kid, "use": "sig", **changes}

    def jwks(self, **changes: Any) -> str:
        """Return a JWK Set with this key alone."""
        return json.dumps({"keys": [self.jwk(**changes)]})

    def public_pem(self) -> bytes:
        """Return the public key in PEM."""
        pem: bytes = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def token(self, claims: dict[str, Any] | None = None, header: dict[str, Any] | None = None) -> str:
        """Return a signed token; `claims` and `header` change what a good one has, None removes."""
        payload = {"iss": ISSUER, "sub": "a", "exp": NOW + 3600, "email": "a@foo.com", **(claims or {})}
        headers = {"kid": self.kid, **(header or {})}
        return jwt.encode(
            {name: value for name, value in payload.items() if value is not None},
            self.key,
            algorithm=self.algorithm,
            headers=headers,
        )


@cache
def rsa_signer(kid: str = "k1", bits: int = 2048) -> Signer:
    """Return an RSA key; the same one for the same arguments."""
    return Signer(rsa.generate_private_key(65537, bits), "RS256", kid)


@cache
def ec_signer(kid: str = "k1") -> Signer:
    """Return a P-256 key."""
    return Signer(ec.generate_private_key(ec.SECP256R1()), "ES256", kid)


@cache
def ed_signer(kid: str = "k1") -> Signer:
    """Return an Ed25519 key."""
    return Signer(ed25519.Ed25519PrivateKey.generate(), "EdDSA", kid)


def encode_part(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(header: Any, payload: Any, signature: bytes = b"x") -> str:
    """Return a token with exactly these parts; bytes are taken as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    return ".".join([*(encode_part(part) for part in parts), encode_part(signature)])


@dataclass(frozen=True)
class Authentication:
    """A RequestAuthentication document in the making."""

    jwks: str
    audiences: tuple[str, ...] = ()
    extra: str = ""
    selector: str = ""
    namespace: str = "default"
    name: str = "jwt"
    issuer: str = ISSUER
    annotations: str = ""

    def __str__(self) -> str:
        return f"""
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: {self.name}, namespace: {self.namespace}, annotations: {{{self.annotations}}}}}
spec:
  {self.selector}
  jwtRules:
  - issuer: {self.issuer}
    audiences: {json.dumps(list(self.audiences))}
    jwks: {json.dumps(self.jwks)}
    {self.extra}
---
"""
