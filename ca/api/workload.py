"""The SPIFFE Workload API: X509-SVIDs, JWT-SVIDs and bundles for workloads on this machine.

Numbers of sections are those of "SPIFFE Workload API" and "SPIFFE Workload Endpoint". Streams carry the full
state, at once and after every change (section 4.1); what is not in a message any more is withdrawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
import structlog
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.api.identities import MAX_SLEEP, Caller, EntitlementError, Identities, admit, admit_again, describe
from ca.bundle import SpiffeBundle, format_der, format_jwk_set
from ca.inspection import check_key_pair
from ca.jwt_svid import check_audience, validate_jwt_svid
from ca.protos.workload_pb2 import (
    JWTSVID,
    X509SVID,
    JWTBundlesRequest,
    JWTBundlesResponse,
    JWTSVIDRequest,
    JWTSVIDResponse,
    ValidateJWTSVIDRequest,
    ValidateJWTSVIDResponse,
    X509BundlesRequest,
    X509BundlesResponse,
    X509SVIDRequest,
    X509SVIDResponse,
)
from ca.refusals import RefusalLog
from ca.registration import Registration
from ca.renewal import MIN_INTERVAL
from ca.svid_cache import HeldSvid
from garrison.errors import DependencyError, IssuanceError, RequestError
from garrison.identity import TrustDomain
from garrison.transport import StatusCode, StatusError

# It has no package.
SERVICE = "SpiffeWorkloadAPI"

# Endpoint, section 4.1: a page in a browser cannot set it, so its requests do not get here by accident.
_HEADER = ("workload.spiffe.io", "true")
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

_Context = grpc.aio.ServicerContext[Any, Any]
# A caller -> what its stream should have said last, and when to look for something newer.
_Build = Callable[[Caller], Awaitable[tuple[Any, datetime | None]]]
_log = structlog.get_logger()


@dataclass(slots=True)
class WorkloadCounters:
    """What happened since the start; `streams` are those open now."""

    streams: int = 0
    responses: int = 0
    denials: int = 0
    refused: int = 0
    issue_failures: int = 0


class WorkloadApi:
    """Serves `identities` to the callers that they are for.

    `refusals` takes who was denied, and only logs it by default. Clock and sleep can be replaced.
    """

    def __init__(
        self,
        identities: Identities,
        *,
        refusals: RefusalLog | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._identities = identities
        self._refusals = refusals or RefusalLog(None)
        self._now = now
        self._sleep = sleep
        self._closed = asyncio.Event()
        self.counters = WorkloadCounters()

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return the handlers for `grpc.aio.Server.add_generic_rpc_handlers`."""

        def unary(method: str, answer: Any, request: Any) -> Any:
            async def run(message: Any, context: _Context) -> Any:
                return await self._answer(method, context, self._once(answer, message, context))

            return grpc.unary_unary_rpc_method_handler(
                run, request.FromString, lambda response: response.SerializeToString()
            )

        def stream(method: str, build: _Build, request: Any) -> Any:
            async def run(_: Any, context: _Context) -> None:
                await self._answer(method, context, self._stream(build, context))

            return grpc.unary_stream_rpc_method_handler(
                run, request.FromString, lambda response: response.SerializeToString()
            )

        streams = {
            "FetchX509SVID": (self._x509_svids, X509SVIDRequest),
            "FetchX509Bundles": (self._x509_bundles, X509BundlesRequest),
            "FetchJWTBundles": (self._jwt_bundles, JWTBundlesRequest),
        }
        unaries = {
            "FetchJWTSVID": (self._jwt_svids, JWTSVIDRequest),
            "ValidateJWTSVID": (self._validate, ValidateJWTSVIDRequest),
        }
        methods = {name: stream(name, *one) for name, one in streams.items()}
        methods |= {name: unary(name, *one) for name, one in unaries.items()}
        return (grpc.method_handlers_generic_handler(SERVICE, methods),)

    def close(self) -> None:
        """End every stream, so that workloads go to the server that takes over."""
        self._closed.set()

    async def _answer(self, method: str, context: _Context, work: Awaitable[Any]) -> Any:
        """Await `work`; what it raises becomes a status (endpoint, section 6; API, sections 5 and 6)."""
        try:
            return await work
        except EntitlementError as error:
            self._note_denial(method, context.peer(), error)
            code, text = error.code, error.message
        except StatusError as error:
            code, text = error.code, error.message
        except RequestError as error:
            self.counters.refused += 1
            code, text = StatusCode.INVALID_ARGUMENT, str(error)
        except (IssuanceError, DependencyError) as error:
            self.counters.issue_failures += 1
            _log.error("workload issuance failed", peer=context.peer(), reason=str(error))
            code, text = StatusCode.UNAVAILABLE, f"it cannot be had now: {error}"
        except Exception:  # noqa: BLE001 - a bug here must not show the caller our insides
            _log.exception("workload call failed", peer=context.peer())
            code, text = StatusCode.INTERNAL, "internal error"
        return await context.abort(_GRPC_CODES[int(code)], text)

    async def _once(self, answer: Any, message: Any, context: _Context) -> Any:
        response = await answer(self._admit(context), message)
        self.counters.responses += 1
        return response

    async def _stream(self, build: _Build, context: _Context) -> None:
        """Write what `build` returns, now and when it is something else, until the caller goes."""
        caller = self._admit(context)
        told: Any = None
        self.counters.streams += 1
        closing = asyncio.ensure_future(self._closed.wait())
        try:
            while True:
                # Taken before looking, so that a change in between is not missed.
                change = asyncio.ensure_future(self._identities.changes.next())
                try:
                    try:
                        message, due = await build(caller)
                    except (IssuanceError, DependencyError) as error:
                        if told is None:
                            raise
                        self.counters.issue_failures += 1
                        _log.error("workload renewal failed", peer=context.peer(), reason=str(error))
                        message, due = told, self._now() + MIN_INTERVAL
                    if message != told:
                        self.counters.responses += 1
                        await context.write(message)
                        told = message
                    await self._wait(change, closing, due)
                finally:
                    change.cancel()
                if self._closed.is_set():
                    raise _closing()
                caller = admit_again(self._identities, caller.credentials)
        finally:
            self.counters.streams -= 1
            closing.cancel()

    async def _wait(self, change: Awaitable[Any], closing: Awaitable[Any], due: datetime | None) -> None:
        left = MAX_SLEEP if due is None else min(MAX_SLEEP, due - self._now())
        timer = asyncio.ensure_future(self._sleep(max(0.0, left.total_seconds())))
        waited = [asyncio.ensure_future(one) for one in (change, closing)]
        try:
            await asyncio.wait({*waited, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()

    def _admit(self, context: _Context) -> Caller:
        metadata = context.invocation_metadata() or ()
        if [value for name, value in metadata if name == _HEADER[0]] != [_HEADER[1]]:
            raise RequestError(f"the metadata needs `{_HEADER[0]}: {_HEADER[1]}`")
        if self._closed.is_set():
            raise _closing()
        return admit(self._identities, context.peer())

    async def _x509_svids(self, caller: Caller) -> tuple[Any, datetime]:
        """Section 5.2.1."""
        bundles = dict(self._identities.bundles(caller))
        own = format_der(bundles.pop(self._identities.trust_domain).x509_authorities)
        response = X509SVIDResponse(crl=self._identities.crls(), federated_bundles=_x509(bundles))
        held = [await self._identities.svid(caller, registration) for registration in caller.registrations]
        for one, hint in zip(held, _hints(caller.registrations), strict=True):
            response.svids.append(_x509_svid(one, own, hint))
        return response, min(one.renew_at for one in held)

    async def _x509_bundles(self, caller: Caller) -> tuple[Any, None]:
        """Section 5.2.2."""
        bundles = _x509(self._identities.bundles(caller))
        return X509BundlesResponse(crl=self._identities.crls(), bundles=bundles), None

    async def _jwt_svids(self, caller: Caller, request: Any) -> Any:
        """Section 6.2.1."""
        check_audience(request.audience)
        registrations = caller.registrations
        if request.spiffe_id:
            registrations = tuple(one for one in registrations if str(one.spiffe_id) == request.spiffe_id)
            if not registrations:
                message = f"this caller ({describe(caller.credentials)}) may not have `{request.spiffe_id}`"
                raise EntitlementError(message, caller.credentials, name=request.spiffe_id)
        response = JWTSVIDResponse()
        for one, hint in zip(registrations, _hints(registrations), strict=True):
            token = await self._identities.sign_jwt(caller, one, request.audience)
            response.svids.append(JWTSVID(spiffe_id=str(one.spiffe_id), svid=token, hint=hint))
        return response

    async def _jwt_bundles(self, caller: Caller) -> tuple[Any, None]:
        """Section 6.2.2."""
        bundles = self._identities.bundles(caller)
        found = {
            str(name.spiffe_id): format_jwk_set(one.jwt_authorities).encode() for name, one in bundles.items()
        }
        return JWTBundlesResponse(bundles=found), None

    async def _validate(self, caller: Caller, request: Any) -> Any:
        """Section 6.2.3."""
        bundles = self._identities.bundles(caller)
        found = validate_jwt_svid(request.svid, request.audience, bundles, now=self._now())
        response = ValidateJWTSVIDResponse(spiffe_id=str(found.spiffe_id))
        try:
            response.claims.update(found.claims)
        except (ValueError, OverflowError, RecursionError) as error:
            raise RequestError("the token has claims that cannot be told") from error
        return response

    def _note_denial(self, method: str, peer: str, error: EntitlementError) -> None:
        self.counters.denials += 1
        self._refusals.add_local(
            error.refused,
            now=self._now(),
            by=error.who(peer),
            method=method,
            event="workload denied",
            about=error.described(peer),
        )


def _closing() -> StatusError:
    return StatusError(StatusCode.UNAVAILABLE, "the server is shutting down")


def _x509_svid(held: HeldSvid, bundle: bytes, hint: str) -> Any:
    check_key_pair(held.svid.leaf, held.key)
    return X509SVID(
        spiffe_id=str(held.svid.spiffe_id),
        x509_svid=format_der(held.svid.certificates),
        x509_svid_key=held.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        bundle=bundle,
        hint=hint,
    )


def _x509(bundles: Mapping[TrustDomain, SpiffeBundle]) -> dict[str, bytes]:
    return {str(name.spiffe_id): format_der(bundle.x509_authorities) for name, bundle in bundles.items()}


def _hints(registrations: Sequence[Registration]) -> list[str]:
    """Return the hint of each; one that was used before in the same response is left out (section 5.2.1)."""
    found: list[str] = []
    for registration in registrations:
        found.append("" if registration.hint in found else registration.hint)
    return found
