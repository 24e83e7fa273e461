"""The mesh as processes: `garrison serve`, the applications, and an Envoy for each member."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from garrison.demo.children import Child, Children, StartError
from garrison.demo.client import AccessLogs, Answer, Call, Decided, JsonLines, UnixConnection, connect, send
from garrison.demo.tokens import TOKEN_ISSUER, Tokens
from garrison.demo.topology import (
    APPLICATIONS,
    MEMBERS,
    TRUST_DOMAIN,
    Member,
    Ports,
    Sockets,
    access_log,
    servers,
    workload,
)
from garrison.envoy_binary import find_envoy
from garrison.envoy_config import dump, fill, render_bootstrap

Say = Callable[[str], None]

_MAX_UNIX_PATH_BYTES = 107  # sun_path of unix(7), without its closing NUL
_START_SECONDS = 30.0
_POLL_SECONDS = 0.005
# Envoy keeps access-log lines back for 10 s by default; the table wants to read them at once.
_LOG_FLUSH_MILLISECONDS = "20"


def garrison_command() -> tuple[str, ...]:
    """Return the words that start `garrison` of this installation."""
    script = Path(sys.executable).with_name("garrison")
    if script.is_file():
        return (str(script),)
    return (sys.executable, "-c", "import sys; from garrison.cli import main; sys.exit(main())")


def example_folder() -> Path:
    """Return the folder of the BookInfo example: beside this file in a wheel, at the top of a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "bookinfo"
    return packaged if packaged.is_dir() else here.parents[1] / "examples" / "bookinfo"


@contextmanager
def run_folder(parent: Path, *, keep: Callable[[], bool]) -> Iterator[Path]:
    """Yield a new private folder for one run, removed afterwards unless `keep()`.

    It is `<parent>/run-<pid>`, or a temporary one where that would be too long for the path of a Unix socket.
    """
    run = parent.resolve() / f"run-{os.getpid()}"
    longest = max(len(os.fsencode(str(Sockets(run).admin(member)))) for member in MEMBERS)
    if longest > _MAX_UNIX_PATH_BYTES:
        run = Path(tempfile.mkdtemp(prefix="garrison-demo-"))
    else:
        shutil.rmtree(run, ignore_errors=True)  # of an earlier process with this id, which is gone
        run.mkdir(mode=0o700, parents=True)
    try:
        yield run
    finally:
        if keep():
            shutil.rmtree(run / "bin", ignore_errors=True)  # hard links to Envoy tell nobody anything
        else:
            shutil.rmtree(run, ignore_errors=True)


class Server:
    """One `garrison serve` process and the events that it logs."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self._lines = JsonLines(child.log)
        self.events: list[dict[str, Any]] = []

    def wait_for(
        self, event: str, timeout_seconds: float = _START_SECONDS, *, after: int = 0
    ) -> dict[str, Any]:
        """Return the first `event` logged at or after position `after` of `events`.

        Raises:
            StartError: the process ended, or the time is over.

        """
        found: list[dict[str, Any]] = []

        def logged() -> bool:
            self.events += self._lines.new()
            found.extend(entry for entry in self.events[after:] if entry.get("event") == event)
            return bool(found)

        self.child.wait_until(logged, f"waiting for `{event}`", timeout_seconds)
        return found[0]

    def mark(self) -> int:
        """Return the position after everything logged so far, for `wait_for`."""
        self.events += self._lines.new()
        return len(self.events)


class Mesh:
    """The running mesh. `start` makes one; everything it started ends with the `with` block."""

    def __init__(self, run: Path, garrison: Sequence[str], children: Children, say: Say) -> None:
        self.run = run
        self.policies = run / "policies"
        self.tokens = Tokens()
        self.stranger = Tokens()
        self.ports: dict[str, Ports] = {}
        self.logs = AccessLogs({member.name: access_log(run, member) for member in MEMBERS})
        self._garrison = tuple(garrison)
        self._children = children
        self._say = say
        self._generation = 0
        self._connections: dict[str, http.client.HTTPConnection] = {}
        self.server: Server

    # ------------------------------------------------------------------------------------------- calls

    def call(self, call: Call) -> Answer:
        """Make `call`, over a connection that is kept for the next one of the same caller.

        Raises:
            OSError, http.client.HTTPException: no answer came.

        """
        connection = self._connections.get(call.caller)
        if connection is None:
            connection = self._connections[call.caller] = self.connect(call.caller)
        try:
            return send(connection, call)
        except (OSError, http.client.HTTPException):
            connection.close()
            raise

    def connect(self, member: str) -> http.client.HTTPConnection:
        """Return a connection of its own to the outbound listener of `member` (the edge, for the ingress)."""
        return connect(self.ports[member].outbound)

    def close(self) -> None:
        """Close the connections that `call` kept."""
        while self._connections:
            self._connections.popitem()[1].close()

    def decided(self, call: Call, answer: Answer) -> Decided | None:
        """Return what the Envoy in front of the call's destination logged about it; None if nothing."""
        return self.logs.find((member.name for member in servers(call.service)), answer.request_id)

    def tls_failures(self, member: str, counter: str) -> int:
        """Return how often the inbound listener of `member` has counted `ssl.<counter>`."""
        stats = _admin(self.run / f"{member}.sock", f"/stats?filter=^listener\\..*\\.ssl\\.{counter}$")
        return sum(int(line.rpartition(": ")[2]) for line in stats.splitlines())

    # --------------------------------------------------------------------------------------- lifecycle

    def start_server(self) -> Server:
        """Start a `garrison serve` and return it when it is ready; the one that runs is left alone."""
        self._generation += 1
        command = [*self._garrison, "serve", "--config", str(self.run / "garrison.yaml")]
        log = self.run / "logs" / f"garrison-{self._generation}.log"
        server = Server(self._children.start("garrison serve", command, log))
        server.wait_for("ready")
        return server

    def restart_server(self) -> int:
        """Replace `garrison serve` by a new process, without a gap; return the old one's exit code."""
        old, self.server = self.server, self.start_server()
        return self._children.stop(old.child)

    def issue_by_hand(self, member: str, out: Path) -> None:
        """Write an SVID of `member` below `out`, as somebody with access to the CA's folder could."""
        identity = next(str(one.identity) for one in MEMBERS if one.name == member)
        self._garrison_once("ca", "issue", "--dir", str(self.run / "ca"), identity, "--out", str(out))

    def ended(self) -> list[Child]:
        """Return what should run and does not."""
        return self._children.ended()

    def _start(self, holders: ExitStack) -> None:
        self._step("certificate authority", self._init_ca)
        self._step("garrison serve", self._start_first_server)
        self._step(f"{len(APPLICATIONS)} applications", lambda: self._start_applications(holders))
        self._step(f"{len(MEMBERS)} Envoys, certificates over SDS", self._start_envoys)

    def _step(self, what: str, action: Callable[[], None]) -> None:
        started = time.monotonic()
        action()
        self._say(f"==> {what}: ready in {time.monotonic() - started:.1f} s")

    def _init_ca(self) -> None:
        where = ("--dir", str(self.run / "ca"), "--trust-domain", str(TRUST_DOMAIN))
        self._garrison_once("ca", "init", *where, "--no-passphrase")

    def _garrison_once(self, *words: str) -> None:
        log = self.run / "logs" / f"{words[0]}-{words[1]}.log"
        child = self._children.start(f"garrison {words[0]} {words[1]}", [*self._garrison, *words], log)
        exit_code = child.process.wait(_START_SECONDS)
        self._children.stop(child)
        if exit_code != 0:
            raise StartError(f"`{child.name}` ended with exit code {exit_code}:\n{child.tail()}")

    def _start_first_server(self) -> None:
        self.server = self.start_server()

    def _start_applications(self, holders: ExitStack) -> None:
        inbound = {member.name: _hold_port(holders) for member in APPLICATIONS}
        outbound = {member.name: _hold_port(holders) for member in MEMBERS}
        with ExitStack() as listeners:
            sockets = {member.name: _listen(listeners) for member in APPLICATIONS}
            for member in MEMBERS:
                application = sockets[member.name].getsockname()[1] if member.app else 0
                self.ports[member.name] = Ports(
                    outbound[member.name], inbound.get(member.name, 0), application
                )
            arguments = [f"{name}:{held.fileno()}:{outbound[name]}" for name, held in sockets.items()]
            command = [sys.executable, "-m", "garrison.demo.services", *arguments]
            log = self.run / "logs" / "applications.log"
            files = [held.fileno() for held in sockets.values()]
            self._children.start("applications", command, log, files=files)

    def _start_envoys(self) -> None:
        envoys = [(member, self._start_envoy(member)) for member in MEMBERS]
        for member, child in envoys:
            admin = Sockets(self.run).admin(member)
            child.wait_until(lambda admin=admin: _is_live(admin), "becoming ready", _START_SECONDS)  # type: ignore[misc]

    def _start_envoy(self, member: Member) -> Child:
        config = self.run / "envoy" / f"{member.name}.yaml"
        config.write_text(dump(render_bootstrap(workload(member, self.ports, self.run))), encoding="utf-8")
        options: list[str | Path] = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        flush = ["--file-flush-interval-msec", _LOG_FLUSH_MILLISECONDS]
        command = [self.run / "bin" / member.name, "-c", config, *options, *flush]
        return self._children.start(
            f"Envoy of {member.name}", command, self.run / "logs" / f"{member.name}.log"
        )


@contextmanager
def start(
    run: Path, say: Say, *, policies: Path | None = None, garrison: Sequence[str] | None = None
) -> Iterator[Mesh]:
    """Start the mesh in the folder `run`, yield it when every Envoy serves, and stop all of it afterwards.

    `policies` replaces the example's policies.

    Raises:
        DependencyError: there is no Envoy, or something did not start.

    """
    envoy = find_envoy()
    children = Children()
    mesh = Mesh(run, garrison or garrison_command(), children, say)
    _prepare(run, policies or example_folder() / "policies", mesh.tokens, envoy)
    with ExitStack() as holders:
        holders.callback(children.close)
        holders.callback(mesh.close)
        mesh._start(holders)  # noqa: SLF001 - `start` is the constructor of a running one
        yield mesh


def _prepare(run: Path, policies: Path, tokens: Tokens, envoy: Path) -> None:
    example = example_folder()
    for name in ("logs", "bin", "envoy"):
        (run / name).mkdir()
    shutil.copytree(example / "limits", run / "limits")
    shutil.copytree(policies, run / "policies")
    for path in (run / "policies").glob("*.yaml"):
        _trust_tokens(path, tokens)
    settings = yaml.safe_load((example / "garrison.yaml").read_text(encoding="utf-8"))
    filled = fill(settings, {"run": str(run), "uid": str(os.getuid())})
    (run / "garrison.yaml").write_text(dump(filled), encoding="utf-8")
    _link_binaries(envoy, run / "bin")


def _trust_tokens(path: Path, tokens: Tokens) -> None:
    """Put the run's public keys where `path` names the demo's token issuer."""
    text = path.read_text(encoding="utf-8")
    if TOKEN_ISSUER not in text:
        return
    documents = list(yaml.safe_load_all(text))
    for document in documents:
        for rule in document.get("spec", {}).get("jwtRules", []):
            if rule.get("issuer") == TOKEN_ISSUER:
                rule["jwks"] = tokens.jwks()
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")


def _link_binaries(envoy: Path, folder: Path) -> None:
    """Give each member an executable of its own name: one file with many names, copied at most once."""
    source = envoy
    for member in MEMBERS:
        target = folder / member.name
        try:
            target.hardlink_to(source)
        except OSError:  # another file system, or a file that is not ours
            shutil.copy2(source, target)
        source = target


def _hold_port(holders: ExitStack) -> int:
    """Return a free loopback port that stays ours until `holders` closes.

    The socket is bound, never listens, and shares the port (SO_REUSEPORT) with the Envoy that will.
    """
    holder = holders.enter_context(socket.socket())
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    return int(holder.getsockname()[1])


def _listen(holders: ExitStack) -> socket.socket:
    listener = holders.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


def _is_live(admin: Path) -> bool:
    try:
        return _admin(admin, "/ready") == "LIVE\n"
    except (OSError, http.client.HTTPException):
        return False


def _admin(socket_path: Path, query: str) -> str:
    connection = UnixConnection(socket_path)
    try:
        connection.request("GET", query)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` in one step, so that whoever watches it never reads half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def as_json(value: Mapping[str, Any]) -> str:
    """Return `value` as readable JSON."""
    return json.dumps(value, indent=2) + "\n"
