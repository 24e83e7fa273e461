"""Kubernetes service accounts: as a projected token claims them, and as the API server's TokenReview says.

Never from a subject alone: `sub` and `username` are compared with what they must be, not taken apart to find
out. Names of clusters are in neither, so with several clusters an entry names the issuer too (`jwt:iss:`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ca.attestors.base import Attested, Reason, Refused, selectors
from ca.registration import SelectorKind
from garrison.token_review import NotAuthenticated, ReviewedUser

ATTESTED_BY = "k8s_token_review"
_PREFIX = "system:serviceaccount"
_GROUP = "system:serviceaccounts"
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
# Names without what separates them; the full grammar is that of the selectors.
_USER = re.compile(rf"{_PREFIX}:([^:]+):([^:]+)")


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A service account, and the pod that uses it; empty where it is not known."""

    namespace: str
    name: str
    pod_name: str = ""
    pod_uid: str = ""

    @property
    def user(self) -> str:
        """What Kubernetes calls it: `system:serviceaccount:NAMESPACE:NAME`."""
        return f"{_PREFIX}:{self.namespace}:{self.name}"

    @property
    def pairs(self) -> list[tuple[SelectorKind, str]]:
        """What is true of its pod."""
        found = [
            (SelectorKind.K8S_NAMESPACE, self.namespace),
            (SelectorKind.K8S_SERVICE_ACCOUNT, self.name),
        ]
        if self.pod_name and self.pod_uid:
            found.append((SelectorKind.K8S_POD_NAME, self.pod_name))
            found.append((SelectorKind.K8S_POD_UID, self.pod_uid))
        return found


def claimed_account(claims: Mapping[str, Any]) -> ServiceAccount | Refused:
    """Return the service account of a *verified* projected token, from its claim `kubernetes.io`."""
    private = claims.get("kubernetes.io")
    account = private.get("serviceaccount") if isinstance(private, dict) else None
    namespace = private.get("namespace") if isinstance(private, dict) else None
    name = account.get("name") if isinstance(account, dict) else None
    if not isinstance(namespace, str) or not isinstance(name, str) or not namespace or not name:
        return Refused(
            Reason.MALFORMED, "the token does not say which service account it is (`kubernetes.io`)"
        )
    pod = private.get("pod") if isinstance(private, dict) else None
    found = ServiceAccount(namespace, name, _text(pod, "name"), _text(pod, "uid"))
    if claims.get("sub") != found.user:
        return Refused(Reason.MALFORMED, "the token's `sub` and `kubernetes.io` are not the same account")
    return found


def attest_reviewed(reviewed: ReviewedUser | NotAuthenticated) -> Attested | Refused:
    """Return what the API server's answer about a token has proved of its bearer."""
    if isinstance(reviewed, NotAuthenticated):
        return Refused(Reason.NOT_AUTHENTICATED, reviewed.reason)
    match = _USER.fullmatch(reviewed.name)
    if match is None or _GROUP not in reviewed.groups:
        return Refused(Reason.NOT_AUTHENTICATED, "the token is not that of a service account")
    extra = reviewed.extra or {}
    account = ServiceAccount(match[1], match[2], _only(extra, _POD_NAME), _only(extra, _POD_UID))
    return Attested(selectors(account.pairs), account.user, ATTESTED_BY)


def _text(found: object, name: str) -> str:
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""


def _only(extra: Mapping[str, tuple[str, ...]], name: str) -> str:
    values = extra.get(name, ())
    return values[0] if len(values) == 1 else ""
