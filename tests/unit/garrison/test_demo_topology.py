"""The mesh that is built is the mesh that the example's files describe."""

from __future__ import annotations

from pathlib import Path

import yaml

from authz.policy.compile import MeshSettings
from authz.snapshot import load_snapshot
from garrison.demo.mesh import example_folder
from garrison.demo.topology import APPLICATIONS, INGRESS, MEMBERS, TRUST_DOMAIN, Ports, full_name, workload
from ratelimit.compile import load_limits

# The role and the binding that the demo must enforce as they are.
VERBATIM = """\
apiVersion: "rbac.istio.io/v1alpha1"
kind: ServiceRole
metadata:
  name: products-viewer
  namespace: default
spec:
  rules:
  - services: ["products.default.svc.cluster.local"]
    methods: ["GET", "HEAD"]
---
apiVersion: "rbac.istio.io/v1alpha1"
kind: ServiceRoleBinding
metadata:
  name: test-binding-products
  namespace: default
spec:
  subjects:
  - user: "service-account-a"
  - user: "istio-ingress-service-account"
    properties:
      request.auth.claims[email]: "a@foo.com"
  roleRef:
    kind: ServiceRole
    name: "products-viewer"
"""

PORTS = {member.name: Ports(3 * n + 1, 3 * n + 2, 3 * n + 3) for n, member in enumerate(MEMBERS)}


def test_settings_give_every_member_its_identity() -> None:
    """Each Envoy, known by its executable, gets the SPIFFE ID that its peers expect of it, and no other does."""
    settings = yaml.safe_load((example_folder() / "garrison.yaml").read_text(encoding="utf-8"))
    assert settings["trust_domain"] == str(TRUST_DOMAIN)
    found = {entry["spiffe_id"]: entry for entry in settings["workloads"]}
    assert list(found) == [str(member.identity) for member in MEMBERS]
    for member in MEMBERS:
        entry = found[str(member.identity)]
        assert entry["selectors"] == ["unix:uid:${uid}", f"unix:path:${{run}}/bin/{member.name}"]
        assert entry["service"] == full_name(member.app or member.name)
        if member.app:
            assert entry["labels"] == {"app": member.app, "version": member.version}


def test_the_products_policy_is_verbatim() -> None:
    """The example holds the role and the binding letter for letter, after a comment."""
    text = (example_folder() / "policies" / "products.yaml").read_text(encoding="utf-8")
    comment, _, rest = text.partition("\n")
    assert comment.startswith("#")
    assert rest == VERBATIM


def test_the_examples_files_are_without_problems() -> None:
    """Policies and limits compile, without so much as a warning."""
    snapshot = load_snapshot([example_folder() / "policies"], MeshSettings(trust_domain=TRUST_DOMAIN))
    assert snapshot.warnings == ()
    assert set(load_limits([example_folder() / "limits"]).domains) == {"bookinfo"}


def test_products_is_a_service_of_its_own() -> None:
    """Productpage's API paths are for `products`, everything else it serves is for `productpage`."""
    member = next(member for member in MEMBERS if member.name == "productpage")
    inbound = workload(member, PORTS, Path("/run")).inbound
    assert inbound is not None
    routes = [(route.prefix, route.destination.service) for route in inbound.routes]
    assert routes == [("/api/v1/products", full_name("products")), ("/", full_name("productpage"))]


def test_only_ratings_has_a_quota() -> None:
    """The quota is asked for per user where it is meant to be, and nowhere else."""
    inbound = {member.name: workload(member, PORTS, Path("/run")).inbound for member in APPLICATIONS}
    limited = [name for name, made in inbound.items() if made and any(route.quotas for route in made.routes)]
    assert limited == ["ratings"]
    assert None not in inbound.values()


def test_the_ingress_lets_in_four_paths_and_no_user_names() -> None:
    """From outside only the four paths lead in, and `end-user` is not anybody's to set."""
    member = next(member for member in MEMBERS if member.name == INGRESS)
    made = workload(member, PORTS, Path("/run"))
    assert made.inbound is None
    assert made.outbound is None
    assert made.edge is not None
    assert made.edge.paths == ("/productpage", "/login", "/logout", "/api/v1/products")
    assert made.edge.headers_to_remove == ("end-user",)


def test_a_service_is_only_believed_its_own_identities() -> None:
    """Reviews may be any of its three versions; no other service may answer for it."""
    client = next(member for member in MEMBERS if member.name == "client")
    outbound = workload(client, PORTS, Path("/run")).outbound
    assert outbound is not None
    identities = {
        upstream.hosts[0]: [str(one).rpartition("/")[2] for one in upstream.identities]
        for upstream in outbound.upstreams
    }
    assert identities["reviews"] == ["bookinfo-reviews-v1", "bookinfo-reviews-v2", "bookinfo-reviews-v3"]
    assert identities["products"] == identities["productpage"] == ["bookinfo-productpage"]
