"""Role links of a `g` definition: who has which role, in which domain. Immutable once built.

Stands in for pycasbin's role managers, which remember every name that they are ever asked about (callers
choose those names, so memory would grow with them) and change while they answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from casbin.rbac import RoleManager

# pycasbin looks at ten names in a row, the subject's own first: a role is at most nine links away.
MAX_LINKS = 9


class Roles(RoleManager):  # type: ignore[misc]  # pycasbin has no types
    """The links of one role definition."""

    def __init__(self, links: Iterable[Sequence[str]]) -> None:
        """Take `links` of (name, role) or (name, role, domain)."""
        graphs: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name, role, *domain in links:
            graphs[domain[0] if domain else ""][name].append(role)
        self._graphs: Mapping[str, Mapping[str, Sequence[str]]] = {
            domain: {name: tuple(roles) for name, roles in graph.items()} for domain, graph in graphs.items()
        }
        # Holds only names that have links: bounded by the policy, whatever callers ask.
        self._known: dict[tuple[str, str], frozenset[str]] = {}

    def roles_of(self, name: str, domain: str = "") -> frozenset[str]:
        """Return `name` itself and every role it has in `domain`, directly or through other roles."""
        graph = self._graphs.get(domain)
        if graph is None or name not in graph:
            return frozenset((name,))
        found = self._known.get((domain, name))
        if found is None:
            found = self._known[domain, name] = _reachable(graph, name)
        return found

    def has_link(self, name1: str, name2: str, *domain: str) -> bool:
        """Return whether `name1` is `name2` or has it as a role (pycasbin's interface)."""
        return name2 in self.roles_of(name1, *domain)


def _reachable(graph: Mapping[str, Sequence[str]], name: str) -> frozenset[str]:
    found = {name}
    edge = [name]
    for _ in range(MAX_LINKS):
        edge = [role for one in edge for role in graph.get(one, ()) if role not in found]
        if not edge:
            break
        found.update(edge)
        edge = list(dict.fromkeys(edge))
    return frozenset(found)
