"""An Envoy that takes its identity and its roots over SDS, and a client that looks at what it shows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509

from ca.authority import Authority
from ca.keys import new_private_key, private_key_pem
from garrison.envoy_binary import find_envoy
from garrison.identity import SpiffeId

CLIENT = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/client")
DEADLINE_SECONDS = 20
ENVOY = find_envoy().resolve()
Found = TypeVar("Found")


def bootstrap(
    sds_socket: Path, api_type: str, certificate: str = "default", trusted: str = "ROOTCA"
) -> dict[str, Any]:
    """Return an Envoy that answers 200 to whoever it accepts over mutual TLS; an `api_type` of ADS: all over ADS."""
    own_stream = {
        "api_type": api_type.replace("ADS", "GRPC"),
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}],
    }
    source = {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0s",
        **({"ads": {}} if api_type == "ADS" else {"api_config_source": own_stream}),
    }
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{"name": certificate, "sds_config": source}],
            "validation_context_sds_secret_config": {"name": trusted, "sds_config": source},
        },
    }
    hcm = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    manager = {
        "@type": f"type.googleapis.com/{hcm}",
        "stat_prefix": "in",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
    }
    http2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "node": {"id": "web", "cluster": "web"},
        **({"dynamic_resources": {"ads_config": own_stream}} if api_type == "ADS" else {}),
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [
                {
                    "name": "in",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                    "filter_chains": [
                        {
                            "transport_socket": {
                                "name": "envoy.transport_sockets.tls",
                                "typed_config": tls,
                            },
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": manager,
                                }
                            ],
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "sds",
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": "sds",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(sds_socket)}}}}]}
                        ],
                    },
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": http2,
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                }
            ],
        },
    }


@dataclass
class Envoy:
    """A running Envoy."""

    admin: str
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> str:
        """Ask the admin interface."""
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as response:
            return str(response.read().decode())

    def port(self) -> int:
        """Return the listener's port, once it is warm."""
        statuses = json.loads(self.get("/listeners?format=json"))["listener_statuses"]
        return int(statuses[0]["local_address"]["socket_address"]["port_value"])


async def eventually(look: Callable[[], Found | None], what: str) -> Found:
    """Return what `look` finds, asking it again until it finds something."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_SECONDS
    while True:
        with contextlib.suppress(OSError, ValueError, LookupError):
            found = await asyncio.to_thread(look)
            if found is not None:
                return found
        assert loop.time() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running_envoy(directory: Path, api_type: str, *names: str) -> AsyncIterator[Envoy]:
    """Start Envoy on the SDS socket in `directory`; it is gone at the end."""
    config, admin = directory / "envoy.json", directory / "admin"
    config.write_text(json.dumps(bootstrap(directory / "sds.sock", api_type, *names)))
    with (directory / "envoy.log").open("wb") as log:
        command: list[str | Path] = [
            ENVOY,
            "-c",
            config,
            "--admin-address-path",
            admin,
            "--disable-hot-restart",
        ]
        process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [*command, "--concurrency", "1"], stdout=log, stderr=log
        )
    try:
        address = await eventually(lambda: admin.read_text() or None, "Envoy's admin address")
        yield Envoy(address, process)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)


def client_context(directory: Path, trusted: Authority, own: Authority | None) -> ssl.SSLContext:
    """Return a TLS client that trusts `trusted`, with an SVID of `own` if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # identities are URIs
    context.load_verify_locations(cadata=trusted.bundle_pem().decode())
    if own is not None:
        key = new_private_key()
        now = datetime.now(UTC)
        svid = own.issue(CLIENT, key.public_key(), now=now, ttl=timedelta(hours=1))
        (directory / "client.pem").write_bytes(svid.chain_pem + private_key_pem(key))
        context.load_cert_chain(directory / "client.pem")
    return context


def call(port: int, context: ssl.SSLContext) -> x509.Certificate:
    """Make a request, and return the server's certificate once it was answered with 200."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        context.wrap_socket(connection) as tls,
    ):
        tls.sendall(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")
        answer = tls.recv(4096)
        if not answer:
            raise EOFError
        assert answer.startswith(b"HTTP/1.1 200")
        certificate = tls.getpeercert(binary_form=True)
        assert certificate is not None
        return x509.load_der_x509_certificate(certificate)
