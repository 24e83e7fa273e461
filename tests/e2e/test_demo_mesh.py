"""What the demo's table says, call by call, and what an attacker would try beside it."""

from __future__ import annotations

import json
import re

import pytest

from garrison.demo.client import Call
from garrison.demo.mesh import Mesh
from garrison.demo.rows import (
    Claim,
    Row,
    call_to,
    check,
    every_other_pair,
    header_claims,
    page_claims,
    quota_rows,
    role_claims,
    token_claims,
)
from garrison.demo.scenarios import broken_policy_row, handshake_rows, policy_change_rows, restart_row
from garrison.demo.tokens import Tokens

CLAIMS = [*role_claims(), *header_claims(), *page_claims()]
TOKEN_TITLES = [claim.title for claim in token_claims(Tokens(), Tokens())]


def wrong(rows: list[Row]) -> list[Row]:
    """Return the rows that are not as expected."""
    return [row for row in rows if not row.ok]


@pytest.mark.parametrize("claim", CLAIMS, ids=[claim.title for claim in CLAIMS])
def test_call(mesh: Mesh, claim: Claim) -> None:
    """The call is answered as the policies say, decided by the policy that says so."""
    assert wrong([check(mesh, claim)]) == []


@pytest.mark.parametrize("title", TOKEN_TITLES)
def test_token(mesh: Mesh, title: str) -> None:
    """Only a good token with the right e-mail address reads products through the ingress."""
    claim = next(claim for claim in token_claims(mesh.tokens, mesh.stranger) if claim.title == title)
    assert wrong([check(mesh, claim)]) == []


def test_every_other_pair_is_denied(mesh: Mesh) -> None:
    """What no role grants is denied, for every caller and every service."""
    assert wrong([every_other_pair(mesh)]) == []


def test_only_our_certificates_connect(mesh: Mesh) -> None:
    """Without a certificate, or with a stranger's that has the right name, there is no connection."""
    assert wrong(handshake_rows(mesh)) == []


def test_the_sixth_call_in_a_minute_is_refused(mesh: Mesh) -> None:
    """Five calls a minute for each user, with headers that count down; others are not affected."""
    assert wrong(quota_rows(mesh)) == []


def test_a_restart_loses_no_call(mesh: Mesh) -> None:
    """A new `garrison serve` takes over while calls run; the old one ends with exit code 0."""
    assert wrong([restart_row(mesh)]) == []


def test_a_policy_change_takes_effect_at_once(mesh: Mesh) -> None:
    """A grant and its revocation take effect within a second, without a failed call."""
    assert wrong(policy_change_rows(mesh)) == []


def test_a_broken_policy_changes_nothing(mesh: Mesh) -> None:
    """The old policies stay in force, and the log says file, line, column and field."""
    assert wrong([broken_policy_row(mesh)]) == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("//api/v1/products", 403),
        ("/productpage/../api/v1/products", 403),
        ("/%61pi/v1/products", 403),
        ("/api/v1/products?x=/productpage", 403),
        ("/api%2fv1%2fproducts", 400),
        ("/api/v1/products-internal", 404),
        ("/details/0", 404),
    ],
)
def test_no_spelling_of_a_path_gets_past_the_policy(mesh: Mesh, path: str, status: int) -> None:
    """Without a token, no way of writing the path reaches the products API through the ingress."""
    assert mesh.call(Call("ingress", "products", path)).status == status


def test_the_host_header_does_not_choose_the_policy(mesh: Mesh) -> None:
    """A caller that may read products cannot pass off the page as products by a header."""
    headers = {"x-forwarded-host": "products", "destination.service": "products.default.svc.cluster.local"}
    assert mesh.call(Call("client", "productpage", "/productpage", headers=headers)).status == 403
    assert mesh.call(Call("client", "products", "/productpage")).status == 403


# Reviews take turns, and two of their three versions ask ratings: 18 calls make 12 for ratings, more than two
# windows of five hold, should the clock's minute turn meanwhile.
ROUNDS = 18


def rating_errors(mesh: Mesh, headers: dict[str, str]) -> set[str]:
    """Return what reviews said about ratings that they did not get."""
    token = {"authorization": f"Bearer {mesh.tokens.sign('a@foo.com')}"}
    call = Call("ingress", "products", "/api/v1/products/0/reviews", headers={**token, **headers})
    answers = [mesh.call(call) for _ in range(ROUNDS)]
    assert {answer.status for answer in answers} == {200}
    ratings = [
        review.get("rating", {}) for answer in answers for review in json.loads(answer.body)["reviews"]
    ]
    return {rating["error"] for rating in ratings if "error" in rating}


def test_nobody_outside_chooses_a_user_name(mesh: Mesh) -> None:
    """`end-user` from outside counts against nobody's quota; the user of a session is counted."""
    assert rating_errors(mesh, {"end-user": "mallory"}) == set()
    login = mesh.call(Call("ingress", "productpage", "/login", "POST", body=b"user=susan"))
    cookie = login.headers["set-cookie"].partition(";")[0]
    assert rating_errors(mesh, {"cookie": cookie}) == {"ratings answered 429"}


def test_no_envoy_config_holds_a_key(mesh: Mesh) -> None:
    """Keys and certificates reach Envoys over SDS only."""
    configs = list((mesh.run / "envoy").glob("*.yaml"))
    assert len(configs) == 8
    assert [
        path.name for path in configs if re.search("BEGIN|private_key", path.read_text(encoding="utf-8"))
    ] == []


def test_the_decision_names_its_snapshot(mesh: Mesh) -> None:
    """A decision carries the version of the policies that it was made on."""
    call = call_to("productpage", "details")
    decided = mesh.decided(call, mesh.call(call))
    assert decided is not None
    assert re.fullmatch("[0-9a-f]{12}", decided.snapshot)
    assert decided.added_ms is not None
