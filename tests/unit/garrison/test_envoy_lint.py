"""Of Envoy's configuration `garrison lint` says what is certain to go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from garrison.cli import main

ROOT = Path(__file__).resolve().parents[3]
FILTER = """
static_resources:
  listeners:
  - name: in
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          http_filters:
          - name: quota
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaFilterConfig
              bucket_matchers:
                matcher_list:
                  matchers:
                  - on_match:
                      action:
                        typed_config:
                          "@type": type.googleapis.com/envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaBucketSettings
                          BEHAVIOR
"""


def lint(folder: Path, text: str, *options: str) -> tuple[int, str]:
    """Return exit code and output of `garrison lint` for a file."""
    (folder / "envoy.yaml").write_text(text)
    result = CliRunner().invoke(main, ["lint", *options, str(folder)])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "behavior",
    [
        "no_assignment_behavior: {fallback_rate_limit: {token_bucket: {max_tokens: 1}}}",
        "noAssignmentBehavior: {fallbackRateLimit: {tokenBucket: {maxTokens: 1}}}",
    ],
)
def test_what_crashes_envoy_is_found(tmp_path: Path, behavior: str) -> None:
    """In a whole bootstrap, in both spellings of fields, with its place."""
    code, output = lint(tmp_path, FILTER.replace("BEHAVIOR", behavior))
    assert code == 1
    assert output.startswith(f"{tmp_path}/envoy.yaml:21:")
    assert output.rstrip().endswith("(use a `blanket_rule`) [envoy_crash]")
    assert " warning: static_resources.listeners[0]." in output
    code, output = lint(tmp_path, FILTER.replace("BEHAVIOR", behavior), "--ignore", "envoy_crash")
    assert (code, output) == (0, "no problems\n")


METADATA = (
    '"@type": type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput'
)


@pytest.mark.parametrize(
    "behavior",
    [
        f"bucket_id_builder: {{bucket_id_builder: {{user: {{custom_value: {{typed_config: {{{METADATA}}}}}}}}}}}",
        f"bucketIdBuilder: {{bucketIdBuilder: {{user: {{customValue: {{typedConfig: {{{METADATA}}}}}}}}}}}",
    ],
)
def test_a_value_that_envoy_does_not_find_is_found(tmp_path: Path, behavior: str) -> None:
    """Metadata as value of a bucket id has Envoy allow every call (`tests/e2e/test_rlqs.py` shows it)."""
    code, output = lint(tmp_path, FILTER.replace("BEHAVIOR", behavior))
    assert code == 1
    assert "and allows every call (put the metadata into filter state, and use `FilterStateInput`)" in output
    assert output.rstrip().endswith("[envoy_no_value]")


@pytest.mark.parametrize(
    "behavior",
    [
        f"bucket_id_builder: {{bucket_id_builder: {{user: {{string_value: a}}}}, other: {{{METADATA}}}}}",
        "bucket_id_builder: {bucket_id_builder: []}",
        "bucket_id_builder: {bucket_id_builder: {user: }}",
        "reporting_interval: 5s",
        "no_assignment_behavior: {fallback_rate_limit: {blanket_rule: DENY_ALL}}",
        "expired_assignment_behavior: {fallback_rate_limit: {token_bucket: {max_tokens: 1}}}",
        "no_assignment_behavior: {fallback_rate_limit: {token_bucket: }}",
        "no_assignment_behavior: []",
    ],
)
def test_nothing_is_said_of_what_works(tmp_path: Path, behavior: str) -> None:
    """A token bucket is fine after an assignment; what Envoy refuses is not said here."""
    assert lint(tmp_path, FILTER.replace("BEHAVIOR", behavior)) == (0, "no problems\n")


def test_policies_and_limits_are_told_apart_from_it(tmp_path: Path) -> None:
    """Other files beside it are linted as what they are."""
    (tmp_path / "limits.yaml").write_text("domain: d\ndescriptors:\n- {key: a, shadow_mode: true}\n")
    (tmp_path / "policy.yaml").write_text('kind: Nonsense\n"@type": type.googleapis.com/envoy.x\n')
    code, output = lint(tmp_path, FILTER.replace("BEHAVIOR", "reporting_interval: 5s"))
    assert code == 1
    assert {line.rpartition("[")[2] for line in output.splitlines()} >= {"no_effect]"}
    assert "policy.yaml" in output
    assert "envoy.yaml" not in output


def test_what_garrison_ships_has_no_problems() -> None:
    """The template in `deploy/` is linted as Envoy's."""
    result = CliRunner().invoke(main, ["lint", str(ROOT / "deploy/envoy")])
    assert (result.exit_code, result.output) == (0, "no problems\n")
