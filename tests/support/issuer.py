"""A real token issuer on loopback, for tests: discovery and keys over HTTPS, and tokens signed with them.

with TokenIssuer(tmp_path) as issuer:
settings: keys: {ca: issuer.ca}; policy: jwksUri: issuer.jwks_uri or issuer: issuer.issuer
issuer.token({"sub": "a"})             # signed with the current key, good for an hour from now
issuer.rotate()                        # another key alone; the old one is gone
issuer.is_up = False                   # connections are closed unanswered
issuer.answers[JWKS] = answer(b"", 302, location="http://169.254.169.254/")
issuer.asked[JWKS]                     # requests so far
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec

from support.certificates import certify
from support.http_server import Answer, answer
from support.tokens import Signer

JWKS = "/keys"
DISCOVERY = "/.well-known/openid-configuration"
_PATIENCE_SECONDS = 30.0


class TokenIssuer:
    """An issuer with one key at first; `path` is that of the issuer's URL, `tls=False` makes it http://.

    `keys` are the signers whose public keys are served, the current one last. `headers` go with the key set.
    `answers` take the place of what a path (`JWKS`, `DISCOVERY`, any other) answers by itself.
    """

    def __init__(self, folder: Path, *, path: str = "", tls: bool = True) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.headers: dict[str, str] = {}
        self.is_up = True
        self.keys = [_signer("k1")]
        self._made = 1
        self._path = path
        self._closed = threading.Event()
        self._happened = threading.Condition()
        context, self.ca = certify(folder, "127.0.0.1", "localhost")
        self._server = _Server(self)
        if tls:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        port = self._server.server_address[1]
        self._origin = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def issuer(self) -> str:
        """The issuer as tokens and policies name it."""
        return self._origin + self._path

    @property
    def jwks_uri(self) -> str:
        """Where the keys are."""
        return self._origin + JWKS

    @property
    def signer(self) -> Signer:
        """The current key."""
        return self.keys[-1]

    def token(self, claims: dict[str, Any] | None = None, signer: Signer | None = None) -> str:
        """Return a token of this issuer by the current key or another one; a claim that is None is left out."""
        now = int(time.time())
        standard = {"iss": self.issuer, "sub": "a", "iat": now, "exp": now + 3600}
        return (signer or self.signer).token({**standard, "email": None, **(claims or {})})

    def rotate(self) -> Signer:
        """Make another key the only one; return it."""
        self.keys = [self._next_signer()]
        return self.signer

    def add_key(self) -> Signer:
        """Sign with another key from now on, and go on serving the old ones; return it."""
        self.keys = [*self.keys, self._next_signer()]
        return self.signer

    def jwks(self) -> bytes:
        """Return the key set as it is served."""
        return json.dumps({"keys": [one.jwk() for one in self.keys]}).encode()

    def wait_until_asked(self, times: int, path: str = JWKS) -> None:
        """Return once `path` was asked for so many times in all."""
        with self._happened:
            assert self._happened.wait_for(lambda: self.asked[path] >= times, _PATIENCE_SECONDS), self.asked

    def drip(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a byte at a time, for ever; one of `answers`."""
        handler.send_response(200)
        handler.send_header("content-length", "100000")
        handler.end_headers()
        try:
            while not self._closed.wait(0.02):
                handler.wfile.write(b" ")
        except OSError:
            return

    def hang(self, _: BaseHTTPRequestHandler) -> None:
        """Never answer; one of `answers`."""
        self._closed.wait()

    def stop(self) -> None:
        """Close the port for good."""
        if not self._closed.is_set():
            self._closed.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        """Count and answer a request."""
        with self._happened:
            self.asked[handler.path] += 1
            self._happened.notify_all()
        own = {
            JWKS: lambda: answer(self.jwks(), 200, **self.headers),
            self._path.removesuffix("/") + DISCOVERY: lambda: answer(self._description()),
        }
        if (given := self.answers.get(handler.path)) is not None:
            given(handler)
        elif (found := own.get(handler.path)) is not None:
            found()(handler)
        else:
            answer(b"", 404)(handler)

    def _description(self) -> bytes:
        return json.dumps({"issuer": self.issuer, "jwks_uri": self.jwks_uri}).encode()

    def _next_signer(self) -> Signer:
        self._made += 1
        return _signer(f"k{self._made}")


def _signer(kid: str) -> Signer:
    # Not `ec_signer`: two issuers must not have one key.
    return Signer(ec.generate_private_key(ec.SECP256R1()), "ES256", kid)


class _Server(ThreadingHTTPServer):
    def __init__(self, issuer: TokenIssuer) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.respond(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._issuer = issuer
        super().__init__(("127.0.0.1", 0), Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Take no request while the issuer is down."""
        return self._issuer.is_up

    def shutdown_request(self, request: Any) -> None:
        """Close the connection, also one whose TLS handshake was never made."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(request, socket.SHUT_RDWR)
        self.close_request(request)

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients here hang up on purpose."""
