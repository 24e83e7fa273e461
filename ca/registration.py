"""Who may have which SPIFFE ID: registrations and their selectors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import PurePosixPath

from ca.issuer import DEFAULT_TTL, MAX_TTL, MIN_TTL
from ca.template import check_dns_name
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId

DEFAULT_JWT_TTL = timedelta(minutes=5)
# A token works for whoever holds it, so an hour is a lot. Keys are kept this long after their last use.
MAX_JWT_TTL = timedelta(hours=1)
# SPIFFE Workload API, section 5.2.1.
MAX_HINT_BYTES = 1024

# uid_t and gid_t; the greatest value means "none" to the kernel (chown(2)).
_MAX_NUMBER = 2**32 - 2
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")


class SelectorKind(StrEnum):
    """What a selector looks at, as it is written before the value."""

    UNIX_UID = "unix:uid"
    UNIX_GID = "unix:gid"
    UNIX_PATH = "unix:path"


@dataclass(frozen=True, slots=True)
class Selector:
    """One thing that must be true of a caller, such as `unix:uid:1000` or `unix:path:/usr/bin/envoy`."""

    kind: SelectorKind
    value: str

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Return the selector that `text` spells.

        A number has no leading zeros or sign, a path is absolute and in its shortest form: what the kernel
        reports is compared with it character by character.

        Raises:
            ValueError: it spells none; the message says what would be right.

        """
        for kind in SelectorKind:
            value = text.removeprefix(f"{kind}:")
            if value == text:
                continue
            if kind is SelectorKind.UNIX_PATH:
                if not value.startswith("/") or not _is_shortest(value):
                    raise ValueError(f"selector `{text}` needs an absolute path without `.`, `..` or `//`")
            elif not _NUMBER.fullmatch(value) or int(value) > _MAX_NUMBER:
                raise ValueError(f"selector `{text}` needs a decimal number up to {_MAX_NUMBER}")
            return cls(kind, value)
        known = ", ".join(f"`{kind}:`" for kind in SelectorKind)
        raise ValueError(f"selector `{text}` does not start with one of {known}")

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


@dataclass(frozen=True, slots=True)
class Registration:
    """An identity, and the selectors that a caller must all meet to get it.

    Without selectors it is nobody's, so such a registration cannot be made. `hint` tells a workload with
    several identities what this one is for.

    Raises:
        ValueError: no selector, an ID without path, a hint that is too long, or a TTL or DNS name that the CA
            would refuse.

    """

    spiffe_id: SpiffeId
    selectors: tuple[Selector, ...]
    svid_ttl: timedelta = DEFAULT_TTL
    dns_names: tuple[str, ...] = ()
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
        if len(self.hint.encode()) > MAX_HINT_BYTES:
            raise ValueError(f"the hint of `{self.spiffe_id}` has more than {MAX_HINT_BYTES} bytes")
        for name in self.dns_names:
            try:
                check_dns_name(name)
            except IssuanceError as error:
                raise ValueError(str(error)) from error

    @classmethod
    def parse(
        cls,
        spiffe_id: str,
        selectors: Sequence[str],
        svid_ttl: timedelta = DEFAULT_TTL,
        dns_names: Sequence[str] = (),
    ) -> Registration:
        """Return a registration from the texts of a config file.

        Raises:
            ValueError: one of them is not as it must be.

        """
        parsed = tuple(Selector.parse(selector) for selector in selectors)
        return cls(SpiffeId.parse(spiffe_id), parsed, svid_ttl, tuple(dns_names))


def _is_shortest(path: str) -> bool:
    # PurePosixPath keeps a leading `//` and `..`.
    return path == str(PurePosixPath(path)) and not path.startswith("//") and ".." not in path.split("/")
