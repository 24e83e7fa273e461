"""Fuzzing of the token path: whatever comes, it is a denial, never an exception, and nothing unsigned passes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from support.checks import NOW, SERVICE, check_request, role, snapshot
from support.tokens import ISSUER, Authentication, ed_signer, encode_part

from authz.attributes import Attributes
from authz.authn import jwt
from authz.authn.jwt import TokenRules
from authz.paths import PathNormalization
from garrison.keys import token as token_parts

# Of each of the seeds; a run of all of them takes about five seconds.
INPUTS = 10_000
SEEDS = range(6)

_PIECES = (
    *(
        b".",
        b"=",
        b"-",
        b"_",
        b"+",
        b"/",
        b"\x00",
        b"\xff",
        b" ",
        b",",
        b"%2e",
        b"\n",
        b"~",
        b"Bearer ",
        b"eyJ",
    ),
    *(encode_part(text).encode() for text in (b"{}", b"[]", b"null", b'{"alg":"none"}', b'{"alg":"HS256"}')),
    encode_part(b'{"iss":"' + ISSUER.encode() + b'","exp":1e999}').encode(),
    encode_part(b"[" * 3000).encode(),
    encode_part(b'{"a":' * 500).encode(),
)


def mutated(chance: random.Random, text: bytes) -> bytes:
    """Return `text` with one to four changes."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        to = min(len(text), at + chance.choice((0, 1, 1, 2, 8, 64)))
        piece = chance.choice(
            (b"", bytes([chance.randrange(256)]), chance.choice(_PIECES), text[: chance.randrange(40)])
        )
        text = text[:at] + piece + text[to:]
    return text


def parts_mutated(chance: random.Random, token: str) -> bytes:
    """Return `token` with JSON of its header or payload changed before it is encoded."""
    parts = [token_parts._decode_base64(part) for part in token.split(".")]
    which = chance.choice((0, 1, 1, 2))
    parts[which] = mutated(chance, parts[which])
    return ".".join(map(encode_part, parts)).encode()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_mutation_of_a_token_passes(seed: int) -> None:
    """60,000 changed tokens in headers, cookies and parameters: each is a denial or, where it is no token, nothing."""
    chance = random.Random(seed)
    extra = "fromHeaders: [{name: authorization, prefix: 'Bearer '}, {name: x-t}]\n    fromCookies: [t]\n    fromParams: [t]"
    compiled = snapshot(str(Authentication(ed_signer().jwks(), extra=extra)) + role("[{}]"))
    rules = TokenRules.of(compiled.policies.tokens[0].rules, SERVICE)
    assert rules is not None
    token = ed_signer().token({"scope": "a b", "nested": {"list": [1, 2.5, None, True]}})
    passed = 0
    for _ in range(INPUTS):
        text = parts_mutated(chance, token) if chance.random() < 0.3 else mutated(chance, token.encode())
        result = jwt.authenticate(rules, attributes(chance, text), lambda: NOW)
        if result.claims is not None:
            # Only spellings of the place can have changed: then it is the token itself that was found.
            passed += 1
            assert token.encode() in text, text
            assert result.claims["sub"] == "a"
        assert result.denial is None or result.denial.http_status == 401
    assert passed < INPUTS // 20


def attributes(chance: random.Random, text: bytes) -> Any:
    """Return a call that brings `text` somewhere."""
    match chance.randrange(4):
        case 0:
            request = check_request(raw_headers=[("authorization", b"Bearer " + text)])
        case 1:
            request = check_request(raw_headers=[("x-t", text)])
        case 2:
            request = check_request(raw_headers=[("cookie", b"a=b; t=" + text + b"; c=d")])
        case _:
            request = check_request(path="/?a=b&t=" + text.decode("latin-1"))
    return Attributes(request.attributes, PathNormalization.BASE, None)
