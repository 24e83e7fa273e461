"""The same `Check` load, sent to any ext_authz gRPC server that the user names."""

from __future__ import annotations

import asyncio
from collections import Counter

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from google.protobuf.message import DecodeError

from benchmarks.load import load
from benchmarks.report import Row, Sample, Section
from benchmarks.run import BenchmarkError
from benchmarks.workload import CHECK, MIX, check_requests
from garrison.demo.tokens import Tokens
from garrison.transport.address import Address


def answer_of(message: bytes) -> str:
    """Return what Envoy would make of a serialised CheckResponse: `allow`, `deny` or `error`."""
    try:
        response = CheckResponse.FromString(message)
    except DecodeError:
        return "error"
    # Envoy 1.40 looks at the status alone: an absent one is code 0.
    if response.status.code == 0:
        return "allow"
    return "error" if response.WhichOneof("http_response") == "error_response" else "deny"


def target(address: Address, seconds: float) -> Section:
    """Load `address` for `seconds`.

    Raises:
        BenchmarkError: no call was answered.
        OSError: the server cannot be reached.

    """
    messages = check_requests(MIX, Tokens())
    answers: Counter[str] = Counter(allow=0, deny=0, error=0)
    result = asyncio.run(
        load(
            address,
            CHECK,
            messages,
            seconds=seconds,
            on_answer=lambda message: answers.update((answer_of(message),)),
        )
    )
    if not result.calls:
        raise BenchmarkError(f"{address} answered no call; {result.errors} failed")
    answers["error"] += result.errors
    return Section(
        f"Check at {address}",
        f"{len(messages)} distinct requests in turn; 4 connections with 32 calls in flight each. What is "
        "allowed is up to the policies there; the tokens are signed by a key of this run, so nobody "
        "trusts them. A failed RPC counts as an error.",
        (
            Row("calls", Sample.of([result.calls_per_second]), "per second"),
            Row("latency, p50", Sample.of([result.p50_us]), "us"),
            Row("latency, p90", Sample.of([result.p90_us]), "us"),
            Row("latency, p99", Sample.of([result.p99_us]), "us"),
            Row("latency, highest", Sample.of([result.max_us]), "us"),
            *(Row(f"answers: {name}", Sample.of([count]), "") for name, count in answers.items()),
        ),
    )
