"""An Envoy bootstrap for one workload, put together from the fragments of `deploy/envoy/sidecar.yaml`.

The template is parsed first and filled in afterwards, as data: a value can never become YAML syntax.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import click
import yaml

from garrison.identity import SpiffeId, TrustDomain
from garrison.transport.address import Address, Scheme

_PLACEHOLDER = re.compile(r"\$\{([a-z0-9_]+)\}")


@dataclass(frozen=True, slots=True)
class Destination:
    """Which service a call is for, as policies see it (`destination.*` in `docs/attributes.md`)."""

    service: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def context_extensions(self) -> dict[str, str]:
        """Return the attributes by name, as ext_authz carries them."""
        labels = {f"destination.labels[{name}]": value for name, value in self.labels.items()}
        return {
            "destination.service": self.service,
            "destination.namespace": self.namespace,
            "protocol": "http",
            **labels,
        }


@dataclass(frozen=True, slots=True)
class HeaderDescriptor:
    """A quota per value of a request header, under the descriptor key `key`.

    Envoy asks nobody when the header is missing, so such calls share the bucket of the value `absent`.
    """

    header: str
    key: str
    absent: str = "anonymous"


@dataclass(frozen=True, slots=True)
class InboundRoute:
    """Calls at or below `prefix` are for `destination`."""

    destination: Destination
    prefix: str = "/"
    quotas: tuple[HeaderDescriptor, ...] = ()


@dataclass(frozen=True, slots=True)
class Inbound:
    """mTLS at `listen`, decisions per route, then the application. The first route that matches counts.

    With `include_peer_certificate` Garrison gets the callers' certificates, to verify them itself.

    Of `shares` the Envoy gets a share (RLQS) instead of asking for each call. The first whose header a call
    has counts; calls that have none share the bucket of the first one's value `absent`.
    """

    listen: Address
    application: Address
    routes: tuple[InboundRoute, ...]
    rate_limit_domain: str = ""
    include_peer_certificate: bool = False
    shares: tuple[HeaderDescriptor, ...] = ()


@dataclass(frozen=True, slots=True)
class Upstream:
    """A service of the mesh: where its sidecars listen and which identities may answer for it."""

    service: str
    endpoints: tuple[Address, ...]
    identities: tuple[SpiffeId, ...]
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outbound:
    """Plain HTTP at `listen` from the local application, sent on over mTLS by Host header."""

    listen: Address
    upstreams: tuple[Upstream, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """Plain HTTP from outside at `listen`: only `paths` go on, to `upstream`, without `headers_to_remove`.

    Headers that the mesh takes as its own word must be in `headers_to_remove`.
    """

    listen: Address
    upstream: Upstream
    paths: tuple[str, ...]
    headers_to_remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that one Envoy's bootstrap says.

    `request` lists the addresses that answer Check and ShouldRateLimit (one for each worker), `control`
    the one that serves SDS; both `unix://` or `tcp://`.
    """

    node_id: str
    trust_domain: TrustDomain
    request: tuple[Address, ...]
    control: Address
    admin: Address
    access_log: str = "/dev/stdout"
    inbound: Inbound | None = None
    outbound: Outbound | None = None
    edge: Edge | None = None


Template = Mapping[str, Any]


@cache
def load_template() -> Template:
    """Return the fragments of the template that ships with Garrison."""
    here = Path(__file__).resolve().parent
    # In the wheel the template lies inside the package, in a checkout where operators look for it.
    candidates = (here / "demo" / "envoy", here.parent / "deploy" / "envoy")
    path = next(folder for folder in candidates if folder.is_dir()) / "sidecar.yaml"
    template: Template = yaml.safe_load(path.read_text(encoding="utf-8"))
    return template


def fill(fragment: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of `fragment` with its placeholders replaced.

    Raises:
        KeyError: a placeholder has no value.
        TypeError: a value that is no text stands inside a longer string.

    """
    if isinstance(fragment, Mapping):
        return {key: fill(value, values) for key, value in fragment.items()}
    if isinstance(fragment, list):
        return [fill(item, values) for item in fragment]
    if not isinstance(fragment, str):
        return fragment
    whole = _PLACEHOLDER.fullmatch(fragment)
    if whole is not None:
        return values[whole[1]]
    return _PLACEHOLDER.sub(lambda match: _text(values[match[1]]), fragment)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"`{value!r}` cannot stand inside a string")
    return value


def render_bootstrap(workload: Workload, template: Template | None = None) -> dict[str, Any]:
    """Return the bootstrap of `workload`, ready to be written as JSON or YAML.

    Raises:
        ValueError: an address is of a kind that its place does not support.

    """
    rendering = _Rendering(workload, template if template is not None else load_template())
    bootstrap: dict[str, Any] = rendering.bootstrap()
    return bootstrap


class _PlainDumper(yaml.SafeDumper):
    """Writes everything out: no anchors, which people would have to follow."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def dump(bootstrap: Mapping[str, Any]) -> str:
    """Return `bootstrap` as YAML."""
    return yaml.dump(dict(bootstrap), Dumper=_PlainDumper, sort_keys=False)


class _Rendering:
    """One workload's walk over the template; every method returns a filled fragment."""

    def __init__(self, workload: Workload, template: Template) -> None:
        self._workload = workload
        self._template = template

    def _fill(self, fragment: str, **values: Any) -> Any:
        return fill(self._template[fragment], values)

    def bootstrap(self) -> Any:
        workload = self._workload
        listeners = [
            *([self._inbound_listener(workload.inbound)] if workload.inbound else []),
            *([self._outbound_listener(workload.outbound)] if workload.outbound else []),
            *([self._edge_listener(workload.edge)] if workload.edge else []),
        ]
        return self._fill(
            "bootstrap",
            node_id=workload.node_id,
            node_cluster=workload.node_id,
            admin_address=_admin_address(workload.admin),
            listeners=listeners,
            clusters=self._clusters(),
        )

    def _inbound_listener(self, inbound: Inbound) -> Any:
        limited = any(route.quotas for route in inbound.routes)
        if (limited or inbound.shares) and not inbound.rate_limit_domain:
            raise ValueError("a route has quotas but no rate limit domain is set")
        ratelimit = [self._fill("ratelimit", rate_limit_domain=inbound.rate_limit_domain)] if limited else []
        ext_authz = self._fill("ext_authz")
        ext_authz["typed_config"]["include_peer_certificate"] = inbound.include_peer_certificate
        if inbound.shares:
            ratelimit.append(self._rate_limit_quota(inbound))
        http = self._fill(
            "inbound_http",
            access_log=[self._access_log()],
            # Quota after authorization: a caller that is refused cannot use up somebody's quota.
            http_filters=[ext_authz, *ratelimit, self._fill("router")],
            routes=[self._inbound_route(route) for route in inbound.routes],
        )
        return self._fill(
            "inbound_listener",
            address=_address(inbound.listen),
            tls=self._tls({"prefix": f"{self._workload.trust_domain.spiffe_id}/"}),
            http=http,
        )

    def _rate_limit_quota(self, inbound: Inbound) -> Any:
        first = inbound.shares[0]
        return self._fill(
            "rate_limit_quota",
            rate_limit_domain=inbound.rate_limit_domain,
            buckets=[self._quota_bucket(quota) for quota in inbound.shares],
            otherwise=self._fill("quota_action", bucket_id={first.key: {"string_value": first.absent}}),
        )

    def _quota_bucket(self, quota: HeaderDescriptor) -> Any:
        value = self._fill("header_value", header=quota.header)
        action = self._fill("quota_action", bucket_id={quota.key: {"custom_value": value}})
        return self._fill("quota_bucket", header_value=value, action=action)

    def _inbound_route(self, route: InboundRoute) -> Any:
        return self._fill(
            "inbound_route",
            match=_path_match(route.prefix),
            rate_limits=[limit for quota in route.quotas for limit in _rate_limits(quota)],
            destination=route.destination.context_extensions(),
        )

    def _outbound_listener(self, outbound: Outbound) -> Any:
        return self._fill(
            "outbound_listener",
            address=_address(outbound.listen),
            edge=False,
            trusts_caller=True,
            access_log=[],
            router=self._fill("router"),
            headers_to_remove=[],
            virtual_hosts=[
                {
                    "name": upstream.service,
                    "domains": [
                        domain
                        for host in (upstream.service, *upstream.hosts)
                        for domain in (host, f"{host}:*")
                    ],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": upstream.service}}],
                }
                for upstream in outbound.upstreams
            ],
        )

    def _edge_listener(self, edge: Edge) -> Any:
        routes = [
            {"match": _path_match(path), "route": {"cluster": edge.upstream.service}} for path in edge.paths
        ]
        return self._fill(
            "outbound_listener",
            address=_address(edge.listen),
            edge=True,
            trusts_caller=False,
            access_log=[self._access_log()],
            router=self._fill("router"),
            headers_to_remove=list(edge.headers_to_remove),
            virtual_hosts=[{"name": "edge", "domains": ["*"], "routes": routes}],
        )

    def _clusters(self) -> list[Any]:
        workload = self._workload
        clusters = [
            self._garrison_cluster("garrison_request", workload.request),
            self._garrison_cluster("garrison_control", (workload.control,)),
        ]
        if workload.inbound is not None:
            endpoints = _endpoints((workload.inbound.application,))
            clusters.append(self._fill("application_cluster", endpoints=endpoints))
        upstreams = [
            *(workload.outbound.upstreams if workload.outbound else ()),
            *([workload.edge.upstream] if workload.edge else []),
        ]
        clusters += [self._upstream_cluster(upstream) for upstream in dict.fromkeys(upstreams)]
        return clusters

    def _garrison_cluster(self, name: str, addresses: Sequence[Address]) -> Any:
        return self._fill(
            "garrison_cluster", name=name, endpoints=_endpoints(addresses), http2=self._fill("http2")
        )

    def _upstream_cluster(self, upstream: Upstream) -> Any:
        if not upstream.identities:
            raise ValueError(f"no identity may answer for `{upstream.service}`")
        return self._fill(
            "upstream_cluster",
            name=upstream.service,
            sni=upstream.service,
            endpoints=_endpoints(upstream.endpoints),
            tls=self._tls(*({"exact": str(identity)} for identity in upstream.identities)),
            http2=self._fill("http2"),
        )

    def _tls(self, *matchers: Mapping[str, str]) -> Any:
        return self._fill(
            "mesh_tls",
            sds=self._fill("sds"),
            allowed_peers=[{"san_type": "URI", "matcher": dict(matcher)} for matcher in matchers],
        )

    def _access_log(self) -> Any:
        return self._fill("access_log", access_log_path=self._workload.access_log)


def _path_match(prefix: str) -> dict[str, str]:
    # Below a path, not merely starting with it: `/api/v1/products` must not take `/api/v1/products-internal`.
    return {"prefix": "/"} if prefix == "/" else {"path_separated_prefix": prefix}


def _rate_limits(quota: HeaderDescriptor) -> list[dict[str, Any]]:
    by_value = {"request_headers": {"header_name": quota.header, "descriptor_key": quota.key}}
    some_value = {"name": quota.header, "string_match": {"safe_regex": {"regex": ".+"}}}
    without = {
        "header_value_match": {
            "descriptor_key": quota.key,
            "descriptor_value": quota.absent,
            "headers": [{**some_value, "invert_match": True, "treat_missing_header_as_empty": True}],
        }
    }
    return [{"actions": [by_value]}, {"actions": [without]}]


def _address(address: Address) -> dict[str, Any]:
    if address.scheme is Scheme.TLS:
        raise ValueError(f"`{address}`: the template speaks TLS only between sidecars, use tcp:// or unix://")
    if address.scheme is Scheme.UNIX:
        return {"pipe": {"path": address.path}}
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _admin_address(address: Address) -> dict[str, Any]:
    if address.scheme is not Scheme.UNIX and address.host not in {"127.0.0.1", "::1"}:
        raise ValueError(f"`{address}`: Envoy's admin interface belongs on loopback or a Unix socket")
    return _address(address)


def _endpoints(addresses: Sequence[Address]) -> list[dict[str, Any]]:
    return [{"endpoint": {"address": _address(address)}} for address in addresses]


class _AddressType(click.ParamType[Address]):
    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return Address.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


ADDRESS = _AddressType()


def _pairs(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, separator, rest = value.partition("=")
        if not (name and separator and rest):
            raise click.BadParameter(f"`{value}` is not NAME=VALUE", context, parameter)
        pairs[name] = rest
    return pairs


def _upstreams(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> tuple[Upstream, ...]:
    upstreams = []
    for value in values:
        service, *rest = value.split(",")
        try:
            address, identity = rest
            upstreams.append(Upstream(service, (Address.parse(address),), (SpiffeId.parse(identity),)))
        except ValueError as error:
            raise click.BadParameter(
                f"`{value}` is not SERVICE,ADDRESS,SPIFFE-ID: {error}", context, parameter
            ) from None
    return tuple(upstreams)


def _endpoints_of_workers(addresses: Sequence[Address], workers: int) -> tuple[Address, ...]:
    if workers == 1:
        return tuple(addresses)
    return tuple(address.of_worker(number) for address in addresses for number in range(workers))


@click.command(
    "envoy-config",
    epilog="\b\nExample:\n"
    "  garrison envoy-config --service reviews.default.svc.cluster.local --label app=reviews \\\n"
    "    --listen tcp://0.0.0.0:15006 --application tcp://127.0.0.1:9080 \\\n"
    "    --request unix:///run/garrison/request.sock \\\n"
    "    --control unix:///run/garrison/control.sock > envoy.yaml",
)
@click.option("--service", required=True, help="The destination service that policies name.")
@click.option("--namespace", default="default", show_default=True, help="Its namespace.")
@click.option(
    "--label", "labels", multiple=True, callback=_pairs, metavar="NAME=VALUE", help="A label of the workload."
)
@click.option("--listen", type=ADDRESS, required=True, help="Where callers of the mesh connect (mTLS).")
@click.option("--application", type=ADDRESS, required=True, help="Where the local application listens.")
@click.option(
    "--request", type=ADDRESS, multiple=True, required=True, help="Garrison's request.listen address."
)
@click.option("--control", type=ADDRESS, required=True, help="Garrison's control address (SDS).")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Garrison's setting `workers`; each has its own endpoint.",
)
@click.option("--trust-domain", default="cluster.local", show_default=True, help="Whose callers may connect.")
@click.option(
    "--include-peer-certificate", is_flag=True, help="For Garrison with trust bundles, which verifies it."
)
@click.option("--outbound", type=ADDRESS, help="Where the application's own calls come in (plain HTTP).")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    callback=_upstreams,
    metavar="SERVICE,ADDRESS,SPIFFE-ID",
    help="A service the application may call.",
)
@click.option("--rate-limit-domain", default="", help="Ask for quota in this domain.")
@click.option(
    "--rate-limit-header",
    "quotas",
    multiple=True,
    callback=_pairs,
    metavar="HEADER=KEY",
    help="A quota per value of HEADER, under the descriptor key KEY.",
)
@click.option(
    "--rate-limit-share",
    "shares",
    multiple=True,
    callback=_pairs,
    metavar="HEADER=KEY",
    help="The same, as a share of the quota that Envoy uses by itself (RLQS).",
)
@click.option(
    "--admin",
    type=ADDRESS,
    default="tcp://127.0.0.1:15000",
    show_default=True,
    help="Envoy's admin interface (loopback or a Unix socket).",
)
@click.option("--access-log", default="/dev/stdout", show_default=True, help="Where JSON access logs go.")
def envoy_config(
    *,
    service: str,
    namespace: str,
    labels: Mapping[str, str],
    listen: Address,
    application: Address,
    request: tuple[Address, ...],
    control: Address,
    workers: int,
    trust_domain: str,
    include_peer_certificate: bool,
    outbound: Address | None,
    upstreams: tuple[Upstream, ...],
    rate_limit_domain: str,
    quotas: Mapping[str, str],
    shares: Mapping[str, str],
    admin: Address,
    access_log: str,
) -> None:
    """Print a working Envoy bootstrap for one workload: ext_authz, rate limit and SDS from Garrison."""
    if upstreams and outbound is None:
        raise click.UsageError("`--upstream` needs `--outbound`, where the application's calls come in")
    if bool(quotas or shares) != bool(rate_limit_domain):
        raise click.UsageError(
            "`--rate-limit-domain` goes together with `--rate-limit-header` or `--rate-limit-share`"
        )
    descriptors = tuple(HeaderDescriptor(header, key) for header, key in quotas.items())
    shared = tuple(HeaderDescriptor(header, key) for header, key in shares.items())
    route = InboundRoute(Destination(service, namespace, labels), quotas=descriptors)
    try:
        workload = Workload(
            node_id=service,
            trust_domain=TrustDomain.parse(trust_domain),
            request=_endpoints_of_workers(request, workers),
            control=control,
            admin=admin,
            access_log=access_log,
            inbound=Inbound(
                listen, application, (route,), rate_limit_domain, include_peer_certificate, shared
            ),
            outbound=Outbound(outbound, upstreams) if outbound is not None else None,
        )
        bootstrap = render_bootstrap(workload)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    click.echo(dump(bootstrap), nl=False)
