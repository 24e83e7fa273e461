"""What a model's request terms are made of: attributes of the call, never guessed, never empty.

A term that has no single, unambiguous value makes the policy deny. Replacing it by an empty string, or
leaving it to each matcher, would let a `deny` row miss the call that it was written for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from authz.attributes import Attributes
from garrison.identity import SCHEME, SpiffeId

# Line ends and other control characters end a pattern early in some engines and not in others; surrogates
# stand for bytes that were not UTF-8. No policy can mean them.
_UNREADABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# What the server behind Envoy may read as another path than the one that is decided on: encoded separators,
# path parameters (`/admin;x` is `/admin` to Java servers), dot segments.
_AMBIGUOUS_PATH = re.compile(r"%2[fF]|%5[cC]|%00|[\\;]|(?:^|/)(?:\.|%2[eE]){1,2}(?:/|$)")
# A host without user, list and anything else that hides which host it is; port and final dot are left out.
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s,@:/\\\[\]]+?)\.?(?::[0-9]*)?")

# Attributes that a term may be. Others of `ATTRIBUTES` give guesses too, for conditions that deny.
WITHOUT_ARGUMENT = frozenset(
    {
        "connection.sni",
        "destination.ip",
        "destination.name",
        "destination.namespace",
        "destination.port",
        "destination.service",
        "destination.user",
        "remote.ip",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.principal",
        "request.host",
        "request.method",
        "request.path",
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
    }
)
WITH_ARGUMENT = frozenset({"destination.labels", "request.auth.claims", "request.headers"})


@dataclass(frozen=True, slots=True)
class MissingTerm:
    """Why a term has no value that can be decided on; `detail` names the attribute, not its value."""

    detail: str


@dataclass(frozen=True, slots=True)
class RequestTerm:
    """One term of the request definition: `prefix` and the value of an attribute, or `literal` alone."""

    name: str
    attribute: str = ""
    argument: str = ""
    prefix: str = ""
    literal: str = ""

    @property
    def label(self) -> str:
        """The attribute as policies write it."""
        return f"{self.attribute}[{self.argument}]" if self.argument else self.attribute

    def read(self, attributes: Attributes) -> str | MissingTerm:
        """Return the term's value for a call."""
        if not self.attribute:
            return self.literal
        values = attributes.values(self.attribute, self.argument)
        if not values or not values[0]:
            return MissingTerm(f"{self.label} is absent")
        # Envoy joins the lines of a header with commas: one value may be several.
        if len(values) > 1 or (
            self.attribute == "request.headers"
            and len(attributes.values("request.headers.any", self.argument)) > 1
        ):
            return MissingTerm(f"{self.label} has more than one value")
        value: object = values[0]
        if not isinstance(value, str) or _UNREADABLE.search(value):
            return MissingTerm(f"{self.label} has characters that no policy can mean")
        if self.attribute == "request.path" and (not value.startswith("/") or _AMBIGUOUS_PATH.search(value)):
            return MissingTerm(f"{self.label} can be read as more than one path")
        if self.attribute == "request.host":
            host = _HOST.fullmatch(value)
            if host is None or host[1].endswith("."):
                return MissingTerm(f"{self.label} can be read as more than one host")
            value = str(host[1])
        return self.prefix + value

    def can_be(self, text: str) -> bool:
        """Return whether some call could give this term the value `text`."""
        if not self.attribute:
            return text == self.literal
        if not text.startswith(self.prefix):
            return False
        value = text[len(self.prefix) :]
        if self.attribute == "source.principal":
            return _is_principal(value)
        if self.attribute == "request.path":
            return value.startswith("/")
        return bool(value)


def _is_principal(value: str) -> bool:
    try:
        SpiffeId.parse(SCHEME + value)
    except ValueError:
        return False
    return True
