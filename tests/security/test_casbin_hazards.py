"""What goes wrong with pycasbin, one test per hazard: here it does not."""

from __future__ import annotations

import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.casbin_policy import (
    ALLOW_AND_DENY,
    THREE_TERMS,
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

from authz.attributes import Attributes
from authz.casbin_policy import CasbinCode, CasbinPolicies, CasbinPolicy, Sources, compile_casbin
from authz.casbin_policy.definition import Row
from authz.casbin_policy.engine import Engine, Ruling
from authz.casbin_policy.matcher import Names
from authz.paths import PathNormalization
from garrison.documents import parse, validate

PREFIXED = '[{attribute: "request.auth.claims[sub]", prefix: "user:"}, request.path, request.method]'
RBAC = model("g(r.sub, p.sub) && keyMatch2(r.obj, p.obj) && r.act == p.act", roles="g = _, _")
PATHS = model("keyMatch2(r.obj, p.obj)", request="obj", policy="obj, eft", effect=ALLOW_AND_DENY)


def with_subject(subject: str, path: str = "/", method: str = "GET") -> Attributes:
    """Return a call with a token whose `sub` is `subject`."""
    call = attributes(path=path, method=method)
    call.claims = {"sub": subject}
    return call


def engine_of(policies: CasbinPolicies) -> Engine:
    """Return the engine of the only policy."""
    (policy,) = policies.policies
    return policy.engine


def test_fast_enforcer_races_false_allows() -> None:
    """Threads that decide at once never see each other's rows (FastEnforcer: 511 false allows)."""
    rows = "\n".join(f"p, s{number}, /x, GET, {'deny' if number % 2 else 'allow'}" for number in range(20))
    rows += "\n" + "\n".join(f"p, s{number}, /x, GET, allow" for number in range(20))
    policies = policies_of(
        document(
            model(policy="sub, obj, act, eft", effect=ALLOW_AND_DENY),
            rows,
        ),
        max_cached=1,
    )
    wrong: list[Any] = []
    start = threading.Barrier(4)

    def decide_many(offset: int) -> None:
        start.wait()
        for number in range(400):
            subject = (number * 7 + offset) % 22
            decision = decide(policies, call_of([f"s{subject}", "/x", "GET"]))
            if decision.allowed != (subject < 20 and subject % 2 == 0):
                wrong.append((subject, decision))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=decide_many, args=(offset,)) for offset in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_fast_enforcer_decides_on_the_rows_of_another_call() -> None:
    """A call that is decided in the middle of another leaves the other's rows alone."""
    text = model(policy="sub, obj, act, eft", effect=ALLOW_AND_DENY)
    rows = "p, a, /x, GET, allow\np, b, /x, GET, allow\np, b, /x, GET, deny"
    engine = engine_of(policies_of(document(text, rows)))
    ((expression, matcher),) = engine._enforcer._matchers.items()
    inner: list[Ruling] = []

    def interrupted(names: Names) -> bool:
        engine._enforcer._matchers = {expression: matcher}
        inner.append(engine.decide(["b", "/x", "GET"]))
        return matcher.eval(names)

    engine._enforcer._matchers = {expression: replace(matcher, condition=interrupted)}
    outer = engine.decide(["a", "/x", "GET"])
    assert (outer.allowed, str(outer.row)) == (True, "p, a, /x, GET, allow")
    assert [(one.allowed, str(one.row)) for one in inner] == [(False, "p, b, /x, GET, deny")]


def test_enable_enforce_false_allows_everything() -> None:
    """There is no switch: neither the method nor the attribute turns a policy off."""
    enforcer = engine_of(policies_of(document(model(), "p, a, b, c")))._enforcer
    with pytest.raises(AttributeError):
        enforcer.enable_enforce(enabled=False)
    with pytest.raises(AttributeError):
        enforcer.enabled = False
    assert enforcer.enabled


def test_subject_equal_to_a_role_name_inherits_the_role() -> None:
    """A token whose `sub` is a role's name has no role; a policy in which it had one does not load."""
    rows = "p, role:admin, /x, GET\ng, user:ann, role:admin"
    policies = policies_of(document(RBAC, rows, PREFIXED))
    assert decide(policies, with_subject("ann", "/x")).allowed
    for subject in ("role:admin", "admin", "user:ann", "user:role:admin"):
        assert not decide(policies, with_subject(subject, "/x")).allowed

    bare = PREFIXED.replace(', prefix: "user:"', "")
    problems = problems_of(document(RBAC, "p, admin, /x, GET\ng, ann, admin", bare))
    assert len(problems) == 1
    assert "the role `admin` can also be the value of `r.sub`" in problems[0]
    assert "[role_collision]" in problems[0]
    # A prefix that users and roles share separates nothing.
    assert "[role_collision]" in problems_of(document(RBAC, "g, user:ann, user:admin", PREFIXED))[0]


def test_another_term_compared_with_the_role_column_inherits_the_role() -> None:
    """It is not only the term inside of `g` that can bear a role's name."""
    text = model("(g(r.sub, p.sub) || r.act == p.sub) && keyMatch2(r.obj, p.obj)", roles="g = _, _")
    problems = problems_of(document(text, "p, role:a, /x, -\ng, user:u, role:a", PREFIXED))
    assert "`role:a` can also be the value of `r.act`" in problems[0]


@pytest.mark.parametrize(
    ("role", "refused"), [("admin", True), ("td/ns/a/sa/b", True), ("role:admin", False)]
)
def test_principals_need_no_prefix_where_roles_cannot_be_principals(role: str, refused: bool) -> None:
    """SPIFFE IDs have no colon: `role:` sets roles apart from `source.principal`."""
    text = document(
        RBAC,
        f"p, {role}, /x, GET\ng, cluster.local/ns/default/sa/a, {role}",
        "[source.principal, request.path, request.method]",
    )
    if refused:
        assert "[role_collision]" in problems_of(text)[0]
    else:
        policies = policies_of(text)
        assert decide(policies, attributes(source=principal("a"), path="/x")).allowed
        assert not decide(policies, attributes(source=principal("b"), path="/x")).allowed


def test_regex_match_catastrophic_backtracking() -> None:
    """The pattern that held pycasbin for nine seconds takes no time."""
    text = model("regexMatch(r.obj, p.obj)", request="obj", policy="obj")
    policies = policies_of(document(text, "p, ^/(a+)+$", "[request.path]"))
    started = time.process_time()
    assert not decide(policies, attributes(path="/" + "a" * 5000 + "!")).allowed
    assert decide(policies, attributes(path="/" + "a" * 5000)).allowed
    assert time.process_time() - started < 1


@pytest.mark.parametrize("function", ["keyMatch2", "keyMatch3", "keyMatch4", "keyMatch5"])
def test_key_match_runs_policy_text_as_a_regular_expression(function: str) -> None:
    """`.` is a dot; what only a regular expression means is refused when the policy is loaded."""
    text = model(f"{function}(r.obj, p.obj)", request="obj", policy="obj")
    policies = policies_of(document(text, "p, /a.b", "[request.path]"))
    assert decide(policies, attributes(path="/a.b")).allowed
    assert not decide(policies, attributes(path="/aXb")).allowed
    assert "belongs to regexMatch [pattern]" in problems_of(document(text, "p, /(a+)+", "[request.path]"))[0]


def test_regex_match_is_not_anchored_at_the_end() -> None:
    """`/admin` cannot match `/adminXYZ`: a pattern says where it ends, or does not load."""
    text = model("regexMatch(r.obj, p.obj)", request="obj", policy="obj")
    for pattern in ("/admin", "^/admin", "/admin$", "^/admin\\$", "^/a|/b$", "^(a)|(b)$"):
        assert "[pattern]" in problems_of(document(text, f"p, {pattern}", "[request.path]"))[0]
    policies = policies_of(document(text, "p, ^/admin$", "[request.path]"))
    assert decide(policies, attributes(path="/admin")).allowed
    assert not decide(policies, attributes(path="/adminXYZ")).allowed


@pytest.mark.parametrize("pattern", ["^(a$", "^(?=a)b$", r"^(a)\1$", "^a{2000}$", "^(?<!a)b$"])
def test_regex_match_raises_at_request_time_for_a_bad_pattern(pattern: str) -> None:
    """A pattern that RE2 does not take is found when the policy is loaded, at its row."""
    text = model('regexMatch(r.obj, "' + pattern.replace("\\", "\\\\") + '")', request="obj", policy="obj")
    problems = problems_of(document(text.replace("(?<!", "(?<="), "p, x", "[request.path]"))
    assert "is not a pattern of RE2" in problems[0]


@pytest.mark.parametrize("tail", ["\n", "\r", "\x00", "\x0b", "\x7f", "\x85", "\u2028"])
def test_dollar_matches_before_a_line_end(tail: str) -> None:
    """`/admin` and a control character is not `/admin`, and does not slip past a row that denies it."""
    for rows in ("p, /admin, allow", "p, /*, allow\np, /admin, deny"):
        decision = decide(
            policies_of(document(PATHS, rows, "[request.path]")), attributes(path="/admin" + tail)
        )
        assert decision.code is CasbinCode.TERM_UNUSABLE


def test_bytes_that_are_not_text() -> None:
    """A header that is not UTF-8 is no term."""
    policies = policies_of(document(model("r.sub != p.sub"), "p, a, b, c"))
    call = attributes(raw_headers=[("x-sub", b"\xff"), ("x-obj", b"b"), ("x-act", b"c")])
    assert decide(policies, call).code is CasbinCode.TERM_UNUSABLE


@pytest.mark.parametrize("mode", PathNormalization)
@pytest.mark.parametrize(
    "path",
    [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/.%2E/admin",
        "/public/..%2fadmin",
        "/public/..\\admin",
        "/public/%2e%2e%2fadmin",
        "/public/..%5cadmin",
        "/public/..;/admin",
        "/public/..",
    ],
)
def test_key_match_public_star_accepts_admin(path: str, mode: PathNormalization) -> None:
    """No spelling of `/admin` is `/public/…`, whatever the mesh normalises."""
    for matcher in ("keyMatch", "keyMatch2", "globMatch"):
        star = "**" if matcher == "globMatch" else "*"
        text = model(f"{matcher}(r.obj, p.obj)", request="obj", policy="obj")
        policies = policies_of(document(text, f"p, /public/{star}", "[request.path]"))
        decision = decide(policies, attributes(path=path, mode=mode))
        # `/public/..` alone is `/`, which is not public either.
        assert not decision.allowed


@pytest.mark.parametrize("path", ["/users/1%2fsecret", "/users/1;x", "/users/1%5Csecret", "/users/1%00"])
def test_key_match2_name_accepts_more_than_a_segment(path: str) -> None:
    """`:id` is one segment to every server behind; a path that some split differently is not decided on."""
    for rows in ("p, /users/:id, allow", "p, /*, allow\np, /users/1, deny"):
        policies = policies_of(document(PATHS, rows, "[request.path]"))
        assert decide(policies, attributes(path=path)).code is CasbinCode.TERM_UNUSABLE


def test_query_string_is_part_of_the_match() -> None:
    """Query and fragment are no part of a path."""
    policies = policies_of(document(PATHS, "p, /x, allow", "[request.path]"))
    assert decide(policies, attributes(path="/x?a=/../y")).allowed
    assert not decide(policies, attributes(path="/y?/x")).allowed


def test_the_raw_path_cannot_be_had_as_a_header() -> None:
    """`request.headers[:path]` would bring back what normalisation takes away."""
    problems = problems_of(document(PATHS, "p, /x, allow", '["request.headers[:path]"]'))
    assert "use `request.path`" in problems[0]


@pytest.mark.parametrize("sent", ["admin.x", "ADMIN.x", "admin.x:80", "admin.x:", "admin.x.", "admin.x.:443"])
def test_spellings_of_a_host_pass_a_row_that_denies_it(sent: str) -> None:
    """A host is compared without its port and final dot."""
    policies = policies_of(document(PATHS, "p, admin.x, deny\np, /*, deny\np, *, allow", "[request.host]"))
    assert decide(policies, attributes(host=sent)).code is CasbinCode.DENIED
    assert decide(policies, attributes(host="b.x:80")).allowed


@pytest.mark.parametrize(
    "sent", ["a@admin.x", "b.x,admin.x", "admin.x:80:80", "admin.x..", "admin.x/", "[::1", "a b", ""]
)
def test_hosts_that_some_read_differently_are_not_decided_on(sent: str) -> None:
    """Users, lists and broken ports in a Host header name more than one host."""
    policies = policies_of(document(PATHS, "p, *, allow", "[request.host]"))
    assert decide(policies, attributes(host=sent)).code is CasbinCode.TERM_UNUSABLE


def test_header_lines_that_envoy_joined_are_no_term() -> None:
    """`x, a` may be two lines, of which a server believes the second; Envoy joins some in its raw map too."""
    policies = policies_of(document(model("r.sub != p.sub"), "p, a, b, c"))
    assert "more than one value" in decide(policies, call_of(["x,a", "b", "c"])).reason
    lines = [("x-sub", b"x,a"), ("x-obj", b"b"), ("x-act", b"c")]
    assert "more than one value" in decide(policies, attributes(raw_headers=lines)).reason
    lines[0] = ("x-sub", b"x")
    assert decide(policies, attributes(raw_headers=lines)).allowed


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ("p, a, b", "row_size"),
        ("p, a, b, c, d", "row_size"),
        ("p2, a, b, c", "row_key"),
        ("P, a, b, c", "row_key"),
    ],
)
def test_short_and_unknown_rows_load_and_fail_later(rows: str, code: str) -> None:
    """A row of the wrong size, or of a definition that is not there, is found when the policy is loaded."""
    problems = problems_of(document(model(), f"p, a, b, c\n{rows}"))
    assert "p.yaml:18:5: spec.policy:" in problems[0]
    assert f"[{code}]" in problems[0]


def test_a_misspelt_deny_is_no_effect() -> None:
    """Pycasbin leaves a row out whose effect is `Deny`; here it does not load."""
    text = model(policy="sub, obj, act, eft", effect=ALLOW_AND_DENY)
    assert "[row_effect]" in problems_of(document(text, "p, a, b, c, Deny"))[0]
    ignored = model(policy="sub, obj, act, eft")
    assert "[row_ignored]" in problems_of(document(ignored, "p, a, b, c, deny"))[0]


def test_a_model_that_allows_by_default() -> None:
    """`!some(where (p.eft == deny))` allows what nobody thought of: it does not load."""
    text = model(policy="sub, obj, act, eft", effect="!some(where (p.eft == deny))")
    assert "[open_effect]" in problems_of(document(text, "p, a, b, c, deny"))[0]


def test_an_empty_policy_is_matched_with_empty_values() -> None:
    """Without rows nothing is allowed, though pycasbin would decide `r.sub != p.sub` on empty values."""
    for text in (model("r.sub != p.sub"), model('r.sub == p.sub || r.act == "GET"')):
        policy = policies_of(document(text, "p, zz, b, c"))
        assert decide(policy, call_of(["a", "b", "GET"])).allowed
        empty = document(text, "# none")
        policies, problems = compiled(empty)
        assert policies is not None
        assert "[no_rows]" in problems[0]
        assert not decide(policies, call_of(["a", "b", "GET"])).allowed


def test_an_absent_attribute_is_not_an_empty_string() -> None:
    """A term without a value denies, also where the matcher would be true of any value."""
    policies = policies_of(document(model("r.sub != p.sub || True"), "p, a, b, c"))
    assert decide(policies, call_of(["x", "y", "z"])).allowed
    for headers in ({}, {"x-sub": "", "x-obj": "b", "x-act": "c"}, {"x-obj": "b", "x-act": "c"}):
        decision = decide(policies, attributes(headers=headers))
        assert not decision.allowed
        assert (
            decision.reason == "CasbinPolicy default/c cannot read `r.sub`: request.headers[x-sub] is absent"
        )


def test_a_repeated_header_is_no_term() -> None:
    """Which of two values a server believes is unknown, so neither is decided on."""
    policies = policies_of(document(model("r.sub != p.sub"), "p, a, b, c"))
    lines = [("x-sub", b"x"), ("x-sub", b"a"), ("x-obj", b"b"), ("x-act", b"c")]
    assert "more than one value" in decide(policies, attributes(raw_headers=lines)).reason


@pytest.mark.parametrize(
    "matcher",
    [
        "eval(r.sub)",
        'eval("1 == 1")',
        "eval(r.sub) && r.obj == p.obj",
        "regexMatch(p.obj, r.obj)",
        "keyMatch(p.obj, r.obj)",
        'regexMatch(r.obj, "^" + r.sub + "$")',
        "g(p.sub, r.sub)",
        "g(r.sub, r.obj)",
    ],
)
def test_text_of_a_call_is_never_a_program(matcher: str) -> None:
    """Expressions, patterns and role names are their author's: a caller's text cannot take their place."""
    assert "[matcher]" in problems_of(document(model(matcher, roles="g = _, _"), "p, a, b, c"))[0]


@pytest.mark.parametrize(
    "matcher",
    [
        "9 ** 9 ** 9 == r.sub",
        'r.sub == "a" * 99999999',
        "[x for x in r.sub] == p.sub",
        "r.sub.__class__ == p.sub",
        "r.sub.upper() == p.sub",
        'f"{r.sub}" == p.sub',
        '"{0}".format(r.sub) == p.sub',
        "int(r.sub) > 3",
        "list(r.sub) == p.sub",
        "r.sub[0] == p.sub",
        "(lambda: True)()",
        "__import__('os')",
        "r.sub",
        "1",
        "r.sub == p.sub if True else False",
    ],
)
def test_matchers_are_not_a_programming_language(matcher: str) -> None:
    """What pycasbin's evaluator can do beyond comparing and matching does not load."""
    assert "[matcher]" in problems_of(document(model(matcher), "p, a, b, c"))[0]


@pytest.mark.parametrize(
    ("matcher", "message"),
    [
        ("r.sub == p.sub; r.obj == p.obj", "is not one expression"),
        ("r.sub = p.sub", "is not one expression"),
        ("r.act in p.act", "`in` needs a list"),
        ('r.act in ("GET")', "`in` needs a list"),
        ("r.act >= p.act", "no order to compare by"),
        ('r.sub == "a!b"', "which Casbin would rewrite"),
        ('r.sub == "r.example"', "which Casbin would rewrite"),
        ('r.sub == "a#b" || r.sub == "c"', "which Casbin would rewrite"),
        ("r.sbu == p.sub", "`r.sbu` is not defined"),
        ("keyMatchX(r.obj, p.obj)", "`keyMatchX` is not a function known here"),
        ("keyMatch(r.obj)", "takes a text and a pattern"),
    ],
)
def test_matchers_that_do_not_mean_what_they_say(matcher: str, message: str) -> None:
    """Casbin accepts these, and means something else or raises for every call."""
    assert message in problems_of(document(model(matcher), "p, a, b, c"))[0]


def test_a_rule_in_a_row_cannot_close_the_matchers_brackets() -> None:
    """Each rule is an expression by itself before it is put into the matcher."""
    text = model("eval(p.rule) && r.act == p.act", policy="rule, act")
    for rule in ('r.sub == "a") || (True', "True; True", "nobody()", "eval(p.rule)"):
        problems = problems_of(document(text, f"p, {rule}, GET"))
        assert "[row_" in problems[0]
    closing = Row(['r.sub == "a") || (True', "GET"], "p", 0, 0)
    # Rows of a store are not split at brackets, so nothing else would notice.
    head = document(text, "").partition("  policy: |")[0]
    documents, _ = parse(f"{head}  adapter: {{name: s}}\n".encode(), "p.yaml")
    policy = validate(CasbinPolicy, documents[0])
    assert isinstance(policy, CasbinPolicy)
    compiled_policies, diagnostics = compile_casbin(
        [(policy, documents[0])], "istio-system", Sources(rows={"s": (closing,)})
    )
    assert compiled_policies is None
    assert "[row_rule]" in str(diagnostics[0])


def test_time_match_reads_the_clock() -> None:
    """Decisions are kept, so they cannot depend on the time; conditional roles neither."""
    assert (
        "`timeMatch` is not supported" in problems_of(document(model('timeMatch("_", "_")'), "p, a, b, c"))[0]
    )
    conditional = model("g(r.sub, p.sub)", roles="g = _, _, (_, _)")
    assert "conditional roles are not supported" in problems_of(document(conditional, "p, a, b, c"))[0]


def test_ip_match_raises_for_garbage() -> None:
    """What is no address matches no network, neither under `!` nor past a row that denies."""
    rows = "p, 10.0.0.0/8, deny\np, 0.0.0.0/0, allow"
    terms = '["request.headers[x-ip]"]'
    network = model("ipMatch(r.ip, p.net)", request="ip", policy="net, eft", effect=ALLOW_AND_DENY)
    policies = policies_of(document(network, rows, terms))
    assert decide(policies, attributes(headers={"x-ip": "11.0.0.1"})).allowed
    assert not decide(policies, attributes(headers={"x-ip": "10.0.0.1"})).allowed
    # An IPv4 address in IPv6's clothes is what it is.
    assert decide(policies, attributes(headers={"x-ip": "::ffff:10.0.0.1"})).code is CasbinCode.DENIED
    inverted = policies_of(
        document(model("!ipMatch(r.ip, p.net)", request="ip", policy="net"), "p, 10.0.0.0/8", terms)
    )
    for garbage in ("[::1", "10.0.0.1 11.0.0.1", "010.0.0.1", "10.0.0.1/32", "localhost", "1" * 400):
        call = attributes(headers={"x-ip": garbage})
        assert decide(policies, call).code is CasbinCode.ERROR
        assert decide(inverted, call).code is CasbinCode.ERROR
    assert (
        "neither an IP address nor a CIDR" in problems_of(document(network, "p, 10.0.0.0/33, deny", terms))[0]
    )


def test_exceptions_deny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised while a call is decided, the call is denied."""
    policies = policies_of(document(model(), "p, a, b, c"))

    def fail(*_: object) -> None:
        raise RuntimeError("invalid policy size")

    monkeypatch.setattr(Engine, "decide", fail)
    decision = decide(policies, call_of(["a", "b", "c"]))
    assert decision.code is CasbinCode.ERROR
    assert not decision.allowed


def test_reasons_hold_no_value_of_the_call() -> None:
    """Header values and claims can be secrets; reasons go to logs."""
    policies = policies_of(document(model(), "p, a, b, c"))
    for value in ("s3cret", "s3cret\n"):
        assert "s3cret" not in repr(decide(policies, call_of([value, "b", "c"])))


def test_names_that_callers_choose_fill_no_memory() -> None:
    """Pycasbin's role manager keeps every name and domain it is asked about."""
    text = model("g(r.sub, p.sub, r.act) && keyMatch(r.obj, p.obj)", roles="g = _, _, _")
    rows = "p, role:a, /x, d\ng, u:ann, role:a, d"
    request = THREE_TERMS.replace(
        '"request.headers[x-sub]"', '{attribute: "request.headers[x-sub]", prefix: "u:"}'
    )
    policies = policies_of(document(text, rows, request), max_cached=50)

    def ask(numbers: range) -> None:
        for number in numbers:
            decide(policies, call_of([f"n{number}", "/x", f"d{number}"]))
            decide(policies, call_of(["ann", "/x", f"d{number}"]))
            decide(policies, call_of([f"n{number}", "/x", "d"]))

    ask(range(200))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ask(range(200, 1200))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert policies.cached == 50
    assert grown < 200_000


@given(st.lists(st.text(max_size=30), min_size=3, max_size=3))
def test_no_text_of_a_call_raises_or_is_allowed_by_chance(terms: list[str]) -> None:
    """Any values decide, and only the row's own values allow."""
    policies = policies_of(document(model(), "p, a, b, c"))
    call = attributes(
        raw_headers=[
            (name, value.encode("utf-8", "surrogatepass"))
            for name, value in zip(("x-sub", "x-obj", "x-act"), terms, strict=True)
        ]
    )
    assert decide(policies, call).allowed == (terms == ["a", "b", "c"])
