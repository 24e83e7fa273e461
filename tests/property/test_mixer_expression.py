"""Mixer expressions, for any text and any tree: they print and parse back, and fail in one way only."""

from __future__ import annotations

import contextlib
import re
from ipaddress import ip_address

from hypothesis import example, given, settings
from hypothesis import strategies as st

from authz.mixer.expression import (
    ABSENT,
    Absent,
    EvaluationError,
    Expression,
    ExpressionError,
    Value,
    ValueType,
    compile_expression,
    format_expression,
    parse_expression,
)
from authz.mixer.expression.syntax import Call, Chain, Comparison, Index, Literal, Name, Node
from authz.mixer.expression.values import (
    parse_bool,
    parse_dns_name,
    parse_double,
    parse_duration,
    parse_email,
    parse_int64,
    parse_ip,
    parse_timestamp,
    parse_uri,
)

TYPES = {
    "s": ValueType.STRING,
    "s.two": ValueType.STRING,
    "i": ValueType.INT64,
    "d": ValueType.DOUBLE,
    "b": ValueType.BOOL,
    "m": ValueType.STRING_MAP,
    "ip.a": ValueType.IP_ADDRESS,
    "t": ValueType.TIMESTAMP,
}
NAMES = st.sampled_from(["s", "s.two", "i", "d", "b", "m", "ip.a", "t"])
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
LITERALS = (
    ANY_TEXT
    | st.integers(0, 2**63 - 1)
    | st.booleans()
    | st.floats(0, 1e300, allow_nan=False).filter(lambda number: "e-" not in repr(number) or number > 0)
)


def chain(operator: str, operands: list[Node]) -> Node:
    """Return a chain as the parser builds it: a first operand with the same operator stays apart."""
    return Chain(operator, tuple(operands))


def nodes() -> st.SearchStrategy[Node]:
    """Return trees of any shape, well typed or not."""
    leaves: st.SearchStrategy[Node] = LITERALS.map(Literal) | NAMES.map(Name)

    def grow(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return (
            st.builds(Index, inner, inner)
            | st.builds(
                Call,
                st.sampled_from(["match", "ip", "toLower", "conditional", "nope"]),
                st.none(),
                st.lists(inner, max_size=3).map(tuple),
            )
            | st.builds(
                Call,
                st.sampled_from(["startsWith", "matches", "x"]),
                inner,
                st.lists(inner, max_size=2).map(tuple),
            )
            | st.builds(
                chain, st.sampled_from(["&&", "||", "|", "+"]), st.lists(inner, min_size=2, max_size=4)
            )
            | st.builds(Comparison, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), inner, inner)
        )

    return st.recursive(leaves, grow, max_leaves=12)


def typed(kind: ValueType, depth: int = 3) -> st.SearchStrategy[str]:
    """Return well-typed expressions of one type, as text."""
    leaf = {
        ValueType.STRING: st.sampled_from(["s", "s.two", '"a"', '""', '"10.0.0.1"']),
        ValueType.INT64: st.sampled_from(["i", "1", "9223372036854775807"]),
        ValueType.BOOL: st.sampled_from(["b", "true", "false"]),
        ValueType.STRING_MAP: st.sampled_from(["m", "emptyStringMap()"]),
        ValueType.IP_ADDRESS: st.sampled_from(["ip.a", 'ip("::1")']),
        ValueType.TIMESTAMP: st.sampled_from(["t", 'timestamp("2018-01-01T00:00:00Z")']),
        ValueType.DOUBLE: st.sampled_from(["d", "1.5", "1e308"]),
    }[kind]
    if depth == 0:
        return leaf
    below = depth - 1
    same = typed(kind, below)
    options = [
        leaf,
        st.builds("({} | {})".format, same, same),
        st.builds("conditional({}, {}, {})".format, typed(ValueType.BOOL, below), same, same),
    ]
    if kind in {ValueType.STRING, ValueType.INT64, ValueType.DOUBLE}:
        options.append(st.builds("({} + {})".format, same, same))
    if kind is ValueType.STRING:
        options.append(st.builds("{}[{}]".format, typed(ValueType.STRING_MAP, below), same))
        options.append(st.builds("toLower({})".format, same))
    if kind is ValueType.IP_ADDRESS:
        options.append(st.builds("ip({})".format, st.sampled_from(["s", "s.two", 'm["k"]'])))
    if kind is ValueType.TIMESTAMP:
        options.append(st.builds("timestamp({})".format, st.sampled_from(["s", "s.two"])))
    if kind is ValueType.BOOL:
        text = typed(ValueType.STRING, below)
        options += [
            st.builds("({} {} {})".format, same, st.sampled_from(["&&", "||"]), same),
            st.builds("({} {} {})".format, text, st.sampled_from(["==", "!=", "<", ">="]), text),
            st.builds("match({}, {})".format, text, text),
            st.builds('"a+$".matches({})'.format, text),
            st.builds("({}).endsWith({})".format, text, text),
            st.builds("({} == {})".format, typed(ValueType.IP_ADDRESS, 0), typed(ValueType.IP_ADDRESS, 1)),
            st.builds("({} <= {})".format, typed(ValueType.INT64, below), typed(ValueType.INT64, below)),
        ]
    return st.one_of(options)


class Map:
    """A STRING_MAP that may have one entry."""

    def __init__(self, entry: str | None) -> None:
        self._entry = entry

    def get(self, key: str) -> str | Absent:
        """Return the entry, whatever the key."""
        return ABSENT if self._entry is None else self._entry


class Source:
    """A call with any attributes."""

    def __init__(self, values: dict[str, Value | None]) -> None:
        self._values = values

    def value(self, name: str) -> Value | Absent:
        """Return the attribute, if the call has it."""
        found = self._values.get(name)
        return ABSENT if found is None else found


WILD_TEXT = st.none() | st.text(max_size=6)
SOURCES = st.fixed_dictionaries(
    {
        "s": WILD_TEXT,
        "s.two": WILD_TEXT | st.sampled_from(["a", "a.b", "10.0.0.1", "\udc80", "(", "*"]),
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "d": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "b": st.none() | st.booleans(),
        "m": st.none() | WILD_TEXT.map(Map),
        "ip.a": st.none() | st.sampled_from([ip_address("10.0.0.1"), ip_address("::1")]),
        "t": st.none() | st.integers(-(2**62), 2**62),
    }
).map(lambda values: Source(dict(values)))


@given(nodes())
def test_trees_print_and_parse_back(node: Node) -> None:
    """What a tree prints as parses to that tree."""
    assert parse_expression(format_expression(node)) == node


@settings(max_examples=300)
@given(st.text(max_size=40) | st.text('sbim.&|()[]"`=<>! 1,+matches', max_size=40))
@example("\x00")
@example("((((")
def test_any_text_parses_or_says_why_not(text: str) -> None:
    """Text gives an expression or an ExpressionError with a column inside it."""
    failure: ExpressionError | None = None
    try:
        expression = compile_expression(text, TYPES)
    except ExpressionError as error:
        failure = error
    if failure is not None:
        assert 1 <= failure.column <= len(text) + 1
    else:
        again = compile_expression(format_expression(parse_expression(text)), TYPES)
        assert again.tree == expression.tree


@settings(max_examples=300, deadline=None)
@given(typed(ValueType.BOOL), SOURCES)
def test_evaluation_gives_a_value_or_one_kind_of_error(text: str, source: Source) -> None:
    """Whatever the call holds, the outcome is a boolean or an EvaluationError."""
    expression = compile_expression(text, TYPES)
    with contextlib.suppress(EvaluationError):
        assert isinstance(expression.evaluate(source), bool)


@given(
    st.lists(st.sampled_from(["b", "true", "false", "(s == s.two)"]), min_size=2, max_size=5),
    SOURCES,
    st.randoms(),
)
def test_the_order_of_conditions_never_matters(operands: list[str], source: Source, random: object) -> None:
    """`&&` and `||` come out the same in any order, also when an operand has no value."""

    def outcome(expression: Expression) -> object:
        try:
            return expression.evaluate(source)
        except EvaluationError:
            return "error"

    for operator in (" && ", " || "):
        forwards = compile_expression(operator.join(operands), TYPES)
        backwards = compile_expression(operator.join(reversed(operands)), TYPES)
        assert outcome(forwards) == outcome(backwards)


@given(st.text(max_size=12), st.text(max_size=12))
def test_text_in_match_is_never_a_pattern_language(value: str, pattern: str) -> None:
    """`match` knows `*` at the ends and nothing else: it agrees with an escaped regular expression."""
    expected = re.escape(pattern)
    if pattern.endswith("*"):
        expected = re.escape(pattern[:-1]) + ".*"
    elif pattern.startswith("*"):
        expected = ".*" + re.escape(pattern[1:])
    found = compile_expression("match(s, s.two)", TYPES).evaluate(Source({"s": value, "s.two": pattern}))
    assert found is (re.fullmatch(expected, value, re.DOTALL) is not None)


@given(st.text(max_size=30) | st.from_regex(r"\A[0-9a-z:.@/ -]{0,30}\Z"))
def test_conversions_fail_in_one_way(text: str) -> None:
    """No text makes a conversion raise anything but EvaluationError; what it gives converts to itself."""
    for convert in (parse_dns_name, parse_email, parse_uri):
        try:
            found = convert(text)
        except EvaluationError:
            continue
        assert convert(found) == found
    for other in (parse_int64, parse_double, parse_bool, parse_ip, parse_timestamp, parse_duration):
        try:
            other(text)
        except EvaluationError:
            continue


@given(st.integers(0, 2**63 - 1))
def test_durations_in_nanoseconds_are_exact(nanoseconds: int) -> None:
    """A duration is read without rounding."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    assert parse_duration(f"{seconds}.{rest:09d}s") == nanoseconds
    assert parse_duration(f"{seconds}s{rest}ns") == nanoseconds
