"""Who somebody is: trust domains and SPIFFE IDs, parsed strictly.

The grammar is that of SPIFFE-ID, section 2 (SPIFFE standards).
A value of these types has passed it; nothing else in Garrison takes an identity apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEME = "spiffe://"

# Section 2.3: implementations support 2048 bytes and should not generate more; longer ones are refused.
MAX_SPIFFE_ID_BYTES = 2048
# Section 2.1: the trust domain name is at most 255 bytes.
MAX_TRUST_DOMAIN_BYTES = 255

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """A trust domain name, such as `cluster.local`: 1 to 255 bytes of `[a-z0-9._-]`."""

    name: str

    @classmethod
    def parse(cls, text: str) -> TrustDomain:
        """Return the trust domain that `text` names (no scheme, no path).

        Raises:
            ValueError: `text` is not a trust domain name; the message says why.

        """
        if not text:
            raise ValueError("a trust domain name is empty")
        if len(text) > MAX_TRUST_DOMAIN_BYTES:
            raise ValueError(f"a trust domain name has at most {MAX_TRUST_DOMAIN_BYTES} bytes")
        if not _TRUST_DOMAIN.fullmatch(text):
            raise ValueError(f"trust domain `{text}` has characters other than a-z, 0-9, `.`, `-`, `_`")
        return cls(text)

    @property
    def spiffe_id(self) -> SpiffeId:
        """The ID of the trust domain itself: no path (section 2.2)."""
        return SpiffeId(self, ())

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """`spiffe://<trust domain>/<segment>/…`; without segments it is the trust domain's own ID."""

    trust_domain: TrustDomain
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Return the SPIFFE ID that `text` spells.

        Upper case in the scheme or the trust domain is refused, not folded: two spellings of one
        identity would be two keys in a policy.

        Raises:
            ValueError: `text` is not a SPIFFE ID; the message says why.

        """
        if len(text) > MAX_SPIFFE_ID_BYTES:
            raise ValueError(f"a SPIFFE ID has at most {MAX_SPIFFE_ID_BYTES} bytes")
        if not text.startswith(SCHEME):
            raise ValueError(f"SPIFFE ID `{text}` does not start with `{SCHEME}`")
        name, *segments = text[len(SCHEME) :].split("/")
        trust_domain = TrustDomain.parse(name)
        for segment in segments:
            if not segment:
                raise ValueError(f"SPIFFE ID `{text}` has an empty path segment")
            if segment in {".", ".."}:
                raise ValueError(f"SPIFFE ID `{text}` has a relative path segment `{segment}`")
            if not _SEGMENT.fullmatch(segment):
                raise ValueError(
                    f"SPIFFE ID `{text}` has path characters other than a-z, A-Z, 0-9, `.`, `-`, `_`"
                )
        return cls(trust_domain, tuple(segments))

    @classmethod
    def workload(cls, trust_domain: TrustDomain, namespace: str, service_account: str) -> SpiffeId:
        """Return `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, Istio's form."""
        return cls.parse(f"{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}")

    @property
    def path(self) -> str:
        """The path with its leading `/`; empty for the trust domain's own ID."""
        return "/".join(("", *self.segments))

    @property
    def principal(self) -> str:
        """The ID without its scheme, the form that Istio policies compare (`source.principal`)."""
        return "/".join((self.trust_domain.name, *self.segments))

    @property
    def namespace(self) -> str | None:
        """The namespace of an ID in Istio's form `/ns/<namespace>/sa/<service account>`, else None."""
        return self.segments[1] if self._is_istio_form() else None

    @property
    def service_account(self) -> str | None:
        """The service account of an ID in Istio's form, else None."""
        return self.segments[3] if self._is_istio_form() else None

    def _is_istio_form(self) -> bool:
        return len(self.segments) == 4 and self.segments[0] == "ns" and self.segments[2] == "sa"

    def __str__(self) -> str:
        return f"{SCHEME}{self.principal}"
