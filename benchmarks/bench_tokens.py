"""Tokens: what a new one costs, what a known one costs, and what a flood of bad ones does to good traffic."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TypeVar

import jwt as pyjwt
from cryptography.hazmat.primitives.asymmetric import rsa
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from jwt.algorithms import RSAAlgorithm
from jwt.utils import base64url_encode

from authz.attributes import Attributes
from authz.authn import jwt
from authz.authn.jwt import DEFAULT_PLACES, JwtRule, TokenRules
from authz.paths import PathNormalization
from benchmarks.load import LoadResult, load, write_messages
from benchmarks.report import Requirement, Row, Sample, Section
from benchmarks.run import BenchmarkError, Run
from benchmarks.servers import Server, apart, start_server
from benchmarks.workload import BROWSER_HEADERS, CHECK
from garrison.keys.jwks import KeySet, parse_jwks

_ISSUER = "https://login.bench.example"
_SERVICE = "tokens.default.svc.cluster.local"
_CALLS = 2_000
# More than a server remembers, so that each one is new to it when it comes round again.
_BAD_TOKENS = 40_000
_BAD_PER_SECOND = 20_000
_GOOD_TOKENS = 200
_GOOD_PER_SECOND = 2_000

MOST_OVER_PYJWT = 1.3
MOST_HIT_US = 2.0
MOST_P99_RATIO = 2.0


class _Issuer:
    """Signs RS256 tokens."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        self.public = self._key.public_key()

    def jwks(self) -> str:
        return json.dumps(
            {"keys": [{**RSAAlgorithm.to_jwk(self.public, as_dict=True), "kid": "k", "use": "sig"}]}
        )

    def token(self, subject: str) -> str:
        claims = {
            "iss": _ISSUER,
            "sub": subject,
            "aud": "bench",
            "exp": int(time.time()) + 3600,
            "scope": "read write",
        }
        return pyjwt.encode(claims, self._key, "RS256", {"kid": "k"})

    def bad_tokens(self, count: int) -> Iterator[str]:
        """Yield different tokens that are good in everything but their signature."""
        head = self.token("x").partition(".")[0]
        for number in range(count):
            claims = {"iss": _ISSUER, "sub": f"evil-{number}", "aud": "bench", "exp": int(time.time()) + 3600}
            payload = base64url_encode(json.dumps(claims).encode()).decode()
            yield f"{head}.{payload}.{base64url_encode(b'!' + os.urandom(255)).decode()}"


def tokens(run: Run) -> Section:
    """Measure a first sight and a hit in this process, and a flood on a server."""
    issuer = _Issuer()
    first, theirs, hit = [], [], []
    for number in range(run.rounds):
        run.say(f"tokens, round {number + 1} of {run.rounds}")
        ours = [issuer.token(f"user-{number}-{index}") for index in range(_CALLS)]
        rules, calls = _rules(issuer), [_attributes(token) for token in ours]
        theirs.append(_each_us(partial(_with_pyjwt, issuer), ours))
        first.append(_each_us(partial(_authenticate, rules), calls))
        known = [calls[-1]] * 20_000
        known[0].headers("authorization")
        reading = _each_us(_read_header, known)
        hit.append(_each_us(partial(_authenticate, rules), known) - reading)
    alone, beside, flooded = _flood(run, issuer)
    over = Sample.of(first).over(Sample.of(theirs))
    ratio = Sample.of(one.p99_us for one in beside).over(Sample.of(one.p99_us for one in alone))
    return Section(
        "Tokens",
        f"RS256, 2048 bits. First sight: {_CALLS:,} different tokens, each found in its header and "
        "verified with all checks, against `jwt.decode` with issuer and audience. A hit: the same token "
        "again; reading its header, as each header costs that a policy looks at, is taken off. Flood: a "
        f"server with one rule; {_GOOD_PER_SECOND:,} calls a second with {_GOOD_TOKENS} good tokens, alone "
        f"and beside {_BAD_PER_SECOND:,} calls a second over other connections of the same address with "
        f"{_BAD_TOKENS:,} different tokens, all good but for their signature. The server has a "
        "core of its own.",
        (
            Row("first sight of a token", Sample.of(first), "us"),
            Row("PyJWT's decode", Sample.of(theirs), "us"),
            Row("first sight over PyJWT's decode", over, "times"),
            Row("a known token", Sample.of(hit), "us"),
            Row("bad tokens answered", Sample.of(flooded), "a second"),
            Row("good calls alone: p50", Sample.of(one.p50_us for one in alone), "us"),
            Row("good calls beside the flood: p50", Sample.of(one.p50_us for one in beside), "us"),
            Row("good calls alone: p99", Sample.of(one.p99_us for one in alone), "us"),
            Row("good calls beside the flood: p99", Sample.of(one.p99_us for one in beside), "us"),
            Row("p99 beside the flood over alone", ratio, "times"),
        ),
        (
            Requirement("first sight over PyJWT's decode", over, MOST_OVER_PYJWT, at_least=False),
            Requirement("a known token, us", Sample.of(hit), MOST_HIT_US, at_least=False),
            Requirement("p99 beside a flood of bad tokens over alone", ratio, MOST_P99_RATIO, at_least=False),
        ),
    )


Argument = TypeVar("Argument")


def _each_us(call: Callable[[Argument], object], arguments: Sequence[Argument]) -> float:
    """Return what `call` takes on average, in microseconds."""
    begin = perf_counter_ns()
    for argument in arguments:
        call(argument)
    return (perf_counter_ns() - begin) / len(arguments) / 1000


def _read_header(attributes: Attributes) -> None:
    attributes.headers("authorization")


def _with_pyjwt(issuer: _Issuer, token: str) -> None:
    pyjwt.decode(token, issuer.public, algorithms=["RS256"], audience="bench", issuer=_ISSUER)


def _authenticate(rules: TokenRules, attributes: Attributes) -> None:
    result = jwt.authenticate(rules, attributes, time.time)
    if result.claims is None:
        raise BenchmarkError("a good token was not accepted")


def _rules(issuer: _Issuer) -> TokenRules:
    keys = KeySet(parse_jwks(issuer.jwks()))
    rule = JwtRule(
        "RequestAuthentication default/bench",
        _ISSUER,
        frozenset({"bench"}),
        keys,
        DEFAULT_PLACES,
        forward=False,
    )
    rules = TokenRules.of([rule], _SERVICE)
    assert rules is not None  # noqa: S101 - there is one
    return rules


def _request(token: str) -> Any:
    request = CheckRequest()
    context = request.attributes
    context.source.address.socket_address.address = "10.24.3.17"
    context.context_extensions["destination.service"] = _SERVICE
    http = context.request.http
    http.method, http.path, http.host = "GET", "/tokens", "tokens"
    for name, value in (*BROWSER_HEADERS, ("authorization", f"Bearer {token}")):
        line = http.header_map.headers.add()
        line.key, line.raw_value = name, value.encode()
    return request


def _attributes(token: str) -> Attributes:
    request = _request(token)
    return Attributes(request.attributes, PathNormalization.BASE, None, request.SerializeToString())


def _flood(run: Run, issuer: _Issuer) -> tuple[list[LoadResult], list[LoadResult], list[float]]:
    """Return good traffic alone and beside a flood, round by round, and how many bad tokens were answered."""
    server = start_server(
        run.children,
        run.folder,
        "tokens",
        {
            "policies": [str(_write_policies(run.folder, issuer))],
            "request": {"listen": ["tcp://127.0.0.1:0"]},
        },
    )
    good = [_request(issuer.token(f"user-{number}")).SerializeToString() for number in range(_GOOD_TOKENS)]
    bad = run.folder / "bad-tokens"
    write_messages(bad, (_request(token).SerializeToString() for token in issuer.bad_tokens(_BAD_TOKENS)))
    with apart(server):
        _good(server, good, 0.5)
        seconds = 2 * run.seconds
        alone, beside, flooded = [], [], []
        for number in range(run.rounds):
            run.say(f"flood, round {number + 1} of {run.rounds}")
            alone.append(_good(server, good, seconds))
            before = server.decisions()
            command = [
                sys.executable,
                "-m",
                "benchmarks.flood",
                str(server.request),
                CHECK,
                str(bad),
            ]
            options = ["--rate", str(_BAD_PER_SECOND), "--seconds", str(seconds + 2)]
            flood = run.children.start("the flood", [*command, *options], run.folder / "flood.log")
            flood.wait_until(partial(_has_answered, server, before), "beginning", 30)
            begin, at = time.perf_counter(), server.decisions()
            beside.append(_good(server, good, seconds))
            answered = server.decisions() - at - beside[-1].calls
            flooded.append(answered / (time.perf_counter() - begin))
            run.children.stop(flood)
    run.children.stop(server.child)
    if min(flooded) < 0.9 * _BAD_PER_SECOND:
        raise BenchmarkError(
            f"the flood came to {min(flooded):,.0f} bad tokens a second, not {_BAD_PER_SECOND:,}"
        )
    return alone, beside, flooded


def _has_answered(server: Server, before: int) -> bool:
    return server.decisions() > before


def _good(server: Server, messages: list[bytes], seconds: float) -> LoadResult:
    """Return what good calls at a steady rate saw.

    Raises:
        BenchmarkError: one of them failed or was denied.

    """
    denied = 0

    def count(answer: bytes) -> None:
        nonlocal denied
        denied += CheckResponse.FromString(answer).status.code != 0

    result = asyncio.run(
        load(
            server.request,
            CHECK,
            messages,
            seconds=seconds,
            connections=2,
            rate=_GOOD_PER_SECOND,
            on_answer=count,
        )
    )
    if result.errors or denied or not result.calls:
        raise BenchmarkError(f"of {result.calls} good calls {denied} were denied and {result.errors} failed")
    return result


def _write_policies(folder: Path, issuer: _Issuer) -> Path:
    file = folder / "tokens-policies.yaml"
    metadata = {"name": "bench", "namespace": "default"}
    rule = {"issuer": _ISSUER, "audiences": ["bench"], "jwks": issuer.jwks()}
    source = {"requestPrincipals": [f"{_ISSUER}/*"]}
    documents = (
        {"kind": "RequestAuthentication", "spec": {"jwtRules": [rule]}},
        {"kind": "AuthorizationPolicy", "spec": {"rules": [{"from": [{"source": source}]}]}},
    )
    text = "\n---\n".join(
        json.dumps({"apiVersion": "security.istio.io/v1", "metadata": metadata, **one}) for one in documents
    )
    file.write_text(text, encoding="utf-8")
    return file
