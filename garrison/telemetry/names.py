"""Every metric's name and labels, in one place; label sets are constant and bounded."""

from __future__ import annotations

DECISIONS = "garrison_decisions"
DECISIONS_HELP = "Check calls answered, by verdict and reason code"
DECISIONS_LABELS = ("verdict", "code")

RATE_LIMIT_HITS = "garrison_rate_limit_answers"
RATE_LIMIT_HITS_HELP = "ShouldRateLimit calls answered and Check calls charged, by domain and outcome"
RATE_LIMIT_HITS_LABELS = ("domain", "outcome")

RATE_LIMIT_RULE_HITS = "garrison_rate_limit_hits"
RATE_LIMIT_RULE_HITS_HELP = "Hits by domain, rule and outcome, each hit as often as its hits_addend says"
RATE_LIMIT_RULE_HITS_LABELS = ("domain", "rule", "outcome")

RELOADS = "garrison_reloads"
RELOADS_HELP = "Loads of policies, limits and files of authenticators, by kind and result"
RELOADS_LABELS = ("kind", "result")

SNAPSHOT = "garrison_snapshot"
SNAPSHOT_HELP = "The generation in force, as a label"
SNAPSHOT_LABELS = ("kind", "version")

READY = "garrison_ready"
READY_HELP = "1 when the server takes calls, 0 before and while it drains"

LOG_LINES_LEFT_OUT = "garrison_log_lines_left_out"
LOG_LINES_LEFT_OUT_HELP = (
    "Log lines not written: decisions above the limit a second, lines nobody read in time"
)
LOG_LINES_LEFT_OUT_LABELS = ("reason",)

SDS = "garrison_sds_events"
SDS_HELP = "What happened on SDS streams"
SDS_LABELS = ("event",)

WORKLOAD_API = "garrison_workload_api_events"
WORKLOAD_API_HELP = "What happened on calls of the SPIFFE Workload API"
WORKLOAD_API_LABELS = ("event",)

CA_ISSUED = "garrison_ca_certificates"
CA_ISSUED_HELP = "Certificates issued over gRPC, by how the caller was attested"
CA_ISSUED_LABELS = ("attested_by",)

CA_REFUSED = "garrison_ca_refusals"
CA_REFUSED_HELP = "Callers of the CA that got nothing, by reason"
CA_REFUSED_LABELS = ("reason",)
FEDERATED_BUNDLE_AVAILABLE = "garrison_federated_bundle_available"
FEDERATED_BUNDLE_AVAILABLE_HELP = "1 when there is a bundle of this trust domain that counts, else 0"
FEDERATED_BUNDLE_AVAILABLE_LABELS = ("trust_domain",)

FEDERATED_BUNDLE_AGE = "garrison_federated_bundle_age_seconds"
FEDERATED_BUNDLE_AGE_HELP = "Time since the endpoint last confirmed the bundle of this trust domain"
FEDERATED_BUNDLE_AGE_LABELS = ("trust_domain",)

FEDERATED_BUNDLE_FETCHES = "garrison_federated_bundle_fetches"
FEDERATED_BUNDLE_FETCHES_HELP = "Fetches of bundles of other trust domains, by result"
FEDERATED_BUNDLE_FETCHES_LABELS = ("trust_domain", "result")

RATE_LIMIT_REFUSED = "garrison_rate_limit_buckets_refused"
RATE_LIMIT_REFUSED_HELP = "New rate-limit counters refused because the store was full"

RATE_LIMIT_RESETS = "garrison_rate_limit_resets"
RATE_LIMIT_RESETS_HELP = "Resets of rate-limit counters that operators asked for, by what became of them"
RATE_LIMIT_RESETS_LABELS = ("result",)
CA_SECONDS_LEFT = "garrison_ca_seconds_left"
CA_SECONDS_LEFT_HELP = (
    "Time until the certificate of the authority that signs, or of its root, ends; negative once it has"
)
CA_SECONDS_LEFT_LABELS = ("certificate",)

CA_AUTHORITIES = "garrison_ca_authorities"
CA_AUTHORITIES_HELP = "Authorities of the CA, by state"
CA_AUTHORITIES_LABELS = ("state",)

CA_ROTATIONS = "garrison_ca_rotations"
CA_ROTATIONS_HELP = "Steps that the schedule made between authorities, and those that failed"
CA_ROTATIONS_LABELS = ("step",)

KEYS_AVAILABLE = "garrison_keys_available"
KEYS_AVAILABLE_HELP = (
    "1 when there are keys to verify this issuer's tokens with, 0 when all of them are refused"
)
KEYS_AVAILABLE_LABELS = ("source",)

KEYS_AGE = "garrison_keys_age_seconds"
KEYS_AGE_HELP = "Time since the issuer last confirmed its keys"
KEYS_AGE_LABELS = ("source",)

KEYS_FAILURES = "garrison_keys_failures"
KEYS_FAILURES_HELP = "Fetches of keys that failed in a row"
KEYS_FAILURES_LABELS = ("source",)

KEYS_FETCHES = "garrison_keys_fetches"
KEYS_FETCHES_HELP = "Fetches of keys, by result"
KEYS_FETCHES_LABELS = ("source", "result")
AUTHENTICATOR_ANSWERS = "garrison_authenticator_answers"
AUTHENTICATOR_ANSWERS_HELP = "Credentials that an authenticator was asked about, by what it made of them"
AUTHENTICATOR_ANSWERS_LABELS = ("authenticator", "result")

AUTHENTICATOR_BREAKER = "garrison_authenticator_breaker_open"
AUTHENTICATOR_BREAKER_HELP = "1 while an authenticator's dependency is not asked because it did not answer"
AUTHENTICATOR_BREAKER_LABELS = ("authenticator",)

AUTHENTICATOR_REMEMBERED = "garrison_authenticator_remembered"
AUTHENTICATOR_REMEMBERED_HELP = "API keys that are known, or answers that are remembered"
AUTHENTICATOR_REMEMBERED_LABELS = ("authenticator",)
RATE_LIMIT_BREAKERS = "garrison_rate_limit_store_breakers"
RATE_LIMIT_BREAKERS_HELP = (
    "Breakers before the rate-limit store, by state: one, or one for each domain of a Cluster"
)
RATE_LIMIT_BREAKERS_LABELS = ("state",)

RATE_LIMIT_STORE_FAILURES = "garrison_rate_limit_store_failures"
RATE_LIMIT_STORE_FAILURES_HELP = (
    "Times that the rate-limit store opened a breaker or failed a probe, by reason"
)
RATE_LIMIT_STORE_FAILURES_LABELS = ("reason",)

RATE_LIMIT_LOCAL_ANSWERS = "garrison_rate_limit_local_answers"
RATE_LIMIT_LOCAL_ANSWERS_HELP = "Limits answered without asking the rate-limit store"
RATE_LIMIT_LOCAL_ANSWERS_LABELS = ("answer",)

DISTRIBUTION_CONNECTED = "garrison_distribution_connected"
DISTRIBUTION_CONNECTED_HELP = "1 when this replica can see its policy channel, 0 while Redis is away"

DISTRIBUTION_BUNDLES = "garrison_distribution_bundles"
DISTRIBUTION_BUNDLES_HELP = "Announcements on the policy channel, by what became of them"
DISTRIBUTION_BUNDLES_LABELS = ("result",)

DISTRIBUTION_BUNDLE = "garrison_distribution_bundle"
DISTRIBUTION_BUNDLE_HELP = "The sequence number of the bundle in force; its version as a label"
DISTRIBUTION_BUNDLE_LABELS = ("version",)

RLQS_STREAMS = "garrison_rlqs_streams"
RLQS_STREAMS_HELP = "Envoys with an open quota stream"

RLQS_BUCKETS = "garrison_rlqs_buckets"
RLQS_BUCKETS_HELP = "Buckets that Envoys subscribe to, each as often as Envoys do"

RLQS_ACTIONS = "garrison_rlqs_actions"
RLQS_ACTIONS_HELP = "What Envoys were told about a bucket"
RLQS_ACTIONS_LABELS = ("action",)

RLQS_REPORTED = "garrison_rlqs_reported_calls"
RLQS_REPORTED_HELP = "Calls that Envoys report, by domain and what they did with them"
RLQS_REPORTED_LABELS = ("domain", "outcome")

RLQS_REFUSED = "garrison_rlqs_refused"
RLQS_REFUSED_HELP = "Streams and buckets above the bounds, and streams that ended with a malformed report"
RLQS_REFUSED_LABELS = ("what",)

WORKER_READY = "garrison_worker_ready"
WORKER_READY_HELP = "1 while this worker takes calls, 0 while it starts, drains or is gone"
WORKER_READY_LABELS = ("worker",)

WORKER_RESTARTS = "garrison_worker_restarts"
WORKER_RESTARTS_HELP = "Times that this worker ended by itself and was started again"
WORKER_RESTARTS_LABELS = ("worker",)

WORKER_SILENT = "garrison_worker_silent_scrapes"
WORKER_SILENT_HELP = "Scrapes of metrics that this worker did not answer in time"
WORKER_SILENT_LABELS = ("worker",)

EMBEDDED_RESTARTS = "garrison_embedded_store_restarts"
EMBEDDED_RESTARTS_HELP = "Times that the embedded Valkey ended by itself and was started again, empty"
