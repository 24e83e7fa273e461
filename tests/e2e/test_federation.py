"""Two trust domains, each with its own `garrison serve`, CA and Envoy, federated both ways over the network."""

from __future__ import annotations

import json
import os
import socket
import ssl
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from support.ca_files import done
from support.certificates import certify
from support.envoys import (
    Envoy,
    call,
    cluster,
    eventually,
    fragment,
    garrison_cluster,
    listener,
    log_lines,
    running_envoy,
    typed,
)
from support.policies import policy
from support.serving import Serving

from ca.authority import ROOT_CERT, Authority, Hierarchy
from ca.authority_files import FOLDER
from ca.bundle import format_certificates, parse_spiffe_bundle
from ca.issuer import Issuer
from ca.keys import new_private_key, new_serial, private_key_pem
from ca.template import leaf_template
from garrison.fetching import Fetcher
from garrison.identity import SpiffeId, TrustDomain

SHOP, BANK = TrustDomain("shop.test"), TrustDomain("bank.test")
REFUSED = (ssl.SSLError, ConnectionResetError, BrokenPipeError, EOFError)


def workload(domain: TrustDomain) -> SpiffeId:
    """Return the identity of the Envoy of a trust domain."""
    return SpiffeId(domain, ("web",))


def tls_context(other: TrustDomain) -> dict[str, Any]:
    """Return an Envoy's own identity, and whom it takes: SVIDs of `other` under the bundle of `other` alone."""
    source = json.loads(json.dumps(fragment("sds")).replace("garrison_control", "garrison_request"))
    names = [{"san_type": "URI", "matcher": {"prefix": f"spiffe://{other}/"}}]
    return {
        "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": source}],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": names},
            "validation_context_sds_secret_config": {"name": f"spiffe://{other}", "sds_config": source},
        },
    }


def manager(route: dict[str, Any]) -> dict[str, Any]:
    """Return what sends every call the same way."""
    router = typed("filters.http.router.v3.Router", "envoy.filters.http.router")
    everything = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **route}]}
    return typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "envoy.filters.network.http_connection_manager",
        stat_prefix="all",
        http_filters=[router],
        route_config={"virtual_hosts": [everything]},
    )


@dataclass
class Side:
    """A trust domain: its files, its server, and the port of its Envoy that takes calls of the other domain."""

    domain: TrustDomain
    other: TrustDomain
    folder: Path
    port: int
    settings: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    server: Serving | None = None
    addresses: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start the server, at the addresses that it had before."""
        document = {
            "trust_domain": str(self.domain),
            "request": {"listen": ["tcp://127.0.0.1:0"]},
            "admin": {"listen": "tcp://127.0.0.1:0"},
            "control": {"listen": [f"unix://{self.folder / 'c.sock'}"]},
            "ca": {"dir": "pki", **self.settings},
            "workloads": [
                {
                    "spiffe_id": str(workload(self.domain)),
                    "selectors": [f"unix:uid:{os.getuid()}"],
                    "federates_with": [str(self.other)],
                }
            ],
            **self.more,
        }
        for name, address in self.addresses.items():
            self.settings[name]["listen"] = address
        (self.folder / "settings.yaml").write_text(json.dumps(document))
        self.server = Serving(["--config", str(self.folder / "settings.yaml")])
        for name, event in (("oidc", "oidc_listening"), ("federation", "bundle_endpoint_listening")):
            if "listen" in self.settings.get(name, {}):
                self.addresses[name] = self.server.wait_for(event)["address"]
        self.server.wait_for("ready")

    def stop(self) -> None:
        """Stop the server."""
        assert self.server is not None
        assert self.server.stop() == 0
        self.server.close()

    def close(self) -> None:
        """End the server whatever it does."""
        if self.server is not None:
            self.server.close()

    def wait_for_news(self) -> None:
        """Return when a bundle of the other domain that is new was stored."""
        assert self.server is not None
        self.server.wait_for("federated bundle refreshed")

    def ca(self, *words: str | Path) -> Any:
        """Run `ca federation`, and return what it prints."""
        return json.loads(
            done("federation", words[0], "--dir", self.folder / "pki", *words[1:], "--json").stdout
        )

    def url(self, name: str) -> str:
        """Return the URL of the bundle."""
        return self.addresses[name].replace("tls://", "https://") + "/bundle"

    def client(self, issuer: Issuer, spiffe_id: SpiffeId) -> ssl.SSLContext:
        """Return a TLS client that shows a certificate of `spiffe_id`, whoever's it is to give."""
        key = new_private_key()
        template = leaf_template(spiffe_id, key.public_key(), ())
        now = datetime.now(UTC)
        leaf = issuer.sign(template, now=now, lifetime=timedelta(hours=1), serial=new_serial()).certificate
        file = self.folder / "client.pem"
        file.write_bytes(format_certificates([leaf, issuer.certificate]) + private_key_pem(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # what is looked at is whether the server takes us
        context.load_cert_chain(file)
        return context

    def takes(self, client: ssl.SSLContext) -> bool:
        """Tell whether this side's Envoy answers `client`."""
        try:
            return call(self.port, "/", [("host", "a")], tls=client).status == 200
        except REFUSED:
            return False


@dataclass
class World:
    """Both sides with their Envoys."""

    shop: Side
    bank: Side
    envoys: dict[TrustDomain, Envoy]

    def status(self, caller: Side) -> int:
        """Return how a call ends that goes through the caller's Envoy to the other side's, newly connected."""
        return call(self.envoys[caller.domain].ports["out"], "/", [("host", "a")]).status

    def wait_until(self, caller: Side, status: int) -> None:
        """Call until that is how it ends."""
        eventually(lambda: self.status(caller) == status or None, f"{status} to {caller.domain}")


def envoy_of(side: Side, other: Side, stack: ExitStack) -> Envoy:
    """Run the Envoy of `side`: `in` takes calls of the other domain, `out` makes them."""
    inbound = listener("in", [manager({"direct_response": {"status": 200}})], tls_context(side.other))
    inbound["address"] = {"socket_address": {"address": "127.0.0.1", "port_value": side.port}}
    outbound = listener("out", [manager({"route": {"cluster": "other"}})])
    there = cluster("other", other.port)
    there["transport_socket"] = typed(
        "transport_sockets.tls.v3.UpstreamTlsContext",
        "envoy.transport_sockets.tls",
        common_tls_context=tls_context(side.other),
    )
    # Each call has a connection of its own: what is trusted shows in handshakes.
    options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    there["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": options,
            "common_http_protocol_options": {"max_requests_per_connection": 1},
            "explicit_http_config": {"http_protocol_options": {}},
        }
    }
    clusters = [garrison_cluster(side.folder / "c.sock"), there]
    return stack.enter_context(running_envoy(side.folder, [inbound, outbound], clusters))


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    """Yield both sides, federated: the shop's endpoint proves itself by the Web PKI, the bank's by its SVID."""
    with ExitStack() as stack:
        # pytest's own folders are too deep for the paths of Unix sockets.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="garrison-e2e-")))
        both = []
        for domain, other in ((SHOP, BANK), (BANK, SHOP)):
            # Bound, so that nobody else gets the port; Envoy shares it.
            held = stack.enter_context(socket.socket())
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(("127.0.0.1", 0))
            where = folder / str(domain)
            where.mkdir()
            Hierarchy.create(domain, now=datetime.now(UTC)).save(where / "pki")
            both.append(Side(domain, other, where, held.getsockname()[1]))
        shop, bank = both
        _, web_root = certify(shop.folder, "127.0.0.1")
        files = {"certificate": "cert.pem", "private_key": "key.pem"}
        shop.settings = {"oidc": {"listen": "tls://127.0.0.1:0", "tls": files}, "federation": {"poll": "1s"}}
        bank.settings = {
            "federation": {
                "listen": "tls://127.0.0.1:0",
                "spiffe_id": "spiffe://bank.test/bundles",
                "poll": "1s",
                "web_roots": str(web_root),
            }
        }
        for side in both:
            side.start()
            stack.callback(side.close)
        published = done("bundle", "--dir", bank.folder / "pki", "--format", "spiffe").stdout
        (folder / "bank.json").write_text(published)
        by_svid = ("--profile", "https_spiffe", "--endpoint-id", "spiffe://bank.test/bundles")
        shop.ca("create", "bank.test", bank.url("federation"), *by_svid, "--bundle", folder / "bank.json")
        bank.ca("create", "shop.test", shop.url("oidc"))
        for side in both:
            side.wait_for_news()
        yield shop, bank


def checking_envoy(side: Side, garrison: Path, stack: ExitStack) -> Envoy:
    """Run an Envoy whose listener lets in whoever has a certificate, and has Garrison look at it."""
    log = side.folder / "access.log"
    log.touch()
    access_log = fragment("access_log", access_log_path=str(log))
    line = access_log["typed_config"]["log_format"]["json_format"]
    for name in ("code", "reason"):
        line[f"authz_{name}"] = f"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:{name})%"
    ext_authz = fragment("ext_authz")
    ext_authz["typed_config"]["include_peer_certificate"] = True
    ext_authz["typed_config"]["grpc_service"]["timeout"] = "5s"
    destination = {"destination.service": "a.shop.svc.cluster.local"}
    route = fragment("inbound_route", match={"prefix": "/"}, rate_limits=[], destination=destination)
    del route["route"]
    route["direct_response"] = {"status": 200}
    manager = fragment(
        "inbound_http",
        access_log=[access_log],
        http_filters=[ext_authz, fragment("router")],
        routes=[route],
    )
    authority = Authority.load(side.folder / "pki")
    key = new_private_key()
    own = authority.issue(
        workload(side.domain), key.public_key(), now=datetime.now(UTC), ttl=timedelta(hours=1)
    )
    tls = {
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": own.chain_pem.decode()},
                "private_key": {"inline_string": private_key_pem(key).decode()},
            }
        ],
        "validation_context": {
            "trusted_ca": {"inline_string": authority.bundle_pem().decode()},
            "trust_chain_verification": "ACCEPT_UNTRUSTED",
        },
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    folder = side.folder / "checking"
    folder.mkdir()
    return stack.enter_context(
        running_envoy(folder, [listener("in", filters, tls)], [garrison_cluster(garrison)])
    )


@pytest.fixture
def world(sides: tuple[Side, Side]) -> Iterator[World]:
    """Yield both sides with their Envoys."""
    shop, bank = sides
    with ExitStack() as stack:
        yield World(shop, bank, {SHOP: envoy_of(shop, bank, stack), BANK: envoy_of(bank, shop, stack)})


def test_two_trust_domains_know_each_other(world: World) -> None:
    """Calls go both ways while both say so; a root that is added arrives; a federation that is deleted ends."""
    shop, bank = world.shop, world.bank
    for side in (shop, bank):
        world.wait_until(side, 200)

    # The bank vouches for the bank: the same CA, the same client, another name.
    banks = Authority.load(bank.folder / "pki").issuer
    assert shop.takes(shop.client(banks, SpiffeId(BANK, ("teller",))))
    for name in (workload(SHOP), SpiffeId(TrustDomain("else.test"), ("web",))):
        assert not shop.takes(shop.client(banks, name))
    # What comes from the shop is no caller from the bank.
    assert not shop.takes(shop.client(Authority.load(shop.folder / "pki").issuer, workload(SHOP)))

    # The endpoint is the SVID that was configured, and that was recorded.
    issued = json.loads(done("list", "--dir", bank.folder / "pki", "--json").stdout)["certificates"]
    assert "spiffe://bank.test/bundles" in {one["spiffe_id"] for one in issued}

    # A server that starts while the other side is away has what it had.
    successor = Hierarchy.create(BANK, now=datetime.now(UTC))
    assert not shop.takes(shop.client(successor.issuer, workload(BANK)))
    bank.stop()
    shop.stop()
    shop.start()
    world.wait_until(bank, 200)

    # A new root of the bank reaches the shop while that runs.
    roots = bank.folder / "pki" / ROOT_CERT
    roots.write_bytes(roots.read_bytes() + format_certificates([successor.root]))
    before = shop.ca("show", "bank.test")["sequence"]
    bank.start()
    shop.wait_for_news()
    eventually(
        lambda: shop.takes(shop.client(successor.issuer, workload(BANK))) or None, "a leaf under the new root"
    )
    shown = shop.ca("show", "bank.test")
    assert (shown["roots"], shown["sequence"] > before) == (2, True)
    assert world.status(bank) == world.status(shop) == 200

    # Once the shop forgets the bank, neither takes the other's calls: each trusts whom it is told to.
    shop.ca("delete", "bank.test")
    world.wait_until(bank, 503)
    world.wait_until(shop, 503)
    assert not shop.takes(shop.client(successor.issuer, workload(BANK)))
    assert not shop.takes(shop.client(banks, workload(BANK)))


@pytest.mark.parametrize("workers", [1, 2])
def test_peers_are_verified_with_the_bundle_that_federation_keeps(
    sides: tuple[Side, Side], workers: int
) -> None:
    """A root of the other side counts from its publication to its end, without a restart here."""
    shop, bank = sides
    shop.stop()
    (shop.folder / "policies.yaml").write_text(policy("[{}]", namespace="istio-system"))
    shop.more = {
        "workers": workers,
        "policies": ["policies.yaml"],
        "request": {"listen": [f"unix://{shop.folder / 'r.sock'}"]},
        "federated_trust_domains": ["bank.test"],
        "trust_bundles": [{"trust_domain": "bank.test", "federation": True}],
    }
    shop.start()
    teller, pki = SpiffeId(BANK, ("teller",)), bank.folder / "pki"
    socket_of = shop.folder / ("r.sock" if workers == 1 else "r.1.sock")

    with ExitStack() as stack:
        envoy = checking_envoy(shop, socket_of, stack)

        def asked(issuer: Issuer, spiffe_id: SpiffeId = teller) -> tuple[int, str, str]:
            request_id = str(uuid.uuid4())
            headers = [("host", "a"), ("x-request-id", request_id)]
            answer = call(envoy.ports["in"], "/", headers, tls=shop.client(issuer, spiffe_id))
            (line,) = log_lines(shop.folder / "access.log", request_id)
            return answer.status, line["authz_code"], line["authz_reason"]

        def becomes(issuer: Issuer, status: int) -> None:
            eventually(
                lambda: asked(issuer)[0] == status or None, f"{status} to {issuer.certificate.subject}"
            )

        old = Authority.load(pki).issuer
        assert asked(old)[:2] == (200, "policy_matched")
        stranger = Hierarchy.create(BANK, now=datetime.now(UTC)).issuer
        assert asked(stranger)[:2] == (403, "peer_certificate_invalid")
        # The bank vouches for nobody but the bank.
        assert asked(old, workload(SHOP))[:2] == (403, "peer_certificate_invalid")
        assert asked(old, SpiffeId(TrustDomain("else.test"), ("web",)))[:2] == (403, "foreign_trust_domain")

        def authority(command: str, *words: str) -> Any:
            return json.loads(done("authority", command, "--dir", pki, "--json", *words).stdout)

        authority("prepare", "--new-root")
        (folder,) = (pki / FOLDER).iterdir()
        new = Authority.load(folder).issuer
        becomes(new, 200)
        assert asked(old)[:2] == (200, "policy_matched")
        authority("activate", "--now")
        first = authority("list")[0]["authority"]
        authority("taint", first)
        authority("revoke", first, "--now")
        becomes(old, 403)
        assert asked(old)[1] == "peer_certificate_invalid"
        assert asked(new)[:2] == (200, "policy_matched")

        shop.ca("delete", "bank.test")
        becomes(new, 403)
        _, code, reason = asked(new)
        assert code == "peer_certificate_invalid"
        assert "there is no root of `bank.test`: its federation has given none" in reason


def test_endpoints_take_no_certificate_of_the_other_kind(sides: tuple[Side, Side]) -> None:
    """Public roots do not vouch for an SVID endpoint, nor a bundle for a web server; GET only, JSON."""
    shop, bank = sides
    fetched = Fetcher(ca=shop.folder / "cert.pem").get(shop.url("oidc")).expect(200)
    assert fetched.headers["content-type"] == "application/json"
    assert len(parse_spiffe_bundle(fetched.body).x509_authorities) == 1
    # The same endpoints under the other profile.
    refused = [
        (shop, "bank.test", bank.url("federation"), ("--profile", "https_web")),
        (
            bank,
            "shop.test",
            shop.url("oidc"),
            ("--profile", "https_spiffe", "--endpoint-id", "spiffe://shop.test/bundles", "--bundle"),
        ),
    ]
    for side, domain, url, options in refused:
        known = side.ca("show", domain)["bundle"]
        file = side.folder / "known.json"
        file.write_text(json.dumps(known))
        side.ca("delete", domain)
        extra = [*options, file] if options[-1] == "--bundle" else list(options)
        side.ca("create", domain, url, *extra)
        assert side.server is not None
        event = side.server.wait_for("federated bundle not refreshed")
        assert "certificate verify failed" in event["reason"]
    assert shop.ca("show", "bank.test")["roots"] == 0


def test_an_endpoint_of_another_name_is_refused(sides: tuple[Side, Side]) -> None:
    """An SVID of the right trust domain is not enough: it must be the one that was configured."""
    shop, bank = sides
    known = shop.ca("show", "bank.test")["bundle"]
    (shop.folder / "known.json").write_text(json.dumps(known))
    shop.ca("delete", "bank.test")
    by_svid = ("--profile", "https_spiffe", "--endpoint-id", "spiffe://bank.test/other")
    shop.ca("create", "bank.test", bank.url("federation"), *by_svid, "--bundle", shop.folder / "known.json")
    assert shop.server is not None
    event = shop.server.wait_for("federated bundle not refreshed")
    assert "is `spiffe://bank.test/bundles`, not `spiffe://bank.test/other`" in event["reason"]
    # What was given stays, to be verified with.
    assert x509.load_pem_x509_certificates(
        done("federation", "show", "--dir", shop.folder / "pki", "bank.test", "--pem").stdout.encode()
    )
