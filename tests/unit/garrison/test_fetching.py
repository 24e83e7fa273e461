"""Fetching from real servers on loopback: what comes whole is taken, everything else is refused."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support.certificates import certify
from support.http_server import answer, serving

from authz.mixer.lists import MAX_LIST_BYTES
from authz.mixer.refresher import list_fetch
from garrison.errors import DependencyError
from garrison.fetching import MAX_REDIRECTS, Answer, Fetcher, form_body, json_body
from garrison.urls import parse_network


def fetch(url: str, **options: Any) -> bytes:
    """Return the body behind `url`, as a list is fetched."""
    return list_fetch(Fetcher(**{"max_bytes": MAX_LIST_BYTES, **options}))(url)


def test_a_list_is_fetched_whole() -> None:
    """The body comes as it is, with query string, by length or in chunks."""

    def chunked(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"2\r\na\n\r\n1\r\nb\r\n0\r\n\r\n")

    with serving({"/list?x=1": answer(b"a\nb\n"), "/chunked": chunked}) as url:
        assert fetch(f"{url}/list?x=1") == b"a\nb\n"
        assert fetch(f"{url}/chunked") == b"a\nb"


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
                fetch(url + path)


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
        assert fetch(f"{url}/a") == b"ok"
        with pytest.raises(DependencyError, match=f"more than {MAX_REDIRECTS} redirects"):
            fetch(f"{url}/loop")
        with pytest.raises(DependencyError, match="neither http:// nor https://"):
            fetch(f"{url}/file")
        with pytest.raises(DependencyError, match=r"leads to `169\.254\.169\.254`, which is not allowed"):
            fetch(f"{url}/metadata")


def test_names_are_checked_by_where_they_lead() -> None:
    """Every address of a name is looked at before the first connection, and the one looked at is used."""
    with serving({"/": answer(b"ok")}) as url:
        port = url.rpartition(":")[2]
        named = f"http://lists.example:{port}/"
        assert fetch(named, resolve=lambda host, _: ["127.0.0.1"]) == b"ok"
        with pytest.raises(DependencyError, match=r"`lists\.example` leads to `fe80::1`"):
            fetch(named, resolve=lambda host, _: ["127.0.0.1", "fe80::1"])
        with pytest.raises(DependencyError, match="no address"):
            fetch(named, resolve=lambda host, _: [])


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
                fetch(url + "/", timeout_seconds=0.3)
        finally:
            hung_up.set()


def test_certificates_are_verified(tmp_path: Path) -> None:
    """TLS lists need a certificate that is trusted and names the host."""
    server, ca = certify(tmp_path, "127.0.0.1")
    trusting = ssl.create_default_context(cafile=str(ca))
    with serving(
        {"/": answer(b"ok"), "/down": answer(b"", 302, location="http://127.0.0.1/")}, server
    ) as url:
        assert fetch(url + "/", tls=trusting) == b"ok"
        with pytest.raises(DependencyError, match="redirects to a URL without TLS"):
            fetch(url + "/down", tls=trusting)
        with pytest.raises(DependencyError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(url + "/")
        wrong_name = url.replace("127.0.0.1", "lists.example") + "/"
        with pytest.raises(DependencyError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(wrong_name, tls=trusting, resolve=lambda host, _: ["127.0.0.1"])


def echo(handler: BaseHTTPRequestHandler) -> None:
    """Answer with what was asked: method, content type, authorization, body."""
    body = handler.rfile.read(int(handler.headers.get("content-length", "0")))
    parts = [handler.command, *(handler.headers.get(one, "-") for one in ("content-type", "authorization"))]
    answer("|".join(parts).encode() + b"|" + body, 201)(handler)


def test_forms_and_json_are_posted_with_headers() -> None:
    """A POST carries its body, its type and the headers that were given, and any 2xx answer has its body."""
    with serving({"/": echo}) as url:
        given = {"Authorization": "Bearer secret"}
        form = Fetcher().post(url + "/", form_body({"token": "a&b"}), headers=given)
        assert form.expect(200, 201).body == (
            b"POST|application/x-www-form-urlencoded|Bearer secret|token=a%26b"
        )
        posted = Fetcher().post(url + "/", json_body({"a": [1]}))
        assert (posted.status, posted.body) == (201, b'POST|application/json|-|{"a": [1]}')
        assert Fetcher().get(url + "/", headers=given).body == b"GET|-|Bearer secret|"


def test_a_post_is_not_redirected() -> None:
    """What is posted goes to the URL that was configured and nowhere else."""
    asked: list[str] = []

    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        answer(b"", 307, location="/b")(handler)

    with serving({"/a": elsewhere, "/b": elsewhere}) as url:
        redirect = Fetcher().post(url + "/a", form_body({"token": "secret"}))
        assert (redirect.status, redirect.headers["location"]) == (307, "/b")
        with pytest.raises(DependencyError, match="answers 307"):
            redirect.expect(200)
    assert asked == ["/a"]


def test_headers_do_not_follow_a_redirect_to_another_server() -> None:
    """Credentials go to the server that they were given for; they do not come back on the way either."""
    with serving({"/": echo}) as other:
        answers = {"/": echo, "/same": answer(b"", 302, location="/")}
        with serving(answers | {"/other": answer(b"", 302, location=other + "/")}) as url:
            given = {"authorization": "Bearer secret"}
            assert b"secret" in Fetcher().get(url + "/same", headers=given).body
            assert b"secret" not in Fetcher().get(url + "/other", headers=given).body


def test_header_names_and_values_are_those_of_the_answer() -> None:
    """Names are in lower case and repeated ones joined, as RFC 9110 (section 5.3) says they may be."""

    def repeated(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in (("Content-Length", "0"), ("Cache-Control", "a"), ("cache-control", "b")):
            handler.send_header(name, value)
        handler.end_headers()

    with serving({"/": repeated}) as url:
        assert Fetcher().get(url + "/").headers["cache-control"] == "a, b"


@pytest.mark.parametrize("value", ["Bearer secret\r\nx: y", "Bearer secret\n", "secret\u00e9", "secret\x7f"])
def test_no_secret_is_in_an_error(value: str) -> None:
    """Headers that HTTP cannot carry, queries, and what is posted are in no message and in no `repr`."""
    with pytest.raises(DependencyError) as refused:
        Fetcher().get("http://127.0.0.1:1/", headers={"authorization": value})
    with pytest.raises(DependencyError) as gone:
        Fetcher(resolve=lambda *_: []).get("http://issuer.example/?key=secret#secret")
    with pytest.raises(DependencyError) as not_a_url:
        Fetcher().get("http://issuer.example/ ?key=secret")
    with serving({"/?key=secret": answer(b"secret", 404, location="secret")}) as url:
        found = Fetcher().get(url + "/?key=secret")
        with pytest.raises(DependencyError) as absent:
            found.expect(200)
    for error in (refused, gone, not_a_url, absent):
        assert "secret" not in repr(error.value)
    assert "secret" not in repr(found)
    assert "secret" not in repr(form_body({"token": "secret"}))


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "a b", "a:", "", "\u00e9"])
def test_headers_that_would_change_the_request_are_refused(name: str) -> None:
    """Callers cannot set what says where a request ends or whom it is for."""
    with pytest.raises(DependencyError, match="header"):
        Fetcher().get("http://127.0.0.1:1/", headers={name: "1"})


def test_compressed_bodies_are_refused() -> None:
    """Nothing is unpacked, so a small body cannot become a large one."""
    packed = answer(b"\x1f\x8b", content_encoding="gzip")
    with serving({"/": packed}) as url, pytest.raises(DependencyError, match="encoding"):
        fetch(url + "/")


def test_a_large_body_is_not_read_to_its_end() -> None:
    """Reading stops soon after the limit, whatever the server still has to say."""
    hung_up = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        except OSError:
            hung_up.set()

    with serving({"/": endless}) as url:
        with pytest.raises(DependencyError, match="more than 100 bytes"):
            Fetcher(max_bytes=100).get(url + "/")
        assert hung_up.wait(10)


def test_configured_ranges_are_blocked_also_on_this_machine() -> None:
    """An address in a blocked range is not connected to, by URL, by name or by redirect."""
    block = {"blocked": [parse_network("127.0.0.0/8")]}
    with serving({"/": answer(b"ok")}) as url:
        with pytest.raises(DependencyError, match=r"leads to `127\.0\.0\.1`, which is not allowed"):
            fetch(url + "/", **block)
        with pytest.raises(DependencyError, match=r"leads to `64:ff9b::7f00:1`"):
            fetch("http://issuer.example/", resolve=lambda *_: ["64:ff9b::7f00:1"], **block)


def test_a_name_that_changes_its_answer_is_looked_at_each_time() -> None:
    """DNS rebinding: the address that was judged is the one connected to, and a redirect is judged again."""
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])
    with serving({"/": answer(b"", 302, location="/again"), "/again": answer(b"ok")}) as url:
        port = url.rpartition(":")[2]
        with pytest.raises(DependencyError, match=r"leads to `169\.254\.169\.254`"):
            fetch(f"http://issuer.example:{port}/", resolve=lambda *_: next(answers))
    assert next(answers, None) is None


def test_what_a_server_elsewhere_names_is_not_on_this_machine() -> None:
    """A document from elsewhere that names a URL is like a redirect; one from this machine may name it."""
    with serving({"/": answer(b"ok")}) as url:
        elsewhere = Answer("http://issuer.example/", 200, {}, b"", is_local=False)
        with pytest.raises(DependencyError, match=r"leads to `127\.0\.0\.1`"):
            Fetcher().get(url + "/", told_by=elsewhere)
        here = Fetcher().get(url + "/")
        assert here.is_local
        assert Fetcher().get(url + "/", told_by=here).body == b"ok"


def test_a_ca_file_is_followed(tmp_path: Path) -> None:
    """With a CA file its roots alone count, as the file is now; a broken file keeps those read before."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    roots = tmp_path / "ca.pem"
    first, ca = certify(old, "127.0.0.1")
    roots.write_bytes(ca.read_bytes())
    with serving({"/": answer(b"ok")}, first) as url:
        fetcher = Fetcher(ca=roots)
        assert fetcher.get(url + "/").body == b"ok"
        roots.write_text("nothing")
        assert fetcher.get(url + "/").body == b"ok"
        second, ca = certify(new, "127.0.0.1")
        (tmp_path / "next.pem").write_bytes(ca.read_bytes())
        (tmp_path / "next.pem").replace(roots)
        with pytest.raises(DependencyError, match="CERTIFICATE_VERIFY_FAILED"):
            fetcher.get(url + "/")
    with serving({"/": answer(b"ok")}, second) as url:
        assert fetcher.get(url + "/").body == b"ok"
        with pytest.raises(DependencyError, match="holds no certificates"):
            Fetcher(ca=tmp_path / "absent.pem").get(url + "/")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nx: ", b"\x16\x03\x01"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_never_comes_to_the_point_is_cut_off(scheme: str, said: bytes) -> None:
    """Handshake, status line and headers are under the same time limit as the body."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(said)
                    while not done.wait(0.02):
                        connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(DependencyError):
                Fetcher(timeout_seconds=0.2).get(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/")
        finally:
            done.set()
            thread.join()
