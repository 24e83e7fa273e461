"""BookInfo's services: small applications with real behaviour, which know nothing of identities or policies.

`respond` is pure but for the `fetch` it is given; the rest is HTTP. Run as `python -m garrison.demo.services
NAME:LISTENING-FD:OUTBOUND-PORT…`, one argument for each application.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import http.client
import json
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

_MAX_BODY_BYTES = 64 * 1024
_TIMEOUT_SECONDS = 10.0

# What a call takes along to the calls it causes: who it is for, and which trace it belongs to.
PROPAGATED = (
    "authorization",
    "end-user",
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "traceparent",
    "tracestate",
)

PRODUCTS = [
    {
        "id": 0,
        "title": "Flatland",
        "description": "A square explains life in two dimensions to readers who have one more.",
    }
]
DETAILS = {
    "id": 0,
    "author": "Edwin A. Abbott",
    "year": 1884,
    "type": "paperback",
    "pages": 96,
    "language": "English",
}
REVIEWS = [
    {"reviewer": "A Sphere", "text": "A lively book, if a little flat."},
    {"reviewer": "A Line", "text": "I could not see the end of it."},
]
RATINGS = {"A Sphere": 5, "A Line": 4}
STAR_COLOURS = {"v2": "black", "v3": "red"}


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


# Calls `path` of a service with some headers, through the sidecar.
Fetch = Callable[[str, str, Mapping[str, str]], Response]


@dataclass(frozen=True, slots=True)
class Application:
    """One application; `session_key` signs the cookies that productpage hands out."""

    name: str
    version: str
    session_key: bytes = b""

    def respond(self, request: Request, fetch: Fetch) -> Response:
        """Answer `request`; an unknown path is 404, a method that a path does not have 405."""
        routes = _ROUTES[self.name]
        path = request.path.partition("?")[0]
        matches = [(pattern.fullmatch(path), methods) for pattern, methods in routes]
        for match, methods in matches:
            if match is not None:
                handler = methods.get("GET" if request.method == "HEAD" else request.method)
                if handler is None:
                    return _json(405, {"error": f"{request.method} is not for {path}"})
                return handler(self, request, fetch, *match.groups())
        return _json(404, {"error": f"there is no {path} here"})


def _json(status: int, value: Any) -> Response:
    return Response(status, json.dumps(value).encode() + b"\n", {"content-type": "application/json"})


def _html(status: int, body: str) -> Response:
    page = f"<!doctype html><title>BookInfo</title>{body}\n"
    return Response(status, page.encode(), {"content-type": "text/html; charset=utf-8"})


def _redirect(location: str, cookie: str) -> Response:
    return Response(
        303, b"", {"location": location, "set-cookie": f"{cookie}; HttpOnly; SameSite=Strict; Path=/"}
    )


def _propagate(app: Application, request: Request) -> dict[str, str]:
    headers = {name: request.headers[name] for name in PROPAGATED if name in request.headers}
    user = _session_user(app.session_key, request.headers.get("cookie", ""))
    return {**headers, "end-user": user} if user else headers


# ------------------------------------------------------------------------------------------- productpage


def _sign(key: bytes, user: str) -> str:
    return hmac.new(key, user.encode(), hashlib.sha256).hexdigest()


def _session_user(key: bytes, cookies: str) -> str:
    for cookie in cookies.split(";"):
        name, _, value = cookie.strip().partition("=")
        user, _, signature = value.rpartition(".")
        if name == "session" and key and hmac.compare_digest(_sign(key, user).encode(), signature.encode()):
            return user
    return ""


def _details(app: Application, request: Request, fetch: Fetch, product: str) -> Response:
    return fetch("details", f"/details/{product}", {**_propagate(app, request), "x-details-version": "v1"})


def _reviews(app: Application, request: Request, fetch: Fetch, product: str) -> Response:
    return fetch("reviews", f"/reviews/{product}", _propagate(app, request))


def _page(app: Application, request: Request, fetch: Fetch) -> Response:
    user = _session_user(app.session_key, request.headers.get("cookie", ""))
    parts = [f"<h1>{html.escape(str(PRODUCTS[0]['title']))}</h1>", f"<p>{PRODUCTS[0]['description']}</p>"]
    parts.append(f"<p>Signed in as {html.escape(user)}. <a href='/logout'>Sign out</a></p>" if user else "")
    for title, part in (
        ("Details", _details(app, request, fetch, "0")),
        ("Reviews", _reviews(app, request, fetch, "0")),
    ):
        text = part.body.decode() if part.status == 200 else f"not available ({part.status})"
        parts.append(f"<h2>{title}</h2><pre>{html.escape(text)}</pre>")
    return _html(200, "".join(parts))


def _login_form(_app: Application, _request: Request, _fetch: Fetch) -> Response:
    return _html(
        200, "<form method='post' action='/login'><input name='user'><button>Sign in</button></form>"
    )


def _login(app: Application, request: Request, _fetch: Fetch) -> Response:
    user = parse_qs(request.body.decode(errors="replace")).get("user", [""])[0]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", user):
        return _html(400, "<p>A user name has 1 to 32 letters, digits, <code>-</code> or <code>_</code>.</p>")
    return _redirect("/productpage", f"session={user}.{_sign(app.session_key, user)}")


def _logout(_app: Application, _request: Request, _fetch: Fetch) -> Response:
    return _redirect("/productpage", "session=; Max-Age=0")


def _products(_app: Application, _request: Request, _fetch: Fetch) -> Response:
    return _json(200, PRODUCTS)


def _product_ratings(app: Application, request: Request, fetch: Fetch, product: str) -> Response:
    return fetch("ratings", f"/ratings/{product}", _propagate(app, request))


# ---------------------------------------------------------------------------------- details, reviews, ratings


def _own_details(_app: Application, _request: Request, _fetch: Fetch, product: str) -> Response:
    return _json(200, {**DETAILS, "id": int(product)})


def _own_reviews(app: Application, request: Request, fetch: Fetch, product: str) -> Response:
    reviews: list[dict[str, Any]] = [dict(review) for review in REVIEWS]
    colour = STAR_COLOURS.get(app.version)
    if colour is not None:
        answer = fetch("ratings", f"/ratings/{product}", _propagate(app, request))
        ratings = json.loads(answer.body)["ratings"] if answer.status == 200 else {}
        for review in reviews:
            stars = ratings.get(review["reviewer"])
            review["rating"] = (
                {"error": f"ratings answered {answer.status}"}
                if stars is None
                else {"stars": stars, "color": colour}
            )
    return _json(200, {"id": int(product), "version": app.version, "reviews": reviews})


def _own_ratings(_app: Application, _request: Request, _fetch: Fetch, product: str) -> Response:
    return _json(200, {"id": int(product), "ratings": RATINGS})


_Handler = Callable[..., Response]
_ROUTES: Mapping[str, list[tuple[re.Pattern[str], dict[str, _Handler]]]] = {
    "productpage": [
        (re.compile(r"/productpage"), {"GET": _page}),
        (re.compile(r"/login"), {"GET": _login_form, "POST": _login}),
        (re.compile(r"/logout"), {"GET": _logout}),
        (re.compile(r"/api/v1/products"), {"GET": _products}),
        (re.compile(r"/api/v1/products/(\d{1,9})"), {"GET": _details}),
        (re.compile(r"/api/v1/products/(\d{1,9})/reviews"), {"GET": _reviews}),
        (re.compile(r"/api/v1/products/(\d{1,9})/ratings"), {"GET": _product_ratings}),
    ],
    "details": [(re.compile(r"/details/(\d{1,9})"), {"GET": _own_details})],
    "reviews": [(re.compile(r"/reviews/(\d{1,9})"), {"GET": _own_reviews})],
    "ratings": [(re.compile(r"/ratings/(\d{1,9})"), {"GET": _own_ratings})],
}


# ---------------------------------------------------------------------------------------------------- HTTP


def _fetch_through(outbound_port: int) -> Fetch:
    def fetch(service: str, path: str, headers: Mapping[str, str]) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", outbound_port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request("GET", path, headers={**headers, "host": service})
            answer = connection.getresponse()
            kind = answer.getheader("content-type", "text/plain")
            return Response(answer.status, answer.read(), {"content-type": kind})
        except (OSError, http.client.HTTPException) as error:
            return _json(503, {"error": f"{service}: {error}"})
        finally:
            connection.close()

    return fetch


def _serve(app: Application, listener: socket.socket, fetch: Fetch) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # A small answer must not wait for the acknowledgement of its own headers.
        disable_nagle_algorithm = True
        wbufsize = -1

        def _answer(self) -> None:
            try:
                length = int(self.headers.get("content-length", "0"))
            except ValueError:
                length = -1
            if not 0 <= length <= _MAX_BODY_BYTES:
                self.close_connection = True
                self._send(_json(413, {"error": "the body is too large"}))
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(length)
            self._send(app.respond(Request(self.command, self.path, headers, body), fetch))

        def _send(self, response: Response) -> None:
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(response.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(response.body)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing: the sidecar logs every call."""

    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"):
        setattr(Handler, f"do_{method}", Handler._answer)  # noqa: SLF001 - our own class, above
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.daemon_threads = True
    return server


def main() -> None:
    """Serve every application that the arguments name, until a signal ends the process."""
    for argument in sys.argv[1:]:
        name, descriptor, outbound_port = argument.split(":")
        base, _, version = name.partition("-")
        app = Application(base, version or "v1", secrets.token_bytes(32))
        listener = socket.socket(fileno=int(descriptor))
        os.set_inheritable(listener.fileno(), False)
        server = _serve(app, listener, _fetch_through(int(outbound_port)))
        threading.Thread(target=server.serve_forever, name=name).start()


if __name__ == "__main__":
    main()
