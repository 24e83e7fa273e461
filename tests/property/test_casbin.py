"""Decisions are those of plain pycasbin, for ordinary models, rows and calls."""

from __future__ import annotations

import string
from collections.abc import Callable

import casbin
import pytest
from casbin.persist.adapters import StringAdapter
from casbin.util import builtin_operators
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.casbin_policy import (
    ACL,
    ALLOW_AND_DENY,
    ALLOW_OVERRIDE,
    call_of,
    compiled,
    decide,
    document,
    model,
    policies_of,
)

from authz.casbin_policy.patterns import FUNCTIONS, PatternError
from authz.casbin_policy.roles import Roles

PREFIXED = '[{attribute: "request.headers[x-sub]", prefix: "u:"}, "request.headers[x-obj]", "request.headers[x-act]"]'
USERS = ["ann", "bob", "cid"]
SUBJECTS = [f"u:{user}" for user in USERS]
ROLES = ["role:a", "role:b", "role:c"]
OBJECTS = ["/x", "/y", "/x/1", "/x/1/y"]
PATTERNS = ["/x", "/x/*", "/:a", "/x/:b/y", "*"]
ACTIONS = ["GET", "PUT"]
DOMAINS = ["d1", "d2"]

# name -> (model, whether rows have an effect, a priority, a domain; what stands in their object column)
MODELS: dict[str, tuple[str, bool, bool, bool, list[str]]] = {
    "acl": (model(), False, False, False, OBJECTS),
    "superuser": (model(f'{ACL} || r.sub == "u:ann"'), False, False, False, OBJECTS),
    "rbac": (
        model("g(r.sub, p.sub) && r.obj == p.obj && r.act == p.act", roles="g = _, _"),
        False,
        False,
        False,
        OBJECTS,
    ),
    "rbac with keys": (
        model("g(r.sub, p.sub) && keyMatch2(r.obj, p.obj) && r.act == p.act", roles="g = _, _"),
        False,
        False,
        False,
        PATTERNS,
    ),
    "deny overrides": (
        model(
            "g(r.sub, p.sub) && keyMatch2(r.obj, p.obj) && p.act == r.act",
            policy="sub, obj, act, eft",
            effect=ALLOW_AND_DENY,
            roles="g = _, _",
        ),
        True,
        False,
        False,
        PATTERNS,
    ),
    "priority": (
        model(
            "g(r.sub, p.sub) && keyMatch2(r.obj, p.obj) && r.act == p.act",
            policy="priority, sub, obj, act, eft",
            effect="priority(p.eft) || deny",
            roles="g = _, _",
        ),
        True,
        True,
        False,
        PATTERNS,
    ),
    "subject priority": (
        model(
            "g(r.sub, p.sub) && r.obj == p.obj && r.act == p.act",
            policy="sub, obj, act, eft",
            effect="subjectPriority(p.eft) || deny",
            roles="g = _, _",
        ),
        True,
        False,
        False,
        OBJECTS,
    ),
    "domains": (
        model(
            "g(r.sub, p.sub, r.act) && r.act == p.act && r.obj == p.obj",
            roles="g = _, _, _",
        ),
        False,
        False,
        True,
        OBJECTS,
    ),
    "domain of the row": (
        model("g(r.sub, p.sub, p.act) && r.obj == p.obj", roles="g = _, _, _"),
        False,
        False,
        True,
        OBJECTS,
    ),
    "negation and lists": (
        model(
            '!(r.act in ("PUT", "DELETE")) && r.sub != p.sub && (keyMatch2(r.obj, p.obj) || r.act != p.act)',
            policy="sub, obj, act, eft",
            effect=ALLOW_AND_DENY,
        ),
        True,
        False,
        False,
        PATTERNS,
    ),
}


@st.composite
def cases(draw: st.DrawFn, name: str) -> tuple[str, list[list[str]]]:
    """Draw rows for a model, and calls."""
    _, with_effect, with_priority, with_domain, objects = MODELS[name]
    actions = DOMAINS if with_domain else ACTIONS
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 12))):
        row = [draw(st.sampled_from(part)) for part in (SUBJECTS + ROLES, objects, actions)]
        if with_priority:
            row.insert(0, str(draw(st.integers(0, 3))))
        if with_effect:
            row.append(draw(st.sampled_from(["allow", "deny"])))
        lines.append(", ".join(["p", *row]))
    if "[role_definition]" in MODELS[name][0]:
        for _ in range(draw(st.integers(0, 6))):
            link = [draw(st.sampled_from(SUBJECTS + ROLES)), draw(st.sampled_from(ROLES))]
            if with_domain:
                link.append(draw(st.sampled_from(DOMAINS)))
            lines.append(", ".join(["g", *link]))
    call = st.tuples(st.sampled_from(USERS), st.sampled_from(OBJECTS), st.sampled_from(actions)).map(list)
    return "\n".join(lines), draw(st.lists(call, min_size=1, max_size=6))


@pytest.mark.parametrize("name", MODELS)
def test_decisions_and_deciding_rows_equal_plain_pycasbin(name: str) -> None:
    """Index, own matchers and own role links change neither the verdict nor the row that gives it."""

    @settings(max_examples=60, deadline=None)
    @given(cases(name))
    def check(case: tuple[str, list[list[str]]]) -> None:
        rows, calls = case
        text = MODELS[name][0]
        try:
            plain = casbin.Enforcer(casbin.Enforcer.new_model(text=text), StringAdapter(rows))
        except RuntimeError:  # links in a circle, where subjects have a rank
            assert compiled(document(text, rows, PREFIXED))[0] is None
            return
        policies = policies_of(document(text, rows, PREFIXED))
        for subject, *rest in calls:
            allowed, row = plain.enforce_ex(f"u:{subject}", *rest)
            decision = decide(policies, call_of([subject, *rest]))
            assert decision.allowed == allowed
            assert (decision.rule >= 0) == bool(row)
            if row:
                assert f"`p, {', '.join(row)}`" in decision.reason
                assert rows.splitlines()[decision.rule] == f"p, {', '.join(row)}"

    check()


@given(st.lists(st.sampled_from(["sub", "obj", "act"]), min_size=3, max_size=3), st.data())
@settings(max_examples=60, deadline=None)
def test_rules_in_rows_equal_plain_pycasbin(columns: list[str], data: st.DataObject) -> None:
    """A matcher with `eval` is decided as pycasbin decides it."""
    text = model("eval(p.rule) && r.act == p.act", policy="rule, act")
    parts = [f'r.{column} == "{data.draw(st.sampled_from(USERS + OBJECTS))}"' for column in columns]
    joined = [f"{parts[0]} || {parts[1]}", f"{parts[1]} && !({parts[2]})", parts[0]]
    rows = "\n".join(f"p, {rule}, {data.draw(st.sampled_from(ACTIONS))}" for rule in joined)
    plain = casbin.Enforcer(casbin.Enforcer.new_model(text=text), StringAdapter(rows))
    policies = policies_of(document(text, rows))
    for user in USERS:
        for target in OBJECTS:
            call = [user, target, "GET"]
            assert decide(policies, call_of(call)).allowed == plain.enforce(*call)


PLAIN: dict[str, Callable[[str, str], bool]] = {
    "keyMatch": builtin_operators.key_match,
    "keyMatch2": builtin_operators.key_match2,
    "keyMatch3": builtin_operators.key_match3,
    "keyMatch4": builtin_operators.key_match4,
    "keyMatch5": builtin_operators.key_match5,
    "globMatch": builtin_operators.glob_match,
}
SEGMENTS = {
    "keyMatch": ["a", "b", ""],
    "keyMatch2": ["a", "b", ":x", ":y", "*", ""],
    "keyMatch3": ["a", "b", "{x}", "a{y}b", "*", ""],
    "keyMatch4": ["a", "{x}", "{y}", "b{x}", "*"],
    "keyMatch5": ["a", "{x}", "{y}", "b{x}", "*"],
    "globMatch": ["a", "b", "*", "**", "a*", "*a", "?", "a?", "*.a", ".a", "a*b?"],
}
TEXT_SEGMENTS = ["a", "b", "ab", "aab", "", ".a", "b.a", ".", "axb"]


@pytest.mark.parametrize("name", PLAIN)
def test_patterns_match_what_casbin_matches(name: str) -> None:
    """On patterns of literal segments and wildcards the answers are pycasbin's."""

    @settings(max_examples=400, deadline=None)
    @given(
        st.lists(st.sampled_from(SEGMENTS[name]), min_size=1, max_size=4),
        st.lists(st.sampled_from(TEXT_SEGMENTS), min_size=1, max_size=4),
        st.booleans(),
    )
    def check(pattern_segments: list[str], text_segments: list[str], query: bool) -> None:
        pattern, text = "/" + "/".join(pattern_segments), "/" + "/".join(text_segments)
        if name == "keyMatch":
            pattern += "*" if query else ""
        elif query and name == "keyMatch5":
            text += "?a=/b"
        if name == "globMatch":
            pattern = pattern[1:] if query else pattern
            if not pattern or "//" in pattern or "**/**" in pattern:
                return  # refused: a test of the compiler says so
        assert FUNCTIONS[name](pattern)(text) == PLAIN[name](text, pattern), (pattern, text)

    check()


@given(st.text(alphabet="ab/.*?|()[]^$\\+{}1,", max_size=12), st.text(alphabet="ab/.1", max_size=12))
@settings(max_examples=600, deadline=None)
@example("^a|b$", "ab")
@example("^(a|b)$", "b")
@example("^[)|]$", "|")
def test_regular_expressions_match_what_casbin_matches(body: str, text: str) -> None:
    """A pattern that is taken means what it means to pycasbin; all others are refused when loaded."""
    pattern = body if body.startswith("^") else f"^{body}$"
    try:
        match = FUNCTIONS["regexMatch"](pattern)
    except PatternError:
        return
    try:
        expected = builtin_operators.regex_match(text, pattern)
    except Exception:  # noqa: BLE001 - syntax that only RE2 has
        return
    assert match(text) == expected


@given(st.sampled_from(list(FUNCTIONS)), st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=400, deadline=None)
def test_any_pattern_is_taken_or_refused(name: str, pattern: str, text: str) -> None:
    """No pattern and no text break anything; only `ipMatch` raises, for what is no address."""
    try:
        match = FUNCTIONS[name](pattern)
    except PatternError:
        return
    try:
        assert match(text) in {True, False}
    except ValueError:
        assert name == "ipMatch"


NAMES = st.sampled_from(string.ascii_lowercase[:14])


@given(st.lists(st.tuples(NAMES, NAMES), max_size=30), NAMES, NAMES)
def test_role_links_equal_pycasbins_role_manager(links: list[tuple[str, str]], name: str, role: str) -> None:
    """Chains, circles and the limit of their length are pycasbin's."""
    plain = casbin.rbac.default_role_manager.RoleManager(10)
    for link in links:
        plain.add_link(*link)
    assert Roles(links).has_link(name, role) == plain.has_link(name, role)


def test_role_links_end_where_pycasbins_end() -> None:
    """A role is at most nine links away."""
    chain = [(str(number), str(number + 1)) for number in range(20)]
    plain = casbin.rbac.default_role_manager.RoleManager(10)
    for link in chain:
        plain.add_link(*link)
    ours = Roles(chain)
    assert [ours.has_link("0", str(n)) for n in range(20)] == [plain.has_link("0", str(n)) for n in range(20)]


@given(st.text(max_size=200), st.text(max_size=200))
@settings(deadline=None)
def test_any_model_and_rows_compile_or_give_diagnostics(model_text: str, rows: str) -> None:
    """Nothing that people write makes the compiler raise."""
    policies, problems = compiled(document(model_text, rows))
    assert policies is not None or problems


@given(st.text(alphabet=' rp.subobjact_=!&|()",in[]g+*1<>', max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_matcher_compiles_or_gives_a_diagnostic(matcher: str) -> None:
    """Nothing that stands in a matcher makes the compiler raise."""
    policies, problems = compiled(
        document(model(matcher or "x", effect=ALLOW_OVERRIDE, roles="g = _, _"), "p, a, b, c")
    )
    assert policies is not None or problems
