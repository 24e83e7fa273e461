"""What verifiers of our SVIDs fetch: OpenID discovery, the keys of tokens, the SPIFFE bundle.

The bundle is served as SPIFFE Federation, section 5.1 (profile `https_web`), wants it: GET, no client
authentication, JSON. Discovery and keys are what OpenID Connect Discovery 1.0, sections 3 and 4, asks for.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from ca.bundle import SpiffeBundle, format_spiffe_bundle, public_jwk
from ca.jwt_svid import algorithm_for
from garrison.process.pages import Page

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/keys"
BUNDLE = "/bundle"

_JSON = "application/json"


class OidcPages:
    """The pages; `bundle` returns what is in force, and may be called by any thread."""

    def __init__(self, bundle: Callable[[], SpiffeBundle], issuer: str | None) -> None:
        self._bundle = bundle
        self._issuer = issuer

    def page(self, path: str) -> Page:
        """Return the page at `path`. Without an issuer there is nothing for OpenID to discover."""
        match path:
            case "/.well-known/openid-configuration" if self._issuer is not None:
                return "200 OK", _JSON, self._discovery(self._issuer).encode()
            case "/keys":
                return "200 OK", _JSON, _signing_keys(self._bundle()).encode()
            case "/bundle":
                return "200 OK", _JSON, format_spiffe_bundle(self._bundle()).encode()
            case _:
                return "404 Not Found", "text/plain", f"{DISCOVERY} {KEYS} {BUNDLE}\n".encode()

    def _discovery(self, issuer: str) -> str:
        algorithms = {algorithm_for(one.key) for one in self._bundle().jwt_authorities} or {"ES256"}
        return json.dumps(
            {
                "issuer": issuer,
                "jwks_uri": f"{issuer}{KEYS}",
                # Required members, for what is not done here: nobody logs in.
                "authorization_endpoint": "",
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": sorted(algorithms),
            }
        )


def _signing_keys(bundle: SpiffeBundle) -> str:
    # `use` is what RFC 7517 knows; `jwt-svid` is known to SPIFFE alone.
    keys = [
        {"use": "sig", "kid": one.kid, "alg": algorithm_for(one.key), **public_jwk(one.key)}
        for one in bundle.jwt_authorities
    ]
    return json.dumps({"keys": keys})
