"""Peers: precedence against a plainer evaluator, and strictness of what counts as an identity."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import urlsplit

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checks import check_request, decide_on, principal, role, snapshot
from support.policies import connection

from authz.authn.mtls import peer_identity

ROOT = "istio-system"
ANYBODY = role("[{services: ['*']}]") + role("[{services: ['*']}]", namespace="other")
MODES = ["UNSET", "DISABLE", "PERMISSIVE", "STRICT", None]
AGES = ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", None]


@dataclass(frozen=True)
class PeerSpec:
    """A PeerAuthentication."""

    namespace: str
    labels: dict[str, str] | None
    mode: str | None
    ports: dict[int, str | None]
    created: str | None

    def yaml(self, name: str) -> str:
        """Return the document."""
        spec: dict[str, object] = {}
        if self.labels is not None:
            spec["selector"] = {"matchLabels": self.labels}
        if self.mode is not None:
            spec["mtls"] = {"mode": self.mode}
        if self.labels and self.ports:
            spec["portLevelMtls"] = {
                port: {} if mode is None else {"mode": mode} for port, mode in self.ports.items()
            }
        metadata = {"name": name, "namespace": self.namespace}
        if self.created:
            metadata["creationTimestamp"] = self.created
        document = {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": metadata,
            "spec": spec,
        }
        # The dumper leaves times without quotes where they are not strings; these are strings.
        text: str = yaml.safe_dump(document)
        return text + "---\n"


PEERS = st.builds(
    PeerSpec,
    st.sampled_from([ROOT, "default", "default", "other"]),
    st.sampled_from([None, {}, {"app": "a"}, {"app": "b"}, {"app": "a", "v": "1"}]),
    st.sampled_from(MODES),
    st.dictionaries(st.sampled_from([80, 443]), st.sampled_from(MODES), max_size=2),
    st.sampled_from(AGES),
)


def accepts(mode: str, *, mtls: bool) -> bool:
    """Return what Istio's table says."""
    return {"STRICT": mtls, "DISABLE": not mtls, "PERMISSIVE": True}[mode]


def candidates(found: list[PeerSpec]) -> list[PeerSpec]:
    """Return the oldest, or all if they cannot be told apart."""
    ages = [one.created for one in found]
    return [one for one in found if None in ages or one.created == min(filter(None, ages))]


def taken(policies: list[PeerSpec], namespace: str, labels: dict[str, str], port: int, *, mtls: bool) -> bool:
    """Return whether a call may come in, worked out by elimination: every candidate has to take it."""
    modes = ["PERMISSIVE"]
    mesh = [one for one in policies if one.namespace == ROOT and not one.labels]
    own = [one for one in policies if one.namespace == namespace != ROOT and not one.labels]
    workload = [
        one
        for one in policies
        if one.labels and one.namespace == namespace != ROOT and one.labels.items() <= labels.items()
    ]
    for scope in (mesh, own):
        counting = candidates(scope)
        if counting:
            # What is UNSET stands for the wider modes.
            modes = [
                mode
                for one in counting
                for mode in (modes if one.mode in {None, "UNSET"} else [str(one.mode)])
            ]
    if workload:
        found: list[str] = []
        for one in candidates(workload):
            at_port = one.ports.get(port)
            for mode in (at_port, one.mode):
                if mode not in {None, "UNSET"}:
                    found.append(str(mode))
                    break
            else:
                found += modes
        modes = found
    if "STRICT" in modes:  # where they contradict each other, STRICT counts
        return mtls
    return all(accepts(mode, mtls=mtls) for mode in modes)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PEERS, max_size=5),
    st.sampled_from(["default", "other", ROOT]),
    st.sampled_from([{}, {"app": "a"}, {"app": "a", "v": "1"}]),
    st.sampled_from([80, 443, 9999]),
    st.booleans(),
    st.booleans(),
)
def test_precedence_is_that_of_a_plainer_evaluator(  # noqa: PLR0917 - drawn
    policies: list[PeerSpec],
    namespace: str,
    labels: dict[str, str],
    port: int,
    mtls: bool,
    tcp: bool,
) -> None:
    """Whatever the documents: port, workload, namespace, mesh; oldest or strictest; UNSET inherits."""
    text = "".join(one.yaml(f"p{number}") for number, one in enumerate(policies))
    service = f"s.{namespace}.svc.cluster.local"
    extensions = {f"destination.labels[{name}]": value for name, value in labels.items()}
    source = principal("a") if mtls else ""
    if tcp:
        request = connection(source=source, port=port, service=service, extensions=extensions)
    else:
        request = check_request(source=source, service=service, extensions=extensions)
        request.attributes.destination.address.socket_address.port_value = port
    decision = decide_on(text + role("[{services: ['*']}]", namespace=namespace), request)
    assert decision.allowed is taken(policies, namespace, labels, port, mtls=mtls), decision.reason


PIECES = st.sampled_from([":", "//", "/", ".", "..", "?", "#", "@", ",", "%61", "\x00", "\n", " ", "é", "*"])
PIECES |= st.sampled_from(["spiffe", "SPIFFE", "http", "cluster.local", "CLUSTER", "ns", "a", ":80"])
PIECES |= st.just("cluster.local/ns/default/sa/a")
REPORTED = st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=60).map("spiffe://".__add__)


def is_identity(text: str) -> bool:
    """Return whether `text` is a SPIFFE ID with a path, by a URI parser and the rules of SPIFFE-ID, section 2."""
    if not re.fullmatch(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+", text) or len(text) > 2048:
        return False
    parts = urlsplit(text)
    dots = [one for one in parts.path.split("/") if one in {".", ".."}]
    return not dots and parts.scheme == "spiffe" and not parts.query


@settings(max_examples=500)
@given(REPORTED)
def test_only_strict_spiffe_ids_are_identities(reported: str) -> None:
    """What Envoy reports is an identity exactly if it is a SPIFFE ID; if it only looks like one, it is denied."""
    identity = peer_identity(reported)
    assert (identity is not None) is is_identity(reported)
    if identity is not None:
        assert str(identity) == reported
    decision = decide_on(ANYBODY_SNAPSHOT, check_request(source=reported))
    if identity is not None:
        assert decision.allowed is (identity.trust_domain.name == "cluster.local")
    else:
        assert decision.allowed is not reported.lower().startswith("spiffe:")


ANYBODY_SNAPSHOT = snapshot(ANYBODY)


@given(st.lists(st.sampled_from(["PERMISSIVE", "DISABLE", "STRICT"]), min_size=1, max_size=4))
def test_one_more_document_never_lets_in_more(modes: list[str]) -> None:
    """In one scope and without ages, a further document never lets plaintext in that was denied."""
    texts = [
        PeerSpec("default", None, mode, {}, None).yaml(f"p{number}") for number, mode in enumerate(modes)
    ]
    grown = ["".join(texts[:size]) for size in range(1, len(texts) + 1)]
    for before, after in pairwise([decide_on(ANYBODY + text, check_request()).allowed for text in grown]):
        assert before or not after
