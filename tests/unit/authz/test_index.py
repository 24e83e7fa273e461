"""The index: how many rules a call looks at, counted, and which policies a destination has."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
from support.checks import SERVICE, check_request, decide_on, principal, role, snapshot
from support.policies import policy

from authz.attributes import Attributes
from authz.destination import Destination
from authz.paths import PathNormalization
from authz.policy.compile import compile_policies
from authz.policy.index import PolicyIndex, RuleIndex
from authz.policy.matchers import Condition, StringMatcher
from authz.policy.rules import ANYTHING, Action, Alternative, Rule
from garrison.documents import parse

HERE = Destination(SERVICE, "default", "products")


def rule(
    number: int,
    *,
    operation: dict[str, tuple[str, ...]] | None = None,
    source: dict[str, tuple[str, ...]] | None = None,
    negated: bool = False,
) -> Rule:
    """Return a rule with conditions by attribute; `name[argument]` for headers."""

    def alternatives(wanted: dict[str, tuple[str, ...]] | None) -> tuple[Alternative, ...]:
        if wanted is None:
            return ANYTHING
        conditions = []
        for name, patterns in wanted.items():
            attribute, _, argument = name.partition("[")
            matcher = StringMatcher.of(patterns)
            conditions.append(Condition(attribute, argument.rstrip("]"), matcher, True, "", negated))
        return (Alternative("", tuple(conditions)),)

    return Rule(f"P {number}", number, Action.ALLOW, alternatives(operation), alternatives(source), (), ())


def looked_at(rules: list[Rule], path: str = "/", account: str = "", header: str = "") -> list[int]:
    """Return the numbers of the rules that a call looks at."""
    request = check_request(
        path=path,
        source=principal(account) if account else "",
        headers={"h": header} if header else {},
    )
    attributes = Attributes(request.attributes, PathNormalization.BASE, HERE)
    return [found.index for found in RuleIndex(rules).candidates(attributes)]


SHAPES: dict[str, Callable[[int], Rule]] = {
    "exact": lambda number: rule(number, operation={"request.path": (f"/{number}",)}),
    "prefix": lambda number: rule(number, operation={"request.path": (f"/{number}/*",)}),
    "suffix": lambda number: rule(number, operation={"request.path": (f"*/{number}",)}),
    "lists": lambda number: rule(number, operation={"request.path": (f"/{number}", f"/x/{number}*")}),
    "source": lambda number: rule(number, source={"source.principal": (f"*/sa/{number}",)}),
    "header": lambda number: rule(number, operation={"request.headers[h]": (f"{number}",)}),
    "beside what all share": lambda number: rule(
        number, operation={"request.method": ("GET",), "request.path": (f"/{number}",)}
    ),
}
CALLS = {
    "exact": {"path": "/7"},
    "prefix": {"path": "/7/x"},
    "suffix": {"path": "/x/7"},
    "lists": {"path": "/x/7"},
    "source": {"account": "7"},
    "header": {"header": "7"},
    "beside what all share": {"path": "/7"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_looks_at_the_rules_for_its_own_values(shape: str) -> None:
    """Of 10, 1,000 or 10,000 rules on one service a call looks at the one that can match."""
    for count in (10, 1_000, 10_000):
        rules = [SHAPES[shape](number) for number in range(count)]
        found = looked_at(rules, **CALLS[shape])
        # `/x/7*` fits `/x/7`, and no other prefix of the list does.
        assert found == [7], count


@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_with_other_values_looks_at_none(shape: str) -> None:
    """A call that no rule can match looks at no rule."""
    rules = [SHAPES[shape](number) for number in range(1_000)]
    assert looked_at(rules, path="/none", account="none", header="none") == []
    assert looked_at(rules, path="") == []


def test_kinds_of_rules_are_filed_each_by_what_it_needs() -> None:
    """Rules on paths, on callers and on neither share a service; each call looks at its own."""
    rules = [SHAPES["exact"](number) for number in range(100)]
    rules += [SHAPES["source"](number) for number in range(100, 200)]
    rules += [rule(200), rule(201, operation={"request.path": ("*",)})]
    assert sorted(looked_at(rules, path="/7", account="107")) == [7, 107, 200, 201]


def test_what_only_excludes_is_always_looked_at() -> None:
    """A not-form matches without its value, so it files nothing."""
    rules = [rule(number, operation={"request.path": (f"/{number}",)}, negated=True) for number in range(20)]
    assert looked_at(rules, path="/7") == list(range(20))


def test_an_alternative_without_the_attribute_is_always_looked_at() -> None:
    """A rule is filed by what all of its alternatives need."""
    either = Rule(
        "P",
        99,
        Action.ALLOW,
        (*rule(0, operation={"request.path": ("/x",)}).operations, *rule(0, operation={}).operations),
        ANYTHING,
        (),
        (),
    )
    rules = [SHAPES["exact"](number) for number in range(20)]
    assert looked_at([*rules, either], path="/7") == [7, 99]
    both = Rule(
        "P",
        99,
        Action.ALLOW,
        (*SHAPES["exact"](30).operations, *SHAPES["suffix"](31).operations),
        ANYTHING,
        (),
        (),
    )
    for path, found in (("/30", [99]), ("/a/31", [99]), ("/7", [7])):
        assert looked_at([*rules, both], path=path) == found


def test_patterns_of_every_length_are_found() -> None:
    """A value is looked up once for each length of prefix and suffix that there is, up to its own."""
    prefixes = [rule(number, operation={"request.path": ("/" + "x" * number + "*",)}) for number in range(20)]
    suffixes = [rule(number, operation={"request.path": ("*" + "x" * number + "/",)}) for number in range(20)]
    for count in (0, 1, 7, 30):
        expected = list(range(min(count, 19) + 1))
        assert looked_at(prefixes, path="/" + "x" * count) == expected
        assert looked_at(suffixes, path="/" + "x" * count + "/") == expected


def test_few_rules_are_walked() -> None:
    """Below the limit a list is faster."""
    assert looked_at([SHAPES["exact"](number) for number in range(7)], path="/x") == list(range(7))


def test_what_is_bound_to_nobody_is_not_looked_at() -> None:
    """A role without subjects stays in `rules`, for explanations, and out of every call."""
    unbound = Rule("P", 1, Action.ALLOW, ANYTHING, (), (), ())
    attributes = Attributes(check_request().attributes, PathNormalization.BASE, HERE)
    index = RuleIndex([unbound, rule(2)])
    assert len(index.rules) == 2
    assert [found.index for found in index.candidates(attributes)] == [2]


def indexed(text: str) -> PolicyIndex:
    """Return the index of the policies in `text`."""
    documents, _ = parse(text.encode(), "p.yaml")
    policies, _ = compile_policies(documents, snapshot("").mesh)
    assert policies is not None
    return PolicyIndex(policies)


def test_a_destination_has_only_its_own_rules() -> None:
    """1,000 roles spread over services put one of them before a call."""
    rules = "".join(
        role(f'[{{services: ["s{number}.default.svc.cluster.local"]}}]', name=f"r{number}")
        for number in range(1_000)
    )
    index = indexed(rules + role('[{services: ["*"]}]', name="all", namespace="other"))
    for number in (0, 999):
        found = index.policies_for(Destination(f"s{number}.default.svc.cluster.local", "default"))
        assert found.http.allow is not None
        assert [one.policy for one in found.http.allow.rules] == [f"ServiceRole default/r{number}"]


def test_rules_come_in_the_order_of_their_documents_names() -> None:
    """Whatever the files' order: by kind, namespace and name, then as they stand in the document."""
    text = policy("[{}, {}]", name="b") + policy("[{}]", name="a") + policy("[{}]", namespace="istio-system")
    found = indexed(text).policies_for(HERE)
    assert found.http.allow is not None
    assert [(one.policy.split("/")[1], one.index) for one in found.http.allow.rules] == [
        ("a", 0),
        ("b", 0),
        ("b", 1),
        ("p", 0),
    ]


HEADER = ("request.headers", "a")


@pytest.mark.parametrize(
    ("text", "memo_on"),
    [
        (policy('[{to: [{operation: {paths: ["/a"], methods: ["GET"]}}]}]'), ()),
        (policy('[{from: [{source: {principals: ["a"]}}]}]', "DENY"), ()),
        (policy('[{from: [{source: {namespaces: ["a"], notTrustDomains: ["b"]}}]}]', "DENY"), ()),
        (policy('[{from: [{source: {ipBlocks: ["::1"]}}]}]'), None),
        (policy('[{from: [{source: {requestPrincipals: ["a"]}}]}]'), (("request.auth.pair", ""),)),
        (policy('[{to: [{operation: {hosts: ["a"]}}]}]'), None),
        (policy('[{to: [{operation: {ports: ["1"]}}]}]', "DENY"), None),
        (policy('[{when: [{key: "request.headers[a]", values: ["1"]}]}]'), (HEADER,)),
        (
            policy('[{when: [{key: "request.auth.claims[a]", notValues: ["1"]}]}]'),
            (("request.auth.claims", "a"),),
        ),
        (policy('[{when: [{key: remote.ip, notValues: ["::1"]}]}]'), None),
        (role("[{hosts: [a]}]"), None),
        (role("[{}]", '[{group: "a"}]'), (("request.auth.claims", "groups"),)),
        (role("[{paths: [/a]}]", "[{user: a}]"), ()),
        (role("[{paths: [/a]}]", '[{not_names: ["a"]}]'), ()),
    ],
)
def test_what_decisions_are_remembered_by(text: str, memo_on: tuple[tuple[str, str], ...] | None) -> None:
    """Beside method, path and peer, values of headers and claims; a rule on anything else, and nothing is."""
    assert indexed(text).policies_for(HERE).memo_on == memo_on


def test_too_many_values_are_not_remembered() -> None:
    """More than three headers and claims, and every call is decided anew."""
    conditions = ", ".join(f'{{key: "request.headers[h{number}]", values: ["1"]}}' for number in range(4))
    assert indexed(policy(f"[{{when: [{conditions}]}}]")).policies_for(HERE).memo_on is None


def test_remembered_decisions_keep_calls_apart() -> None:
    """Absent, empty, equal, different and repeated header values each get their own decision."""
    compiled = snapshot(role('[{constraints: [{key: "request.headers[a]", values: ["1", "*"]}]}]'))
    lines = [[], [("a", b"")], [("a", b"1")], [("a", b"2")], [("a", b"1"), ("a", b"2")], [("b", b"1")]]
    for _ in range(2):
        found = [decide_on(compiled, check_request(raw_headers=raw)).allowed for raw in lines]
        assert found == [False, True, True, True, True, False]
    exact = snapshot(role('[{constraints: [{key: "request.headers[a]", values: ["1"]}]}]'))
    for _ in range(2):
        found = [decide_on(exact, check_request(raw_headers=raw)).allowed for raw in lines]
        assert found == [False, False, True, False, False, False]


def test_rules_on_namespaces_are_looked_up() -> None:
    """500 rules on callers' namespaces put one before a call."""
    rules = ", ".join(f'{{from: [{{source: {{namespaces: ["n{number}"]}}}}]}}' for number in range(500))
    found = indexed(policy(f"[{rules}]") + policy(f"[{rules}]", "DENY", name="q")).policies_for(HERE)
    request = check_request(source=principal("a", "n7"))
    attributes = Attributes(request.attributes, PathNormalization.BASE, HERE)
    for index in (found.http.allow, found.http.deny):
        assert index is not None
        assert [one.index for one in index.candidates(attributes)] == [7]


def test_what_was_in_force_is_freed_without_the_collector() -> None:
    """Remembered decisions are no reference cycle: the collector never looks at a generation."""
    policies = snapshot(role("[{paths: [/x]}]"))
    assert decide_on(policies, check_request(path="/x", source=principal("a"))).allowed
    gone = weakref.ref(policies.policies_for(HERE).http.allow)
    gc.collect()
    gc.disable()
    try:
        del policies
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("by", ["exact", "prefix", "suffix"])
def test_many_policies_of_one_place_are_worked_out_when_they_are_loaded(by: str) -> None:
    """The first call for a destination finds the index of its many roles ready, however they name the service."""
    pattern = {"exact": SERVICE, "prefix": "products.*", "suffix": "*.cluster.local"}[by]
    index = indexed(
        "".join(role(f'[{{services: ["{pattern}"], paths: [/{n}]}}]', name=f"r{n:03}") for n in range(150))
    )
    ours = [index.policies_for(Destination(SERVICE, "default", user=user)).http.allow for user in ("a", "b")]
    assert ours[0] is not None
    assert ours[0] is ours[1]
    assert [rule.policy for rule in ours[0].rules] == [f"ServiceRole default/r{n:03}" for n in range(150)]
    elsewhere = index.policies_for(Destination("x.other.svc.cluster.local", "other")).http.allow
    assert elsewhere is not None
    assert not elsewhere.rules


def test_many_policies_and_few_are_in_order_together() -> None:
    """What was worked out ahead and what was not are read as one sequence, in part or in whole."""
    many = "".join(role(f"[{{paths: [/{n}]}}]", name=f"r{n:03}") for n in range(150))
    one = role(f'[{{services: ["{SERVICE}"], paths: [/a]}}]', name="r0005")
    found = indexed(many + one).policies_for(Destination(SERVICE, "default")).http.allow
    assert found is not None
    names = [rule.policy.rpartition("/")[2] for rule in found.rules]
    assert names == sorted(names)
    assert len(found.rules) == len(names) == 151
    assert [rule.policy.rpartition("/")[2] for rule in found.rules[:3]] == ["r000", "r0005", "r001"]
    assert found.rules[-1].policy == "ServiceRole default/r149"
