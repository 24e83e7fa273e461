"""`grpc.health.v1`: whether this process takes calls, for each service it offers.

`Check` is a unary method and runs on both transports; `Watch` streams and runs under grpcio only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from garrison.transport import Call, Method, Methods, StatusCode, StatusError

SERVICE = "grpc.health.v1.Health"
_CHECK = f"/{SERVICE}/Check"
_WATCH = f"/{SERVICE}/Watch"

_SERVING: bytes = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVING
).SerializeToString()
_NOT_SERVING: bytes = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.NOT_SERVING
).SerializeToString()
_SERVICE_UNKNOWN: bytes = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
).SerializeToString()


class Health:
    """The serving state of some services; the empty name stands for the process. Starts as NOT_SERVING."""

    def __init__(self, services: Iterable[str]) -> None:
        self._serving = dict.fromkeys(("", SERVICE, *services), False)
        self._closed = False
        self._watchers: set[asyncio.Event] = set()

    @property
    def methods(self) -> Methods:
        """The unary method, for either transport."""
        return {_CHECK: Method(self._check)}

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """The streaming method, for grpcio."""
        return _Watch(self)

    def set_serving(self, *, serving: bool, service: str | None = None) -> None:
        """Set the state of one service, or of all of them at once."""
        for name in self._serving if service is None else (service,):
            self._serving[name] = serving
        self._wake()

    def close(self) -> None:
        """Turn everything to NOT_SERVING and end the streams of those who watch: a drain waits for them."""
        self._closed = True
        self.set_serving(serving=False)

    def _wake(self) -> None:
        for changed in self._watchers:
            changed.set()

    def _check(self, message: bytes, _call: Call) -> bytes:
        serving = self._serving.get(_service_name(message))
        if serving is None:
            raise StatusError(StatusCode.NOT_FOUND, "unknown service")
        return _SERVING if serving else _NOT_SERVING

    async def watch(self, message: bytes) -> AsyncIterator[bytes]:
        """Yield the state of a service now and after every change, until `close`.

        Raises:
            StatusError: `message` is no request.

        """
        service = _service_name(message)
        changed = asyncio.Event()
        self._watchers.add(changed)
        last = None
        try:
            while True:
                changed.clear()
                # Read before the state: while one is being sent, the last one may be set.
                closed = self._closed
                serving = self._serving.get(service)
                # An unknown service is not an error here: it may appear (health.proto, Watch).
                state = _SERVICE_UNKNOWN if serving is None else _SERVING if serving else _NOT_SERVING
                if state != last:
                    yield state
                    last = state
                if closed:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)


def _service_name(message: bytes) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(message).service)
    except DecodeError as error:
        raise StatusError(StatusCode.INVALID_ARGUMENT, "not a HealthCheckRequest") from error


class _Watch(grpc.GenericRpcHandler):
    def __init__(self, health: Health) -> None:
        self._health = health

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if handler_call_details.method != _WATCH:
            return None
        return grpc.unary_stream_rpc_method_handler(self._watch)

    async def _watch(
        self, message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        try:
            async for state in self._health.watch(message):
                yield state
        except StatusError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
