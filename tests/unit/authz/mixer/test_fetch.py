"""Fetching lists from real servers on loopback: what comes whole is taken, everything else is refused."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from authz.mixer.fetch import MAX_REDIRECTS, Fetcher, check_url, is_blocked
from authz.mixer.lists import MAX_LIST_BYTES, EntryType, ListSource
from authz.mixer.refresher import ListRefresher
from garrison.errors import DependencyError

Answer = Callable[[BaseHTTPRequestHandler], None]


def answer(body: bytes, status: int = 200, **headers: str) -> Answer:
    """Return an answer with a body and its length."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"content_length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


@contextmanager
def serving(answers: dict[str, Answer], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve `answers` by path on a port of the system's choice; yields the URL without path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers[self.path](self)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Say nothing: clients here hang up on purpose."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_list_is_fetched_whole() -> None:
    """The body comes as it is, with query string, by length or in chunks."""

    def chunked(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"2\r\na\n\r\n1\r\nb\r\n0\r\n\r\n")

    with serving({"/list?x=1": answer(b"a\nb\n"), "/chunked": chunked}) as url:
        assert Fetcher()(f"{url}/list?x=1") == b"a\nb\n"
        assert Fetcher()(f"{url}/chunked") == b"a\nb"


def test_what_is_no_whole_list_is_refused() -> None:
    """Errors, lists cut off or without an end, and lists that are too large are failures."""

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"a\n")

    def chunk_cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"5\r\na\n")

    answers = {
        "/404": answer(b"no", 404),
        "/500": answer(b"no", 500),
        "/204": answer(b"", 204),
        "/short": answer(b"a\n", content_length="200"),
        "/endless": endless,
        "/cut": chunk_cut,
        "/large": answer(b"x" * (MAX_LIST_BYTES + 1)),
    }
    with serving(answers) as url:
        for path in answers:
            with pytest.raises(DependencyError):
                Fetcher()(url + path)


def test_redirects_are_followed_and_checked() -> None:
    """A few redirects are followed; loops, other schemes and blocked addresses are not."""
    answers = {
        "/a": answer(b"", 302, location="/b"),
        "/b": answer(b"ok"),
        "/loop": answer(b"", 302, location="/loop"),
        "/file": answer(b"", 302, location="file:///etc/passwd"),
        "/metadata": answer(b"", 307, location="http://169.254.169.254/latest/meta-data/"),
    }
    with serving(answers) as url:
        assert Fetcher()(f"{url}/a") == b"ok"
        with pytest.raises(DependencyError, match=f"more than {MAX_REDIRECTS} redirects"):
            Fetcher()(f"{url}/loop")
        with pytest.raises(DependencyError, match="neither http:// nor https://"):
            Fetcher()(f"{url}/file")
        with pytest.raises(DependencyError, match=r"leads to `169\.254\.169\.254`, which is not allowed"):
            Fetcher()(f"{url}/metadata")


def test_names_are_checked_by_where_they_lead() -> None:
    """Every address of a name is looked at before the first connection, and the one looked at is used."""
    with serving({"/": answer(b"ok")}) as url:
        port = url.rpartition(":")[2]
        named = f"http://lists.example:{port}/"
        assert Fetcher(resolve=lambda host, _: ["127.0.0.1"])(named) == b"ok"
        with pytest.raises(DependencyError, match=r"`lists\.example` leads to `fe80::1`"):
            Fetcher(resolve=lambda host, _: ["127.0.0.1", "fe80::1"])(named)
        with pytest.raises(DependencyError, match="no address"):
            Fetcher(resolve=lambda host, _: [])(named)


def test_a_redirect_from_elsewhere_does_not_lead_to_this_machine() -> None:
    """Loopback is for lists that the operator put there, not for where another server points."""
    with serving({"/": answer(b"ok")}) as url:
        port = int(url.rpartition(":")[2])
        fetcher = Fetcher(resolve=lambda host, _: ["127.0.0.1"])
        deadline = time.monotonic() + 5
        with pytest.raises(DependencyError, match=r"leads to `127\.0\.0\.1`, which is not allowed"):
            fetcher._connect("lists.example", port, deadline, local=False)
        fetcher._connect("lists.example", port, deadline, local=True).close()


def test_a_server_that_drips_is_cut_off() -> None:
    """The time limit is for the whole answer, not for each byte of it."""
    hung_up = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "100000")
        handler.end_headers()
        try:
            while not hung_up.wait(0.02):
                handler.wfile.write(b"x")
        except OSError:
            return

    with serving({"/": drip}) as url:
        try:
            with pytest.raises(DependencyError):
                Fetcher(timeout_seconds=0.3)(url + "/")
        finally:
            hung_up.set()


def test_certificates_are_verified(tmp_path: Path) -> None:
    """TLS lists need a certificate that is trusted and names the host."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lists")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain, private)
    trusting = ssl.create_default_context(cafile=str(chain))
    with serving(
        {"/": answer(b"ok"), "/down": answer(b"", 302, location="http://127.0.0.1/")}, server
    ) as url:
        assert Fetcher(tls=trusting)(url + "/") == b"ok"
        with pytest.raises(DependencyError, match="redirects to a URL without TLS"):
            Fetcher(tls=trusting)(url + "/down")
        with pytest.raises(DependencyError, match="CERTIFICATE_VERIFY_FAILED"):
            Fetcher()(url + "/")
        wrong_name = url.replace("127.0.0.1", "lists.example") + "/"
        with pytest.raises(DependencyError, match="CERTIFICATE_VERIFY_FAILED"):
            Fetcher(tls=trusting, resolve=lambda host, _: ["127.0.0.1"])(wrong_name)


@pytest.mark.parametrize(
    ("address", "blocked"),
    [
        ("169.254.169.254", True),
        ("169.254.0.1", True),
        ("fe80::1", True),
        ("fd00:ec2::254", True),
        ("100.100.100.200", True),
        ("168.63.129.16", True),
        ("0.0.0.0", True),
        ("::", True),
        ("224.0.0.1", True),
        ("255.255.255.255", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("2002:a9fe:a9fe::1", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("10.0.0.1", False),
        ("fd00::1", False),
        ("93.184.216.34", False),
        ("64:ff9b::5db8:d822", False),
        ("2606:4700::1111", False),
    ],
)
def test_addresses_no_list_comes_from(address: str, blocked: bool) -> None:
    """Link-local and metadata addresses are blocked in every notation; private networks are not."""
    assert is_blocked(ip_address(address)) is blocked


@pytest.mark.parametrize(
    "url",
    [
        "",
        "lists.example/x",
        "ftp://lists.example/x",
        "file:///etc/passwd",
        "http:///x",
        "http://:80/x",
        "http://a:0/",
        "http://a:99999/",
        "http://user:secret@lists.example/",
        "http://lists.example/a b",
        "http://lists.example/\u00e9",
        "http://[::1/",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    """A list's URL is http or https, with a host and without credentials."""
    assert check_url(url)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    while not condition():  # noqa: ASYNC110 - threads set no asyncio events
        await asyncio.sleep(0)


def test_the_refresher_follows_a_real_server() -> None:
    """A changed list comes into force by itself, and goes on being used while the server is down."""
    bodies = [b"a\n"]

    def newest(handler: BaseHTTPRequestHandler) -> None:
        answer(bodies[-1])(handler)

    def holds(refresher: ListRefresher, source: ListSource, value: str) -> bool:
        entries = refresher.current(source)
        return entries is not None and entries.holds(value)

    async def follow() -> None:
        refresher = ListRefresher()
        with serving({"/": newest}) as url:
            source = ListSource(url + "/", EntryType.STRINGS, 0.05, 300)
            await refresher.prepare([source])
            assert holds(refresher, source, "a")
            task = asyncio.create_task(refresher.run())
            bodies.append(b"b\n")
            await until(lambda: holds(refresher, source, "b"))
        await until(lambda: refresher.status()[0].failures > 0)
        assert refresher.status()[0].available
        assert "cannot be fetched" in refresher.status()[0].error
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(asyncio.wait_for(follow(), 10))
