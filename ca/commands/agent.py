"""`ca agent`: serve the identities of a CA on another machine to the workloads of this one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc
import uvloop

from ca.agent.node import TOKEN_VARIABLE, Evidence, NotAttestedError
from ca.agent.process import STATUS, Agent, AgentSettings, parse_status
from ca.commands.base import (
    DURATION,
    EXIT_REFUSED,
    EXIT_UNUSABLE,
    FILE,
    Commands,
    Failure,
    Parsed,
    json_option,
    print_values,
)
from garrison.telemetry import log as telemetry_log
from garrison.transport.address import Address, Scheme

DEFAULT_STATE = Path("/var/lib/garrison-agent")
DEFAULT_SOCKET = Path("/run/garrison-agent/agent.sock")
_Command = TypeVar("_Command", bound=Callable[..., Any])
_PREFIX = "GARRISON_AGENT_"
_MODE = re.compile(r"0?[0-7]{3}")
_STATUS_SECONDS = 5.0
_AGENT_CODES = """\b
Exit codes:
  0  drained after SIGTERM
  2  a command line, file or directory that cannot be used
  3  this node has no identity, and the server gives it none"""
_STATUS_CODES = """\b
Exit codes:
  0  it serves
  2  no agent answers at the socket
  3  it does not serve"""


def _address(text: str) -> Address:
    address = Address.parse(text if "://" in text else f"tls://{text}")
    if address.scheme is not Scheme.TLS or not address.port:
        raise ValueError(f"`{text}` is not `HOST:PORT`: a server is asked over TLS only")
    return address


def _mode(text: str) -> int:
    if not _MODE.fullmatch(text):
        raise ValueError(f"`{text}` is not a mode such as `0666`")
    return int(text, 8)


def _between(shortest: timedelta, longest: timedelta) -> Any:
    def check(context: click.Context, parameter: click.Parameter, value: timedelta) -> timedelta:
        if not shortest <= value <= longest:
            raise click.BadParameter(f"it is from {shortest} to {longest}, not {value}", context, parameter)
        return value

    return check


def _option(flag: str, **options: Any) -> Callable[[_Command], _Command]:
    """Return an option that is also an environment variable."""
    variable = _PREFIX + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, envvar=variable, show_envvar=True, **options)


@click.group(cls=Commands, invoke_without_command=True, epilog=_AGENT_CODES)
@_option("--server", type=Parsed("host:port", _address), help="The CA's `ca.listen` address.")
@_option(
    "--bundle", type=FILE, help="Roots that the server is verified with (PEM or SPIFFE JSON). No others are."
)
@_option("--server-name", help="What the server's certificate says, if not the host of --server.")
@_option(
    "--state", type=FILE, default=DEFAULT_STATE, show_default=True, help="Where this node keeps its identity."
)
@_option(
    "--socket",
    type=FILE,
    default=DEFAULT_SOCKET,
    show_default=True,
    help="The Unix socket for workloads and Envoys.",
)
@_option(
    "--socket-mode",
    type=Parsed("mode", _mode),
    default="0666",
    show_default=True,
    help="Who may connect. What they get depends on who they are.",
)
@_option(
    "--crl-in-sds",
    is_flag=True,
    help="Send the CRL with the trust bundle, so that Envoys refuse revoked peers.",
)
@_option("--join-token-file", type=FILE, help="A file with a join token, for the first start.")
@_option(
    "--jwt-file", type=FILE, help="A file with a JWT, such as a projected Kubernetes token; read at each use."
)
@_option(
    "--sync-interval",
    type=DURATION,
    default="5s",
    show_default=True,
    callback=_between(timedelta(seconds=1), timedelta(minutes=10)),
    help="How often the server is asked for news.",
)
@_option(
    "--max-backoff",
    type=DURATION,
    default="1m",
    show_default=True,
    callback=_between(timedelta(seconds=1), timedelta(hours=1)),
    help="The longest pause while the server is away.",
)
@_option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is logged.",
)
@_option(
    "--log-format",
    type=click.Choice(["auto", "json", "console"]),
    default="auto",
    show_default=True,
    help="How it is logged, on standard error.",
)
@click.pass_context
def agent(context: click.Context, /, **options: Any) -> None:
    """Serve SDS and the SPIFFE Workload API on this node, with identities from the CA at --server.

    The first time it shows who it is with a join token (--join-token-file, or the environment variable
    GARRISON_AGENT_JOIN_TOKEN) or a JWT (--jwt-file). From then on it renews its own identity.

    \b
    Example:
      ca agent --server ca.example:9193 --bundle /etc/garrison/roots.pem --join-token-file /run/join-token
    """
    if context.invoked_subcommand is not None:
        return
    for name in ("server", "bundle"):
        if options[name] is None:
            variable = f"{_PREFIX}{name.upper()}"
            raise Failure(f"it needs --{name} or the environment variable {variable}", EXIT_UNUSABLE)
    evidence = Evidence.of(options["join_token_file"], options["jwt_file"], os.environ)
    # Nobody whom we may start needs it.
    os.environ.pop(TOKEN_VARIABLE, None)
    settings = AgentSettings(
        server=options["server"],
        bundle=options["bundle"],
        state=options["state"],
        socket=options["socket"].absolute(),
        evidence=evidence,
        server_name=options["server_name"],
        socket_mode=options["socket_mode"],
        sends_crl=options["crl_in_sds"],
        sync_interval=options["sync_interval"],
        longest_pause=options["max_backoff"],
    )
    telemetry_log.configure(options["log_level"], options["log_format"])
    try:
        uvloop.run(_run(settings))
    except NotAttestedError as error:
        raise Failure(str(error), EXIT_REFUSED) from error


async def _run(settings: AgentSettings) -> None:
    await Agent(settings).run()


@agent.command(epilog=_STATUS_CODES)
@click.option(
    "--socket",
    type=FILE,
    default=DEFAULT_SOCKET,
    show_default=True,
    envvar=f"{_PREFIX}SOCKET",
    show_envvar=True,
    help="The agent's socket.",
)
@json_option
def status(socket: Path, as_json: bool) -> None:  # noqa: FBT001
    """Say how the agent at a socket is doing: its identity, the server, what it holds for workloads.

    \b
    Example:
      ca agent status --socket /run/garrison-agent/agent.sock
    """
    with grpc.insecure_channel(f"unix:{socket.absolute()}") as channel:
        try:
            ask: Any = channel.unary_unary(STATUS)
            answer = ask(b"", timeout=_STATUS_SECONDS)
            found = parse_status(answer)
        except (grpc.RpcError, ValueError) as error:
            why = error.details() if isinstance(error, grpc.Call) else error
            raise Failure(f"{socket}: no agent answers there ({why})", EXIT_UNUSABLE) from error
    if not as_json:
        for one in found.pop("svids"):
            found[one["spiffe_id"]] = f"until {one['expires_at']}, renewed at {one['renews_at']}"
    print_values(as_json, found)
    if not found["serving"]:
        raise Failure(f"it does not serve: {found['problem']}", EXIT_REFUSED)
