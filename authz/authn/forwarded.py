"""`x-forwarded-client-cert`: the client certificate that another Envoy verified, as its header tells it.

The format is Envoy's ("x-forwarded-client-cert" in its documentation of HTTP headers): elements between
commas, one for each proxy, the last one by the proxy that sent it; in an element `Key=Value` between
semicolons; a value with one of `,;="` is quoted, with a backslash before a quote. Whether to believe any of
it is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from garrison.identity import SCHEME, SpiffeId

CERTIFICATE_HEADER = "x-forwarded-client-cert"
# Chain and certificate are in it where Envoy is told so; Envoy's own limit for all headers is 60 KB.
MAX_HEADER_BYTES = 64 * 1024

Element = tuple[tuple[str, str], ...]

# Envoy compares keys without case. Those that describe a certificate but do not name its owner may repeat.
_ONCE = frozenset({"hash", "subject", "cert", "chain"})
_NAMES = {"uri": "URI", "hash": "Hash", "subject": "Subject", "cert": "Cert", "chain": "Chain"}


class CertificateError(ValueError):
    """The header says nothing that can be relied on; the message holds nothing of it."""


def parse_elements(text: str) -> list[Element]:
    """Return the elements of the header, each as pairs of key (as written) and value (unquoted).

    Raises:
        CertificateError: it is not in Envoy's format.

    """
    if len(text) > MAX_HEADER_BYTES:
        raise CertificateError(f"it has more than {MAX_HEADER_BYTES} bytes")
    elements: list[Element] = []
    pairs: list[tuple[str, str]] = []
    for key, value, end in _pairs(text):
        pairs.append((key, value))
        if end != ";":
            elements.append(tuple(pairs))
            pairs = []
    return elements


def _pairs(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and what follows: `;`, `,`, or nothing at the end."""
    at = 0
    while True:
        equals = text.find("=", at)
        key = text[at:equals].strip(" \t") if equals >= 0 else ""
        if not (key.isascii() and key.isalpha()):
            raise CertificateError("it is not a list of `Key=Value`")
        value, at = _value(text, equals + 1)
        end = text[at : at + 1]
        if end and end not in ",;":
            raise CertificateError("something follows a quoted value")
        yield key, value, end
        if not end:
            return
        at += 1


def _value(text: str, at: int) -> tuple[str, int]:
    """Return the value that starts at `at`, and where it ends."""
    if text[at : at + 1] != '"':
        ends = [where for mark in ",;" if (where := text.find(mark, at)) >= 0]
        end = min(ends, default=len(text))
        value = text[at:end].strip(" \t")
        if '"' in value or "=" in value:
            raise CertificateError("a value that needs quotes has none")
        return value, end
    value, at = "", at + 1
    while True:
        quote, escape = text.find('"', at), text.find("\\", at)
        if quote < 0:
            raise CertificateError("a quoted value does not end")
        if escape < 0 or quote < escape:
            end = quote + 1
            while text[end : end + 1] in {" ", "\t"}:
                end += 1
            return value + text[at:quote], end
        following = text[escape + 1 : escape + 2]
        # Only a quote has a backslash that is not part of the value: subjects have backslashes of their own.
        value += text[at:escape] + ('"' if following == '"' else "\\" + following)
        at = escape + 2


def format_elements(elements: list[Element]) -> str:
    """Return the header value for `elements`, every value quoted."""
    return ",".join(";".join(f"{key}={_quoted(value)}" for key, value in one) for one in elements)


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '\\"') + '"'


def client_claims(text: str) -> Mapping[str, Any]:
    """Return what the last element says of the client, as claims.

    `sub` is the URI, which has to be a SPIFFE ID of a workload; without one the subject, without that the DNS
    name, if there is just one. `uri`, `subject`, `hash` are strings, `dns` and `by` lists.

    Raises:
        CertificateError: the header is not in Envoy's format, or does not name one client.

    """
    found: dict[str, list[str]] = {}
    for key, value in parse_elements(text)[-1]:
        found.setdefault(key.lower(), []).append(value)
    for key in _ONCE & found.keys():
        if len(found[key]) > 1:
            raise CertificateError(f"`{_NAMES[key]}` is in one element twice")
    values = {key: [value for value in all_ if value] for key, all_ in found.items()}
    uris, subjects, names = (values.get(key, []) for key in ("uri", "subject", "dns"))
    if len(uris) > 1:
        raise CertificateError("the certificate has more than one URI")
    claims: dict[str, Any] = {"by": values.get("by", []), "dns": names}
    claims |= {key: values[key][0] for key in ("uri", "subject", "hash") if values.get(key)}
    return {**claims, "sub": _name(uris, subjects, names)}


def _name(uris: list[str], subjects: list[str], names: list[str]) -> str:
    if uris:
        try:
            identity = SpiffeId.parse(uris[0])
        except ValueError:
            raise CertificateError("the URI of the certificate is no SPIFFE ID") from None
        if not identity.segments:  # that of a CA
            raise CertificateError("the URI of the certificate is the SPIFFE ID of a trust domain")
        return uris[0]
    # A name must not pass for a SPIFFE ID, which none of its kind is.
    for found in (subjects, names if len(names) == 1 else []):
        if found and not found[0].startswith(SCHEME):
            return found[0]
    raise CertificateError("the certificate names nobody")
