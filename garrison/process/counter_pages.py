"""`/ratelimit/config`, `/ratelimit/counters` and `/ratelimit/reset` of admin HTTP.

Admin HTTP knows no passwords. So a reset is for callers on this machine only, and nothing here is for web
pages, which a browser on this machine may be showing:
- the `Host` has to be an address, `localhost` or the name of `admin.listen`: a name that an attacker makes
  point here (DNS rebinding) is none of them;
- a reset is a POST with `application/json`, which no page can send elsewhere without being allowed to first,
  and without an `Origin`, which every page's POST has;
- a reset does not come through a proxy, because then anybody could be behind it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from wsgiref.types import WSGIEnvironment

import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from garrison.errors import DependencyError, RequestError
from garrison.process.counters import CounterOperator, Who
from garrison.transport.loopback_peer import find_user
from ratelimit.counters import NotLimitedError

log = structlog.get_logger()

PREFIX = "/ratelimit/"
MAX_BODY_BYTES = 64 * 1024
# `int` refuses thousands of them.
_MAX_LENGTH_DIGITS = 18
# An operator's look or reset takes two or three seconds at most, unless the event loop stands still.
_PATIENCE_SECONDS = 10.0
_PROXY_HEADERS = ("HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR", "HTTP_VIA")

Entry = Annotated[list[str], Field(min_length=2, max_length=2)]
_Entries = Annotated[list[Entry], Field(min_length=1)]
_DESCRIPTOR: TypeAdapter[list[list[str]]] = TypeAdapter(_Entries)


class CounterName(BaseModel):
    """A counter: the descriptor's entries in order, each a key and a value."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    domain: Annotated[str, Field(min_length=1)]
    descriptor: _Entries

    @property
    def entries(self) -> list[tuple[str, str]]:
        """The descriptor as limits are asked for it."""
        return [(key, value) for key, value in self.descriptor]


class Page(NamedTuple):
    """An answer: status line, and what will be JSON."""

    status: str
    content: Any


class _RefusedError(Exception):
    """The answer to a request that is not looked at any further."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class CounterPages:
    """Answers from the threads of admin HTTP what `operator` knows in the event loop `loop`.

    `host` is what admin HTTP listens on.
    """

    def __init__(self, operator: CounterOperator, loop: asyncio.AbstractEventLoop, host: str) -> None:
        self._operator = operator
        self._loop = loop
        self._host = host

    def answer(self, environ: WSGIEnvironment) -> Page:
        """Return the page for a request below `/ratelimit/`."""
        try:
            return self._answer(environ)
        except _RefusedError as error:
            return Page(error.status, {"error": str(error)})
        except NotLimitedError as error:
            return Page("404 Not Found", {"error": str(error)})
        except RequestError as error:
            return Page("400 Bad Request", {"error": str(error)})
        except DependencyError as error:
            return Page("503 Service Unavailable", {"error": str(error)})
        except Exception:
            log.exception("rate_limit_page_failed")
            return Page("500 Internal Server Error", {"error": "a bug in Garrison; the log has its stack"})

    def _answer(self, environ: WSGIEnvironment) -> Page:
        path, method = environ.get("PATH_INFO", ""), environ.get("REQUEST_METHOD", "")
        # Also of a request that is refused: a connection that is closed on unread bytes may lose the answer.
        body = _read_body(environ) if method == "POST" else b""
        known = {f"{PREFIX}config": "GET", f"{PREFIX}counters": "GET", f"{PREFIX}reset": "POST"}
        if path not in known:
            raise _RefusedError("404 Not Found", f"there is {' '.join(known)}")
        if method not in ({"GET", "HEAD"} if known[path] == "GET" else {"POST"}):
            raise _RefusedError("405 Method Not Allowed", f"only {known[path]}")
        if not self._is_own_host(environ.get("HTTP_HOST", "")):
            message = "the Host is neither an address, nor `localhost`, nor what admin.listen says"
            raise self._refusal(environ, message)
        if path == f"{PREFIX}config":
            return Page("200 OK", self._operator.config())
        if path == f"{PREFIX}counters":
            name = _parse_query(environ.get("QUERY_STRING", ""))
            return Page("200 OK", self._run(self._operator.show(name.domain, name.entries)))
        self._require_operator(environ)
        name = _parse_name(body)
        return Page("200 OK", self._run(self._operator.reset(name.domain, name.entries, _who(environ))))

    def _require_operator(self, environ: WSGIEnvironment) -> None:
        """Raise unless this is somebody on this machine, and no page that they read."""
        if not _is_loopback(environ.get("REMOTE_ADDR", "")):
            raise self._refusal(environ, "counters are reset from the machine that counts only (loopback)")
        if any(environ.get(header) for header in _PROXY_HEADERS):
            raise self._refusal(environ, "counters are not reset through a proxy")
        if environ.get("HTTP_ORIGIN") is not None:
            raise self._refusal(environ, "counters are not reset by web pages")
        if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
            message = "the content-type is not `application/json`"
            raise self._refusal(environ, message, "415 Unsupported Media Type")

    def _refusal(
        self, environ: WSGIEnvironment, message: str, status: str = "403 Forbidden"
    ) -> _RefusedError:
        if environ.get("REQUEST_METHOD") == "POST":
            self._operator.refuse(message, _who(environ))
        return _RefusedError(status, message)

    def _is_own_host(self, header: str) -> bool:
        try:
            host = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        if host in {"localhost", self._host.lower()}:
            return True
        try:
            ip_address(host)
        except ValueError:
            return False
        return True

    def _run(self, asked: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Return what the event loop answers.

        Raises:
            DependencyError: it does not.

        """
        try:
            future = asyncio.run_coroutine_threadsafe(asked, self._loop)
        except RuntimeError as error:
            asked.close()
            raise DependencyError("the server has stopped") from error
        try:
            return future.result(_PATIENCE_SECONDS)
        except (TimeoutError, concurrent.futures.CancelledError) as error:
            future.cancel()
            raise DependencyError("the server does not answer") from error


def _parse_query(text: str) -> CounterName:
    """Return the counter that a query names: `domain`, and `descriptor` as JSON.

    Raises:
        RequestError: it names none.

    """
    if not text.isascii():
        raise RequestError("the query is not percent-encoded")
    try:
        given = parse_qs(text, keep_blank_values=True, errors="strict", max_num_fields=9)
    except ValueError as error:
        raise RequestError(f"the query cannot be read: {error}") from error
    for name in sorted({"domain", "descriptor", *given}):
        if name not in {"domain", "descriptor"}:
            raise RequestError(f"the query has the unknown parameter `{name}`")
        if len(given.get(name, ())) != 1:
            raise RequestError(f"the query has to have one `{name}`")
    try:
        descriptor = _DESCRIPTOR.validate_json(given["descriptor"][0])
        return CounterName(domain=given["domain"][0], descriptor=descriptor)
    except ValidationError as error:
        raise _bad_name(error) from error


def _parse_name(text: bytes) -> CounterName:
    """Return the counter that JSON names.

    Raises:
        RequestError: it names none.

    """
    try:
        return CounterName.model_validate_json(text)
    except ValidationError as error:
        raise _bad_name(error) from error


def _bad_name(error: ValidationError) -> RequestError:
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, problem["loc"])) or "the counter"
    shape = '{"domain": "shop", "descriptor": [["key", "value"]]}'
    return RequestError(f"{field}: {problem['msg']}; a counter is named as in `{shape}`")


def _read_body(environ: WSGIEnvironment) -> bytes:
    length = environ.get("CONTENT_LENGTH", "")
    if not length.isdecimal():
        raise _RefusedError("411 Length Required", "there is no content-length")
    if len(length) > _MAX_LENGTH_DIGITS or int(length) > MAX_BODY_BYTES:
        raise _RefusedError("413 Content Too Large", f"more than {MAX_BODY_BYTES} bytes")
    try:
        body: bytes = environ["wsgi.input"].read(int(length))
    except OSError as error:
        raise RequestError("the body did not come") from error
    if len(body) != int(length):
        raise RequestError("the body ended early")
    return body


def _is_loopback(address: str) -> bool:
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_loopback


def _who(environ: WSGIEnvironment) -> Who:
    """Return where a request comes from, and which user of this machine made it, if the system knows."""
    host, port = environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_PORT", "")
    user = find_user(host, int(port)) if port.isdecimal() and _is_loopback(host) else None
    return {
        "peer": f"{host}:{port}",
        "uid": user.uid if user is not None else None,
        "user": user.name if user is not None else None,
    }
