"""The bucket id of a quota report -> the rule for it, in the tree that descriptors are matched against.

A bucket id is a map, so its entries have no order, and the tree has one. All entries take part, in whatever
order the tree has them: `{tenant: a, path: b}` reaches the rule that the descriptor (`tenant`, `a`),
(`path`, `b`) reaches. Where several orders lead to a rule, the first one counts when keys are compared as
text, so the answer never depends on how a message was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ratelimit.descriptors import Entry, value_text
from ratelimit.tree import Branch, Domain, Node

MAX_ENTRIES = 32
MAX_CHARACTERS = 4096

BucketKey = tuple[Entry, ...]  # sorted by key


class Place(NamedTuple):
    """The node that a bucket id leads to, and its path in bucket keys: the one that a descriptor has, too."""

    node: Node
    path: str


def bucket_key(entries: Mapping[str, str]) -> BucketKey:
    """Return a bucket id as something that is equal and hashed alike for equal maps.

    Raises:
        ValueError: it is larger than any that is served.

    """
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"a bucket id has more than {MAX_ENTRIES} entries")
    if sum(len(key) + len(value) for key, value in entries.items()) > MAX_CHARACTERS:
        raise ValueError(f"a bucket id has more than {MAX_CHARACTERS} characters")
    return tuple(sorted(entries.items()))


def find(domain: Domain, key: BucketKey) -> Place | None:
    """Return where a bucket id leads, None where there is no rule at the end."""
    return _search(domain.root, key, domain.text, None)


def _search(level: Mapping[str, Branch], rest: BucketKey, path: str, last: Node | None) -> Place | None:
    """Walk the orders that the tree has; since it is a tree, no node is reached twice."""
    if not rest:
        return Place(last, path) if last is not None and last.rule is not None else None
    for index, (name, value) in enumerate(rest):
        branch = level.get(name)
        node = branch.find(value) if branch is not None else None
        if branch is None or node is None:
            continue
        others = rest[:index] + rest[index + 1 :]
        if node.once_for:
            # Its value tells calls apart, not buckets: no step of the path (`tree.py`).
            found = _search(level, others, path, last)
        else:
            found = _search(
                node.children, others, path + (node.text or branch.text + value_text(value)), node
            )
        if found is not None:
            return found
    return None
