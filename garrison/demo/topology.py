"""Who is in the demo mesh, who serves what, and each sidecar's bootstrap. Pure: ports come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from garrison.envoy_config import (
    Destination,
    Edge,
    HeaderDescriptor,
    Inbound,
    InboundRoute,
    Outbound,
    Upstream,
    Workload,
)
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport.address import Address, Scheme

TRUST_DOMAIN = TrustDomain.parse("cluster.local")
NAMESPACE = "default"
RATE_LIMIT_DOMAIN = "bookinfo"
END_USER = "end-user"

INGRESS = "ingress"
INGRESS_PATHS = ("/productpage", "/login", "/logout", "/api/v1/products")
PRODUCTS_PATH = "/api/v1/products"


@dataclass(frozen=True, slots=True)
class Member:
    """A workload of the mesh: an Envoy with an identity, in front of an application unless `app` is empty."""

    name: str
    service_account: str
    app: str = ""
    version: str = "v1"

    @property
    def identity(self) -> SpiffeId:
        """The SPIFFE ID that our CA issues to its Envoy."""
        return SpiffeId.workload(TRUST_DOMAIN, NAMESPACE, self.service_account)


MEMBERS = (
    Member("productpage", "bookinfo-productpage", "productpage"),
    Member("details", "bookinfo-details", "details"),
    Member("ratings", "bookinfo-ratings", "ratings"),
    Member("reviews-v1", "bookinfo-reviews-v1", "reviews", "v1"),
    Member("reviews-v2", "bookinfo-reviews-v2", "reviews", "v2"),
    Member("reviews-v3", "bookinfo-reviews-v3", "reviews", "v3"),
    Member(INGRESS, "istio-ingress-service-account"),
    Member("client", "service-account-a"),
)
APPLICATIONS = tuple(member for member in MEMBERS if member.app)

# Service -> the app that serves it. `products` is a service of its own, served by productpage's API.
SERVED_BY = {
    "productpage": "productpage",
    "products": "productpage",
    "details": "details",
    "reviews": "reviews",
    "ratings": "ratings",
}


def full_name(service: str) -> str:
    """Return the name that policies use for `service`."""
    return f"{service}.{NAMESPACE}.svc.cluster.local"


def servers(service: str) -> tuple[Member, ...]:
    """Return the members that answer for `service`."""
    return tuple(member for member in APPLICATIONS if member.app == SERVED_BY[service])


@dataclass(frozen=True, slots=True)
class Ports:
    """The loopback ports of one member; 0 where it has none."""

    outbound: int
    inbound: int = 0
    application: int = 0


@dataclass(frozen=True, slots=True)
class Sockets:
    """The Unix sockets of a run, all below its folder."""

    run: Path

    @property
    def request(self) -> Path:
        """Where Garrison answers Check and ShouldRateLimit."""
        return self.run / "request.sock"

    @property
    def control(self) -> Path:
        """Where Garrison serves SDS."""
        return self.run / "control.sock"

    def admin(self, member: Member) -> Path:
        """Where the Envoy of `member` has its admin interface."""
        return self.run / f"{member.name}.sock"


def access_log(run: Path, member: Member) -> Path:
    """Return where the Envoy of `member` logs calls."""
    return run / "logs" / f"{member.name}.access.jsonl"


def workload(member: Member, ports: Mapping[str, Ports], run: Path) -> Workload:
    """Return what the Envoy of `member` is to do; `ports` is by member name."""
    sockets = Sockets(run)
    own = ports[member.name]
    return Workload(
        node_id=member.name,
        trust_domain=TRUST_DOMAIN,
        request=(_unix(sockets.request),),
        control=_unix(sockets.control),
        admin=_unix(sockets.admin(member)),
        access_log=str(access_log(run, member)),
        inbound=_inbound(member, own) if member.app else None,
        outbound=None if member.name == INGRESS else _outbound(own, ports),
        edge=_edge(own, ports) if member.name == INGRESS else None,
    )


def _inbound(member: Member, own: Ports) -> Inbound:
    labels = {"app": member.app, "version": member.version}
    # Only ratings is worth counting; the limit itself is in limits/ratings.yaml.
    quotas = (HeaderDescriptor(END_USER, "user"),) if member.app == "ratings" else ()
    routes = [InboundRoute(Destination(full_name(member.app), NAMESPACE, labels), quotas=quotas)]
    if member.app == SERVED_BY["products"]:
        products = Destination(full_name("products"), NAMESPACE, labels)
        routes.insert(0, InboundRoute(products, PRODUCTS_PATH))
    return Inbound(loopback(own.inbound), loopback(own.application), tuple(routes), RATE_LIMIT_DOMAIN)


def _outbound(own: Ports, ports: Mapping[str, Ports]) -> Outbound:
    # Every service can be tried by everybody: who may is Garrison's to say, not the routing's.
    return Outbound(loopback(own.outbound), tuple(_upstream(service, ports) for service in SERVED_BY))


def _edge(own: Ports, ports: Mapping[str, Ports]) -> Edge:
    # Inside the mesh `end-user` is productpage's word; from outside it is anybody's.
    return Edge(loopback(own.outbound), _upstream("productpage", ports), INGRESS_PATHS, (END_USER,))


def _upstream(service: str, ports: Mapping[str, Ports]) -> Upstream:
    members = servers(service)
    return Upstream(
        full_name(service),
        tuple(loopback(ports[member.name].inbound) for member in members),
        tuple(member.identity for member in members),
        hosts=(service,),
    )


def loopback(port: int) -> Address:
    """Return `tcp://127.0.0.1:<port>`."""
    return Address(Scheme.TCP, host="127.0.0.1", port=port)


def _unix(path: Path) -> Address:
    return Address.parse(f"unix://{path}")
