"""The limits of every domain, immutable and looked up without a search.

Matching, entry by entry, all entries of a descriptor, in their order:
1. the value as it is written;
2. patterns of that key, in file order, the first that matches;
3. the key without a value, which is also where an empty value goes, skipping 1 and 2.
A step once taken is not taken back. The limit is that of the node which the last entry reaches; a node
without one, and no node, mean no limit. Keys and values are kept apart: (`a`, `b`) is not (`a_b`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from garrison.documents import Diagnostic
from ratelimit.algorithm import Limit, OnStoreFailure
from ratelimit.descriptors import Entry, value_text
from ratelimit.patterns import Pattern


@dataclass(frozen=True, slots=True)
class Unlimited:
    """A rule that says there is no limit, which is reported as such."""

    source: str = ""


Rule = Limit | Unlimited


@dataclass(frozen=True, slots=True)
class Node:
    """Where a path of entries leads: its rules, if any, and what may follow.

    `text` is the entry's part of bucket keys where that does not depend on the value; else it is empty. A
    node with `once_for` (nanoseconds) is no step of the path: its value identifies the call, and the rules
    are those of the node before. `metric` is the entry's part of metric names, None where that is the value
    itself; `names_values` says that what metrics are called depends on the values of the path.
    """

    limits: tuple[Limit, ...]
    unlimited: Unlimited | None
    children: Mapping[str, Branch]
    text: str = ""
    once_for: int = 0
    replaces: frozenset[str] = frozenset()
    metadata: Mapping[str, Any] | None = None
    metric: str | None = None
    detailed_metric: bool = False
    names_values: bool = False

    @property
    def rule(self) -> Rule | None:
        """What decides here: the first limit, or that there is none."""
        return self.limits[0] if self.limits else self.unlimited


@dataclass(frozen=True, slots=True)
class Branch:
    """All nodes of one key at one level; `text` is the key's part of bucket keys."""

    text: str
    exact: Mapping[str, Node]
    patterns: tuple[tuple[Pattern, Node], ...]
    any_value: Node | None

    def find(self, value: str) -> Node | None:
        """Return the node that `value` leads to."""
        if value:
            node = self.exact.get(value)
            if node is not None:
                return node
            for pattern, node in self.patterns:
                if pattern.matches(value):
                    return node
        return self.any_value


class Found(NamedTuple):
    """The node that a descriptor leads to, its path in bucket keys, and the call's identifier, if any."""

    node: Node
    path: str
    once: str = ""
    once_for: int = 0


@dataclass(frozen=True, slots=True)
class Domain:
    """The limits of one domain; `text` is its part of bucket keys.

    With `quota_mode` every limit is one of a quota, and so is, for the verdict, a descriptor without any.
    `on_store_failure` is for limits that requests bring along.
    """

    name: str
    text: str
    root: Mapping[str, Branch]
    has_replaces: bool = False
    quota_mode: bool = False
    on_store_failure: OnStoreFailure = OnStoreFailure.DENY

    def find(self, entries: Sequence[Entry]) -> Rule | None:
        """Return the rule for a descriptor with these entries, or None where nothing is limited."""
        found = self.resolve(entries)
        return found.node.rule if found is not None else None

    def resolve(self, entries: Sequence[Entry]) -> Found | None:
        """Return where a descriptor with these entries leads, or None where that is nowhere."""
        level = self.root
        path = self.text
        last: Node | None = None
        once, once_for = "", 0
        for key, value in entries:
            branch = level.get(key)
            if branch is None:
                return None
            node = branch.find(value)
            if node is None:
                return None
            if node.once_for:
                once, once_for = value, node.once_for
                continue
            level = node.children
            path += node.text or branch.text + value_text(value)
            last = node
        return Found(last, path, once, once_for) if last is not None else None

    def metric(self, entries: Sequence[Entry], last: Node) -> str:
        """Return what metrics call the rules of `last`, to which `entries` lead."""
        level = self.root
        parts: list[str] = []
        for key, value in entries:
            node = level[key].find(value)
            if node is None:  # pragma: no cover - `last` was found this way
                break
            if node.once_for:
                continue
            level = node.children
            shown = node.metric
            if shown is None or (last.detailed_metric and not node.text):
                shown = value
            parts.append(f"{key}_{shown}" if shown else key)
        return ".".join(parts)


@dataclass(frozen=True, slots=True)
class Limits:
    """Everything that is configured. `version` is a hash of the content, whatever files it stood in."""

    domains: Mapping[str, Domain]
    version: str
    warnings: tuple[Diagnostic, ...] = ()
