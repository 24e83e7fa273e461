"""Who may have which SPIFFE ID: registrations and their selectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import PurePosixPath

from ca.issuer import DEFAULT_TTL, MAX_TTL, MIN_TTL
from ca.template import check_dns_name
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId, TrustDomain

DEFAULT_JWT_TTL = timedelta(minutes=5)
# A token works for whoever holds it, so an hour is a lot. Keys are kept this long after their last use.
MAX_JWT_TTL = timedelta(hours=1)

# uid_t and gid_t; the greatest value means "none" to the kernel (chown(2)).
_MAX_NUMBER = 2**32 - 2
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
# Kubernetes: RFC 1123 labels and subdomains, which are what the API server takes as names.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_SERVICE_ACCOUNT = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAX_SUBDOMAIN = 253
_UID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
# A claim may hold any text that can be printed: it is compared whole, never searched.
_CLAIM = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}=[^\x00-\x1f\x7f]+")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]+")
_TOKEN_ID = re.compile(r"[0-9a-f]{16}")
MAX_SELECTOR_LENGTH = 4096
# The Workload API bounds it (SPIFFE Workload API, section 5.2.1).
MAX_HINT_LENGTH = 1024


class SelectorKind(StrEnum):
    """What a selector looks at, as it is written before the value."""

    UNIX_UID = "unix:uid"
    UNIX_GID = "unix:gid"
    UNIX_PATH = "unix:path"
    K8S_NAMESPACE = "k8s:ns"
    K8S_SERVICE_ACCOUNT = "k8s:sa"
    K8S_POD_NAME = "k8s:pod-name"
    K8S_POD_UID = "k8s:pod-uid"
    JWT_ISSUER = "jwt:iss"
    JWT_SUBJECT = "jwt:sub"
    JWT_CLAIM = "jwt:claim"
    X509_ID = "x509:id"
    JOIN_TOKEN = "join_token:id"


def _is_number(value: str) -> bool:
    return _NUMBER.fullmatch(value) is not None and int(value) <= _MAX_NUMBER


def _is_absolute(value: str) -> bool:
    # What the kernel reports is compared character by character.
    return value.startswith("/") and _is_shortest(value)


def _is_workload(value: str) -> bool:
    try:
        return bool(SpiffeId.parse(value).segments)
    except ValueError:
        return False


# Kind -> whether a value can ever be met, and what would be right. A new attestor adds its kinds here.
_VALUES: Mapping[SelectorKind, tuple[Callable[[str], object], str]] = {
    SelectorKind.UNIX_UID: (_is_number, f"a decimal number up to {_MAX_NUMBER}"),
    SelectorKind.UNIX_GID: (_is_number, f"a decimal number up to {_MAX_NUMBER}"),
    SelectorKind.UNIX_PATH: (_is_absolute, "an absolute path without `.`, `..` or `//`"),
    SelectorKind.K8S_NAMESPACE: (_NAMESPACE.fullmatch, "the name of a namespace"),
    SelectorKind.K8S_SERVICE_ACCOUNT: (
        lambda value: len(value) <= _MAX_SUBDOMAIN and _SERVICE_ACCOUNT.fullmatch(value),
        "the name of a service account",
    ),
    SelectorKind.K8S_POD_NAME: (
        lambda value: len(value) <= _MAX_SUBDOMAIN and _SERVICE_ACCOUNT.fullmatch(value),
        "the name of a pod",
    ),
    SelectorKind.K8S_POD_UID: (_UID.fullmatch, "the UID of a pod"),
    SelectorKind.JWT_ISSUER: (_PRINTABLE.fullmatch, "an issuer as it stands in `iss`"),
    SelectorKind.JWT_SUBJECT: (_PRINTABLE.fullmatch, "a subject as it stands in `sub`"),
    SelectorKind.JWT_CLAIM: (_CLAIM.fullmatch, "`NAME=VALUE`"),
    SelectorKind.X509_ID: (_is_workload, "the SPIFFE ID of a workload"),
    SelectorKind.JOIN_TOKEN: (_TOKEN_ID.fullmatch, "the 16 hexadecimal digits that name a token"),
}
# Each has one colon, so that the second one ends it.
_KINDS = {str(kind): kind for kind in SelectorKind}


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """One thing that must be true of a caller, such as `unix:uid:1000` or `unix:path:/usr/bin/envoy`."""

    kind: SelectorKind
    value: str

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Return the selector that `text` spells; there is exactly one spelling for each.

        A number has no leading zeros or sign, a path is absolute and in its shortest form: what an attestor
        reports is compared with it character by character.

        Raises:
            ValueError: it spells none; the message says what would be right.

        """
        if len(text) > MAX_SELECTOR_LENGTH:
            raise ValueError(f"a selector has at most {MAX_SELECTOR_LENGTH} characters")
        what, _, rest = text.partition(":")
        detail, colon, value = rest.partition(":")
        kind = _KINDS.get(f"{what}:{detail}") if colon else None
        if kind is None:
            known = ", ".join(f"`{kind}:`" for kind in SelectorKind)
            raise ValueError(f"selector `{text}` does not start with one of {known}")
        can_be_met, expected = _VALUES[kind]
        if not can_be_met(value):
            raise ValueError(f"selector `{text}` needs {expected}")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


@dataclass(frozen=True, slots=True)
class Registration:
    """An identity, and the selectors that a caller must all meet to get it.

    Without selectors it is nobody's, so such a registration cannot be made. `parent_id` is the agent that
    attests the caller; without one this server does. `federates_with` are the other trust domains whose
    bundles the workload gets; `hint` tells a workload with several identities what this one is for.

    Raises:
        ValueError: no selector, an ID without path, a parent of another trust domain, federation with its
            own one, or a hint, TTL or DNS name that the CA would refuse.

    """

    spiffe_id: SpiffeId
    selectors: tuple[Selector, ...]
    svid_ttl: timedelta = DEFAULT_TTL
    dns_names: tuple[str, ...] = ()
    parent_id: SpiffeId | None = None
    federates_with: tuple[TrustDomain, ...] = ()
    jwt_ttl: timedelta = DEFAULT_JWT_TTL
    hint: str = ""

    def __post_init__(self) -> None:
        if not self.selectors:
            raise ValueError(f"the registration of `{self.spiffe_id}` has no selectors, so it is nobody's")
        if not self.spiffe_id.segments:
            raise ValueError(f"`{self.spiffe_id}` has no path, so it cannot be registered")
        if not MIN_TTL <= self.svid_ttl <= MAX_TTL:
            raise ValueError(f"the TTL of `{self.spiffe_id}` is {self.svid_ttl}, not {MIN_TTL} to {MAX_TTL}")
        if not MIN_TTL <= self.jwt_ttl <= MAX_JWT_TTL:
            raise ValueError(
                f"the token TTL of `{self.spiffe_id}` is {self.jwt_ttl}, not {MIN_TTL} to {MAX_JWT_TTL}"
            )
        for name in self.dns_names:
            try:
                check_dns_name(name)
            except IssuanceError as error:
                raise ValueError(str(error)) from error
        domain = self.spiffe_id.trust_domain
        if self.parent_id is not None and (
            self.parent_id.trust_domain != domain or not self.parent_id.segments
        ):
            raise ValueError(f"the parent `{self.parent_id}` is not an agent of `{domain}`")
        if domain in self.federates_with:
            raise ValueError(f"`{self.spiffe_id}` cannot federate with its own trust domain")
        if len(self.hint) > MAX_HINT_LENGTH or (self.hint and not self.hint.isprintable()):
            raise ValueError(f"a hint is printable text of at most {MAX_HINT_LENGTH} characters")

    @classmethod
    def parse(
        cls,
        spiffe_id: str,
        selectors: Sequence[str],
        svid_ttl: timedelta = DEFAULT_TTL,
        dns_names: Sequence[str] = (),
        *,
        parent_id: str | None = None,
        federates_with: Sequence[str] = (),
        jwt_ttl: timedelta = DEFAULT_JWT_TTL,
        hint: str = "",
    ) -> Registration:
        """Return a registration from the texts of a config file.

        Raises:
            ValueError: one of them is not as it must be.

        """
        parsed = tuple(Selector.parse(selector) for selector in selectors)
        return cls(
            SpiffeId.parse(spiffe_id),
            parsed,
            svid_ttl,
            tuple(dns_names),
            SpiffeId.parse(parent_id) if parent_id is not None else None,
            tuple(TrustDomain.parse(name) for name in federates_with),
            jwt_ttl,
            hint,
        )


def _is_shortest(path: str) -> bool:
    # PurePosixPath keeps a leading `//` and `..`.
    return path == str(PurePosixPath(path)) and not path.startswith("//") and ".." not in path.split("/")
