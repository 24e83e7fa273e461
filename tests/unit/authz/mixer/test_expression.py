"""Mixer's expression language: what parses, what types fit, what comes out."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from authz.mixer.expression import (
    ABSENT,
    Absent,
    EvaluationError,
    ExpressionError,
    Value,
    ValueType,
    compile_expression,
    format_expression,
    parse_expression,
)
from authz.mixer.expression.syntax import MAX_DEPTH, MAX_LENGTH
from authz.mixer.expression.tree import MAX_TEXT
from authz.mixer.expression.values import parse_duration, parse_timestamp

TYPES = {
    "s": ValueType.STRING,
    "request.path": ValueType.STRING,
    "gone.s": ValueType.STRING,
    "gone.b": ValueType.BOOL,
    "gone.m": ValueType.STRING_MAP,
    "gone.i": ValueType.INT64,
    "i": ValueType.INT64,
    "big": ValueType.INT64,
    "d": ValueType.DOUBLE,
    "b": ValueType.BOOL,
    "m": ValueType.STRING_MAP,
    "ip4": ValueType.IP_ADDRESS,
    "t": ValueType.TIMESTAMP,
    "took": ValueType.DURATION,
    "dns": ValueType.DNS_NAME,
    "mail": ValueType.EMAIL_ADDRESS,
    "page": ValueType.URI,
    "raw": ValueType.STRING,
    "broken": ValueType.STRING,
    "long": ValueType.STRING,
}


class Map:
    """A STRING_MAP over a dict."""

    def get(self, key: str) -> str | Absent:
        """Return the entry."""
        return {"k": "v", "x": "k"}.get(key, ABSENT)


class Call:
    """A call that has one attribute of each type; names that start with `gone` it has not."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def value(self, name: str) -> Value | Absent:
        """Return the attribute."""
        self.asked.append(name)
        if name == "broken":
            raise EvaluationError("`broken` is broken")
        values: dict[str, Value] = {
            "s": "abc",
            "request.path": "/a/b",
            "i": 5,
            "big": 2**63 - 1,
            "d": 1.5,
            "b": True,
            "m": Map(),
            "ip4": ip_address("10.0.0.1"),
            "t": parse_timestamp("2018-01-02T03:04:05Z"),
            "took": parse_duration("1m"),
            "dns": "a.example.com",
            "mail": "joe@example.com",
            "page": "http://example.com/x",
            "raw": "\udcff",
            "long": "x" * MAX_TEXT,
        }
        return values.get(name, ABSENT)


def evaluate(text: str) -> Value:
    """Return the value of `text` for the call."""
    return compile_expression(text, TYPES).evaluate(Call())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # literals
        ("1", 1),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("true", True),
        ("FALSE", False),
        ('"a\\tb\\x41\\101\\u00e9\\"\\\\"', 'a\tbAA\u00e9"\\'),
        ("`a\\b`", "a\\b"),
        ('"\\xc3\\xa9"', "\u00e9"),
        ('"5s"', 5_000_000_000),
        ('"0"', 0),
        ('"-1.5h"', -5_400_000_000_000),
        ('"1h30m10ms"', 5_400_010_000_000),
        ('"5 s"', "5 s"),
        ('"5"', "5"),
        # attributes and maps
        ("request.path", "/a/b"),
        ('m["k"]', "v"),
        ('m[m["x"]]', "v"),
        # equality, by type
        ('s == "abc"', True),
        ('s != "abc"', False),
        ("i == 5", True),
        ("d == 1.5", True),
        ("b == true", True),
        ('took == "60s"', True),
        ('ip4 == ip("10.0.0.1")', True),
        ('ip4 == ip("::ffff:10.0.0.1")', True),
        ('ip4 != ip("10.0.0.2")', True),
        ('t == timestamp("2018-01-02T04:04:05+01:00")', True),
        ('t == timestamp("2018-01-02T03:04:05.000000001Z")', False),
        ('dns == dnsName("A.Example.COM.")', True),
        ('dnsName("b\u00fccher.example") == dnsName("xn--bcher-kva.example")', True),
        ('mail == email("joe@EXAMPLE.com.")', True),
        ('mail == email("Joe@example.com")', False),
        ('page == uri("HTTP://EXAMPLE.com./x")', True),
        ('page == uri("http://example.com/X")', False),
        # order
        ("i < 5", False),
        ("i <= 5", True),
        ("i > 4", True),
        ("i >= 6", False),
        ("d < 2.0", True),
        ('s < "abz"', True),
        ('t > timestamp("2018-01-01T00:00:00Z")', True),
        # logic
        ("b && i == 5", True),
        ("b && i == 6", False),
        ("i == 6 || b", True),
        ("i == 6 || i == 7", False),
        ("b || i == 6 && i == 7", True),
        ("(b || i == 6) && i == 7", False),
        # sums
        ('s + "-" + request.path', "abc-/a/b"),
        ("i + 1 + 2", 8),
        ("d + 0.5", 2.0),
        # defaults: absence of attributes, maps, entries
        ('gone.s | "x"', "x"),
        ('s | "x"', "abc"),
        ('gone.s | m["z"] | "x"', "x"),
        ('gone.m["k"] | "x"', "x"),
        ('m[gone.s] | "x"', "x"),
        ("gone.b | false", False),
        ('gone.s | "x" == "x"', True),  # `|` binds like `+`, stronger than `==`
        ('gone.s | "x" + "y"', "xy"),
        ('conditional(b, gone.s, "no") | "x"', "x"),
        # functions
        ('match(s, "a*")', True),
        ('match(s, "*c")', True),
        ('match(s, "abc")', True),
        ('match(s, "b*")', False),
        ('match("*x", "*x*")', True),  # the trailing star is tried first: the leading one is literal
        ('match(s, "*b*")', False),
        ('"b+".matches(s)', True),
        ('"^b".matches(s)', False),
        ('s.startsWith("ab")', True),
        ('request.path.startsWith("/a")', True),
        ('m["k"].endsWith("v")', True),
        ('s.endsWith("ab")', False),
        ('toLower("ABC")', "abc"),
        ('toLower(s).startsWith("a")', True),
        ('conditional(b, "yes", broken)', "yes"),
        ('conditional(i == 6, broken, "no")', "no"),
        ("conditional(b, 1, 2)", 1),
        ('conditionalString(b, "x", "y")', "x"),
        ('emptyStringMap()["k"] | "none"', "none"),
        ('(gone.m | emptyStringMap())["k"] | "none"', "none"),
        ('conditional((gone.s | "inbound") == "outbound", "source", "destination")', "destination"),
        # an operand that decides, decides
        ("gone.b && false", False),
        ("false && gone.b", False),
        ("gone.b || true", True),
        ("broken == s || b", True),
        ("b ==\n  true\n", True),
    ],
)
def test_values(text: str, expected: Value) -> None:
    """Operators and functions give what Mixer's documentation says."""
    found = evaluate(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gone.s", "`gone.s` is absent"),
        ('m["z"]', "`m[z]` is absent"),
        ("m[s]", "an entry of `m` is absent"),
        ('gone.m["k"]', "`gone.m[k]` is absent"),
        ("gone.s | m[s]", "`gone.s` and an entry of `m` is absent"),
        ('gone.s == "x"', "`gone.s` is absent"),
        ('gone.s != "x"', "`gone.s` is absent"),
        ('(gone.s == "x") | true', "`gone.s` is absent"),  # `|` does not look into operators
        ('match(gone.s, "*") | true', "`gone.s` is absent"),  # nor into functions
        ("gone.b && true", "`gone.b` is absent"),
        ("false || gone.b", "`gone.b` is absent"),
        ('broken | "x"', "`broken` is broken"),  # a default is for absence, not for errors
        ('conditional(gone.b, "x", "y")', "`gone.b` is absent"),
        ('conditional(b, gone.s, "no")', "the chosen branch of `conditional` is absent"),
        ("ip(s)", "`abc` is not a valid IP address"),
        ("timestamp(s)", "`abc` is not an RFC 3339 timestamp"),
        ("email(s)", "`abc` is not an e-mail address"),
        ("dnsName(request.path)", "`/a/b` is not a DNS name"),
        ('uri(s + " ")', "`abc ` is not a URI"),
        ("big + 1", "a sum that does not fit 64 bits"),
        ("1e308 + 1e308", "a sum that is too large"),
        ("long + s", f"a text of more than {MAX_TEXT} characters"),
        ('"x".matches(raw)', "the text is not valid UTF-8"),
        ('"x".matches(long)', "the text has more than 16384 bytes"),
    ],
)
def test_what_has_no_value(text: str, reason: str) -> None:
    """Absence without a default, and functions that fail, are errors that name the cause."""
    with pytest.raises(EvaluationError) as caught:
        evaluate(text)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("text", "column", "code", "message"),
    [
        ("", 1, "expression_syntax", "expected a value, found the end"),
        ("s ==", 5, "expression_syntax", "expected a value, found the end"),
        ("s == == s", 6, "expression_syntax", "expected a value, found `==`"),
        ("(s", 3, "expression_syntax", "expected `)`, found the end"),
        ("s s", 3, "expression_syntax", "expected the end, found `s`"),
        ('m["k"', 6, "expression_syntax", "expected `]`, found the end"),
        ('match(s "x")', 9, "expression_syntax", "expected `,` or `)`, found `x`"),
        ("s.", 3, "expression_syntax", "expected a name after `.`"),
        ('m["k"].x', 8, "expression_syntax", "`.x` follows something unnamed"),
        ("true.x", 6, "expression_syntax", "`.x` follows something unnamed"),
        ("m[s](s)", 5, "expression_syntax", "this cannot be called"),
        ("!b", 1, "expression_syntax", "`!` is not expected here"),
        ("i == -1", 6, "expression_syntax", "`-` is not expected here"),
        ("s = s", 3, "expression_syntax", "`=` is not expected here"),
        ("'a'", 1, "expression_syntax", "`'` is not expected here"),
        ('s == "a', 6, "expression_syntax", "this string does not end"),
        ('"a\\q"', 3, "expression_syntax", "`\\q` is not an escape sequence"),
        ('"\\xff"', 1, "expression_syntax", "this string is not valid UTF-8"),
        ('"\\ud800"', 1, "expression_syntax", "this string is not valid UTF-8"),
        ('"\\UFFFFFFFF"', 1, "expression_syntax", "this string is not valid UTF-8"),
        ("9223372036854775808", 1, "expression_syntax", "this number does not fit 64 bits"),
        ("1e999", 1, "expression_syntax", "this number is too large"),
        ("010", 1, "expression_syntax", "numbers are decimal, without leading zeros"),
        ("nope == s", 1, "unknown_attribute", "unknown attribute `nope`"),
        ("b && nope.x", 6, "unknown_attribute", "unknown attribute `nope.x`"),
        ("nope(s)", 1, "unknown_function", "unknown function `nope`"),
        ("s.nope(s)", 3, "unknown_function", "unknown function `nope`"),
        ('s.match("x")', 3, "call_form", "`match` is called as `match(…)`"),
        ('startsWith(s, "x")', 1, "call_form", "`startsWith` is called as `value.startsWith(…)`"),
        ("match(s)", 1, "argument_count", "`match` takes 2 arguments, not 1"),
        ("s.startsWith()", 3, "argument_count", "`startsWith` takes 1 argument, not 0"),
        ("conditional(b, s)", 1, "argument_count", "`conditional` takes 3 arguments, not 2"),
        ("s == i", 6, "expression_type", "`==` compares STRING with STRING, this is INT64"),
        ('s == "5s"', 6, "expression_type", "`==` compares STRING with STRING, this is DURATION"),
        ("m == m", 3, "expression_type", "`==` does not compare STRING_MAPs"),
        ("took < took", 6, "expression_type", "`<` does not compare DURATIONs"),
        ("b < b", 3, "expression_type", "`<` does not compare BOOLs"),
        ("took + took", 1, "expression_type", "`+` does not add DURATIONs"),
        ("s + i", 5, "expression_type", "all sides of `+` here are STRING, this is INT64"),
        ("s | i", 5, "expression_type", "all sides of `|` here are STRING, this is INT64"),
        ("s && b", 1, "expression_type", "`&&` joins BOOL, this is STRING"),
        ('s["k"]', 1, "expression_type", "`[]` needs STRING_MAP, this is STRING"),
        ("m[i]", 3, "expression_type", "a key is STRING, this is INT64"),
        ("toLower(i)", 9, "expression_type", "`toLower` takes a STRING, this is INT64"),
        (
            "conditional(s, s, s)",
            13,
            "expression_type",
            "the condition of `conditional` is BOOL, this is STRING",
        ),
        (
            "conditional(b, s, i)",
            19,
            "expression_type",
            "both branches of `conditional` here are STRING, this is INT64",
        ),
        (
            "conditionalString(b, i, i)",
            22,
            "expression_type",
            "`conditionalString` chooses a STRING, this is INT64",
        ),
        ('ip("10.0.0")', 4, "constant", "`10.0.0` is not a valid IP address"),
        ('ip("fe80::1%eth0")', 4, "constant", "`fe80::1%eth0` is not a valid IP address"),
        (
            'timestamp("2018-02-30T00:00:00Z")',
            11,
            "constant",
            "`2018-02-30T00:00:00Z` is not an RFC 3339 timestamp",
        ),
        ('"(".matches(s)', 1, "pattern", "`(` is not an RE2 pattern: missing ): ("),
        ('"(a{1,100}){1,100}".matches(s)', 1, "pattern", None),
        (
            '"\\\\pL{200}".matches(s)',
            1,
            "pattern",
            "`\\pL{200}` is too complex: repetitions multiply its size",
        ),
        ("s.matches(s)", 3, "pattern_not_constant", "the pattern of `matches` is not a string literal"),
        (
            '("a" + s).matches(s)',
            11,
            "pattern_not_constant",
            "the pattern of `matches` is not a string literal",
        ),
    ],
)
def test_what_does_not_compile(text: str, column: int, code: str, message: str | None) -> None:
    """Every mistake is named at its column."""
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, TYPES)
    assert (caught.value.column, caught.value.code) == (column, code)
    assert message is None or caught.value.message == message


def test_close_names_are_offered() -> None:
    """A misspelt attribute or function comes with the name that was probably meant."""
    with pytest.raises(ExpressionError) as caught:
        compile_expression('request.pth == "/"', TYPES)
    assert caught.value.help == "did you mean `request.path`?"
    with pytest.raises(ExpressionError) as caught:
        compile_expression('s.startWith("/")', TYPES)
    assert caught.value.help == "did you mean `startsWith`?"


@pytest.mark.parametrize(
    "text",
    [
        "(" * (MAX_DEPTH + 1) + "b" + ")" * (MAX_DEPTH + 1),
        "toLower(" * (MAX_DEPTH + 1) + "s" + ")" * (MAX_DEPTH + 1),
        "m[" * (MAX_DEPTH + 1) + "s" + "]" * (MAX_DEPTH + 1),
        " == ".join(["true"] * (MAX_DEPTH + 1)),
        "s" + ' + "a" | "b"' * MAX_DEPTH,
        "s" + ".toLower(s)" * MAX_DEPTH,
        '"' + "x" * MAX_LENGTH + '"',
    ],
)
def test_size_is_bounded(text: str) -> None:
    """Nesting of any form and length are capped, long before Python's stack is."""
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, TYPES)
    assert caught.value.code in {"expression_too_deep", "expression_too_long"}


def test_chains_are_flat() -> None:
    """A thousand conditions joined by one operator are no nesting."""
    assert evaluate(" && ".join(["b"] * 1000)) is True
    assert evaluate(" + ".join(["1"] * 1000)) == 1000


def test_short_circuit() -> None:
    """What follows a deciding operand, or a present value before `|`, is not looked at."""
    call = Call()
    assert compile_expression("i == 6 && s == broken", TYPES).evaluate(call) is False
    assert compile_expression("s | broken", TYPES).evaluate(call) == "abc"
    assert call.asked == ["i", "s"]


def test_the_attributes_of_an_expression_are_known() -> None:
    """An expression tells which attributes it can look at, in whatever branch."""
    expression = compile_expression(
        'conditional(b, m["k"], gone.s | s) + toLower(request.path) == "x"', TYPES
    )
    assert expression.attributes == {"b", "m", "gone.s", "s", "request.path"}
    assert expression.type is ValueType.BOOL


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a&&b||c", "a && b || c"),
        ("a && (b || c)", "a && (b || c)"),
        ("(a && b) && c", "(a && b) && c"),
        ("(a == b) == c", "a == b == c"),
        ("a == (b == c)", "a == (b == c)"),
        ('a|"x"+b', 'a | "x" + b'),
        ('x . startsWith ( "a" )', 'x.startsWith("a")'),
        ("(a | b)[c]", "(a | b)[c]"),
    ],
)
def test_printing(text: str, printed: str) -> None:
    """An expression prints with the parentheses it needs."""
    assert format_expression(parse_expression(text)) == printed
