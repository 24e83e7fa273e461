"""Casbin policies at work: whom they are for, what they say, what they remember."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from casbin.persist import Adapter, load_policy_line
from support.casbin_policy import (
    ALLOW_AND_DENY,
    HERE,
    attributes,
    call_of,
    compiled,
    decide,
    document,
    model,
    policies_of,
    problems_of,
)
from support.checks import principal

from authz.casbin_policy import CasbinCode, CasbinPolicy, Sources, load_sources
from authz.casbin_policy.definition import Row
from authz.casbin_policy.engine import Engine, Ruling
from authz.casbin_policy.terms import WITH_ARGUMENT, WITHOUT_ARGUMENT
from authz.destination import Destination
from garrison.documents import parse, validate

ROW = "p, a, b, c"


class Rows(Adapter):  # type: ignore[misc]  # pycasbin has no types
    """An adapter over lines."""

    def __init__(self, *lines: str) -> None:
        self._lines = lines

    def load_policy(self, model: Any) -> None:
        """Give all lines to the model."""
        for line in self._lines:
            load_policy_line(line, model)


class BrokenRows(Adapter):  # type: ignore[misc]  # as above
    """An adapter whose store is away."""

    def load_policy(self, model: Any) -> None:
        """Fail with a text that holds a password."""
        raise ConnectionError("postgresql://user:hunter2@db")


def titles(text: str, destination: Destination) -> list[str]:
    """Return what applies to a destination."""
    return [policy.title.rpartition("/")[2] for policy in policies_of(text).policies_for(destination)]


def test_policies_are_for_the_workloads_of_their_namespace_and_labels() -> None:
    """Namespace and every label must fit; the root namespace is for all namespaces."""
    text = "".join(
        [
            document(model(), ROW, name="everywhere", namespace="istio-system"),
            document(model(), ROW, name="labelled", namespace="istio-system", labels="{app: other}"),
            document(model(), ROW, name="here"),
            document(model(), ROW, name="app", labels="{app: products}"),
            document(model(), ROW, name="v2", labels="{app: products, version: v2}"),
            document(model(), ROW, name="there", namespace="other"),
        ]
    )
    assert titles(text, HERE) == ["app", "here", "everywhere"]
    assert titles(text, Destination("x", "other", labels={"app": "other"})) == [
        "everywhere",
        "labelled",
        "there",
    ]


def test_every_policy_that_applies_must_allow() -> None:
    """One denial decides, whatever the names are; none of them widens another."""
    wide, narrow = model("True"), model()
    for names in ("ab", "ba"):
        policies = policies_of(document(wide, ROW, name=names[0]) + document(narrow, ROW, name=names[1]))
        assert decide(policies, call_of(["a", "b", "c"])).allowed
        assert decide(policies, call_of(["x", "b", "c"])).policy == f"CasbinPolicy default/{names[1]}"


def test_no_policy_says_nothing() -> None:
    """Without a policy there is no decision: other kinds decide."""
    policies = policies_of("")
    assert policies.check(policies.policies_for(HERE), call_of(["a", "b", "c"])) is None


def test_decisions_name_the_row_that_decided() -> None:
    """The row is counted as written, also when priorities put it elsewhere."""
    text = model("r.sub == p.sub", policy="priority, sub, eft", effect="priority(p.eft) || deny")
    policies = policies_of(
        document(text, "p, 2, a, allow\n# b\np, 1, a, deny\np, 1, b, allow\np, 0, c, allow")
    )
    denied = decide(policies, call_of(["a", "-", "-"]))
    assert (denied.allowed, denied.rule, denied.field) == (False, 1, "spec.policy")
    assert denied.code is CasbinCode.DENIED
    assert denied.reason == ("CasbinPolicy default/c denies by its row `p, 1, a, deny` (spec.policy, line 3)")
    allowed = decide(policies, call_of(["b", "-", "-"]))
    assert (allowed.allowed, allowed.rule, allowed.code) == (True, 2, CasbinCode.ALLOWED)
    none = decide(policies, call_of(["d", "-", "-"]))
    assert (none.allowed, none.rule, none.code) == (False, -1, CasbinCode.NO_ROW)
    assert none.reason == "no row of CasbinPolicy default/c matched"


def test_terms_are_attributes_with_prefixes_and_literals() -> None:
    """Principals, normalised paths, methods, fixed texts."""
    terms = '[{attribute: source.principal, prefix: "user:"}, request.path, request.method, {literal: prod}]'
    text = model(
        "r.sub == p.sub && keyMatch2(r.obj, p.obj) && r.act == p.act && r.env == p.env",
        request="sub, obj, act, env",
        policy="sub, obj, act, env",
    )
    rows = "p, user:cluster.local/ns/default/sa/a, /x/:id, GET, prod"
    policies = policies_of(document(text, rows, terms))
    assert decide(policies, attributes(source=principal("a"), path="/y/../x/1?q")).allowed
    assert not decide(policies, attributes(source=principal("b"), path="/x/1")).allowed
    assert not decide(policies, attributes(source=principal("a"), path="/x/1", method="PUT")).allowed
    assert not decide(policies, attributes(path="/x/1")).allowed
    assert not decide(
        policies_of(document(text, rows.replace("prod", "test"), terms)), attributes(path="/x/1")
    ).allowed


def test_every_attribute_for_terms_exists() -> None:
    """A term that is accepted can be read from any call, also from one that is not HTTP."""
    call = attributes(method="", path="", host="")
    for name in WITH_ARGUMENT | WITHOUT_ARGUMENT:
        assert isinstance(call.values(name, "x"), Sequence)


def test_claims_can_nest() -> None:
    """A claim inside of a claim is one term; a list is one only if it has one item."""
    text = document(
        model("r.a == p.a", request="a", policy="a"), "p, x", '["request.auth.claims[realm][role]"]'
    )
    policies = policies_of(text)
    call = attributes()
    for value, allowed in {("x",): True, ("x", "y"): False, ("y",): False, (): False}.items():
        call.claims = {"realm": {"role": list(value)}}
        assert decide(policies, call).allowed is allowed


def test_decisions_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bound holds for all policies of a snapshot; a kept ruling is not worked out again."""
    policies = policies_of(
        document(model(), ROW, name="a") + document(model("True"), ROW, name="b"), max_cached=3
    )
    asked: list[Any] = []
    decide_plainly = Engine.decide

    def counted(engine: Engine, terms: Any) -> Ruling:
        asked.append(terms)
        return decide_plainly(engine, terms)

    monkeypatch.setattr(Engine, "decide", counted)
    for _ in range(5):
        assert decide(policies, call_of(["a", "b", "c"])).allowed
    assert len(asked) == 2
    for number in range(20):
        assert not decide(policies, call_of([str(number), "b", "c"])).allowed
    assert policies.cached == 3
    assert decide(policies, call_of(["a", "b", "c"])).allowed


def test_long_terms_are_decided_but_not_kept() -> None:
    """A caller cannot fill memory with 60 KB paths."""
    policies = policies_of(document(model("r.sub != p.sub"), ROW))
    assert decide(policies, call_of(["x" * 60_000, "b", "c"])).allowed
    assert policies.cached == 0


def test_an_index_leaves_out_rows_that_cannot_match() -> None:
    """A call looks at rows of its own subject, roles and action only."""
    rows = "\n".join(
        [f"p, role:{n}, /{n}/*, GET, allow" for n in range(500)]
        + [f"g, u:{n}, role:{n}" for n in range(500)]
        + ["g, u:7, role:8", "p, role:8, /8/x, GET, deny"]
    )
    text = model(
        "g(r.sub, p.sub) && keyMatch2(r.obj, p.obj) && r.act == p.act",
        policy="sub, obj, act, eft",
        effect=ALLOW_AND_DENY,
        roles="g = _, _",
    )
    terms = '[{attribute: "request.headers[x-sub]", prefix: "u:"}, request.path, request.method]'
    policies = policies_of(document(text, rows, terms))
    engine = policies.policies[0].engine
    assert engine.indexed
    assert [str(row) for row in engine._index.rows_for(["u:7", "/", "GET"])] == [
        "p, role:7, /7/*, GET, allow",
        "p, role:8, /8/*, GET, allow",
        "p, role:8, /8/x, GET, deny",
    ]
    for path, allowed in {"/7/y": True, "/8/y": True, "/8/x": False, "/9/y": False}.items():
        assert decide(policies, attributes(headers={"x-sub": "7"}, path=path)).allowed is allowed


def test_pycasbin_asks_for_our_matcher() -> None:
    """The hook by which a matcher is parsed once is there; without it every call would be denied."""
    enforcer = policies_of(document(model(), ROW)).policies[0].engine._enforcer
    assert enforcer.enforce("a", "b", "c")
    enforcer._matchers = {}
    with pytest.raises(KeyError):
        enforcer.enforce("a", "b", "c")


def test_adapters_bring_rows_by_a_name_of_the_settings() -> None:
    """Documents name an entry of the settings, never a class or an address."""
    head = document(model(roles="g = _, _", matcher="g(r.sub, p.sub) && r.act == p.act"), ROW).partition(
        "  policy: |"
    )[0]
    text = f"{head}  adapter: {{name: store}}\n".replace(
        '"request.headers[x-sub]"', '{attribute: "request.headers[x-sub]", prefix: "u:"}'
    )
    policies = policies_of(text, adapters={"store": lambda: Rows("p, role:r, b, c", "g, u:a, role:r")})
    decision = decide(policies, call_of(["a", "x", "c"]))
    assert decision.allowed
    assert decision.reason == "CasbinPolicy default/c allows by its row `p, role:r, b, c`"
    assert decision.field == "spec.adapter.name"
    line = text.count("\n", 0, text.index("adapter:")) + 1
    unknown = problems_of(text)
    assert unknown == [
        f"p.yaml:{line}:19: spec.adapter.name: `store` is not an adapter (listed in the settings: none) [unknown_adapter]"
    ]
    for lines, code in ((("p2, a, b, c",), "row_key"), (("p, a",), "row_size")):
        problems = problems_of(text, adapters={"store": lambda lines=lines: Rows(*lines)})
        assert problems[0].startswith(f"p.yaml:{line}:19: spec.adapter.name:")
        assert f"[{code}]" in problems[0]


def test_a_store_that_is_away_is_a_diagnostic_without_its_secrets() -> None:
    """What an adapter raises can hold passwords: only the kind of error is shown."""
    head = document(model(), ROW).partition("  policy: |")[0]
    problems = problems_of(f"{head}  adapter: {{name: s}}\n", adapters={"s": BrokenRows})
    assert "`s` cannot be read: ConnectionError [unreadable]" in problems[0]
    assert "hunter2" not in problems[0]


def test_sources_say_what_was_read(tmp_path: Path) -> None:
    """A snapshot's version covers the files' content, and a watcher learns their paths."""
    (tmp_path / "m.conf").write_text(model())
    head = document(model(), ROW).partition("  model: |")[0]
    documents, _ = parse(f"{head}  modelFile: m.conf\n  policy: {ROW}\n".encode(), str(tmp_path / "p.yaml"))
    policy = validate(CasbinPolicy, documents[0])
    assert isinstance(policy, CasbinPolicy)
    before = load_sources([(policy, documents[0])], {})
    assert before.paths == (tmp_path / "m.conf",)
    assert load_sources([(policy, documents[0])], {}).content == before.content
    (tmp_path / "m.conf").write_text(model("True"))
    assert load_sources([(policy, documents[0])], {}).content != before.content
    assert Sources().content == ()
    grants, links = (Sources(rows={"s": (Row(["a", "b"], key, 0, 0),)}) for key in ("p", "g"))
    assert grants.content != links.content


def test_two_policies_can_share_a_store_and_keep_their_rows_apart() -> None:
    """Sorting the rows of one policy leaves the other's order alone."""
    head = document(
        model("r.sub == p.b", policy="priority, b", effect="priority(p.eft) || deny"), ROW
    ).partition("  policy: |")[0]
    text = "".join(
        f"{head}  adapter: {{name: s}}\n---\n".replace("name: c,", f"name: {name},") for name in "cd"
    )
    policies = policies_of(text, adapters={"s": lambda: Rows("p, 2, a", "p, 1, a")})
    decisions = list(policies.decisions(policies.policies_for(HERE), call_of(["a", "-", "-"])))
    assert [decision.rule for decision in decisions] == [1, 1]


def test_a_warning_does_not_stop_a_load() -> None:
    """A policy without rows loads, denies everything and says so: whoever revokes the last row is obeyed."""
    policies, problems = compiled(document(model(), "# none"))
    assert policies is not None
    assert len(problems) == 1
    assert "warning: spec.policy: the policy has no `p` rows" in problems[0]
    assert decide(policies, call_of(["a", "b", "c"])).code is CasbinCode.NO_ROW


ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/reference/casbin.md").read_text()


def test_the_example_of_the_documentation() -> None:
    """What the reference page shows compiles and decides as the page says."""
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    policies = policies_of(example)
    orders = Destination("orders.shop.svc.cluster.local", "shop", labels={"app": "orders"})
    for line in re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\S+)` \| (allowed|denied)", PAGE, re.MULTILINE):
        subject, method, path, expected = line
        call = attributes(destination=orders, method=method, path=path)
        call.claims = {"sub": subject}
        assert decide(policies, call).allowed is (expected == "allowed"), line


def test_the_documentation_explains_every_diagnostic() -> None:
    """Each code of a mistake is a row of the reference page, and no row is of a code that is gone."""
    codes: set[str] = set()
    for file in (ROOT / "authz/casbin_policy").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                at = {"Mistake": 2, "_error": 1}.get(name)
                code = node.args[at] if at is not None else None
                if isinstance(code, ast.Constant):
                    codes.add(str(code.value))
    table = PAGE.partition("## Diagnostics")[2]
    documented = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
    assert documented == codes
