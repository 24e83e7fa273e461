"""CheckRequest -> Attributes. The only reader of ext_authz request messages.

The names are those of `docs/attributes.md`. Nothing is read before something asks for it: most calls are
decided on destination, method, path and principal alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from authz.authn.mtls import peer_identity, peer_principal
from authz.destination import Destination
from authz.paths import PathNormalization, normalize_path
from garrison.identity import SpiffeId

Claims = Mapping[str, Any]
_NOTHING: tuple[str, ...] = ()
# Claims whose string value is a list in disguise (RFC 8693, section 4.2; Istio splits these two always).
_SPACE_DELIMITED = frozenset({"scope", "permission"})


class Attributes:
    """What is known about one call. Built from `attributes` of a `CheckRequest`."""

    __slots__ = (
        "_context",
        "_http",
        "_lines",
        "_mode",
        "_path",
        "claims",
        "destination",
        "peer",
        "principal",
    )

    def __init__(self, context: Any, mode: PathNormalization, destination: Destination | None) -> None:
        self._context = context
        self._http = context.request.http
        self._mode = mode
        self._path: str | None = None
        self._lines: dict[str, list[Any]] | None = None
        self.destination = destination
        reported = context.source.principal
        self.peer: SpiffeId | None = peer_identity(reported)
        self.principal = peer_principal(reported)
        self.claims: Claims | None = None

    @property
    def method(self) -> str | None:
        """`request.method`; None for what is not HTTP."""
        return self._http.method or self.header(":method")

    @property
    def path(self) -> str | None:
        """`request.path`: normalised, without query; None when there is none (CONNECT, TCP)."""
        if self._path is None:
            target = self._http.path
            self._path = normalize_path(target, self._mode) if target and self._is_exact(target) else ""
        return self._path or None

    def _is_exact(self, target: str) -> bool:
        # Envoy shows `!` for bytes that are not UTF-8 but forwards them: such a path matches nothing.
        return "!" not in target or self.header(":path") in {None, target}

    @property
    def target(self) -> str:
        """The request target as it was sent, with its query string."""
        target: str = self._http.path
        return target

    @property
    def host(self) -> str | None:
        """`request.host`, in lower case, as sent otherwise."""
        return self._http.host.lower() or None

    def headers(self, name: str) -> Sequence[str]:
        """Return every value of the header `name` (lower case), in wire order.

        Envoy joins repeated lines with `,` unless the filter says `encode_raw_headers`; then each line is a
        value of its own.
        """
        http = self._http
        if self._lines is None:
            # Lines are decoded when asked for: most policies look at one or two of some fifteen.
            self._lines = {}
            for line in http.header_map.headers:
                self._lines.setdefault(line.key.lower(), []).append(line)
        if self._lines:
            return [_text(line) for line in self._lines.get(name, _NOTHING)]
        return (http.headers[name],) if name in http.headers else _NOTHING

    def header(self, name: str) -> str | None:
        """Return the first value of a header, for those that cannot be repeated."""
        values = self.headers(name)
        return values[0] if values else None

    def values(self, attribute: str, argument: str = "") -> Sequence[str]:
        """Return all values of an attribute, none when it is absent.

        Raises:
            KeyError: there is no such attribute; policies are compiled against `ATTRIBUTES`.

        """
        return ATTRIBUTES[attribute](self, argument)

    def _address(self, peer: Any) -> Sequence[str]:
        address = peer.address.socket_address.address
        return (address,) if address else _NOTHING

    def _destination_port(self, _: str) -> Sequence[str]:
        port = self._context.destination.address.socket_address.port_value
        return (str(port),) if port else self._extension("destination.port")

    def _extension(self, name: str) -> Sequence[str]:
        value = self._context.context_extensions.get(name, "")
        return (value,) if value else _NOTHING

    def _claim(self, name: str) -> Sequence[str]:
        value = self.claims.get(name) if self.claims is not None else None
        if isinstance(value, str):
            return value.split() if name in _SPACE_DELIMITED else (value,)
        if isinstance(value, list):
            return [item for item in value if isinstance(item, str)]
        return _NOTHING

    def _request_principal(self, _: str) -> Sequence[str]:
        if self.claims is None:
            return _NOTHING
        issuer, subject = self.claims.get("iss"), self.claims.get("sub")
        if isinstance(issuer, str) and isinstance(subject, str) and issuer and subject:
            return (f"{issuer}/{subject}",)
        return _NOTHING


def _text(line: Any) -> str:
    # Bytes that are not UTF-8 become characters that no policy can hold, so they match no literal.
    raw: bytes = line.raw_value
    return raw.decode("utf-8", "surrogateescape") if raw else str(line.value)


def _one(value: str | None) -> Sequence[str]:
    return (value,) if value else _NOTHING


def _of_destination(read: Callable[[Destination], str]) -> Callable[[Attributes, str], Sequence[str]]:
    return lambda attributes, _: _one(read(attributes.destination) if attributes.destination else None)


def _label(attributes: Attributes, name: str) -> Sequence[str]:
    labels = attributes.destination.labels if attributes.destination else {}
    return (labels[name],) if name in labels else _NOTHING


# Every attribute a policy can name. A row here and one in docs/attributes.md is all a new attribute takes.
ATTRIBUTES: dict[str, Callable[[Attributes, str], Sequence[str]]] = {
    "source.ip": lambda attributes, _: attributes._address(attributes._context.source),  # noqa: SLF001
    "source.principal": lambda attributes, _: _one(attributes.principal),
    "source.namespace": lambda attributes, _: _one(attributes.peer.namespace if attributes.peer else None),
    "destination.service": _of_destination(lambda destination: destination.service),
    "destination.namespace": _of_destination(lambda destination: destination.namespace),
    "destination.name": _of_destination(lambda destination: destination.name),
    "destination.user": _of_destination(lambda destination: destination.user),
    "destination.labels": _label,
    "destination.ip": lambda attributes, _: (
        attributes._address(attributes._context.destination) or attributes._extension("destination.ip")  # noqa: SLF001
    ),
    "destination.port": Attributes._destination_port,  # noqa: SLF001
    "remote.ip": lambda attributes, _: attributes._extension("remote.ip"),  # noqa: SLF001
    "connection.sni": lambda attributes, _: (
        _one(attributes._context.tls_session.sni) or attributes._extension("connection.sni")  # noqa: SLF001
    ),
    "request.method": lambda attributes, _: _one(attributes.method),
    "request.path": lambda attributes, _: _one(attributes.path),
    "request.host": lambda attributes, _: _one(attributes.host),
    "request.headers": Attributes.headers,
    "request.auth.principal": Attributes._request_principal,  # noqa: SLF001
    "request.auth.audiences": lambda attributes, _: attributes._claim("aud"),  # noqa: SLF001
    "request.auth.presenter": lambda attributes, _: attributes._claim("azp"),  # noqa: SLF001
    "request.auth.claims": Attributes._claim,  # noqa: SLF001
}
