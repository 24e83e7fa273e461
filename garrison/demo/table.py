"""Rows as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from garrison.demo.rows import Row

HEADINGS = ("", "who called what", "expected", "got", "decided by", "added ms")
_GAP = "  "
_MIN_WIDTH = 16
_BRIEF = 80
_GREEN, _RED, _BOLD, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[0m"


def render(rows: Sequence[Row], width: int, *, colour: bool) -> str:
    """Return the table, at most `width` columns wide if that leaves its columns readable.

    Long cells wrap; the widest column gives way first.
    """
    cells = [_cells(row) for row in rows]
    widths = _fit([max(1, *map(len, column)) for column in zip(HEADINGS, *cells, strict=True)], width)
    lines = _lines(HEADINGS, widths, _BOLD if colour else "")
    lines.append(_GAP.join("-" * size for size in widths))
    for row, cell in zip(rows, cells, strict=True):
        paint = (_GREEN if row.ok else _RED) if colour else ""
        lines += _lines(cell, widths, paint)
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    added = "" if row.added_ms is None else f"{row.added_ms:.1f}"
    return ("ok" if row.ok else "DIFFERS", row.call, row.expected, row.got, brief(row.decided_by), added)


def brief(reason: str) -> str:
    """Return the start and the end of a long reason: what came nearest, and what it lacked."""
    if len(reason) <= _BRIEF:
        return reason
    start, _, rest = reason.partition(" rule ")
    end = rest.rpartition(": ")[2]
    return f"{start}: … {end}" if end else textwrap.shorten(reason, _BRIEF, placeholder=" …")


def _fit(widths: list[int], available: int) -> list[int]:
    widths = list(widths)
    while sum(widths) + len(_GAP) * (len(widths) - 1) > available and max(widths) > _MIN_WIDTH:
        widths[widths.index(max(widths))] -= 1
    return widths


def _lines(cells: Sequence[str], widths: Sequence[int], paint: str) -> list[str]:
    wrapped = [textwrap.wrap(cell, size) or [""] for cell, size in zip(cells, widths, strict=True)]
    lines = []
    for number in range(max(map(len, wrapped))):
        parts = [part[number] if number < len(part) else "" for part in wrapped]
        padded = [part.ljust(size) for part, size in zip(parts, widths, strict=True)]
        if paint:
            padded[0] = f"{paint}{padded[0]}{_PLAIN}"
        lines.append(_GAP.join(padded).rstrip())
    return lines
