"""The agent's line to `garrison.ca.v1.Nodes`: TLS with pinned roots, one backoff for all that is asked.

Callers must not each find out anew that the server is away: after a failure nothing is sent until the pause
is over, and whoever asks meanwhile hears it at once.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import structlog
from cryptography import x509

from ca.agent.schedule import Attempts
from ca.agent.state import NodeSvid
from ca.bundle import format_certificates
from ca.keys import private_key_pem
from garrison.errors import DependencyError, GarrisonError
from garrison.transport.address import Address

SERVICE = "garrison.ca.v1.Nodes"
CALL_SECONDS = 10.0
MAX_PAUSE = timedelta(minutes=1)
# 128 SVIDs with their chains, or the entries of a large node.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024

_REFUSALS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
    }
)

_log = structlog.get_logger()


class ServerAwayError(DependencyError):
    """The server does not answer now."""


class ServerNotTrustedError(ServerAwayError):
    """Whoever answers there cannot show a certificate that the agent's roots vouch for."""


class ServerRefusedError(GarrisonError):
    """The server has answered: no. `code` says why."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_about_us(self) -> bool:
        """Whether the server does not know this node, or not any more."""
        return self.code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


class NodesServer:
    """Calls the methods of `Nodes`. For one event loop.

    `roots` returns what the server is verified with, and nothing else is; `name` is what its certificate must
    say if that is not the host of `address`. Clock and randomness can be replaced.
    """

    def __init__(
        self,
        address: Address,
        roots: Callable[[], Sequence[x509.Certificate]],
        *,
        name: str | None = None,
        longest_pause: timedelta = MAX_PAUSE,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._address = address
        self._roots = roots
        self._name = name
        self._longest_pause = longest_pause
        self._now = now
        self._chance = chance
        self._channel: grpc.aio.Channel | None = None
        self._shown: NodeSvid | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._failed_at = datetime.min.replace(tzinfo=UTC)
        self.attempts = Attempts()
        self.last_contact: datetime | None = None
        self.last_error = ""

    async def call(
        self, request: Any, answer: Any, *, node: NodeSvid | None = None, bearer: str | None = None
    ) -> Any:
        """Call the method whose request this is; return its answer, an `answer`.

        `node` is shown in the handshake, `bearer` sent as token.

        Raises:
            ServerAwayError: it does not answer, or the pause after a failure is not over.
            ServerRefusedError: it says no.

        """
        began = self._now()
        if not self.attempts.may_try(began):
            raise ServerAwayError(self.last_error)
        method = type(request).__name__.removesuffix("Request")
        channel = self._channel_for(node)
        call = channel.unary_unary(f"/{SERVICE}/{method}", type(request).SerializeToString, answer.FromString)
        metadata = (("authorization", f"Bearer {bearer}"),) if bearer is not None else ()
        try:
            found = await call(request, metadata=metadata, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                self._has_answered()
                raise ServerRefusedError(error.code(), error.details() or error.code().name) from error
            raise await self._away(began, error) from error
        self._has_answered()
        return found

    async def close(self) -> None:
        """Hang up; calls that are still in flight end."""
        self._retire(0)
        await asyncio.gather(*self._retiring)

    def _retire(self, grace_seconds: float = CALL_SECONDS) -> None:
        """Make no new calls on the channel, and close it once those in flight have ended.

        To close it at once would cancel them, and whoever waits for them with them.
        """
        channel, self._channel = self._channel, None
        if channel is not None:
            task = asyncio.get_running_loop().create_task(channel.close(grace_seconds or None))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _has_answered(self) -> None:
        if self.attempts.failures:
            _log.info("server answers again", server=str(self._address), failures=self.attempts.failures)
        self.attempts = Attempts()
        self.last_contact = self._now()
        self.last_error = ""

    async def _away(self, began: datetime, error: grpc.aio.AioRpcError) -> ServerAwayError:
        text = error.details() or error.code().name
        why: ServerAwayError = ServerAwayError(f"the server does not answer: {text}")
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            # gRPC says of a bad certificate only that the server is unavailable.
            untrusted = await asyncio.to_thread(self._look_why)
            why = ServerNotTrustedError(untrusted) if untrusted else why
        # What was asked at the same time has failed for the same reason: that is one failure.
        if began >= self._failed_at:
            self._failed_at = self._now()
            self.attempts = self.attempts.failed(self._failed_at, self._longest_pause, self._chance())
            if str(why) != self.last_error:
                _log.warning("server does not answer", server=str(self._address), reason=str(why))
            self.last_error = str(why)
            # A channel of its own for the next try: one that failed has a backoff that knows nothing of ours.
            self._retire()
        return why

    def _channel_for(self, node: NodeSvid | None) -> grpc.aio.Channel:
        if self._channel is not None and self._shown is node:
            return self._channel
        self._retire()
        key = private_key_pem(node.key) if node is not None else None
        chain = node.svid.chain_pem if node is not None else None
        options: list[tuple[str, Any]] = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
            ("grpc.enable_http_proxy", 0),
            # A server that vanished without a word must not hold up what comes after.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]
        if self._name is not None:
            options.append(("grpc.ssl_target_name_override", self._name))
        self._channel = grpc.aio.secure_channel(
            _target(self._address), grpc.ssl_channel_credentials(self._pem(), key, chain), options
        )
        self._shown = node
        return self._channel

    def _pem(self) -> bytes:
        return format_certificates(self._roots())

    def _look_why(self) -> str:
        """Return what is wrong with the server's certificate; nothing if that is not why it fails."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        context.load_verify_locations(cadata=self._pem().decode())
        host = self._name or self._address.host
        try:
            with (
                socket.create_connection((self._address.host, self._address.port), 5) as connection,
                context.wrap_socket(connection, server_hostname=host),
            ):
                return ""
        except ssl.SSLCertVerificationError as error:
            return f"the server's certificate is not to be trusted: {error.verify_message}"
        except (OSError, ValueError):
            return ""


def _target(address: Address) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"
