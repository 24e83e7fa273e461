"""The node's own identity: attested once with evidence, from then on renewed with itself."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ca.agent.schedule import renewal_time
from ca.agent.server import NodesServer, ServerRefusedError
from ca.agent.state import AgentState, NodeSvid
from ca.authority import X509Svid
from ca.inspection import check_key_pair
from ca.keys import PrivateKey, new_private_key
from ca.protos import nodes_pb2 as pb
from ca.verification import verify_svid
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError, DependencyError, GarrisonError, IssuanceError
from garrison.identity import SpiffeId

TOKEN_VARIABLE = "GARRISON_AGENT_JOIN_TOKEN"  # noqa: S105 - its name
_MAX_TOKEN_BYTES = 64 * 1024
_HOW = (
    "make one with `ca token create --dir CA_DIRECTORY SPIFFE_ID_OF_THIS_NODE` where the CA is, give it to "
    f"this agent with --join-token-file or {TOKEN_VARIABLE}, and start the agent again"
)

_log = structlog.get_logger()


class NotAttestedError(GarrisonError):
    """This node has no valid identity and cannot get one by itself; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where that comes from with which a node shows for the first time who it is; at most one is set."""

    join_token_file: Path | None = None
    jwt_file: Path | None = None
    join_token: str = field(default="", repr=False)

    @classmethod
    def of(
        cls, join_token_file: Path | None, jwt_file: Path | None, environment: Mapping[str, str]
    ) -> Evidence:
        """Return the evidence that options and environment name.

        Raises:
            ConfigError: there are several.

        """
        token = environment.get(TOKEN_VARIABLE, "").strip()
        if sum(map(bool, (join_token_file, jwt_file, token))) > 1:
            message = f"only one of --join-token-file, --jwt-file and {TOKEN_VARIABLE} can be given"
            raise ConfigError([Diagnostic("options", Position(1, 1), (), "evidence", message)])
        return cls(join_token_file, jwt_file, token)

    def read(self) -> str:
        """Return the token as it is now, for a projected one is replaced now and then. Empty: there is none.

        Raises:
            ConfigError: the file cannot be used.

        """
        path = self.jwt_file or self.join_token_file
        if path is None:
            return self.join_token
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_TOKEN_BYTES + 1)
            if len(content) > _MAX_TOKEN_BYTES:
                raise ValueError(f"a token has at most {_MAX_TOKEN_BYTES} bytes")  # noqa: TRY301 - said below
            text = content.decode("ascii").strip()
            if not text or not text.isprintable() or " " in text:
                raise ValueError("it holds no token")  # noqa: TRY301 - said below
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError([Diagnostic(str(path), Position(1, 1), (), "evidence", reason)]) from error
        except ValueError as error:
            reason = "it holds no token" if isinstance(error, UnicodeDecodeError) else str(error)
            raise ConfigError([Diagnostic(str(path), Position(1, 1), (), "evidence", reason)]) from error
        return text


class Node:
    """Has a valid node SVID, or knows why not. For one event loop; clock and randomness can be replaced."""

    def __init__(
        self,
        server: NodesServer,
        state: AgentState,
        evidence: Evidence,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take up what is in `state`.

        Raises:
            ConfigError: it cannot be used.

        """
        self._server = server
        self._state = state
        self._evidence = evidence
        self._now = now
        self._chance = chance
        self._refused = ""
        self.svid = state.load_node()
        self.renew_at: datetime | None = None
        if self.svid is not None:
            self.renew_at = renewal_time(now(), self.svid.svid.not_after, chance())

    async def ensure(self) -> NodeSvid:
        """Return a node SVID that is valid, a new one if that is due and the server answers.

        Raises:
            NotAttestedError: there is none, and no evidence that the server takes.
            ServerAwayError: there is none, and the server does not answer.
            ConfigError: the evidence cannot be read, or the new SVID not be kept.

        """
        now = self._now()
        if self.svid is None or not self.svid.is_valid(now):
            return await self._attest(expired=self.svid)
        if self.renew_at is not None and now >= self.renew_at:
            await self._renew(self.svid)
        return self.svid

    async def _renew(self, held: NodeSvid) -> None:
        key = new_private_key()
        try:
            answer = await self._server.call(
                pb.AttestNodeRequest(csr=signing_request(key)), pb.AttestNodeResponse, node=held
            )
            self._take(answer, key, held.svid.spiffe_id)
        except DependencyError:
            return  # it stays due, and is tried when the server may be asked again
        except (ServerRefusedError, IssuanceError, OSError) as error:
            # It goes on with what it has; if the server knows this node no more, the next call says so.
            self.renew_at = renewal_time(self._now(), held.svid.not_after, self._chance())
            _log.warning("node svid not renewed", reason=str(error), expires_at=_text(held.svid.not_after))

    async def _attest(self, expired: NodeSvid | None) -> NodeSvid:
        why = "this node was not attested yet"
        if expired is not None:
            ended = _text(expired.svid.not_after)
            why = f"the SVID of this node, `{expired.svid.spiffe_id}`, expired at {ended}"
        token = self._evidence.read()
        if not token:
            raise NotAttestedError(f"{why} and there is no join token: {_HOW}")
        known = hashlib.sha256(token.encode()).hexdigest()
        is_jwt = self._evidence.jwt_file is not None
        if known == self._refused and not is_jwt:
            raise NotAttestedError(f"{why}, and the server has refused the join token: {_HOW}")
        # A join token is gone once it was sent: what could go wrong afterwards must be known before.
        self._state.check_writable()
        key = new_private_key()
        try:
            answer = await self._server.call(
                pb.AttestNodeRequest(csr=signing_request(key)), pb.AttestNodeResponse, bearer=token
            )
        except ServerRefusedError as error:
            self._refused = known
            if is_jwt:
                raise NotAttestedError(
                    f"{why}, and the server refuses `{self._evidence.jwt_file}` ({error}): look at its audit "
                    "log, at `ca.token_issuers` there, and at the registration of this node"
                ) from error
            raise NotAttestedError(
                f"{why}, and the server refuses the join token ({error}): it is unknown, expired or was used "
                f"before; {_HOW}"
            ) from error
        try:
            self._take(answer, key, None)
        except IssuanceError as error:
            raise NotAttestedError(f"{why}, and the server's answer is no good: {error}") from error
        except OSError as error:
            message = f"the node's SVID cannot be kept: {(error.strerror or str(error)).lower()}"
            where = Diagnostic(str(self._state.directory), Position(1, 1), (), "agent_state", message)
            raise ConfigError([where]) from error
        assert self.svid is not None  # noqa: S101 - it was taken
        return self.svid

    def _take(self, answer: pb.AttestNodeResponse, key: PrivateKey, expected: SpiffeId | None) -> None:
        """Check and keep the new SVID.

        Raises:
            IssuanceError: it is not what was asked for.
            OSError: it cannot be kept.

        """
        try:
            roots = [x509.load_der_x509_certificate(one) for one in answer.roots]
        except (ValueError, x509.InvalidVersion) as error:
            raise IssuanceError("the server's roots are malformed") from error
        svid = parse_svid(answer.svid, key, roots, expected, self._now())
        node = NodeSvid(svid, key)
        # First on disk: a crash must not lose what a join token was given for.
        self._state.save_node(node)
        self.svid = node
        self.renew_at = renewal_time(self._now(), svid.not_after, self._chance())
        _log.info("node attested", spiffe_id=str(svid.spiffe_id), expires_at=_text(svid.not_after))


def signing_request(key: PrivateKey) -> bytes:
    """Return a signing request for `key` that names nobody: who it is for is the server's to say."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def parse_svid(
    message: pb.X509Svid,
    key: PrivateKey,
    roots: list[x509.Certificate] | tuple[x509.Certificate, ...],
    expected: SpiffeId | None,
    now: datetime,
) -> X509Svid:
    """Return the SVID in `message`, which is `key`'s, verifies under `roots` and is `expected`'s.

    Raises:
        IssuanceError: it is not.

    """
    try:
        certificates = tuple(x509.load_der_x509_certificate(one) for one in message.certificates)
    except (ValueError, x509.InvalidVersion) as error:
        raise IssuanceError("the server's certificates are malformed") from error
    if not certificates:
        raise IssuanceError("the server sent no certificate")
    spiffe_id, _ = verify_svid(certificates[0], certificates[1:], roots, now)
    check_key_pair(certificates[0], key)
    if expected is not None and spiffe_id != expected:
        raise IssuanceError(f"the server sent an SVID of `{spiffe_id}`, not of `{expected}`")
    return X509Svid(spiffe_id, certificates, message.certificates[0])


def _text(moment: datetime) -> str:
    return f"{moment:%FT%TZ}"
