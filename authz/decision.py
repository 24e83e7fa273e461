"""What was decided and why: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Verdict(StrEnum):
    """Whether the call may go through."""

    ALLOW = "allow"
    DENY = "deny"


class ReasonCode(StrEnum):
    """Stable names of the ways a decision comes about; also the `code` label of the decision metric."""

    ROLE_MATCHED = "role_matched"
    POLICY_MATCHED = "policy_matched"
    NO_ALLOW_POLICY = "no_allow_policy"
    NOT_ENFORCED = "not_enforced"
    DENY_MATCHED = "deny_matched"
    NO_POLICY_MATCHED = "no_policy_matched"
    NO_ROLE_MATCHED = "no_role_matched"
    CUSTOM_DENIED = "custom_denied"
    MIXER_DENIED = "mixer_denied"
    CASBIN_DENIED = "casbin_denied"
    QUOTA_EXHAUSTED = "quota_exhausted"
    QUOTA_UNAVAILABLE = "quota_unavailable"
    RATE_LIMITED = "rate_limited"
    RATE_LIMIT_UNAVAILABLE = "rate_limit_unavailable"
    RATE_LIMIT_UNDETERMINED = "rate_limit_undetermined"
    UNKNOWN_DESTINATION = "unknown_destination"
    ASKER_NOT_IDENTIFIED = "asker_not_identified"
    ASKER_NOT_ALLOWED = "asker_not_allowed"
    PLAINTEXT_NOT_ALLOWED = "plaintext_not_allowed"
    MTLS_NOT_ALLOWED = "mtls_not_allowed"
    PEER_WITHOUT_IDENTITY = "peer_without_identity"
    MALFORMED_SPIFFE_ID = "malformed_spiffe_id"
    FOREIGN_TRUST_DOMAIN = "foreign_trust_domain"
    PEER_CERTIFICATE_MISSING = "peer_certificate_missing"
    PEER_CERTIFICATE_INVALID = "peer_certificate_invalid"
    PEER_AUTHENTICATION_FAILED = "peer_authentication_failed"
    ORIGIN_AUTHENTICATION_FAILED = "origin_authentication_failed"
    INVALID_TOKEN = "invalid_token"  # noqa: S105 - the name of a reason
    TOO_MANY_BAD_TOKENS = "too_many_bad_tokens"
    AUDIENCE_NOT_ALLOWED = "audience_not_allowed"
    INVALID_CREDENTIAL = "invalid_credential"
    CREDENTIAL_REQUIRED = "credential_required"
    INSUFFICIENT_SCOPE = "insufficient_scope"
    UNKNOWN_AUTHENTICATOR = "unknown_authenticator"
    AUTHENTICATOR_UNAVAILABLE = "authenticator_unavailable"
    MALFORMED_REQUEST = "malformed_request"
    NO_SNAPSHOT = "no_snapshot"
    INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one call.

    `policy` is `<kind> <namespace>/<name>` of the document that decided, empty when none did; `rule` its rule
    index, -1 when none; `field` the path inside that document which decided. `reason` is for operators,
    `public` is all that the caller is told.
    """

    verdict: Verdict
    code: ReasonCode
    http_status: int
    reason: str
    public: str = ""
    policy: str = ""
    rule: int = -1
    field: str = ""
    challenge: str = ""  # the value of `WWW-Authenticate` (RFC 9110, section 11.6.1); with 401 and 403

    @property
    def allowed(self) -> bool:
        """Whether the verdict is ALLOW."""
        return self.verdict is Verdict.ALLOW


# The body that Istio's RBAC filter sends; clients and tests look for it.
ACCESS_DENIED = "RBAC: access denied"


def allow(code: ReasonCode, reason: str, *, policy: str, rule: int = -1, field_path: str = "") -> Decision:
    """Return an allowing decision; only a rule or an explicit configuration calls this."""
    return Decision(Verdict.ALLOW, code, 200, reason, policy=policy, rule=rule, field=field_path)


def deny(
    code: ReasonCode,
    reason: str,
    *,
    http_status: int = 403,
    public: str = ACCESS_DENIED,
    policy: str = "",
    rule: int = -1,
    field_path: str = "",
    challenge: str = "",
) -> Decision:
    """Return a denying decision."""
    return Decision(
        Verdict.DENY, code, http_status, reason, public, policy, rule, field_path, challenge=challenge
    )


class HeaderAction(StrEnum):
    """What happens to a header."""

    REPLACE = "REPLACE"
    APPEND = "APPEND"
    REMOVE = "REMOVE"


@dataclass(frozen=True, slots=True)
class HeaderMutation:
    """A change to a header of the request (towards the upstream) or of the response (towards the caller)."""

    name: str
    value: str = ""
    action: HeaderAction = HeaderAction.REPLACE


@dataclass(frozen=True, slots=True)
class Mutations:
    """What an answer changes besides allowing or denying."""

    request_headers: tuple[HeaderMutation, ...] = ()
    response_headers: tuple[HeaderMutation, ...] = ()
    # Of the query, not encoded; the pipeline's last step makes a new `:path` of them.
    set_parameters: tuple[tuple[str, str], ...] = ()
    remove_parameters: tuple[str, ...] = ()
    shaped: bool = False  # holds values of the call, so its answer is not kept for the next one


NO_MUTATIONS = Mutations()
NO_MARKS: Mapping[str, str] = MappingProxyType({})


class Outcome:
    """Everything that one call comes to: the decision, what is changed, what is only remarked.

    `marks` holds results of rules that never decide (AUDIT, tried ones), by the names of the metadata that
    Envoy's access log shows. Made once for each call, so it is a plain class: half the cost of a dataclass.
    """

    __slots__ = ("decision", "grpc", "marks", "mutations")

    def __init__(
        self, decision: Decision, mutations: Mutations = NO_MUTATIONS, marks: Mapping[str, str] = NO_MARKS
    ) -> None:
        self.decision = decision
        self.mutations = mutations
        self.marks = marks
        self.grpc = False  # of denials: the caller speaks gRPC


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that was considered: whether it matched and, if not, the first thing that did not."""

    policy: str
    rule: int
    matched: bool
    field: str
    detail: str
    # How far the rule got before it failed; the nearest miss of a denial is the step with the highest.
    depth: int = 0


@dataclass(slots=True)
class Explanation:
    """A decision with everything that led to it, in the order it was looked at."""

    decision: Decision
    attributes: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, Step]] = field(default_factory=list)  # with the stage that each belongs to
