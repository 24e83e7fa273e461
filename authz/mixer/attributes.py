"""Mixer's attribute vocabulary, read from one call.

What Envoy reports or what was authenticated comes from `Attributes`; everything else from
`context_extensions` whose key is the attribute's own name, entries of a map as `source.labels[app]`.
Where a call says two things in a place for one (a header sent twice), there is no value: an error, not a
choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from authz.attributes import Attributes
from authz.destination import Destination
from authz.mixer.expression.values import (
    ABSENT,
    Absent,
    EvaluationError,
    StringMap,
    Value,
    ValueType,
    parse_bool,
    parse_dns_name,
    parse_double,
    parse_duration,
    parse_email,
    parse_int64,
    parse_ip,
    parse_timestamp,
    parse_uri,
)

# Envoy's own limit on headers is 100; a URL of 60 KB holds 30,000 parameters.
MAX_QUERY_PARAMETERS = 1_000

_S = ValueType.STRING
_MAP = ValueType.STRING_MAP
_BY_TYPE: dict[ValueType, tuple[str, ...]] = {
    ValueType.STRING: (
        "api.operation",
        "api.protocol",
        "api.service",
        "api.version",
        "connection.event",
        "connection.id",
        "connection.requested_server_name",
        "context.protocol",
        "context.proxy_error_code",
        "context.proxy_version",
        "context.reporter.kind",
        "context.reporter.uid",
        "destination.container.name",
        "destination.name",
        "destination.namespace",
        "destination.owner",
        "destination.principal",
        "destination.service",
        "destination.service.host",
        "destination.service.name",
        "destination.service.namespace",
        "destination.service.uid",
        "destination.serviceAccount",
        "destination.uid",
        "destination.user",
        "destination.workload.name",
        "destination.workload.namespace",
        "destination.workload.uid",
        "origin.uid",
        "origin.user",
        "request.api_key",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.principal",
        "request.auth.raw_claims",
        "request.host",
        "request.id",
        "request.method",
        "request.path",
        "request.reason",
        "request.referer",
        "request.scheme",
        "request.url_path",
        "request.useragent",
        "source.name",
        "source.namespace",
        "source.owner",
        "source.principal",
        "source.service",
        "source.serviceAccount",
        "source.services",
        "source.uid",
        "source.user",
        "source.workload.name",
        "source.workload.namespace",
        "source.workload.uid",
        "check.error_message",
        "rbac.permissive.effective_policy_id",
        "rbac.permissive.response_code",
        "response.grpc_message",
        "response.grpc_status",
    ),
    ValueType.STRING_MAP: (
        "destination.labels",
        "destination.metadata",
        "request.auth.claims",
        "request.headers",
        "request.query_params",
        "response.headers",
        "source.labels",
        "source.metadata",
    ),
    ValueType.INT64: (
        "check.error_code",
        "connection.received.bytes",
        "connection.received.bytes_total",
        "connection.sent.bytes",
        "connection.sent.bytes_total",
        "destination.port",
        "request.size",
        "request.total_size",
        "response.code",
        "response.size",
        "response.total_size",
    ),
    ValueType.IP_ADDRESS: ("destination.ip", "origin.ip", "source.ip"),
    ValueType.TIMESTAMP: ("context.time", "context.timestamp", "request.time", "response.time"),
    ValueType.DURATION: ("connection.duration", "response.duration"),
    ValueType.BOOL: ("check.cache_hit", "connection.mtls", "context.reporter.local", "quota.cache_hit"),
}
# Every attribute that needs no attributemanifest.
VOCABULARY: Mapping[str, ValueType] = {name: kind for kind, names in _BY_TYPE.items() for name in names}
# What is only known once a call has been answered: nothing that is checked can rest on it.
KNOWN_TOO_LATE = frozenset(
    name
    for name in VOCABULARY
    if name.startswith(("response.", "check.", "quota.", "rbac.", "connection.received", "connection.sent"))
    or name in {"connection.duration", "context.proxy_error_code", "request.total_size"}
)
# What stays the same for all calls to one destination.
OF_DESTINATION = frozenset(
    {
        "destination.service",
        "destination.service.host",
        "destination.service.name",
        "destination.service.namespace",
        "destination.namespace",
        "destination.labels",
        "destination.name",
        "destination.user",
        "destination.serviceAccount",
        "context.reporter.kind",
    }
)

_FROM_TEXT: dict[ValueType, Callable[[str], Value]] = {
    ValueType.STRING: str,
    ValueType.INT64: parse_int64,
    ValueType.DOUBLE: parse_double,
    ValueType.BOOL: parse_bool,
    ValueType.TIMESTAMP: parse_timestamp,
    ValueType.DURATION: parse_duration,
    ValueType.IP_ADDRESS: parse_ip,
    ValueType.EMAIL_ADDRESS: parse_email,
    ValueType.URI: parse_uri,
    ValueType.DNS_NAME: parse_dns_name,
}


def from_text(kind: ValueType, text: str) -> Value:
    """Return `text` as a value of any type but STRING_MAP.

    Raises:
        EvaluationError: it is none.

    """
    return _FROM_TEXT[kind](text)


class CallAttributes:
    """The attributes of one call, as expressions see them. `now` is in seconds since the epoch."""

    __slots__ = ("_known", "attributes", "context", "now", "types")

    def __init__(self, attributes: Attributes, now: float, types: Mapping[str, ValueType]) -> None:
        self.attributes = attributes
        self.context: Any = attributes._context  # noqa: SLF001 - this is Attributes' other half for Mixer
        self.now = int(now * 1_000_000_000)
        self.types = types
        self._known: dict[str, Value | Absent] = {}  # rules ask for the same few attributes

    def value(self, name: str) -> Value | Absent:
        """Return the attribute `name`, ABSENT when the call has none.

        Raises:
            EvaluationError: it is not of its type, or the call says two things.

        """
        known = self._known.get(name)
        if known is None:
            read = _READERS.get(name)
            known = self._known[name] = self.extension(name) if read is None else read(self)
        return known

    def extension(self, name: str) -> Value | Absent:
        """Return what the operator's `context_extensions` say about `name`."""
        kind = self.types[name]
        extensions = self.context.context_extensions
        if kind is ValueType.STRING_MAP:
            return _Extensions(extensions, name)
        if name not in extensions:
            return ABSENT
        try:
            return _FROM_TEXT[kind](extensions[name])
        except EvaluationError as error:
            raise EvaluationError(f"`{name}`: {error}") from None


class _Extensions:
    """The entries of a map among `context_extensions`."""

    __slots__ = ("_extensions", "_name")

    def __init__(self, extensions: Mapping[str, str], name: str) -> None:
        self._extensions = extensions
        self._name = name

    def get(self, key: str) -> str | Absent:
        """Return the extension `name[key]`."""
        full = f"{self._name}[{key}]"
        # Protobuf maps refuse text that is not Unicode even as a question.
        if not _is_unicode(full) or full not in self._extensions:
            return ABSENT
        return self._extensions[full]


class _Headers:
    """`request.headers`: names in any case; lines that say different things are an error."""

    __slots__ = ("_attributes",)

    def __init__(self, attributes: Attributes) -> None:
        self._attributes = attributes

    def get(self, key: str) -> str | Absent:
        """Return the one value of a header."""
        if not _is_unicode(key):
            return ABSENT
        name = key.lower()
        values = self._attributes.headers(name)
        if name == "cookie" and len(values) > 1:
            return "; ".join(values)  # RFC 9113, section 8.2.3: cookie lines are one line cut up
        return _single(values, f"the header `{name}`")


class _Parameters:
    """`request.query_params`, decoded: `%61` hides nothing."""

    __slots__ = ("_query",)

    def __init__(self, query: str) -> None:
        self._query = query

    def get(self, key: str) -> str | Absent:
        """Return the one value of a parameter."""
        try:
            pairs = parse_qsl(
                self._query,
                keep_blank_values=True,
                max_num_fields=MAX_QUERY_PARAMETERS,
                errors="surrogateescape",
            )
        except ValueError:
            raise EvaluationError(f"the query has more than {MAX_QUERY_PARAMETERS} parameters") from None
        return _single([value for name, value in pairs if name == key], f"the query parameter `{key}`")


class _Labels:
    """`destination.labels`."""

    __slots__ = ("_labels",)

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels

    def get(self, key: str) -> str | Absent:
        """Return a label."""
        return self._labels.get(key, ABSENT)


class _Claims:
    """`request.auth.claims`: claims that are text; the elements of a list joined with commas."""

    __slots__ = ("_claims",)

    def __init__(self, claims: Mapping[str, Any]) -> None:
        self._claims = claims

    def get(self, key: str) -> str | Absent:
        """Return a claim; numbers, booleans and objects are not text."""
        value = self._claims.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return ",".join(value)
        return ABSENT


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _single(values: Sequence[str], what: str) -> str | Absent:
    if not values:
        return ABSENT
    first = values[0]
    if any(value != first for value in values):
        raise EvaluationError(f"{what} is there {len(values)} times with different values")
    return first


def _text(value: str | None) -> str | Absent:
    return value or ABSENT


def _known(name: str) -> Callable[[CallAttributes], Value | Absent]:
    """Read an attribute of the same name that other policies know too, its first value."""

    def read(call: CallAttributes) -> Value | Absent:
        values = call.attributes.values(name)
        return str(values[0]) if values else ABSENT

    return read


def _typed(name: str, convert: Callable[[str], Value]) -> Callable[[CallAttributes], Value | Absent]:
    def read(call: CallAttributes) -> Value | Absent:
        values = call.attributes.values(name)
        return convert(values[0]) if values else ABSENT

    return read


def _header(name: str) -> Callable[[CallAttributes], Value | Absent]:
    return lambda call: _Headers(call.attributes).get(name)


def _query(call: CallAttributes) -> str:
    return call.attributes.target.partition("#")[0].partition("?")[2]


def _path_and_query(call: CallAttributes) -> Value | Absent:
    path, query = call.attributes.path, _query(call)
    if path is None:
        return ABSENT
    return f"{path}?{query}" if query else path


def _claims(call: CallAttributes) -> StringMap:
    return _Claims(call.attributes.claims or {})


def _raw_claims(call: CallAttributes) -> Value | Absent:
    claims = call.attributes.claims
    return ABSENT if claims is None else json.dumps(claims, separators=(",", ":"))


def _request_principal(call: CallAttributes) -> Value | Absent:
    """Return `<iss>/<sub>` of the token; absent without both."""
    claims = call.attributes.claims or {}
    issuer, subject = claims.get("iss"), claims.get("sub")
    if isinstance(issuer, str) and isinstance(subject, str) and issuer and subject:
        return f"{issuer}/{subject}"
    return ABSENT


def _audience(call: CallAttributes) -> Value | Absent:
    values = call.attributes.values("request.auth.audiences")
    return str(values[0]) if values else ABSENT


def _destination_labels(call: CallAttributes) -> StringMap:
    destination = call.attributes.destination
    return _Labels(destination.labels if destination else {})


def _protocol(call: CallAttributes) -> Value | Absent:
    if call.attributes.method is None:
        told = call.extension("context.protocol")
        if told is not ABSENT:
            return told
        extensions = call.context.context_extensions
        return str(extensions.get("protocol", "tcp"))
    types = call.attributes.headers("content-type")
    return "grpc" if any(one in _GRPC_CONTENT_TYPES for one in types) else "http"


_GRPC_CONTENT_TYPES = frozenset({"application/grpc", "application/grpc+proto", "application/grpc+json"})


def _request_time(call: CallAttributes) -> Value | Absent:
    if call.context.request.HasField("time"):
        return int(call.context.request.time.ToNanoseconds())
    return call.now


def _request_size(call: CallAttributes) -> Value | Absent:
    size = call.context.request.http.size
    return int(size) if size >= 0 and call.attributes.method is not None else ABSENT  # -1 is "unknown"


def _server_name(call: CallAttributes) -> Value | Absent:
    values = call.attributes.values("connection.sni")
    return str(values[0]) if values else call.extension("connection.requested_server_name")


def _destination_namespace(call: CallAttributes) -> Value | Absent:
    destination = call.attributes.destination
    return _text(destination.namespace if destination else None)


def _source_account(call: CallAttributes) -> Value | Absent:
    peer = call.attributes.peer
    return _text(peer.service_account if peer else None)


# Attributes that have a better source than `context_extensions`. None of them can be made up by the caller.
_READERS: dict[str, Callable[[CallAttributes], Value | Absent]] = {
    "connection.mtls": lambda call: bool(call.context.source.principal),
    "connection.requested_server_name": _server_name,
    "context.protocol": _protocol,
    "context.reporter.kind": lambda _: "inbound",  # Envoy asks where the call arrives
    "context.time": lambda call: call.now,
    "context.timestamp": lambda call: call.now,
    "destination.ip": _typed("destination.ip", parse_ip),
    "destination.labels": _destination_labels,
    "destination.name": _known("destination.name"),
    "destination.namespace": _destination_namespace,
    "destination.port": _typed("destination.port", parse_int64),
    "destination.service": _known("destination.service"),
    "destination.service.host": _known("destination.service"),
    "destination.service.name": _known("destination.name"),
    "destination.service.namespace": _destination_namespace,
    "destination.serviceAccount": _known("destination.user"),
    "destination.user": _known("destination.user"),
    "origin.ip": _typed("source.ip", parse_ip),
    "request.auth.audiences": _audience,
    "request.auth.claims": _claims,
    "request.auth.presenter": lambda call: _claims(call).get("azp"),
    "request.auth.principal": _request_principal,
    "request.auth.raw_claims": _raw_claims,
    "request.headers": lambda call: _Headers(call.attributes),
    "request.host": lambda call: _text(call.attributes.host),
    "request.id": lambda call: _text(call.context.request.http.id),
    "request.method": lambda call: _text(call.attributes.method),
    "request.path": _path_and_query,
    "request.query_params": lambda call: _Parameters(_query(call)),
    "request.referer": _header("referer"),
    "request.scheme": lambda call: _text(call.context.request.http.scheme),
    "request.size": _request_size,
    "request.time": _request_time,
    "request.url_path": lambda call: _text(call.attributes.path),
    "request.useragent": _header("user-agent"),
    "source.ip": _typed("source.ip", parse_ip),
    "source.namespace": _known("source.namespace"),
    "source.principal": lambda call: _text(call.attributes.principal),
    "source.serviceAccount": _source_account,
    "source.user": lambda call: _text(call.attributes.principal),
}


class DestinationAttributes:
    """What is known of every call to a destination: `OF_DESTINATION`."""

    __slots__ = ("_destination",)

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    def value(self, name: str) -> Value | Absent:
        """Return an attribute among `OF_DESTINATION`."""
        destination = self._destination
        if name == "destination.labels":
            return _Labels(destination.labels)
        text: str = {
            "destination.service": destination.service,
            "destination.service.host": destination.service,
            "destination.service.name": destination.name,
            "destination.name": destination.name,
            "destination.service.namespace": destination.namespace,
            "destination.namespace": destination.namespace,
            "destination.user": destination.user,
            "destination.serviceAccount": destination.user,
            "context.reporter.kind": "inbound",
        }[name]
        return text or ABSENT
