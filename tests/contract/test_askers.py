"""`request.require_asker_svid` on a real server: sidecars ask over mTLS, on both transports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from support.checks import check_request, principal, role
from support.serving import serving, write_settings

from ca.authority import Authority, Hierarchy
from ca.keys import new_private_key, private_key_pem
from garrison.identity import SpiffeId, TrustDomain

CHECK = "/envoy.service.auth.v3.Authorization/Check"
OWN, OTHER = "products.default.svc.cluster.local", "reviews.default.svc.cluster.local"


def issue(authority: Authority, name: str) -> tuple[bytes, bytes]:
    """Return a certificate chain and key for a service account; a server's name is `localhost`, too."""
    key, now = new_private_key(), datetime.now(UTC)
    svid = authority.issue(
        SpiffeId.parse(principal(name)),
        key.public_key(),
        now=now,
        ttl=timedelta(hours=1),
        dns_names=["localhost"],
    )
    return svid.chain_pem, private_key_pem(key)


@pytest.mark.parametrize("transport", ["ngh2", "grpcio"])
def test_sidecars_ask_about_themselves(tmp_path_factory: pytest.TempPathFactory, transport: str) -> None:
    """Over mTLS each sidecar is answered about its own workload; Unix sockets carry no SVID."""
    folder = tmp_path_factory.mktemp("s")
    authority = Hierarchy.create(TrustDomain("cluster.local"), now=datetime.now(UTC)).authority()
    chain, key = issue(authority, "garrison")
    for name, content in (("s.pem", chain), ("s.key", key), ("roots.pem", authority.bundle_pem())):
        (folder / name).write_bytes(content)
    file = write_settings(
        folder,
        f"""
workloads:
- {{spiffe_id: {principal("products")}, service: {OWN}}}
- {{spiffe_id: {principal("gateway")}, may_ask_about: ["*.default.svc.cluster.local"]}}
""",
    )
    secure = "require_asker_svid: true, tls: {certificate: s.pem, private_key: s.key, client_ca: roots.pem}, "
    text = file.read_text().replace("request: {", f"request: {{transport: {transport}, {secure}")
    file.write_text(text.replace('"tcp://127.0.0.1:0"]}\ncontrol', '"tls://127.0.0.1:0"]}\ncontrol'))
    (folder / "policies" / "role.yaml").write_text(role("[{}]"))

    def ask(address: str, account: str | None, service: str | None, **extensions: str) -> str:
        message = check_request(service=service, extensions=extensions).SerializeToString()
        if address.startswith("unix://"):
            channel = grpc.insecure_channel(address.replace("unix://", "unix:"))
        else:
            assert account is not None
            chain, key = issue(authority, account)
            credentials = grpc.ssl_channel_credentials(authority.bundle_pem(), key, chain)
            options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.secure_channel(address.removeprefix("tls://"), credentials, options)
        with channel:
            method: Any = channel.unary_unary(CHECK)
            answer = CheckResponse.FromString(method(message, timeout=20, wait_for_ready=True))
        return str(answer.dynamic_metadata["code"])

    with serving("--config", str(file)) as server:
        addresses = server.wait_for("ready")["request"]
        tls = next(one for one in addresses if one.startswith("tls://"))
        unix = next(one for one in addresses if one.startswith("unix://"))
        user = {"destination.user": "ratings"}
        assert ask(tls, "products", OWN) == "role_matched"
        assert ask(tls, "products", None) == "role_matched"
        assert ask(tls, "products", OTHER) == "asker_not_allowed"
        assert ask(tls, "gateway", OTHER) == "role_matched"
        assert ask(tls, "gateway", "a.shop.svc.cluster.local") == "asker_not_allowed"
        assert ask(tls, "ratings", "ratings.default.svc.cluster.local", **user) == "role_matched"
        assert ask(tls, "ratings", "ratings.default.svc.cluster.local") == "asker_not_allowed"
        assert ask(unix, None, OWN) == "asker_not_identified"
        assert server.stop() == 0


def test_it_needs_a_way_to_show_an_svid(tmp_path: Path) -> None:
    """Without mTLS nobody could ask any more: an error at the start."""
    file = write_settings(tmp_path)
    for text, expected in (
        (
            file.read_text().replace("request: {", "request: {require_asker_svid: true, "),
            "needs `tls.client_ca`",
        ),
        (
            file.read_text().replace(
                "request: {",
                "request: {require_asker_svid: true, tls: {certificate: a, private_key: b, client_ca: c}, ",
            ),
            "needs a `tls://` address",
        ),
    ):
        file.write_text(text)
        with serving("--config", str(file)) as server:
            assert server.wait() == 2
            lines = [server._arriving.get()]
        assert any(expected in str(line) for line in lines)
        file = write_settings(tmp_path)
