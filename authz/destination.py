"""Which service a call is for: told by the operator, never guessed.

In this order, and the first that names a `destination.service` is believed for all of `destination.*`:

1. `context_extensions` of the Envoy route, virtual host or listener;
2. the initial metadata `garrison-destination` that the operator put on Envoy's `grpc_service`;
3. the SVID with which the asking sidecar opened its connection, if that workload is in the settings;
4. the request's host, only with the setting `destination_from_host`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

METADATA_KEY = b"garrison-destination"
_LABEL_PREFIX = "destination.labels["


@dataclass(frozen=True, slots=True)
class Destination:
    """The workload that a call is for.

    `name` is the service's short name, `user` its service account; both may be empty.
    """

    service: str
    namespace: str
    name: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)


def destination_from_attributes(attributes: Mapping[str, str]) -> Destination | None:
    """Return the destination that `destination.*` attributes name; None without `destination.service`.

    The namespace of `<name>.<namespace>.svc.<anything>` follows from that name when
    `destination.namespace` is not given; both are the operator's words.
    """
    service = attributes.get("destination.service", "").lower()
    if not service:
        return None
    labels = _labels(attributes)
    parts = service.split(".")
    in_cluster = len(parts) >= 3 and parts[2] == "svc"
    namespace = attributes.get("destination.namespace", "") or (parts[1] if in_cluster else "")
    name = attributes.get("destination.name", "") or (parts[0] if in_cluster or len(parts) == 1 else "")
    user = attributes.get("destination.user", "")
    return Destination(service, namespace, name, service_account_of(user), labels)


def service_account_of(user: str) -> str:
    """Return the service account in `user`, which is one already or a principal `…/sa/<account>`."""
    _, separator, account = user.rpartition("/sa/")
    return account.partition("/")[0] if separator else user


def _labels(attributes: Mapping[str, str]) -> dict[str, str]:
    start = len(_LABEL_PREFIX)
    return {
        key[start:-1]: value
        for key, value in attributes.items()
        if key.startswith(_LABEL_PREFIX) and key.endswith("]")
    }


def attributes_from_metadata(value: bytes) -> dict[str, str]:
    """Return the attributes in a `garrison-destination` value, written as a URL query string.

    `destination.service=a.b.svc.cluster.local&destination.labels[app]=a`. An unreadable value names
    nothing.
    """
    try:
        pairs = parse_qsl(value.decode("ascii"), strict_parsing=True, max_num_fields=64)
    except ValueError:
        return {}
    return dict(pairs)
