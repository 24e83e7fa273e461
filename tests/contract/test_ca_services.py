"""Real servers as CAs: tokens, renewals and refusals as an Istio agent meets them; two processes, one ledger."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from support import http_server
from support.asking import page
from support.ca_api import DOMAIN, Holder, bearer, server_files
from support.certificates import certify
from support.http_server import answer as http_answer
from support.serving import serving, write_settings
from support.tokens import ec_signer

from ca.api.istio_csr import SERVICE
from ca.authority import Authority, Hierarchy
from ca.inspection import check_leaf
from ca.ledger import CertificateQuery, JoinToken, token_hash
from ca.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from ca.store.sqlite import SqliteLedger
from garrison.identity import SpiffeId
from garrison.token_review import PATH

WEB = "spiffe://cluster.local/ns/shop/sa/web"
ISSUER = "https://kubernetes.example"
SECRET = "s" * 43
WORKLOAD = f"""
workloads:
- {{spiffe_id: {WEB}, selectors: ["k8s:ns:shop", "k8s:sa:web"]}}
"""


@pytest.fixture
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a new CA, with a name short enough for sockets beside it."""
    directory = tmp_path_factory.mktemp("s") / "pki"
    Hierarchy.create(DOMAIN, now=datetime.now(UTC)).save(directory)
    server_files(directory.parent, Authority.load(directory), is_client_optional=True)
    return directory


@pytest.fixture
def ledger(pki: Path) -> Iterator[SqliteLedger]:
    """Return the ledger that servers use too."""
    opened = SqliteLedger.of(pki)
    yield opened
    opened.close()


def settings(pki: Path, more: str = "", folder: Path | None = None) -> Path:
    """Return settings of a server that listens for signing requests."""
    folder = folder or pki.parent
    tls = f"{{certificate: {pki.parent}/tls.pem, private_key: {pki.parent}/tls.key}}"
    return write_settings(
        folder, f'ca: {{dir: {pki}, listen: ["tls://127.0.0.1:0"], tls: {tls}{more}}}{WORKLOAD}'
    )


def create(server: Any, pki: Path, holder: Holder, token: str = "", shown: Holder | None = None) -> list[str]:
    """Ask a server for a certificate."""
    key, chain = shown.credentials if shown is not None else (None, None)
    credentials = grpc.ssl_channel_credentials((pki / "root-cert.pem").read_bytes(), key, chain)
    port = server["ca"][0].rpartition(":")[2]
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        found = channel.unary_unary(
            f"/{SERVICE}/CreateCertificate",
            IstioCertificateRequest.SerializeToString,
            IstioCertificateResponse.FromString,
        )(
            IstioCertificateRequest(csr=holder.csr().decode()),
            metadata=(bearer(token),) if token else (),
            timeout=20,
        )
    return list(found.cert_chain)


def leaf(chain: list[str]) -> x509.Certificate:
    """Return the first certificate."""
    return x509.load_pem_x509_certificate(chain[0].encode())


def pod_token(**changes: Any) -> str:
    """Return a projected token."""
    claims = {
        "iss": ISSUER,
        "sub": "system:serviceaccount:shop:web",
        "aud": "istio-ca",
        "exp": int(time.time()) + 600,
        "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web"}},
    }
    return ec_signer().token({**claims, **changes})


def test_an_istio_agent_and_a_server(pki: Path, ledger: SqliteLedger) -> None:
    """Its token once, its certificate from then on; metrics and audit log tell of it, keys come from a file."""
    (pki.parent / "keys.json").write_text(ec_signer().jwks())
    issuer = f"{{issuer: {ISSUER}, audiences: [istio-ca], jwks_file: keys.json, kubernetes: true}}"
    with serving("--config", str(settings(pki, f", token_issuers: [{issuer}]"))) as server:
        ready = server.wait_for("ready")
        holder, renewed = Holder(), Holder()
        holder.take(create(ready, pki, holder, pod_token())[:-1])
        renewed.take(create(ready, pki, renewed, shown=holder)[:-1])
        assert str(check_leaf(renewed.chain[0])) == WEB
        for bad in (pod_token(aud="x"), "t" * 43):
            with pytest.raises(grpc.RpcError, match="request authenticate failure"):
                create(ready, pki, Holder(), bad)
        server.wait_for("ca refused", lambda event: event["reason"] == "token_unknown")
        _, metrics = page(ready["admin"], "/metrics")
        assert 'garrison_ca_certificates_total{attested_by="jwt"} 1.0' in metrics
        assert 'garrison_ca_certificates_total{attested_by="x509_svid"} 1.0' in metrics
        assert 'garrison_ca_refusals_total{reason="wrong_audience"} 1.0' in metrics
        # The local socket serves the same methods: the kernel vouches for this process, and nobody registered it.
        with grpc.insecure_channel(f"unix:{pki.parent}/c.sock") as channel:
            call: Any = channel.unary_unary(f"/{SERVICE}/CreateCertificate")
            with pytest.raises(grpc.RpcError, match="no registration matches"):
                call(IstioCertificateRequest(csr=Holder().csr().decode()).SerializeToString(), timeout=20)
        assert server.stop() == 0
    kinds = [one.attested_by for one in ledger.issued(CertificateQuery(), now=datetime.now(UTC)).certificates]
    assert kinds == ["x509_svid", "jwt"]
    denied = [one.fields()["reason"] for one in ledger.audit() if one.event == "issuance_denied"]
    assert denied == ["wrong_audience", "token_unknown", "not_registered"]
    assert ledger.verify_audit().intact


def test_two_processes_race_for_one_token(pki: Path, ledger: SqliteLedger) -> None:
    """Sixteen callers bring one join token to two servers on one ledger: one certificate in all."""
    now = datetime.now(UTC)
    spiffe_id = SpiffeId.parse(WEB)
    ledger.add_token(JoinToken(token_hash(SECRET), spiffe_id, now, now + timedelta(minutes=5), "test"))
    other = pki.parent / "o"
    other.mkdir()
    with (
        serving("--config", str(settings(pki))) as one,
        serving("--config", str(settings(pki, folder=other))) as two,
        ThreadPoolExecutor(16) as threads,
    ):
        ready = [server.wait_for("ready") for server in (one, two)]

        def ask(number: int) -> list[str] | grpc.StatusCode:
            try:
                return create(ready[number % 2], pki, Holder(), SECRET)
            except grpc.RpcError as error:
                return error.code()

        answers = list(threads.map(ask, range(16)))
    assert [one for one in answers if not isinstance(one, list)] == [grpc.StatusCode.UNAUTHENTICATED] * 15
    assert len(ledger.issued(CertificateQuery(), now=now).certificates) == 1
    assert ledger.verify_audit().intact


class ApiServer:
    """A Kubernetes API server that knows one token."""

    def __init__(self) -> None:
        self.audiences: list[str] = ["garrison-ca"]
        self.status = 201

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request."""
        sent = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        known = sent["spec"]["token"] == self.token and handler.headers["authorization"] == "Bearer own"
        status: dict[str, Any] = {"authenticated": known}
        if known:
            status["audiences"] = self.audiences
            status["user"] = {
                "username": "system:serviceaccount:shop:web",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            }
        body = json.dumps({"kind": "TokenReview", "status": status}).encode()
        http_answer(body, self.status, content_type="application/json")(handler)

    # Of an issuer that is not configured: only the API server can say what it is worth.
    token = ec_signer("k9").token({"iss": "https://cluster.example", "sub": "x"})


def test_a_token_that_the_api_server_knows(pki: Path) -> None:
    """Its word counts for our audience; another audience, an unknown token and no answer give nothing."""
    api = ApiServer()
    (pki.parent / "own").write_text("own")
    tls, roots = certify(pki.parent, "127.0.0.1")
    with http_server.serving({PATH: api}, tls) as url:
        review = f"{{audiences: [garrison-ca], server: {url}, ca: {roots}, token_file: {pki.parent}/own}}"
        server_files(pki.parent, Authority.load(pki), is_client_optional=True)
        with serving("--config", str(settings(pki, f", token_review: {review}"))) as server:
            ready = server.wait_for("ready")
            assert str(check_leaf(leaf(create(ready, pki, Holder(), api.token)))) == WEB
            for token, audiences, status, code in (
                (ec_signer("k9").token({"iss": "x"}), ["garrison-ca"], 201, grpc.StatusCode.UNAUTHENTICATED),
                (api.token, ["other"], 201, grpc.StatusCode.UNAUTHENTICATED),
                (api.token, [], 201, grpc.StatusCode.UNAUTHENTICATED),
                (api.token, ["garrison-ca"], 500, grpc.StatusCode.UNAVAILABLE),
                (api.token, ["garrison-ca"], 403, grpc.StatusCode.UNAVAILABLE),
            ):
                api.audiences, api.status = audiences, status
                with pytest.raises(grpc.RpcError) as refused:
                    create(ready, pki, Holder(), token)
                assert refused.value.code() is code


def test_certificates_of_the_server_are_renewed(pki: Path, ledger: SqliteLedger) -> None:
    """New TLS files are taken while it serves."""
    now = datetime.now(UTC)
    for secret in ("a" * 43, "b" * 43):
        ledger.add_token(JoinToken(token_hash(secret), SpiffeId.parse(WEB), now, now + timedelta(1), "test"))
    with serving("--config", str(settings(pki))) as server:
        ready = server.wait_for("ready")
        create(ready, pki, Holder(), "a" * 43)
        server_files(pki.parent, Authority.load(pki), is_client_optional=True)
        server.wait_for("snapshot_swapped", lambda event: event["kind"] == "ca_tls")
        create(ready, pki, Holder(), "b" * 43)
