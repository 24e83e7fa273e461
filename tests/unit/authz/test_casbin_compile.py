"""Mistakes in Casbin policies: found when they are loaded, at their line, column and field."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.casbin_policy import (
    ACL,
    ALLOW_AND_DENY,
    call_of,
    compiled,
    decide,
    document,
    model,
    policies_of,
    problems_of,
)

ROW = "p, a, b, c"


def test_a_right_policy_has_no_problems() -> None:
    """Comments, blank lines, continued lines and odd spacing are Casbin's own."""
    text = (
        "# a model\n\n[request_definition]\nr = sub,obj , act\n; note\n[policy_definition]\np=sub, obj, act\n"
        "[policy_effect]\ne = some(where (p.eft == allow))\n"
        "[matchers]\nm = r.sub == p.sub && \\\n    r.obj == p.obj && \\\n    r.act == p.act # why\n"
    )
    policies = policies_of(document(text, f"# rows\n\n  {ROW}\n"))
    assert decide(policies, call_of(["a", "b", "c"])).allowed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            model().replace("[matchers]", "[matcher]"),
            "p.yaml:14:5: spec.model: `[matcher]` is not a section (known: request_definition,",
        ),
        (
            model().replace("m = ", "m "),
            "p.yaml:15:5: spec.model: `m r.sub` is not supported in this section",
        ),
        (model().replace("m = ", "m2 = "), "p.yaml:15:5: spec.model: `m2` is not supported in this section"),
        (
            model() + "m = True\n",
            "p.yaml:16:5: spec.model: `m` stands twice, first in line 8 [model_duplicate]",
        ),
        ("r = sub\n" + model(), "p.yaml:8:5: spec.model: `r = sub` stands in no known section"),
        (
            model().replace("[matchers]\nm = " + ACL + "\n", ""),
            "p.yaml:7:10: spec.model: the model has no `m` in `[matchers]` [model_missing]",
        ),
        (model(request="sub, obj, 2act"), "p.yaml:9:9: spec.model: `2act` is not a name [model_name]"),
        (model(policy="sub, sub, act"), "`sub, sub, act` has a name twice"),
        (model(effect="max(p.eft)"), "p.yaml:13:9: spec.model: `max(p.eft)` is not an effect of Casbin"),
        (model(effect="subjectPriority(p.eft) || deny"), "this effect needs the role definition `g`"),
        (model(roles="g = _"), "p.yaml:13:9: spec.model: `_` is neither `_, _` nor `_, _, _` [model_role]"),
        (model(roles="h = _, _"), "`h` is not supported in this section"),
        (
            model("r.sub == p.subject"),
            "p.yaml:15:9: spec.model: `p.subject` is not defined in this model [matcher]",
        ),
        (model("g(r.sub)", roles="g = _, _"), "has not as many arguments as `g` is defined with"),
        (model("r.sub == p.sub &&"), "is not an expression"),
        (model("(" * 300 + "True" + ")" * 300), "is not an expression"),
        (model("True" + " || True" * 1400), "the expression has more than 10000 characters"),
        (model().replace(f"m = {ACL}", "m"), "p.yaml:15:5: spec.model: `m` is not `key = value`"),
        (model("!" * 100 + "True"), "nested more than 50 levels deep"),
        (model('r.sub == "a"' + ' + "a"' * 900), "nested more than 50 levels deep"),
        (model("!" * 9000 + "True"), "is not an expression"),
        (model("r.sub == p.sub == r.obj"), "compares more than two things"),
        (model("r.sub == 1"), "`1` is not a text"),
        (model('keyMatch(r.obj, "/a*b")'), "goes on after `*`, which keyMatch does not look at [pattern]"),
        (
            model(request="sub, obj"),
            "p.yaml:6:12: spec.request: the model's `r` has 2 terms, but `request` gives 3",
        ),
    ],
)
def test_mistakes_in_models(text: str, expected: str) -> None:
    """A model that Casbin would take in part, or stumble over later, is refused."""
    problems = problems_of(document(text, ROW))
    assert any(expected in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("matcher", "rows", "expected"),
    [
        (
            ACL,
            "p, a, b",
            "p.yaml:17:5: spec.policy: `p, a, b` has 2 values, but `p` is defined with 3 [row_size]",
        ),
        (
            ACL,
            f"{ROW}\n  q, a, b, c",
            "p.yaml:18:5: spec.policy: `q, a, b, c`: the model defines no `q` (known: p)",
        ),
        (ACL, "p, a, , c", "has an empty value"),
        (ACL, "p, a], b, c", "p.yaml:17:5: spec.policy: `p, a], b, c` has brackets that do not match"),
        (
            ACL,
            'p, "a", b, c',
            '`"a"` starts with a quote (quotes would become part of the value: leave them out)',
        ),
        (
            "keyMatch2(r.obj, p.obj)",
            "p, a, /x/y*, c",
            "p.yaml:17:5: spec.policy: keyMatch2: `/x/y*` has a `*`",
        ),
        ("keyMatch4(r.obj, p.obj)", "p, a, /{x}{y}, c", "has two names in one segment"),
        ("keyMatch3(r.obj, p.obj)", "p, a, /{x, c", "has a `{`, which belongs to regexMatch"),
        ("globMatch(r.obj, p.obj)", "p, a, /[ab], c", "has a `[`: of globs"),
        ("globMatch(r.obj, p.obj)", "p, a, /a//b, c", "has an empty segment"),
        ("globMatch(r.obj, p.obj)", "p, a, /*?, c", "write `?*`"),
        ("globMatch(r.obj, p.obj)", "p, a, /x/**/**, c", "has `**` twice in a row"),
        ("ipMatch(r.obj, p.obj)", "p, a, ::ffff:10.0.0.1, c", "is IPv4 in IPv6: write it as IPv4"),
        ("eval(p.obj)", "p, a, r.sub ==, c", "p.yaml:17:5: spec.policy: `p, a, r.sub ==, c`:"),
    ],
)
def test_mistakes_in_rows(matcher: str, rows: str, expected: str) -> None:
    """A row that Casbin would leave out, or raise about when a call reaches it, is refused."""
    problems = problems_of(document(model(matcher), rows))
    assert any(expected in problem for problem in problems), problems


def test_priorities_are_numbers() -> None:
    """Casbin sorts other priorities as texts, or cannot sort them."""
    text = model(policy="priority, sub, obj, act", effect="priority(p.eft) || deny")
    for priority in ("high", "-1", "²", "1" * 20):
        assert "[row_priority]" in problems_of(document(text, f"p, {priority}, a, b, c"))[0]


def test_links_in_a_circle_under_subject_priority() -> None:
    """What pycasbin raises while it sorts is a diagnostic too."""
    text = model(effect="subjectPriority(p.eft) || deny", roles="g = _, _")
    rows = f"{ROW}\ng, role:a, role:b\ng, role:b, role:a"
    assert "cycle dependency" in problems_of(document(text, rows))[0]


@pytest.mark.parametrize(
    ("request_terms", "expected"),
    [
        (
            "[request.pth]",
            "p.yaml:6:13: spec.request[0]: `request.pth` is not an attribute for terms (known:",
        ),
        ('["request.headers"]', "`request.headers` is not of the form `request.headers[NAME]`"),
        ('["request.headers[a][b]"]', "is not of the form `request.headers[NAME]`"),
        ('["request.auth.claims[a][]"]', "is not of the form `request.auth.claims[NAME]`"),
        ("[request.path.any]", "`request.path.any` is not an attribute for terms"),
        ('["request.headers[Host]"]', "`Host` is not normalised: use `request.path`, `.method` or `.host`"),
        ('["request.path[a]"]', "`request.path` has no `[…]`"),
        ("[{prefix: a}]", "a term is either `attribute`, with or without `prefix`, or `literal`"),
        ("[{literal: a, attribute: request.path}]", "a term is either"),
        ("[{literal: a, prefix: b}]", "a term is either"),
        (
            "[{attribute_name: request.path}]",
            "spec.request[0].attribute_name: unknown field `attribute_name` (did you mean `attribute`?)",
        ),
        ("[5]", "spec.request[0]: expected a mapping"),
        ("[]", "spec.request: list should have at least 1 item"),
    ],
)
def test_mistakes_in_terms(request_terms: str, expected: str) -> None:
    """Every term is an attribute that there is, or a fixed text."""
    text = document(model('r.a == "x"', request="a"), ROW, request_terms)
    assert any(expected in problem for problem in problems_of(text)), problems_of(text)


def test_exactly_one_source_of_each_kind() -> None:
    """Model and rows come from one place each."""
    none = "apiVersion: garrison.dev/v1alpha1\nkind: CasbinPolicy\nmetadata: {name: c}\nspec:\n  request: [request.path]\n"
    assert problems_of(none) == [
        "p.yaml:5:3: spec: exactly one of `model` and `modelFile` is needed [one_of]",
        "p.yaml:5:3: spec: exactly one of `policy`, `policyFile` and `adapter` is needed [one_of]",
    ]
    both = document(model(), ROW).replace("---\n", "  policyFile: rows.csv\n")
    assert "exactly one of `policy`, `policyFile` and `adapter`" in problems_of(both)[0]


def test_every_mistake_of_every_document_is_reported() -> None:
    """One run shows everything there is to fix; nothing is half applied."""
    text = (
        document(model(), "p, a\np, b\nx, c")
        + document(model("r.x == p.x"), ROW, name="d")
        + document(model(), ROW)
    )
    problems = problems_of(text)
    assert len(problems) == 4


def test_a_single_line_of_rows_has_its_column() -> None:
    """A row that is not in a block is where its value is."""
    text = document(model(), "x")
    start, _, _ = text.partition("  policy: |")
    assert problems_of(f"{start}  policy: p, a, b\n")[0].startswith("p.yaml:16:11: spec.policy:")


def test_rows_many_and_not_indexed_are_a_warning() -> None:
    """A matcher that looks at every row says so before it is slow."""
    rows = "\n".join(f"p, s{number}, /x/*, GET" for number in range(1000))
    policies, problems = compiled(document(model("keyMatch2(r.obj, p.obj) || r.sub == p.sub"), rows))
    assert policies is not None
    assert [problem.rpartition(" ")[2] for problem in problems] == ["[all_rows]"]
    assert compiled(document(model("r.sub == p.sub && keyMatch2(r.obj, p.obj)"), rows))[1] == []


def test_files_are_read_beside_the_document(tmp_path: Path) -> None:
    """Model and rows may be files below the document's folder; their mistakes name them."""
    (tmp_path / "m.conf").write_text(model(policy="sub, obj, act, eft", effect=ALLOW_AND_DENY))
    (tmp_path / "rows").mkdir()
    rows = tmp_path / "rows" / "p.csv"
    rows.write_text("p, a, b, c, allow\n")
    head = document(model(), ROW).partition("  model: |")[0]
    text = f"{head}  modelFile: m.conf\n  policyFile: rows/p.csv\n"
    file = str(tmp_path / "policy.yaml")
    decision = decide(policies_of(text, file=file), call_of(["a", "b", "c"]))
    assert decision.allowed
    assert f"({rows}, line 1)" in decision.reason
    assert decision.field == "spec.policyFile"
    rows.write_text("p, a, b, c, allow\n\np, a, b\n")
    assert problems_of(text, file=file)[0].startswith(f"{rows}:3:1: spec.policyFile: `p, a, b` has 2 values")


def test_files_elsewhere_are_not_read(tmp_path: Path) -> None:
    """Whoever writes policies does not read other files of this machine through their mistakes."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "latin").write_bytes(b"\xff")
    head = document(model(), ROW).partition("  model: |")[0]
    for name, reason in {
        "../secret": "is not below the folder of its document",
        str(tmp_path / "secret"): "is not below the folder of its document",
        "link": "is not below the folder of its document",
        "missing": "cannot be read: no such file or directory",
        "latin": "is not valid UTF-8",
        '"a\\0b"': "is not",
    }.items():
        text = f"{head}  modelFile: {name}\n  policy: {ROW}\n"
        problem = problems_of(text, file=str(folder / "policy.yaml"))[0]
        assert reason in problem
        assert "[unreadable]" in problem


def test_files_behind_a_config_map_are_read(tmp_path: Path) -> None:
    """Kubernetes mounts each file as a link through a hidden folder."""
    (tmp_path / "..2024").mkdir()
    (tmp_path / "..2024" / "m.conf").write_text(model())
    (tmp_path / "..data").symlink_to("..2024")
    (tmp_path / "m.conf").symlink_to("..data/m.conf")
    head = document(model(), ROW).partition("  model: |")[0]
    text = f"{head}  modelFile: m.conf\n  policy: {ROW}\n"
    policies = policies_of(text, file=str(tmp_path / "policy.yaml"))
    assert decide(policies, call_of(["a", "b", "c"])).allowed
