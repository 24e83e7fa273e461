"""What one SDS stream has asked for and been told: the xDS protocol without a socket.

Both variants follow "xDS REST and gRPC protocol" of the Envoy documentation. State of the world: every
request names all wanted resources, every response holds all of them. Delta: requests add and remove names,
responses hold what changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse, DiscoveryResponse, Resource

from ca.api.sds_secrets import TYPE_URL, NamedSecret
from garrison.errors import RequestError


@dataclass(frozen=True, slots=True)
class Received:
    """What a request calls for: names to answer now, and why the last response was refused (NACK), if so.

    `held` are names that the caller got from another stream before, and goes on to use.
    """

    answer: tuple[str, ...] = ()
    refusal: str | None = None
    held: tuple[str, ...] = ()


class Subscription(Protocol):
    """One stream's state; `names` is what it wants to be kept up to date about."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names subscribed to, in order."""

    def receive(self, request: Any) -> Received:
        """Take in a request.

        Raises:
            RequestError: it is not for secrets, or a first request that names none.

        """

    def affected(self, changed: Collection[str]) -> tuple[str, ...]:
        """Return the names that a response must hold when those in `changed` are new."""

    def respond(self, secrets: Sequence[NamedSecret]) -> Any:
        """Return the response that holds `secrets`, and expect its acknowledgement."""


class StateOfTheWorld:
    """`StreamSecrets`, or over ADS (`aggregated`) `StreamAggregatedResources`."""

    def __init__(self, *, aggregated: bool = False) -> None:
        self._aggregated = aggregated
        self._names: tuple[str, ...] = ()
        self._responses = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the latest request that was current."""
        return self._names

    def receive(self, request: Any) -> Received:
        """Take in a `DiscoveryRequest`; see `Subscription`."""
        check_type_url(request.type_url, aggregated=self._aggregated)
        first = self._responses == 0
        # A nonce of an earlier response: the caller will answer the later one too, with its latest names.
        # No nonce at all is not stale: Envoy adds names before it has acknowledged anything.
        if not first and request.response_nonce not in {"", str(self._responses)}:
            return Received()
        names = tuple(dict.fromkeys(request.resource_names))
        if first and not names:
            raise RequestError("a request for secrets must name them")
        added = set(names) - set(self._names)
        self._names = names
        refusal = request.error_detail.message if request.HasField("error_detail") and not first else None
        # A refused response is not sent again: it would be refused again. The next change is.
        # Who comes back says which version it has; which names that was for, it does not say.
        held = names if first and request.version_info else ()
        return Received(names if first or added else (), refusal, held)

    def affected(self, changed: Collection[str]) -> tuple[str, ...]:
        """Return all names if one of them changed."""
        return self._names if set(self._names) & set(changed) else ()

    def respond(self, secrets: Sequence[NamedSecret]) -> Any:
        """Return a `DiscoveryResponse`; see `Subscription`."""
        self._responses += 1
        return build_discovery_response(secrets, str(self._responses))


class Delta:
    """`DeltaSecrets`, or over ADS (`aggregated`) `DeltaAggregatedResources`."""

    def __init__(self, *, aggregated: bool = False) -> None:
        self._aggregated = aggregated
        self._names: dict[str, None] = {}
        self._requested = False
        self._responses = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The names added and not removed."""
        return tuple(self._names)

    def receive(self, request: Any) -> Received:
        """Take in a `DeltaDiscoveryRequest`; see `Subscription`.

        Names count whatever the nonce says: requests are changes, and none may be lost.
        """
        check_type_url(request.type_url, aggregated=self._aggregated)
        added = tuple(dict.fromkeys(request.resource_names_subscribe))
        if not self._requested and not added:
            raise RequestError("a request for secrets must name them")
        self._requested = True
        for name in request.resource_names_unsubscribe:
            self._names.pop(name, None)
        self._names.update(dict.fromkeys(added))
        refused = request.HasField("error_detail") and request.response_nonce == str(self._responses)
        # Who subscribes again to a name has forgotten it, and is told again.
        held = tuple(name for name in added if name in request.initial_resource_versions)
        return Received(added, request.error_detail.message if refused else None, held)

    def affected(self, changed: Collection[str]) -> tuple[str, ...]:
        """Return the names that changed."""
        return tuple(name for name in self._names if name in changed)

    def respond(self, secrets: Sequence[NamedSecret]) -> Any:
        """Return a `DeltaDiscoveryResponse`; see `Subscription`."""
        self._responses += 1
        response = DeltaDiscoveryResponse(
            type_url=TYPE_URL, nonce=str(self._responses), system_version_info=_version(secrets)
        )
        for secret in secrets:
            resource = Resource(name=secret.name, version=secret.version)
            resource.resource.Pack(secret.message, deterministic=True)
            response.resources.append(resource)
        return response


def build_discovery_response(secrets: Sequence[NamedSecret], nonce: str) -> Any:
    """Return a `DiscoveryResponse` that holds `secrets`."""
    response = DiscoveryResponse(version_info=_version(secrets), type_url=TYPE_URL, nonce=nonce)
    for secret in secrets:
        response.resources.add().Pack(secret.message, deterministic=True)
    return response


def check_type_url(type_url: str, *, aggregated: bool = False) -> None:
    """Refuse a request for something other than secrets; none given means secrets, except over ADS.

    Raises:
        RequestError: the type is another.

    """
    if type_url != TYPE_URL and (aggregated or type_url):
        raise RequestError("only secrets are served here")


def _version(secrets: Sequence[NamedSecret]) -> str:
    text = "\n".join(f"{secret.name} {secret.version}" for secret in secrets)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
