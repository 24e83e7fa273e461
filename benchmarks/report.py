"""What was measured, as a table and as JSON. Pure: no clock, no files, no processes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Sample:
    """The values of one quantity in the rounds of a run, at least one."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Sample:
        """Return the sample of `values`.

        Raises:
            ValueError: there are none.

        """
        found = tuple(values)
        if not found:
            raise ValueError("a sample needs a value")
        return cls(found)

    @property
    def median(self) -> float:
        """The value that stands for the sample."""
        return median(self.values)

    def over(self, other: Sample) -> Sample:
        """Return the ratio to `other`, round by round: what disturbs a round disturbs both of its halves."""
        return Sample.of(one / two for one, two in zip(self.values, other.values, strict=True))


@dataclass(frozen=True, slots=True)
class Row:
    """One measured quantity."""

    what: str
    sample: Sample
    unit: str


@dataclass(frozen=True, slots=True)
class Table:
    """Several quantities of each of several things; a cell shows its median. Headings say the unit."""

    headings: tuple[str, ...]
    lines: Mapping[str, tuple[Sample, ...]]


@dataclass(frozen=True, slots=True)
class Requirement:
    """A ratio that has to be at least, or at most, `bound`."""

    what: str
    sample: Sample
    bound: float
    at_least: bool

    @property
    def holds(self) -> bool:
        """Whether the median keeps to the bound."""
        value = self.sample.median
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        word = "at least" if self.at_least else "at most"
        return f"{self.what}: {_number(self.sample.median)}, required {word} {_number(self.bound)}"


@dataclass(frozen=True, slots=True)
class Section:
    """One benchmark: how it was done, what came out, and what had to."""

    title: str
    how: str
    rows: tuple[Row, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    table: Table | None = None


def failures(sections: Sequence[Section]) -> list[Requirement]:
    """Return the requirements that do not hold."""
    return [one for section in sections for one in section.requirements if not one.holds]


def render(sections: Sequence[Section], machine: Mapping[str, str]) -> str:
    """Return the tables as text: medians, the lowest and highest round, and the verdicts."""
    lines = [f"{name}: {value}" for name, value in machine.items()]
    for section in sections:
        lines += [
            "",
            section.title,
            *textwrap.wrap(section.how, _WIDTH, initial_indent="  ", subsequent_indent="  "),
        ]
        lines += _rows(section.rows) if section.rows else []
        lines += _table(section.table) if section.table else []
        for requirement in section.requirements:
            lines.append(f"  {'ok  ' if requirement.holds else 'FAIL'} {requirement}")
    return "\n".join(lines)


def _table(table: Table) -> list[str]:
    cells = [("", *table.headings)]
    cells += [
        (name, *(_number(sample.median) for sample in samples)) for name, samples in table.lines.items()
    ]
    name, *numbers = (max(map(len, column)) for column in zip(*cells, strict=True))
    return [
        "  ".join(
            ["", first.ljust(name), *(cell.rjust(size) for cell, size in zip(rest, numbers, strict=True))]
        ).rstrip()
        for first, *rest in cells
    ]


def _rows(rows: Sequence[Row]) -> list[str]:
    cells: list[tuple[str, ...]] = [("", "median", "lowest", "highest", "")]
    cells += [
        (
            row.what,
            *map(_number, (row.sample.median, min(row.sample.values), max(row.sample.values))),
            row.unit,
        )
        for row in rows
    ]
    name, *numbers = (max(map(len, column)) for column in zip(*cells, strict=True))
    return [
        "  ".join(
            [
                "",
                first.ljust(name),
                *(cell.rjust(size) for cell, size in zip(rest[:3], numbers, strict=False)),
                rest[3],
            ]
        ).rstrip()
        for first, *rest in cells
    ]


def _number(value: float) -> str:
    if value >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def as_json(sections: Sequence[Section], machine: Mapping[str, str], *, quick: bool) -> dict[str, Any]:
    """Return the same as `render`, for programs; every round's value is in it."""
    return {
        "machine": dict(machine),
        "quick": quick,
        "holds": not failures(sections),
        "sections": [
            {
                "title": section.title,
                "how": section.how,
                "rows": [{"what": row.what, "unit": row.unit, **_sample(row.sample)} for row in section.rows],
                "table": _table_data(section.table) if section.table else None,
                "requirements": [
                    {
                        "what": one.what,
                        "bound": one.bound,
                        "at_least": one.at_least,
                        "holds": one.holds,
                        **_sample(one.sample),
                    }
                    for one in section.requirements
                ],
            }
            for section in sections
        ],
    }


def _table_data(table: Table) -> dict[str, Any]:
    return {
        name: {heading: _sample(sample) for heading, sample in zip(table.headings, samples, strict=True)}
        for name, samples in table.lines.items()
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {"median": sample.median, "rounds": list(sample.values)}
