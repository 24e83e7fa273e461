"""Attacks on credentials, each with the answer it gets, and that the next call is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from structlog.testing import capture_logs
from support.checks import CALL, NOW, check_request, principal, snapshot
from support.credentials import IDENTIFIED, MESH, OPEN, Fixed, authentication, good
from support.policies import policy
from support.tokens import Authentication, ed_signer, forge

from authz.authenticators.base import Breaker, Caching, CachingAuthenticator
from authz.authn.credentials import Answer, Authenticator
from authz.environment import Environment
from authz.providers import ProviderAnswer
from authz.service import Authorization, DecisionLog, DestinationResolver
from garrison.answers import UnusableAnswerError
from garrison.errors import DependencyError

BEARER = authentication("[{authenticator: opaque}]")
KEYS = authentication("[{authenticator: keys}]")


class Asked:
    """A dependency that answers what it is told, and notes what it was asked."""

    def __init__(self, say: Callable[[str], Answer]) -> None:
        self.say = say
        self.asked: list[str] = []

    async def __call__(self, credential: str) -> Answer:
        """Answer."""
        self.asked.append(credential)
        await asyncio.sleep(0)
        return self.say(credential)


def service(text: str, authenticators: Mapping[str, Authenticator], **more: Any) -> Authorization:
    """Return the service with policies and authenticators; every decision is logged."""
    environment = Environment(authenticators=authenticators)
    authorization = Authorization(
        DestinationResolver(), lambda: NOW, DecisionLog.ALL, environment=environment, **more
    )
    authorization.use(snapshot(text, MESH))
    return authorization


async def answer(authorization: Authorization, **request: Any) -> Any:
    """Return the CheckResponse for a call."""
    written = authorization.check(check_request(**request).SerializeToString(), CALL)
    return CheckResponse.FromString(await written if isinstance(written, Awaitable) else written)


async def status(authorization: Authorization, **request: Any) -> int:
    """Return the HTTP status for a call."""
    response = await answer(authorization, **request)
    return 200 if response.status.code == 0 else int(response.denied_response.status.code)


def bearer(token: str) -> dict[str, str]:
    """Return the headers with a token."""
    return {"authorization": f"Bearer {token}"}


def caching(asked: Asked, **more: Any) -> CachingAuthenticator:
    """Return the authenticator that asks it."""
    return CachingAuthenticator("opaque", asked, Caching(), clock=lambda: NOW, **more)


def test_nothing_secret_is_logged_or_answered() -> None:
    """Not of a good credential, a bad one, one that nobody knows, nor of a dependency's failure."""

    async def scenario() -> None:
        def say(credential: str) -> Answer:
            if "down" in credential:
                raise DependencyError("no answer")
            if "bug" in credential:
                raise RuntimeError("no answer")
            return good("olga") if "good" in credential else Answer.refused("no")

        authorization = service(BEARER + IDENTIFIED, {"opaque": caching(Asked(say))})
        with capture_logs() as lines:
            answers = [
                await answer(authorization, headers=bearer(f"s3cret-{kind}"))
                for kind in ("good", "bad", "down", "bug", "a,b", "")
            ]
        assert [one.denied_response.status.code for one in answers] == [0, 401, 503, 503, 401, 401]
        assert "s3cret" not in "".join(map(str, answers))
        assert "s3cret" not in "".join(str({**line, "exc_info": ""}) for line in lines)

    asyncio.run(scenario())


def test_poisoned_cache_by_failures() -> None:
    """What failed while the dependency was away says nothing about the next time, in either direction."""

    async def scenario() -> None:
        away = True

        def say(credential: str) -> Answer:
            if away:
                raise DependencyError("away")
            return good("olga") if credential == "good" else Answer.refused("no")

        asked = Asked(say)
        authorization = service(BEARER + OPEN, {"opaque": caching(asked)})
        assert await status(authorization, headers=bearer("good")) == 503
        assert await status(authorization, headers=bearer("bad")) == 503
        away = False
        assert await status(authorization, headers=bearer("good")) == 200
        assert await status(authorization, headers=bearer("bad")) == 401
        assert asked.asked == ["good", "bad", "good", "bad"]
        # Now both are known, whatever the dependency does.
        away = True
        assert await status(authorization, headers=bearer("good")) == 200
        assert await status(authorization, headers=bearer("bad")) == 401

    asyncio.run(scenario())


def test_a_remembered_token_of_one_place_is_no_other_places() -> None:
    """The same text as an API key and as a token are two credentials."""

    async def scenario() -> None:
        opaque = caching(Asked(lambda _: good("olga")))
        keys = CachingAuthenticator(
            "keys", Asked(lambda _: Answer.refused("no")), Caching(), clock=lambda: NOW
        )
        text = authentication("[{authenticator: opaque}, {authenticator: keys}]") + IDENTIFIED
        authorization = service(text, {"opaque": opaque, "keys": keys})
        assert await status(authorization, headers=bearer("x")) == 200
        assert await status(authorization, headers={"x-api-key": "x"}) == 401

    asyncio.run(scenario())


def test_a_flood_of_odd_tokens_keeps_nobody_else_out() -> None:
    """Tokens that a server has no usable answer for do not open the breaker for all."""

    async def scenario() -> None:
        def say(credential: str) -> Answer:
            if credential.startswith("odd"):
                raise UnusableAnswerError("the server answers 413")
            return good("olga")

        authenticator = caching(Asked(say), breaker=Breaker(3))
        authorization = service(BEARER + IDENTIFIED, {"opaque": authenticator})
        for number in range(20):
            assert await status(authorization, headers=bearer(f"odd{number}")) == 503
        assert await status(authorization, headers=bearer("good")) == 200

    asyncio.run(scenario())


def test_a_thousand_calls_with_one_unknown_token_are_one_question() -> None:
    """A replayed token is no way to have Garrison attack the authorization server."""

    async def scenario() -> None:
        asked = Asked(lambda _: Answer.refused("no"))
        authorization = service(BEARER + OPEN, {"opaque": caching(asked)})
        answers = await asyncio.gather(*(status(authorization, headers=bearer("t")) for _ in range(1000)))
        assert set(answers) == {401}
        assert asked.asked == ["t"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "headers",
    [
        [("X-API-KEY", b"good"), ("x-api-key", b"bad")],
        [("x-api-key", b"bad"), ("X-Api-Key", b"good")],
        [("x-api-key", b"good,bad")],
        [("x-api-key", b"good\x00")],
        [("x-api-key", b"good\xff")],
        [("x-api-key", b" ")],
    ],
)
def test_a_second_key_does_not_hide_behind_its_spelling(headers: list[tuple[str, bytes]]) -> None:
    """Lines of one name are one header, whatever its case; what is no key is not cut down to one."""

    async def scenario() -> None:
        keys = {"keys": Fixed({"good": good("alice"), "bad": Answer.refused("no")})}
        authorization = service(KEYS + OPEN, keys)
        assert await status(authorization, raw_headers=headers) == 401
        assert await status(authorization, raw_headers=[("x-api-key", b"good")]) == 200

    asyncio.run(scenario())


def test_an_unsigned_jwt_is_not_taken_for_an_opaque_token() -> None:
    """Where tokens are verified, a forged one is refused there and never asked about elsewhere."""

    async def scenario() -> None:
        asked = Asked(lambda _: good("admin"))
        text = str(Authentication(ed_signer().jwks())) + BEARER + OPEN
        authorization = service(text, {"opaque": caching(asked)})
        forged = forge(
            {"alg": "EdDSA", "kid": "k1"}, {"iss": "https://issuer.example", "sub": "admin", "exp": NOW + 60}
        )
        assert await status(authorization, headers=bearer(forged)) == 401
        assert asked.asked == []

    asyncio.run(scenario())


def test_an_authorizer_that_allows_does_not_replace_a_credential() -> None:
    """After CUSTOM the credential is looked at as before, also if somebody has to be asked."""

    async def scenario() -> None:
        class Consenting:
            async def ask(self, message: bytes) -> ProviderAnswer:
                return ProviderAnswer(None)

        custom = policy("[{}]", "CUSTOM", name="c", spec="provider: {name: other}")
        asked = Asked(lambda token: good("olga") if token == "good" else Answer.refused("no"))
        authorization = service(
            BEARER + IDENTIFIED + custom, {"opaque": caching(asked)}, providers={"other": Consenting()}
        )
        assert await status(authorization, headers=bearer("good")) == 200
        assert await status(authorization, headers=bearer("bad")) == 401
        assert await status(authorization) == 403
        response = await answer(authorization, headers=bearer("good"))
        assert list(response.ok_response.headers_to_remove) == ["authorization"]

    asyncio.run(scenario())


def test_an_authenticator_with_a_bug_is_no_consent() -> None:
    """What raises although it must not is answered, and so is the next call."""

    class Broken:
        def known(self, credential: str, now: float) -> Answer | None:
            if credential == "now":
                raise RuntimeError("a bug")
            return None

        async def ask(self, credential: str) -> Answer:
            raise RuntimeError("a bug")

    async def scenario() -> None:
        authorization = service(KEYS + OPEN, {"keys": Broken()})
        assert await status(authorization, headers={"x-api-key": "now"}) == 500
        assert await status(authorization, headers={"x-api-key": "later"}) == 500
        assert await status(authorization) == 200

    asyncio.run(scenario())


def test_policies_that_change_meanwhile_do_not_mix() -> None:
    """A call is decided on the policies that it began with, also if its credential takes its time."""

    async def scenario() -> None:
        go = asyncio.Event()

        class Slow:
            def known(self, credential: str, now: float) -> Answer | None:
                return None

            async def ask(self, credential: str) -> Answer:
                await go.wait()
                return good("olga")

        authorization = service(BEARER + IDENTIFIED, {"opaque": Slow()})
        waiting = asyncio.create_task(status(authorization, headers=bearer("t")))
        await asyncio.sleep(0)
        authorization.use(snapshot(BEARER + policy("[{}]", "DENY"), MESH))
        go.set()
        assert await waiting == 200
        assert await status(authorization, headers=bearer("t")) == 403

    asyncio.run(scenario())


def test_answers_of_callers_do_not_mix() -> None:
    """Many callers at once, each asked about: everybody gets the answer to their own credential."""

    async def scenario() -> None:
        def say(token: str) -> Answer:
            return good(token) if token.endswith("0") else Answer.refused("no")

        shape = """
apiVersion: garrison.dev/v1alpha1
kind: ResponsePolicy
metadata: {name: caller}
spec: {allowed: {requestHeaders: [{name: x-caller, value: "${request.auth.claims[sub]}"}]}}
"""
        authorization = service(BEARER + IDENTIFIED + shape, {"opaque": caching(Asked(say))})
        tokens = [f"t{number}" for number in range(200)]
        for _ in range(2):
            answers = await asyncio.gather(
                *(answer(authorization, headers=bearer(token)) for token in tokens)
            )
            for token, response in zip(tokens, answers, strict=True):
                set_ = {one.header.key: one.header.value for one in response.ok_response.headers}
                assert set_.get("x-caller") == (token if token.endswith("0") else None)

    asyncio.run(scenario())


def test_a_certificate_with_a_comma_in_its_uri_is_refused() -> None:
    """Envoy does not quote URIs: one SAN with a comma reads as a second element, which is no SPIFFE ID's."""

    async def scenario() -> None:
        text = authentication("[{forwardedClientCertificate: {trustedPeers: ['*']}}]") + OPEN
        authorization = service(text, {})
        for san in ("spiffe://lab/a,spiffe://lab/admin", "spiffe://lab/../admin", "spiffe://LAB/admin"):
            call = {"x-forwarded-client-cert": f"By=spiffe://lab/gw;Hash=1;URI={san}"}
            assert await status(authorization, source=principal("gateway"), headers=call) == 401

    asyncio.run(scenario())


def test_a_huge_credential_costs_nobody_anything() -> None:
    """It is refused before anybody hashes it or is asked."""

    async def scenario() -> None:
        asked = Asked(lambda _: good("olga"))
        authorization = service(BEARER + OPEN, {"opaque": caching(asked)})
        assert await status(authorization, headers=bearer("x" * 1_000_000)) == 401
        assert asked.asked == []

    asyncio.run(scenario())


def test_the_kinds_of_metadata_say_which_authenticator() -> None:
    """Operators see who refused and why; the caller does not."""

    async def scenario() -> None:
        keys = {"keys": Fixed({"bad": Answer.refused("no client has this key")})}
        response = await answer(service(KEYS + OPEN, keys), headers={"x-api-key": "bad"})
        metadata = dict(response.dynamic_metadata)
        assert (metadata["code"], metadata["reason"]) == (
            "invalid_credential",
            "authenticator keys: no client has this key",
        )
        assert response.denied_response.body == "the credential is not accepted"
        assert b"no client" not in response.denied_response.SerializeToString()

    asyncio.run(scenario())
