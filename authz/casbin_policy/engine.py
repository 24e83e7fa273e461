"""pycasbin, held so that it can only do one thing: decide a call on a fixed model and fixed rows.

`enforce` of pycasbin is a pure function of model, rows, role links and call, except for the hazards that are
closed here: `enable_enforce(False)` allows everything, FastEnforcer narrows its rows in shared state (so one
call decides on another's rows), an empty set of rows is decided as if it had one of empty values, and every
matcher is parsed again for every call.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from casbin import Model
from casbin.core_enforcer import CoreEnforcer
from casbin.model import FunctionMap

from authz.casbin_policy.definition import ModelText, Row
from authz.casbin_policy.matcher import Matcher, Required
from authz.casbin_policy.roles import Roles


class Ruling(NamedTuple):
    """What the model says of a call, and the row that decided; None when no row matched."""

    allowed: bool
    row: Row | None


class Engine:
    """A model with its rows. `decide` changes nothing: any number of threads may be in it."""

    def __init__(
        self,
        model: ModelText,
        rows: Sequence[Row],
        roles: Mapping[str, Roles],
        matchers: Mapping[str, Matcher],
        required: Required,
    ) -> None:
        """Take `matchers` by the expression that pycasbin asks for, and what all of them require."""
        casbin_model = Model()
        for key, definition in model.definitions.items():
            casbin_model.add_def(key[0], key, definition.value)
        for row in rows:
            casbin_model[row.key[0]][row.key].policy.append(row)
        casbin_model.sort_policies_by_subject_hierarchy()
        casbin_model.sort_policies_by_priority()
        self._enforcer = _Enforcer(casbin_model, roles, matchers)
        ordered: list[Row] = casbin_model["p"]["p"].policy
        self._index = _Index(
            ordered, casbin_model["p"]["p"].tokens, casbin_model["r"]["r"].tokens, required, roles
        )

    @property
    def indexed(self) -> bool:
        """Whether a call looks at some rows only; else the cost of a decision grows with their number."""
        return self._index.columns != ()

    def decide(self, terms: Sequence[str]) -> Ruling:
        """Return the model's ruling for the values of the request definition's terms."""
        rows = self._index.rows_for(terms)
        if not rows:
            return Ruling(allowed=False, row=None)
        allowed, row = self._enforcer.over(rows).enforce_ex(*terms)
        return Ruling(allowed=allowed is True, row=row if isinstance(row, Row) else None)


class _Enforcer(CoreEnforcer):  # type: ignore[misc]  # pycasbin has no types
    """pycasbin's decision loop without management, adapters, watchers and switches."""

    def __init__(self, model: Any, roles: Mapping[str, Roles], matchers: Mapping[str, Matcher]) -> None:
        super().__init__(model)
        self._matchers = matchers
        self.fm = FunctionMap()  # none of the built-in functions: `_get_expression` brings ours
        for key, links in roles.items():
            model["g"][key].rm = self.rm_map[key] = links

    @property
    def enabled(self) -> bool:
        """Always: there is no switch that turns a policy off."""
        return True

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if not value:
            raise AttributeError("a policy cannot be switched off")

    def _get_expression(self, expr: str, functions: Any = None) -> Matcher:  # noqa: ARG002 - pycasbin's hook
        return self._matchers[expr]

    def over(self, rows: list[Row]) -> _Enforcer:
        """Return this enforcer for `rows` alone; it shares with this one only what no call changes."""
        view = copy.copy(self)
        view.fm = FunctionMap()
        view.model = copy.copy(self.model)
        assertion = copy.copy(self.model["p"]["p"])
        assertion.policy = rows
        view.model.model = {**self.model.model, "p": {"p": assertion}}
        return view


class _Index:
    """Rows by the values that a matcher requires to equal the call's.

    A row that is left out cannot match, and a row that does not match changes neither ruling nor row.
    """

    def __init__(
        self,
        rows: list[Row],
        columns: Sequence[str],
        terms: Sequence[str],
        required: Required,
        roles: Mapping[str, Roles],
    ) -> None:
        position = {name: at for at, name in enumerate(columns)}
        term = {name: at for at, name in enumerate(terms)}
        self._rows = rows
        self._terms = tuple(term[name] for name, _ in required.equal)
        self._role = required.roles[0] if required.roles else None
        self.columns = tuple(position[name] for _, name in required.equal)
        if self._role is not None:
            self._roles = roles[self._role.definition]
            self._member = term[self._role.term]
            self._domain = term[self._role.domain] if self._role.domain is not None else None
            self.columns = (*self.columns, position[self._role.column])
        buckets: dict[tuple[str, ...], list[tuple[int, Row]]] = defaultdict(list)
        if self.columns:
            for order, row in enumerate(rows):
                buckets[tuple(row[column] for column in self.columns)].append((order, row))
        self._buckets = dict(buckets)

    def rows_for(self, terms: Sequence[str]) -> list[Row]:
        """Return the rows that can match a call, in their order."""
        if not self.columns:
            return self._rows
        key = tuple(terms[at] for at in self._terms)
        if self._role is None:
            return [row for _, row in self._buckets.get(key, ())]
        domain = () if self._domain is None else (terms[self._domain],)
        found: list[tuple[int, Row]] = []
        for role in self._roles.roles_of(terms[self._member], *domain):
            found += self._buckets.get((*key, role), ())
        found.sort(key=lambda one: one[0])
        return [row for _, row in found]
