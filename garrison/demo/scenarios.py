"""Rows that are more than a call: handshakes that must fail, and changes while traffic runs."""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from garrison.demo.children import StartError
from garrison.demo.client import TIMEOUT_SECONDS, Call, send
from garrison.demo.mesh import Mesh, write_atomically
from garrison.demo.rows import PATHS, Row, call_to, summarise
from garrison.demo.topology import MEMBERS

_POLL_SECONDS = 0.005
_EFFECT_SECONDS = 1.0
_PATIENCE_SECONDS = 10.0


# ---------------------------------------------------------------------------------------------- handshakes


def handshake_rows(mesh: Mesh) -> list[Row]:
    """Connect to details' sidecar directly: with no certificate, a stranger's, one of our CA's."""
    folder = mesh.run / "by-hand"
    mesh.issue_by_hand("productpage", folder)
    ours = (folder / "svid.pem", folder / "svid.key")
    stranger = _stranger_certificate(mesh.run)
    name = "productpage's name"
    return [
        _refused(mesh, "no certificate -> details", None, "fail_verify_no_cert"),
        _refused(mesh, f"{name}, signed by a stranger's CA -> details", stranger, "fail_verify_error"),
        _welcome(mesh, f"{name}, `ca issue`d -> details", ours),
    ]


Certificate = tuple[Path, Path]


def _refused(mesh: Mesh, title: str, certificate: Certificate | None, counter: str) -> Row:
    """Connect, and see by the sidecar's own counter that it was the certificate which it did not like."""
    before = mesh.tls_failures("details", counter)
    try:
        got = f"connected, {_get_details(mesh, certificate)}"
    except (OSError, http.client.HTTPException):
        got = "connection refused"
    counted = _wait_until(lambda: mesh.tls_failures("details", counter) == before + 1)
    why = f"TLS of details' Envoy: {counter if counted else 'not counted'}"
    return Row(
        "certificate", title, "connection refused", got, why, None, counted and got == "connection refused"
    )


def _welcome(mesh: Mesh, title: str, certificate: Certificate) -> Row:
    try:
        got = _get_details(mesh, certificate)
    except (OSError, http.client.HTTPException) as error:
        got = f"connection refused: {error}"
    return Row("certificate", title, "200", got, "ServiceRole default/details-viewer", None, got == "200")


def _get_details(mesh: Mesh, certificate: Certificate | None) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # This caller is the one to be checked; it has no trust of its own to check with.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(*certificate)
    port = mesh.ports["details"].inbound
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS, context=context)
    try:
        connection.request("GET", PATHS["details"], headers={"x-details-version": "v1"})
        return str(connection.getresponse().status)
    finally:
        connection.close()


def _stranger_certificate(folder: Path) -> Certificate:
    """Write a certificate with productpage's SPIFFE ID from a CA that nobody trusts."""
    identity = next(member.identity for member in MEMBERS if member.name == "productpage")
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stranger")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a stranger's CA")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]), critical=False
        )
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    paths = folder / "stranger.pem", folder / "stranger.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


# ------------------------------------------------------------------------------------------------- traffic


class Traffic:
    """Two threads that call without pause: productpage asks details; reviews ratings, for ever new users.

    So both Check and ShouldRateLimit are in flight at any moment. Each call counts; none is repeated.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.outcomes: Counter[str] = Counter()
        self._mesh = mesh
        self._stop = threading.Event()
        self._lock = threading.Lock()
        ratings = (call_to("reviews-v2", "ratings", {"end-user": f"user-{id(self)}-{n}"}) for n in _count())
        details = (call_to("productpage", "details") for _ in _count())
        self._threads = [threading.Thread(target=self._run, args=(calls,)) for calls in (details, ratings)]

    @property
    def calls(self) -> int:
        """How many calls have been answered or lost."""
        with self._lock:
            return self.outcomes.total()

    @property
    def failed(self) -> int:
        """How many of them were anything but 200."""
        with self._lock:
            return self.outcomes.total() - self.outcomes["200"]

    def wait_for_more(self, calls: int) -> None:
        """Return when `calls` more calls have ended."""
        goal = self.calls + calls
        _wait_until(lambda: self.calls >= goal)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, calls: Iterator[Call]) -> None:
        call = next(calls)
        connection = self._mesh.connect(call.caller)
        while not self._stop.is_set():
            try:
                outcome = str(send(connection, call).status)
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                connection.close()
            with self._lock:
                self.outcomes[outcome] += 1
            call = next(calls)
        connection.close()


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def _wait_until(condition: Callable[[], bool]) -> bool:
    """Return whether `condition` came to hold in time."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def restart_row(mesh: Mesh) -> Row:
    """Replace `garrison serve` while traffic runs; no call may be lost."""
    with Traffic(mesh) as traffic:
        traffic.wait_for_more(50)
        before = traffic.calls
        exit_code = mesh.restart_server()
        during = traffic.calls - before
        traffic.wait_for_more(100)
    ok = traffic.failed == 0 and exit_code == 0 and during > 0
    return Row(
        group="change",
        call=f"restart of garrison serve under traffic ({during} of {traffic.calls} calls meanwhile)",
        expected="0 failed, exit 0",
        got=f"{traffic.failed} failed, exit {exit_code}"
        + ("" if traffic.failed == 0 else f" ({summarise(traffic.outcomes)})"),
        decided_by="the new process takes over the sockets, the old one drains",
        added_ms=None,
        ok=ok,
    )


# ------------------------------------------------------------------------------------------------ policies

_GRANT = """\
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata:
  name: client-views-details
  namespace: default
spec:
  subjects:
  - user: service-account-a
  roleRef:
    kind: ServiceRole
    name: details-viewer
"""

# The field is called `methods`.
_BROKEN = """\
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata:
  name: details-viewer-too
  namespace: default
spec:
  rules:
  - services: ["details.default.svc.cluster.local"]
    method: ["GET"]
"""
_BROKEN_AT = (9, 5, "spec.rules[0].method")


@contextmanager
def _policy(mesh: Mesh, name: str, text: str) -> Iterator[Path]:
    path = mesh.policies / name
    write_atomically(path, text)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def policy_change_rows(mesh: Mesh) -> list[Row]:
    """Grant service-account-a a role while traffic runs, and take it away again."""
    call = call_to("client", "details")
    with Traffic(mesh) as traffic:
        traffic.wait_for_more(20)
        failed = traffic.failed
        with _policy(mesh, "client-views-details.yaml", _GRANT) as path:
            granted = _seconds_until(mesh, call, 200)
            traffic.wait_for_more(20)
            grant = _effect_row(
                "a binding for service-account-a appears", granted, 200, traffic.failed - failed
            )
            failed = traffic.failed
            path.unlink()
            revoked = _seconds_until(mesh, call, 403)
        traffic.wait_for_more(20)
        revoke = _effect_row("the binding disappears", revoked, 403, traffic.failed - failed)
    return [grant, revoke]


def _seconds_until(mesh: Mesh, call: Call, status: int) -> float | None:
    started = time.monotonic()
    reached = _wait_until(lambda: mesh.call(call).status == status)
    return time.monotonic() - started if reached else None


def _effect_row(what: str, seconds: float | None, status: int, failed: int) -> Row:
    ok = seconds is not None and seconds < _EFFECT_SECONDS and failed == 0
    took = "never" if seconds is None else f"after {seconds:.2f} s"
    return Row(
        group="change",
        call=f"under traffic, {what}: service-account-a -> details",
        expected=f"{status} within 1 s, 0 failed",
        got=f"{status} {took}, {failed} failed",
        decided_by="ServiceRole default/details-viewer" if status == 200 else "no role allows it",
        added_ms=None,
        ok=ok,
    )


def broken_policy_row(mesh: Mesh) -> Row:
    """Put a broken file into the policies: the old ones stay in force, the log says where the mistake is."""
    before = _snapshot(mesh)
    mark = mesh.server.mark()
    refused: dict[str, Any] = {}
    with _policy(mesh, "broken.yaml", _BROKEN):
        try:
            refused = mesh.server.wait_for("snapshot_refused", _PATIENCE_SECONDS, after=mark)
        except StartError as error:
            got = str(error).partition("\n")[0]
        in_force = _snapshot(mesh)
        statuses = (
            mesh.call(call_to("productpage", "details")).status,
            mesh.call(call_to("client", "details")).status,
        )
    diagnostic = (refused.get("diagnostics") or [{}])[0]
    where = (diagnostic.get("line"), diagnostic.get("column"), diagnostic.get("field"))
    file = Path(str(diagnostic.get("file", ""))).name
    ok = statuses == (200, 403) and before == in_force and where == _BROKEN_AT and file == "broken.yaml"
    if refused:
        got = f"{'old' if before == in_force else 'another'} policy in force, {statuses[0]} and {statuses[1]}"
    return Row(
        group="change",
        call="a broken policy file appears: productpage and service-account-a -> details",
        expected="old policy in force, 200 and 403",
        got=got,
        decided_by=f"{file}:{where[0]}:{where[1]}: {where[2]}: {diagnostic.get('message', 'no diagnostic')}",
        added_ms=None,
        ok=ok,
    )


def _snapshot(mesh: Mesh) -> str:
    call = call_to("productpage", "details")
    decided = mesh.decided(call, mesh.call(call))
    return decided.snapshot if decided else ""
