"""Askers: with an SVID required, a sidecar asks about its own workload and what is listed for it."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from support.checks import CALL, NOW, SERVICE, check_request, principal, role, snapshot

from authz import askers as module
from authz.askers import Askers
from authz.destination import Destination
from authz.service import Authorization, DecisionLog, DestinationResolver
from garrison.identity import SpiffeId
from garrison.transport import Call, Peer


def identity(account: str, namespace: str = "shop", trust_domain: str = "cluster.local") -> SpiffeId:
    """Return a workload's SVID."""
    return SpiffeId.parse(principal(account, namespace, trust_domain))


ORDERS = Destination("orders.shop.svc.cluster.local", "shop", "orders", "orders")
ASKERS = Askers(
    ["cluster.local", "old.local"],
    {
        identity("reviews"): Destination("reviews.shop.svc.cluster.local", "shop"),
        identity("empty-list"): Destination("e.shop.svc.cluster.local", "shop"),
    },
    {
        identity("gateway"): ["Orders.shop.svc.cluster.local", "*.billing.svc.cluster.local"],
        identity("reviews"): ["ratings.*"],
        identity("auditor"): ["*"],
    },
)


@pytest.mark.parametrize(
    ("asker", "destination", "allowed"),
    [
        # Its own workload, by namespace and service account.
        (identity("orders"), ORDERS, True),
        (identity("orders", trust_domain="old.local"), ORDERS, True),
        (identity("orders", trust_domain="partner.example"), ORDERS, False),
        (identity("orders", "billing"), ORDERS, False),
        (identity("others"), ORDERS, False),
        (identity("orders"), Destination("orders.shop.svc.cluster.local", "shop", "orders"), False),
        (identity("orders"), Destination("orders", "", "orders", "orders"), False),
        (SpiffeId.parse("spiffe://cluster.local/orders"), Destination("orders", "", "orders"), False),
        (SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/orders/x"), ORDERS, False),
        # Its own workload, by the settings: then nothing else is.
        (identity("reviews"), Destination("reviews.shop.svc.cluster.local", "shop"), True),
        (identity("reviews"), Destination("reviews.shop.svc.cluster.local", "other"), False),
        (identity("reviews"), Destination("x.shop.svc.cluster.local", "shop", "x", "reviews"), False),
        # Listed by an operator; names of services have no case.
        (identity("gateway"), ORDERS, True),
        (identity("gateway"), Destination("a.billing.svc.cluster.local", "billing"), True),
        (identity("gateway"), Destination("billing.svc.cluster.local", "billing"), False),
        (identity("gateway"), Destination("a.shop.svc.cluster.local", "shop"), False),
        (identity("gateway", trust_domain="old.local"), ORDERS, False),
        (identity("reviews"), Destination("ratings.shop.svc.cluster.local", "shop"), True),
        (identity("auditor"), ORDERS, True),
        (identity("empty-list"), ORDERS, False),
    ],
)
def test_who_may_ask_about_what(asker: SpiffeId, destination: Destination, allowed: bool) -> None:
    """The own workload and the listed services; the answer is the same when it was worked out before."""
    for _ in range(2):
        refused = ASKERS.refusal(asker, destination)
        assert (refused is None) is allowed
        if refused is not None:
            assert (refused.code, refused.http_status) == ("asker_not_allowed", 403)
            assert str(asker) in refused.reason
            assert destination.service in refused.reason


def test_who_has_no_svid_may_not_ask() -> None:
    """No SVID, no question: not even about what nobody named."""
    for destination in (ORDERS, None):
        refused = ASKERS.refusal(None, destination)
        assert refused is not None
        assert (refused.code, refused.http_status) == ("asker_not_identified", 403)
    assert ASKERS.refusal(identity("orders"), None) is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many destinations are asked about, memory is bounded, and no answer changes."""
    monkeypatch.setattr(module, "_MAX_KNOWN", 3)
    found = Askers(["cluster.local"], {}, {identity("a"): ["x1"]})
    for _ in range(2):
        for number in range(10):
            refused = found.refusal(identity("a"), Destination(f"x{number}", "shop"))
            assert (refused is None) is (number == 1)
            assert len(found._known) <= 3


def ask(authorization: Authorization, asker: SpiffeId | None, **request: Any) -> Any:
    """Return the answer to a question of `asker`."""
    call = Call(Peer("x", asker), ())
    answer = authorization.check(check_request(**request).SerializeToString(), call)
    assert isinstance(answer, bytes)
    return CheckResponse.FromString(answer)


def test_the_service_refuses_before_it_decides() -> None:
    """A refused asker learns nothing of policies; others are answered; without the setting all are."""
    workloads = {identity("products", "default"): Destination(SERVICE, "default")}
    resolver = DestinationResolver(workloads)
    askers = Askers(["cluster.local"], workloads, {})
    service = Authorization(resolver, lambda: NOW, DecisionLog.NONE, askers=askers)
    service.use(snapshot(role("[{}]")))
    own, other = identity("products", "default"), identity("reviews", "default")
    assert ask(service, own).status.code == 0
    assert ask(service, own, service=None).status.code == 0  # named by the SVID itself
    for asker, code in ((other, "asker_not_allowed"), (None, "asker_not_identified")):
        answer = ask(service, asker)
        assert (answer.status.code, answer.denied_response.status.code) == (7, 403)
        assert answer.dynamic_metadata["code"] == code
        assert answer.denied_response.body == "RBAC: access denied"
    assert ask(service, other, service=None).dynamic_metadata["code"] == "unknown_destination"
    assert ask(service, None, service=None).dynamic_metadata["code"] == "asker_not_identified"
    grpc = ask(service, None, headers={"content-type": "application/grpc"})
    assert not [one for one in grpc.denied_response.headers if one.header.key == "content-type"]
    plain = Authorization(resolver, lambda: NOW, DecisionLog.NONE)
    plain.use(snapshot(role("[{}]")))
    assert CheckResponse.FromString(plain.check(check_request().SerializeToString(), CALL)).status.code == 0
