"""Request paths as policies see them: without query and fragment, normalised once.

Modes as in Istio's `meshConfig.pathNormalization`. Envoy must forward the same form that is decided on
(`docs/howto/connect-envoy.md`); decoding happens once, so `%252e` stays `%2e`.
"""

from __future__ import annotations

import re
from enum import StrEnum


class PathNormalization(StrEnum):
    """How much two spellings of a path are the same path."""

    NONE = "NONE"
    BASE = "BASE"
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"


# RFC 3986, section 2.3: percent-encoded unreserved characters are the characters themselves.
_ENCODED_UNRESERVED = re.compile(r"%(2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aA]|5[fF]|6[1-9a-fA-F]|7[0-9aA]|7[eE])")
_SPECIAL = re.compile(r"[?#%\\]|/[./]")
_QUERY_OR_FRAGMENT = re.compile(r"[?#].*", re.DOTALL)
_ENCODED_SLASH = re.compile(r"%2[fF]|%5[cC]")
_SLASHES = re.compile(r"/{2,}")


def normalize_path(target: str, mode: PathNormalization) -> str:
    """Return the path of the request target `target` (origin form) under `mode`."""
    if _SPECIAL.search(target) is None:
        return target  # nearly every path
    path = _QUERY_OR_FRAGMENT.sub("", target)
    if mode is PathNormalization.NONE:
        return path
    if mode is PathNormalization.DECODE_AND_MERGE_SLASHES:
        path = _ENCODED_SLASH.sub("/", path)
    path = _ENCODED_UNRESERVED.sub(lambda match: chr(int(match[1], 16)), path)
    path = _remove_dot_segments(path.replace("\\", "/"))
    if mode is not PathNormalization.BASE:
        path = _SLASHES.sub("/", path)
    return path


def _remove_dot_segments(path: str) -> str:
    """RFC 3986, section 5.2.4, for a path that starts with `/`; `..` at the root stays at the root."""
    if not path.startswith("/") or "/." not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)
