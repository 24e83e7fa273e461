"""Request paths as policies see them: without query and fragment, normalised once; and queries to be changed.

Modes as in Istio's `meshConfig.pathNormalization`. Envoy must forward the same form that is decided on
(`docs/howto/connect-envoy.md`); decoding happens once, so `%252e` stays `%2e`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from enum import StrEnum
from urllib.parse import quote, unquote_plus


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
# `&`, and `;` that some servers still take for it.
_BETWEEN_PARAMETERS = re.compile(r"([&;])")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


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


def query_parameters(target: str) -> list[tuple[str, str]]:
    """Return names and values of the parameters in a request target, decoded, in their order.

    They are taken apart as `change_query` does, so that what is found by a name can also be removed by it.
    """
    query = target.partition("#")[0].partition("?")[2]
    pairs = (piece.partition("=") for piece in _BETWEEN_PARAMETERS.split(query)[::2] if piece)
    return [(unquote_plus(name), unquote_plus(value)) for name, _, value in pairs]


def change_query(target: str, remove: Collection[str], add: Mapping[str, str]) -> str:
    """Return the request target `target` (origin form) without the parameters `remove`, with those of `add`.

    A parameter goes in every spelling (`%61` for `a`) and as often as it is there. Names and values in `add`
    are percent-encoded here. What stays, stays as it was written, apart from bytes that no target may have
    and a fragment, which is not part of one (RFC 9112, section 3.2).
    """
    whole = quote(target.partition("#")[0], safe=_VISIBLE, errors="surrogateescape")
    path, _, query = whole.partition("?")
    gone = {*remove, *add}
    pieces = _BETWEEN_PARAMETERS.split(query)
    kept = ""
    for at in range(0, len(pieces), 2):
        piece = pieces[at]
        if piece and unquote_plus(piece.partition("=")[0]) not in gone:
            kept += (pieces[at - 1] if kept else "") + piece
    for name, value in add.items():
        kept += (
            f"{'&' if kept else ''}{quote(name, safe='')}={quote(value, safe='', errors='surrogateescape')}"
        )
    return f"{path}?{kept}" if kept else path
