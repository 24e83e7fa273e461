"""Whether a peer may call at all: over mTLS or plaintext, and from which trust domain.

Istio decides this in the TLS layer, before anything else is looked at; here Envoy has shaken hands already,
and what it reports of the peer is held against the policies. The table is that of `PeerAuthentication`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from authz.attributes import Attributes
from authz.authn.certificates import CertificateVerifier
from authz.decision import Decision, ReasonCode, deny
from garrison.identity import SpiffeId, TrustDomain

# Names of peers that are known to be admitted, for each set of rules; the next call of one costs a look-up.
MAX_ADMITTED = 10_000
MAX_ADMITTED_LENGTH = 256


class PeerMode(StrEnum):
    """What a workload takes."""

    DISABLE = "DISABLE"  # plaintext only
    PERMISSIVE = "PERMISSIVE"  # both
    STRICT = "STRICT"  # mTLS only


@dataclass(frozen=True, slots=True)
class Requirement:
    """A mode, and the document and field that ask for it; both empty for what holds by default."""

    mode: PeerMode
    policy: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True, order=True)
class FederatedDomain:
    """A trust domain that is not ours and whose peers may call: one namespace, or all (empty)."""

    trust_domain: TrustDomain
    namespace: str = ""

    @classmethod
    def parse(cls, text: str) -> FederatedDomain:
        """Return what `TRUST-DOMAIN` or `TRUST-DOMAIN=NAMESPACE` says.

        Raises:
            ValueError: it is neither; the message says why.

        """
        name, equals, namespace = text.partition("=")
        if equals and not namespace:
            raise ValueError(f"`{text}` names no namespace after `=`")
        return cls(TrustDomain.parse(name), namespace)

    def __str__(self) -> str:
        return f"{self.trust_domain}={self.namespace}" if self.namespace else str(self.trust_domain)


@dataclass(frozen=True, slots=True)
class TrustDomains:
    """Whose peers may call: our trust domain under all of its names, and those that are federated."""

    ours: frozenset[str]
    federated: tuple[FederatedDomain, ...] = ()

    def for_namespace(self, namespace: str) -> frozenset[str]:
        """Return the names of those whose peers may call destinations in `namespace`."""
        return self.ours.union(
            one.trust_domain.name for one in self.federated if one.namespace in {"", namespace}
        )


BY_DEFAULT = Requirement(PeerMode.PERMISSIVE)


@dataclass(frozen=True, slots=True, eq=False)
class PeerRules:
    """What holds for the peers of one destination; `trust_domains` are the names of theirs.

    `ports` are those that documents name; `unknown_port` is for calls of which nobody knows the port: the
    strictest of all.
    """

    trust_domains: frozenset[str]
    otherwise: Requirement
    ports: Mapping[int, Requirement]
    unknown_port: Requirement
    is_permissive: bool  # every mode is PERMISSIVE
    # Names of peers that may call, whatever else the call is like; their certificates apart.
    admitted: set[str] = field(default_factory=set, repr=False)

    def requirement(self, attributes: Attributes) -> Requirement:
        """Return what is asked of the peer of this call."""
        if not self.ports:
            return self.otherwise
        port = workload_port(attributes)
        return self.unknown_port if port is None else self.ports.get(port, self.otherwise)


def workload_port(attributes: Attributes) -> int | None:
    """Return the port that the call came in at, None when nobody knows it."""
    for text in attributes.values("destination.port"):
        # An operator's extension may be anything; what is no port is not known.
        if text.isascii() and text.isdigit() and 0 < int(text[:6]) <= 65535:
            return int(text)
    return None


def refusal(
    rules: PeerRules,
    attributes: Attributes,
    clock: Callable[[], float],
    verifier: CertificateVerifier | None,
) -> Decision | None:
    """Return why the peer may not call, None when it may.

    Without a `verifier`, what Envoy reports is believed; `clock` gives seconds since the epoch.
    """
    identity = attributes.peer
    if identity is not None:
        if identity.trust_domain.name not in rules.trust_domains:
            return _foreign(identity, attributes)
        if verifier is not None and (denial := _unproven(identity, attributes, clock, verifier)) is not None:
            return denial
    elif _claims_identity(attributes.reported):
        return _malformed(attributes.reported)
    if not rules.is_permissive and (denial := _wrong_way(rules, identity, attributes)) is not None:
        return denial
    is_known = rules.is_permissive or (identity is not None and not rules.ports)
    if is_known and len(attributes.reported) <= MAX_ADMITTED_LENGTH:
        if len(rules.admitted) >= MAX_ADMITTED:
            rules.admitted.clear()
        rules.admitted.add(attributes.reported)
    return None


def _wrong_way(rules: PeerRules, identity: SpiffeId | None, attributes: Attributes) -> Decision | None:
    """Return the denial of a peer that came over plaintext or mTLS where the other is asked."""
    requirement = rules.requirement(attributes)
    has_certificate = bool(attributes.reported or attributes.certificate)
    if requirement.mode is PeerMode.STRICT and identity is None:
        if has_certificate:
            code, came = ReasonCode.PEER_WITHOUT_IDENTITY, "with a certificate that has no SPIFFE ID"
        else:
            code, came = ReasonCode.PLAINTEXT_NOT_ALLOWED, "without a certificate"
        return _refused(code, requirement, f"mTLS only, and the peer came {came}")
    if requirement.mode is PeerMode.DISABLE and has_certificate:
        return _refused(
            ReasonCode.MTLS_NOT_ALLOWED, requirement, "plaintext only, and the peer came with a certificate"
        )
    return None


def _claims_identity(reported: str) -> bool:
    """Return whether the name has the scheme of SPIFFE IDs; schemes have no case (RFC 3986, 3.1)."""
    return reported[:7].lower() == "spiffe:"


def _foreign(identity: SpiffeId, attributes: Attributes) -> Decision:
    destination = attributes.destination
    where = f" in namespace `{destination.namespace}`" if destination and destination.namespace else ""
    return deny(
        ReasonCode.FOREIGN_TRUST_DOMAIN,
        f"the peer is of trust domain `{identity.trust_domain}`, which is neither ours nor federated{where}",
    )


def _unproven(
    identity: SpiffeId, attributes: Attributes, clock: Callable[[], float], verifier: CertificateVerifier
) -> Decision | None:
    certificate = attributes.certificate
    if not certificate:
        if not verifier.required:
            return None
        reason = "certificates of peers are required, and Envoy sent none: set `include_peer_certificate`"
        return deny(ReasonCode.PEER_CERTIFICATE_MISSING, reason)
    problem = verifier.problem(certificate, identity, clock())
    if problem is None:
        return None
    reason = f"the certificate does not prove `{identity}`: {problem}"
    return deny(ReasonCode.PEER_CERTIFICATE_INVALID, reason)


def _malformed(reported: str) -> Decision:
    try:
        SpiffeId.parse(reported)
        reason = f"the peer's SPIFFE ID `{reported}` is that of a trust domain, not of a workload"
    except ValueError as error:
        reason = f"the peer's certificate has no SPIFFE ID: {error}"
    return deny(ReasonCode.MALFORMED_SPIFFE_ID, reason)


def _refused(code: ReasonCode, requirement: Requirement, why: str) -> Decision:
    reason = f"{requirement.policy} says {requirement.mode}: {why}"
    return deny(code, reason, policy=requirement.policy, field_path=requirement.field)
