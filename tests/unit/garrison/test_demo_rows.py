"""A row is right only if everything about it is; the table shows it readably."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.demo.client import Answer, Decided, JsonLines
from garrison.demo.rows import Claim, Expected, Row, call_to, judge, role_claims, token_claims
from garrison.demo.table import brief, render
from garrison.demo.tokens import AUDIENCE, Tokens

ROLE = "ServiceRole default/details-viewer"
ALLOWED = Claim("roles", "productpage -> details", call_to("productpage", "details"), Expected(200, ROLE))
DENIED = Claim("roles", "ratings -> details", call_to("ratings", "details"), Expected(403, reason="no role"))


def answer(status: int) -> Answer:
    """Return an answer with this status."""
    return Answer(status, {}, b"", "id")


@pytest.mark.parametrize(
    ("claim", "got", "decided", "problem"),
    [
        (ALLOWED, answer(200), Decided("allow", ROLE, added_ms=1.0), ""),
        (DENIED, answer(403), Decided("deny", reason="no role allows it"), ""),
        (ALLOWED, answer(403), Decided("deny", reason="no role"), "403, deny by no policy"),
        (
            ALLOWED,
            answer(200),
            Decided("allow", "ServiceRole default/other"),
            "allow by ServiceRole default/other",
        ),
        (ALLOWED, answer(200), None, "no access log entry"),
        (ALLOWED, None, None, "no answer, no access log entry"),
        (ALLOWED, answer(200), Decided(), "no decision by no policy"),
        (DENIED, answer(403), Decided(), "no decision by no policy"),
        (DENIED, answer(403), Decided("deny", reason="internal error"), "another reason"),
        (DENIED, answer(503), Decided("deny", reason="no role"), "503"),
    ],
)
def test_a_row_is_right_only_if_all_of_it_is(
    claim: Claim, got: Answer | None, decided: Decided | None, problem: str
) -> None:
    """The status, the decision, the policy and the reason must all be as expected; the row names what is not."""
    row = judge(claim, got, decided)
    assert row.ok is (problem == "")
    assert row.got == (problem or str(claim.expected.status))


def test_claims_speak_of_every_required_case() -> None:
    """Roles, methods and tokens that the demo promises to show are among the claims, with their codes."""
    statuses = {
        claim.title: claim.expected.status for claim in [*role_claims(), *token_claims(Tokens(), Tokens())]
    }
    assert statuses["productpage -> details"] == statuses["productpage -> reviews"] == 200
    assert statuses["reviews-v2 -> ratings"] == statuses["reviews-v3 -> ratings"] == 200
    assert statuses["reviews-v1 -> ratings"] == statuses["service-account-a -> products, POST"] == 403
    assert statuses["ingress -> products, token of a@foo.com"] == 200
    assert (
        statuses["ingress -> products, no token"]
        == statuses["ingress -> products, token of b@foo.com"]
        == 403
    )
    assert statuses["ingress -> products, expired token"] == 401
    assert statuses["ingress -> products, token signed by a stranger"] == 401


def test_tokens_verify_with_the_published_key_only() -> None:
    """The key set holds the public half, which verifies the owner's tokens and nobody else's; expiry is real."""
    tokens, now = Tokens(), datetime.now(UTC)
    keys = json.loads(tokens.jwks())["keys"]
    assert "d" not in keys[0]
    key = jwt.PyJWK(keys[0])
    claims = jwt.decode(tokens.sign("a@foo.com", now=now), key, algorithms=["ES256"], audience=AUDIENCE)
    assert claims["email"] == "a@foo.com"
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(Tokens().sign("a@foo.com", now=now), key, algorithms=["ES256"], audience=AUDIENCE)
    expired = tokens.sign("a@foo.com", now=now, lifetime=-timedelta(hours=1))
    with pytest.raises(jwt.ExpiredSignatureError):
        jwt.decode(expired, key, algorithms=["ES256"], audience=AUDIENCE)


TEXT = st.text(alphabet=st.characters(categories=["L", "N", "P"]), max_size=60)


@given(
    st.lists(
        st.builds(Row, TEXT, TEXT, TEXT, TEXT, TEXT, st.none() | st.floats(0, 99), st.booleans()), max_size=5
    ),
    st.integers(100, 250),
)
def test_the_table_keeps_to_its_width(rows: list[Row], width: int) -> None:
    """However long the cells, no line is wider than asked, and every row says whether it is right."""
    lines = render(rows, width, colour=False).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith(("ok", "DIFFERS")) for line in lines) == len(rows)


def test_colour_marks_what_differs() -> None:
    """On a terminal a row that differs is red, one that is right green."""
    rows = [Row("g", "call", "200", got, "", None, ok) for got, ok in (("200", True), ("403", False))]
    text = render(rows, 120, colour=True)
    assert "\x1b[32mok" in text
    assert "\x1b[31mDIFFERS" in text


def test_a_long_reason_is_shown_by_its_ends() -> None:
    """What came nearest and what it lacked are what one needs; a short reason stays as it is."""
    reason = "no role allows it; nearest: ServiceRole default/r rule 0: the rule matched, but no subject did: B s[0].user: x is not y"
    assert brief(reason) == "no role allows it; nearest: ServiceRole default/r: … x is not y"
    assert brief("no role allows it") == "no role allows it"
    assert len(brief("word " * 50)) <= 80


@given(entries=st.lists(st.dictionaries(st.text(), st.text() | st.integers()), max_size=8), data=st.data())
def test_lines_are_read_once_and_whole(
    entries: list[dict[str, object]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However the writer's pieces fall, each complete line comes once, in order, and junk between them not at all."""
    path = tmp_path_factory.mktemp("lines") / "log"
    content = b"".join(json.dumps(entry).encode() + b"\nnot json\n[1]\n" for entry in entries)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    lines, read = JsonLines(path), []
    assert lines.new() == []
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        with path.open("ab") as file:
            file.write(content[start:end])
        read += lines.new()
    assert read == entries


def test_json_holds_the_whole_row(tmp_path: Path) -> None:
    """The JSON of a row has the full reason that the table cuts."""
    row = judge(
        DENIED, answer(403), Decided("deny", reason="no role allows it; nearest: " + "x" * 200, added_ms=0.5)
    )
    assert json.loads(json.dumps(row.as_json()))["reason"].endswith("x" * 200)
