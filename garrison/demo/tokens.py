"""The demo's own token issuer: the key lives in memory, only its public half is written down."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

TOKEN_ISSUER = "https://login.bookinfo.example"  # noqa: S105 - a name, as in policies/tokens.yaml
AUDIENCE = "bookinfo"
_KEY_ID = "demo"


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True, slots=True)
class Tokens:
    """Signs JWTs as `issuer`. Two of these share the name and the key id, never the key."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=_new_key, repr=False)

    def jwks(self) -> str:
        """Return the public key set, as a `RequestAuthentication` takes it."""
        key = json.loads(ECAlgorithm.to_jwk(self.key.public_key()))
        return json.dumps({"keys": [{**key, "kid": _KEY_ID, "alg": "ES256", "use": "sig"}]})

    def sign(
        self, email: str, *, now: datetime | None = None, lifetime: timedelta = timedelta(hours=1)
    ) -> str:
        """Return a token whose `email` is `email`; a negative lifetime makes one that has expired."""
        now = now or datetime.now(UTC)
        claims = {
            "iss": TOKEN_ISSUER,
            "aud": AUDIENCE,
            "sub": email,
            "email": email,
            "iat": min(now, now + lifetime) - timedelta(seconds=60),
            "exp": now + lifetime,
        }
        return jwt.encode(claims, self.key, algorithm="ES256", headers={"kid": _KEY_ID})
