"""CUSTOM's external authorizers over real gRPC: consent, refusal, silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from authz.providers import GrpcProvider, ProviderAnswer

METHOD = "Check"
SERVICE = "envoy.service.auth.v3.Authorization"


@asynccontextmanager
async def authorizer(handler: Callable[[bytes], Awaitable[bytes]]) -> AsyncIterator[str]:
    """Run an ext_authz server that answers with `handler`."""

    async def answer(message: bytes, _context: Any) -> bytes:
        return await handler(message)

    server = grpc.aio.server()
    methods: Any = {METHOD: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def ask(answer: bytes | Exception | float, path: str = "/", **options: Any) -> ProviderAnswer:
    """Return what a provider says whose server answers so: bytes, a failure, or nothing for some seconds."""

    async def handler(message: bytes) -> bytes:
        CheckRequest.FromString(message)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return b""
        return answer

    async def scenario() -> ProviderAnswer:
        async with authorizer(handler) as target:
            provider = GrpcProvider("ext", target, **{"timeout_seconds": 10, **options})
            try:
                request = CheckRequest()
                request.attributes.request.http.path = path
                return await provider.ask(request.SerializeToString())
            finally:
                await provider.close()

    return asyncio.run(scenario())


def response(code: int, status: int = 0) -> bytes:
    """Return a CheckResponse with a status."""
    message = CheckResponse()
    message.status.code = code
    message.status.SetInParent()
    if status:
        message.denied_response.status.code = status
    serialized: bytes = message.SerializeToString()
    return serialized


def test_consent_is_explicit() -> None:
    """Status OK allows; an answer without a status does not, though Envoy would take it for an OK."""
    assert ask(response(0)).denial is None
    assert ask(b"").denial == "did not answer: an answer without a status"


@pytest.mark.parametrize(("status", "expected"), [(0, 403), (302, 302), (429, 429), (200, 403), (999, 403)])
def test_a_refusal_keeps_a_status_that_refuses(status: int, expected: int) -> None:
    """The provider's HTTP status is used when it is one of a refusal."""
    refused = ask(response(7, status))
    assert (refused.denial, refused.http_status) == ("denies it", expected)


@pytest.mark.parametrize("answer", [RuntimeError("x"), b"\xff\xff", b"", 60.0])
def test_silence_denies_unless_the_operator_says_otherwise(answer: bytes | Exception | float) -> None:
    """Failure, garbage, emptiness and a timeout deny with the configured status; `fail_open` is explicit."""
    failed = ask(answer, timeout_seconds=0.2 if isinstance(answer, float) else 10, status_on_error=503)
    assert (failed.denial is not None, failed.http_status) == (True, 503)
    assert (
        ask(answer, timeout_seconds=0.2 if isinstance(answer, float) else 10, fail_open=True).denial is None
    )


def test_nobody_there_denies() -> None:
    """A provider that cannot be reached denies."""

    async def scenario() -> ProviderAnswer:
        provider = GrpcProvider("ext", "127.0.0.1:1", timeout_seconds=5)
        try:
            return await provider.ask(b"")
        finally:
            await provider.close()

    assert asyncio.run(scenario()).denial == "did not answer: UNAVAILABLE"


def test_a_provider_cannot_make_it_another_call() -> None:
    """What was decided on is what goes on: of method, host and path a provider may change the query only."""
    sent = CheckResponse()
    sent.status.SetInParent()
    named = (("x-a", "1"), (":path", "/a?c"), (":path", "/admin"), (":method", "PUT"), ("Host", "b"))
    for name, value in (*named, (":Authority", "b"), ("host-name", "b"), ("x-b", "c\r\nd: e")):
        option = sent.ok_response.headers.add()
        option.header.key, option.header.value = name, value
    answer = ask(sent.SerializeToString(), path="/a?b")
    assert answer.denial is None
    assert [(one.header.key, one.header.value) for one in answer.response.ok_response.headers] == [
        ("x-a", "1"),
        (":path", "/a?c"),
        ("host-name", "b"),
        ("x-b", "cd: e"),
    ]


def test_a_provider_cannot_split_a_response() -> None:
    """Line ends in the headers of a denial are removed, for Envoy may emit them."""
    sent = CheckResponse.FromString(response(7, 403))
    option = sent.denied_response.headers.add()
    option.header.key, option.header.value = "x-a", "b\r\nset-cookie: c\0"
    headers = ask(sent.SerializeToString()).response.denied_response.headers
    assert [one.header.value for one in headers] == ["bset-cookie: c"]
