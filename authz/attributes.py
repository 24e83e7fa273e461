"""CheckRequest -> Attributes. The only reader of ext_authz request messages.

The names are those of `docs/attributes.md`. Nothing is read before something asks for it: most calls are
decided on destination, method, path and principal alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from authz.authn.mtls import peer_identity, peer_principal
from authz.destination import Destination
from authz.paths import PathNormalization, normalize_path
from garrison.identity import SCHEME, SpiffeId

Claims = Mapping[str, Any]
_NOTHING: tuple[str, ...] = ()
_MATRIX_PARAMETERS = re.compile(r";[^/]*")
# Claims whose string value is a list in disguise (RFC 8693, section 4.2; Istio splits these two always).
_SPACE_DELIMITED = frozenset({"scope", "permission"})
# Headers that Envoy also has as fields of their own; a filter's `allowed_headers` can leave the headers out.
_HTTP_FIELDS = {
    ":authority": "host",
    ":method": "method",
    ":path": "path",
    ":scheme": "scheme",
    "host": "host",  # another name of `:authority` in Envoy
}


class Attributes:
    """What is known about one call. Built from `attributes` of a `CheckRequest`."""

    __slots__ = (
        "_context",
        "_first",
        "_first_values",
        "_http",
        "_lines",
        "_lower",
        "_message",
        "_method",
        "_mode",
        "_path",
        "claims",
        "destination",
        "reported",
    )

    def __init__(
        self,
        context: Any,
        mode: PathNormalization,
        destination: Destination | None,
        message: bytes | None = None,
    ) -> None:
        """`message`, the serialised request, makes looking for absent headers cheap."""
        self._message = message
        self._lower: bytes | None = None
        self._first = ""  # the header that was asked for first, and its values
        self._first_values: Sequence[str] = _NOTHING
        self._context = context
        self._http = context.request.http
        self._mode = mode
        self._method: str | None = None
        self._path: str | None = None
        self._lines: dict[str, list[Any]] | None = None
        self.destination = destination
        # What Envoy says of the peer's certificate, of which `peer` and `principal` are made.
        self.reported: str = context.source.principal
        self.claims: Claims | None = None

    @property
    def peer(self) -> SpiffeId | None:
        """The authenticated peer; None for one without a SPIFFE ID."""
        return peer_identity(self.reported)

    @property
    def principal(self) -> str | None:
        """`source.principal`: the peer's ID without its scheme."""
        return peer_principal(self.reported)

    @property
    def certificate(self) -> str:
        """The peer's certificate as Envoy sends it: URL-encoded PEM; empty unless Envoy includes it."""
        found: str = self._context.source.certificate
        return found

    @property
    def method(self) -> str | None:
        """`request.method`; None for what is not HTTP."""
        if self._method is None:
            self._method = self._http.method or self.header(":method") or ""
        return self._method or None

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
    def is_tcp(self) -> bool:
        """Whether this is a connection of Envoy's network filter: no request at all."""
        return not self._http.method and not self._context.HasField("request")

    @property
    def is_tls(self) -> bool:
        """Whether Envoy says that the peer speaks TLS, with or without a certificate of its own."""
        found: bool = self._context.HasField("tls_session")
        return found

    @property
    def is_grpc(self) -> bool:
        """Whether the caller speaks gRPC: its content type starts with `application/grpc`."""
        return any(value.startswith("application/grpc") for value in self.headers("content-type"))

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
        found = self._sent(name)
        if not found and name in _HTTP_FIELDS:
            return _one(getattr(self._http, _HTTP_FIELDS[name]))
        return found

    def _sent(self, name: str) -> Sequence[str]:
        if self._message is not None:
            # Most headers that policies ask for are not there; this finds out fastest.
            if self._lower is None:
                self._lower = self._message.lower()
            if name.encode() not in self._lower:
                return _NOTHING
        http = self._http
        if self._lines is None:
            lines = http.header_map.headers
            if not self._first:
                # One header is found sooner than all are sorted; who asks for a second may ask for more.
                found = [_text(line) for line in lines if line.key.lower() == name]
                self._first, self._first_values = name, found if lines else self._joined(name)
            if name == self._first:
                return self._first_values
            self._lines = {}
            for line in lines:
                self._lines.setdefault(line.key.lower(), []).append(line)
        if self._lines:
            return [_text(line) for line in self._lines.get(name, _NOTHING)]
        return self._joined(name)

    def _joined(self, name: str) -> Sequence[str]:
        """Return a header from the map in which Envoy has joined repeated lines."""
        headers = self._http.headers
        if name in headers:
            return (headers[name],)
        # Envoy writes names in lower case; others may not, and a header must not hide behind its spelling.
        return [value for spelled, value in headers.items() if spelled.lower() == name]

    def header(self, name: str) -> str | None:
        """Return the first value of a header, for those that cannot be repeated."""
        values = self.headers(name)
        return values[0] if values else None

    def values(self, attribute: str, argument: str = "") -> Sequence[Any]:
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
        """Return the strings of a claim that are not empty; `a][b` is claim `b` inside claim `a`."""
        value: Any = self.claims
        for part in name.split("]["):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str):
            return value.split() if name in _SPACE_DELIMITED else _one(value)
        if isinstance(value, list):
            return [item for item in value if item and isinstance(item, str)]
        return _NOTHING

    def _issuer_and_subject(self, _: str) -> Sequence[tuple[str, str]]:
        if self.claims is None:
            return ()
        issuer, subject = self.claims.get("iss"), self.claims.get("sub")
        if isinstance(issuer, str) and isinstance(subject, str) and issuer and subject:
            return ((issuer, subject),)
        return ()

    def _hosts(self, _: str) -> Sequence[str]:
        """Return the host and what else an upstream may take for it: without port, user and final dots.

        Envoy joins two Host lines with a comma and forwards them so; each counts.
        """
        host = self.host
        if host is None:
            return _NOTHING
        found = [host]
        for one in host.split(","):
            name = one.strip().rpartition("@")[2]
            found += (one.strip(), name)
            before, colon, port = name.rpartition(":")
            if colon and (port.isdigit() or not port):
                name = before
            found += (name, name.rstrip("."))
        return tuple(dict.fromkeys(found))

    def _paths(self, _: str) -> Sequence[str]:
        """Return the path, also when Envoy shows only part of its bytes, and without matrix parameters.

        Some upstreams drop those, and resolve what is then left: dot segments (`/..;/`), slashes (`/;x/`).
        """
        target = self._http.path
        if not target:
            return _NOTHING
        path = self.path or normalize_path(target, self._mode)
        if ";" not in path:
            return (path,)
        plain = _MATRIX_PARAMETERS.sub("", path)
        merged = normalize_path(plain, PathNormalization.MERGE_SLASHES)
        return (path, plain, normalize_path(plain, self._mode), merged)

    def _header_lines(self, name: str) -> Sequence[str]:
        """Return the values of a header, and each of those that Envoy may have joined into one.

        Also from the raw header map: Envoy (1.40) joins lines of the headers that it knows even there.
        """
        values = self.headers(name)
        if not any("," in value for value in values):
            return values
        return [*values, *(piece.strip() for value in values for piece in value.split(",") if "," in value)]

    def _principals(self, _: str) -> Sequence[str]:
        """Return what names the peer, even if it is no SPIFFE ID: a DNS name, a subject, odd characters."""
        return _one(self.principal or self.reported.removeprefix(SCHEME))

    def _segments(self) -> Sequence[str]:
        """Return the path of the peer's name, even if it is no SPIFFE ID."""
        reported = self.reported
        return reported.removeprefix(SCHEME).split("/")[1:] if reported.startswith(SCHEME) else ()

    def _trust_domains(self, _: str) -> Sequence[str]:
        reported = self.reported
        return _one(reported.removeprefix(SCHEME).partition("/")[0] if reported.startswith(SCHEME) else None)

    def _namespaces(self, _: str) -> Sequence[str]:
        """Return what follows `/ns/` anywhere in the peer's ID, up to any later `/`, as Istio does."""
        segments = self._segments()
        return [
            "/".join(segments[at + 1 : to])
            for at in range(len(segments) - 2)
            if segments[at] == "ns"
            for to in range(at + 2, len(segments))
        ]

    def _service_accounts(self, _: str) -> Sequence[str]:
        """Return `<namespace>/<account>` for every reading of the peer's ID that Istio's expression has."""
        segments = self._segments()
        return [
            f"{segments[at + 1]}/{segments[to + 1]}"
            for at in range(len(segments) - 1)
            if segments[at] == "ns"
            for to in range(at + 2, len(segments) - 1)
            if segments[to] == "sa"
        ]

    def _server_name(self, _: str) -> Sequence[str]:
        """Return the SNI in lower case, as Envoy's own filters have it; here it comes as it was sent."""
        sni: str = self._context.tls_session.sni
        return _one(sni.lower()) or [name.lower() for name in self._extension("connection.sni")]

    def _filter_metadata(self, argument: str) -> Sequence[str | tuple[str]]:
        """Return dynamic metadata of another filter: a string, or the elements of a list as 1-tuples."""
        name, _, key = argument[:-1].partition("[")
        known = self._context.metadata_context.filter_metadata
        if name not in known or key not in known[name].fields:
            return _NOTHING
        value = known[name].fields[key]
        if value.HasField("string_value"):
            return _one(value.string_value)
        return [(item.string_value,) for item in value.list_value.values if item.string_value]


def _text(line: Any) -> str:
    # Bytes that are not UTF-8 become characters that no policy can hold, so they match no literal.
    raw: bytes = line.raw_value
    return raw.decode("utf-8", "surrogateescape") if raw else str(line.value)


def _one(value: str | None) -> Sequence[str]:
    return (value,) if value else _NOTHING


def _of_destination(read: Callable[[Destination], str]) -> Callable[[Attributes, str], Sequence[str]]:
    return lambda attributes, _: _one(read(attributes.destination) if attributes.destination else None)


def _service_account(peer: SpiffeId | None) -> str | None:
    if peer is None or peer.namespace is None:
        return None
    return f"{peer.namespace}/{peer.service_account}"


def _label(attributes: Attributes, name: str) -> Sequence[str]:
    labels = attributes.destination.labels if attributes.destination else {}
    return (labels[name],) if name in labels else _NOTHING


# Every attribute a policy can name. A row here and one in docs/attributes.md is all a new attribute takes.
# Those that end in `.any` give every spelling that may be meant, for conditions that would deny.
ATTRIBUTES: dict[str, Callable[[Attributes, str], Sequence[Any]]] = {
    "source.any": lambda _attributes, _: ("anybody",),
    "source.ip": lambda attributes, _: attributes._address(attributes._context.source),  # noqa: SLF001
    "source.principal": lambda attributes, _: _one(attributes.principal),
    "source.principal.any": Attributes._principals,  # noqa: SLF001
    "source.namespace": lambda attributes, _: _one(attributes.peer.namespace if attributes.peer else None),
    "source.namespace.any": Attributes._namespaces,  # noqa: SLF001
    "source.serviceAccount": lambda attributes, _: _one(_service_account(attributes.peer)),
    "source.serviceAccount.any": Attributes._service_accounts,  # noqa: SLF001
    "source.trustDomain": lambda attributes, _: _one(
        attributes.peer.trust_domain.name if attributes.peer else None
    ),
    "source.trustDomain.any": Attributes._trust_domains,  # noqa: SLF001
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
    # Where Envoy has no proxy before it, and for connections, the client is the peer.
    "remote.ip.any": lambda attributes, _: (
        attributes._extension("remote.ip") or attributes.values("source.ip")  # noqa: SLF001
    ),
    "connection.sni": Attributes._server_name,  # noqa: SLF001
    "request.method": lambda attributes, _: _one(attributes.method),
    "request.path": lambda attributes, _: _one(attributes.path),
    "request.host": lambda attributes, _: _one(attributes.host),
    "request.path.any": Attributes._paths,  # noqa: SLF001
    "request.host.any": Attributes._hosts,  # noqa: SLF001
    "request.headers": Attributes.headers,
    "request.headers.any": Attributes._header_lines,  # noqa: SLF001
    "request.auth.principal": lambda attributes, _: [
        "/".join(pair)
        for pair in attributes._issuer_and_subject("")  # noqa: SLF001
    ],
    "request.auth.pair": Attributes._issuer_and_subject,  # noqa: SLF001
    "request.auth.audiences": lambda attributes, _: attributes._claim("aud"),  # noqa: SLF001
    "request.auth.presenter": lambda attributes, _: attributes._claim("azp"),  # noqa: SLF001
    "request.auth.claims": Attributes._claim,  # noqa: SLF001
    "experimental.envoy.filters": Attributes._filter_metadata,  # noqa: SLF001
}
