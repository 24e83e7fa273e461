"""Where an issuer's keys are and how long they live, out of what it answers. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from garrison.errors import DependencyError
from garrison.keys.jwks import KeySource, unique_names
from garrison.urls import check_url, shown

_WELL_KNOWN = "/.well-known/openid-configuration"


def name_of(source: KeySource) -> str:
    """Return what logs and metrics call `source`: its URL or issuer, without a query."""
    return shown(source.url or source.issuer)


def check_source(source: KeySource) -> str:
    """Return what is wrong with `source` as a place to get keys from; empty when nothing is."""
    if source.url.startswith("file:"):
        parts = urlsplit(source.url)
        fits = not parts.netloc and parts.path.startswith("/") and not parts.query and not parts.fragment
        return "" if fits else f"`{shown(source.url)}` is not of the form `file:///path`"
    if source.url:
        return check_url(source.url)
    if not source.issuer:
        return "neither a URL nor an issuer says where the keys are"
    if problem := check_url(source.issuer):
        return problem
    if "?" in source.issuer or "#" in source.issuer:
        return f"the issuer `{shown(source.issuer)}` has a query or a fragment"
    return ""


def file_of(source: KeySource) -> str:
    """Return the path of a `file:///path` source; empty for another one."""
    return unquote(urlsplit(source.url).path) if source.url.startswith("file:") else ""


def discovery_url(issuer: str) -> str:
    """Return where the issuer describes itself (OpenID Connect Discovery 1.0, section 4)."""
    return issuer.removesuffix("/") + _WELL_KNOWN


def jwks_uri_of(issuer: str, body: bytes) -> str:
    """Return where the discovery document in `body` says that the keys are.

    Raises:
        DependencyError: no such document, another issuer's (section 4.3), or keys without TLS.

    """
    try:
        document: Any = json.loads(body.decode("utf-8-sig"), object_pairs_hook=unique_names)
    except (ValueError, RecursionError):
        raise DependencyError("the discovery document is not JSON") from None
    if not isinstance(document, dict):
        raise DependencyError("the discovery document is not a JSON object")
    if document.get("issuer") != issuer:
        raise DependencyError(f"the discovery document is for another issuer than `{shown(issuer)}`")
    url = document.get("jwks_uri")
    if not isinstance(url, str):
        raise DependencyError("the discovery document has no `jwks_uri`")
    if problem := check_url(url):
        raise DependencyError(f"the discovery document's `jwks_uri`: {problem}")
    if issuer.startswith("https:") and not url.startswith("https:"):
        raise DependencyError("the discovery document's `jwks_uri` is without TLS")
    return url


def lifetime_of(headers: Mapping[str, str]) -> float | None:
    """Return for how many seconds an answer may be used, as its headers say (RFC 9111, section 4.2); or None.

    Names are in lower case. What cannot be used at all has 0; what makes no sense says nothing.
    """
    directives: dict[str, str] = {}
    for part in headers.get("cache-control", "").split(","):
        name, _, value = part.partition("=")
        directives.setdefault(name.strip().lower(), value.strip().strip('"'))
    if "no-store" in directives or "no-cache" in directives:
        return 0.0
    age = _seconds(headers.get("age", "")) or 0.0
    stated = _seconds(directives.get("max-age", ""))
    if stated is None and (expires := headers.get("expires")) is not None:
        end, begin = _date(expires), _date(headers.get("date", ""))
        if begin is None:
            return None
        # Section 5.3: a date that cannot be read, such as `0`, is in the past.
        stated = (end - begin).total_seconds() if end is not None else 0.0
    return None if stated is None else max(0.0, stated - age)


def _seconds(text: str) -> float | None:
    """Return a number of seconds; numbers of many digits are as good as for ever (section 1.2.2)."""
    text = text.strip()
    return float(text[:10]) if text.isascii() and text.isdigit() else None


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return found if found.tzinfo is not None else None
