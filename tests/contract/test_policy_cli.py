"""`garrison check`, `eval` and `lint`: output, exit codes, and no traceback for any input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checks import check_request, principal, role
from support.tokens import Authentication, rsa_signer

from garrison.cli import main

POLICY = role("[{methods: [GET]}]", "[{user: a}]", name="viewer")


def run(*arguments: str, stdin: str | bytes = "") -> Result:
    """Run `garrison` in this process."""
    return CliRunner().invoke(main, arguments, input=stdin, catch_exceptions=False)


def as_json(**request: Any) -> Any:
    """Return a CheckRequest as protobuf JSON data."""
    return json_format.MessageToDict(check_request(**request))


@pytest.fixture
def policies(tmp_path: Path) -> str:
    """Return a folder with a role for service account `a` and a token rule."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "role.yaml").write_text(POLICY)
    (folder / "jwt.yaml").write_text(str(Authentication(rsa_signer().jwks())))
    return str(folder)


def test_check_allows_with_exit_code_0(policies: str) -> None:
    """An allowed call names the document, rule and field that decided."""
    result = run(
        "check", "--policies", policies, "--request", "-", stdin=json.dumps(as_json(source=principal("a")))
    )
    assert result.exit_code == 0
    assert "ALLOW (HTTP 200)" in result.output
    assert "decided by: ServiceRole default/viewer rule 0 spec.rules[0]" in result.output


def test_check_denies_with_exit_code_1_and_explains(policies: str, tmp_path: Path) -> None:
    """`--explain` lists every rule that was considered and why it did not match."""
    file = tmp_path / "request.json"
    file.write_text(json.dumps(as_json(source=principal("b"))))
    result = run("check", "--policies", policies, "--request", str(file), "--explain")
    assert result.exit_code == 1
    assert "DENY (HTTP 403)" in result.output
    assert "source.principal: cluster.local/ns/default/sa/b" in result.output
    assert "- ServiceRole default/viewer rule 0: the rule matched, but no subject did" in result.output


def test_check_in_json(policies: str) -> None:
    """Machines get the same as data."""
    result = run(
        "check", "--policies", policies, "--request", "-", "--json", "--explain", stdin=json.dumps(as_json())
    )
    answer = json.loads(result.output)
    assert (answer["decision"], answer["http_status"], answer["policy"]) == ("deny", 403, None)
    assert [step["policy"] for step in answer["considered"]] == [
        "RequestAuthentication default/jwt",
        "ServiceRole default/viewer",
    ]


@pytest.mark.parametrize("stdin", ["", "{", "[]", '{"attributes": 5}', '{"x": 1}', b"\xff", "[" * 100_000])
def test_check_fails_with_exit_code_2(policies: str, stdin: str | bytes) -> None:
    """A request that is none is an error on stderr, not a verdict."""
    result = run("check", "--policies", policies, "--request", "-", stdin=stdin)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: -: ")
    assert result.stdout == ""


def test_broken_policies_are_exit_code_2_with_positions(tmp_path: Path) -> None:
    """No decision is made on policies with a mistake."""
    (tmp_path / "p.yaml").write_text(POLICY.replace("methods", "metods"))
    for command, option in (("check", "--request"), ("eval", "--requests")):
        result = run(command, "--policies", str(tmp_path), option, "-", stdin="{}")
        assert result.exit_code == 2
        assert (
            "p.yaml:5:17: spec.rules[0].metods: unknown field `metods` (did you mean `methods`?)"
            in result.stderr
        )
    result = run("check", "--policies", str(tmp_path / "missing"), "--request", "-", stdin="{}")
    assert (result.exit_code, "cannot be read: no such file or directory" in result.stderr) == (2, True)


def test_eval_answers_every_line_in_order(policies: str) -> None:
    """Good lines get decisions, bad ones errors, and the order is kept."""
    good = {"id": 1, "request": as_json(source=principal("a"))}
    token = f"Bearer {rsa_signer().token({'exp': 1_000_000_000})}"
    expired = as_json(source=principal("a"), headers={"authorization": token})
    lines = [
        json.dumps(good),
        "",
        "nonsense",
        json.dumps({"id": "x", "request": {"attributes": {"nope": 1}}}),
        json.dumps({"id": 2, "request": as_json(method="PUT", source=principal("a"))}),
        json.dumps({"id": 3, "request": expired}),
        json.dumps({"id": 4, "request": expired, "at": "2001-09-09T01:46:39Z"}),
        json.dumps({"id": 5, "request": as_json(), "at": "yesterday"}),
        json.dumps({"id": 6}),
        json.dumps({"id": 7, "request": as_json(), "extra": 1}),
    ]
    result = run("eval", "--policies", policies, "--requests", "-", stdin="\n".join(lines) + "\n")
    answers = [json.loads(line) for line in result.output.splitlines()]
    assert result.exit_code == 0
    assert [answer["id"] for answer in answers] == [1, None, None, "x", 2, 3, 4, 5, 6, 7]
    assert [answer.get("decision", "error") for answer in answers] == [
        *("allow", "error", "error", "error", "deny", "deny", "allow", "error", "error", "error")
    ]
    assert answers[0] == {
        "id": 1,
        "decision": "allow",
        "http_status": 200,
        "policy": "ServiceRole default/viewer",
        "rule": 0,
        "reason": answers[0]["reason"],
    }
    assert (answers[4]["http_status"], answers[5]["http_status"]) == (403, 401)
    assert set(answers[2]) == {"id", "error"}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60).filter(lambda line: b"\n" not in line), max_size=5))
def test_eval_never_stops(policies: str, lines: list[bytes]) -> None:
    """Any bytes in: one line out for each."""
    result = run("eval", "--policies", policies, "--requests", "-", stdin=b"\n".join([*lines, b"{}"]))
    assert result.exit_code == 0
    assert len(result.output.splitlines()) == len(lines) + 1


def test_mesh_flags_change_how_policies_read(policies: str) -> None:
    """Trust domain and aliases are flags where there is no settings file."""
    request = json.dumps(as_json(source=principal("a", trust_domain="corp.example")))
    arguments = ["check", "--policies", policies, "--request", "-"]
    assert run(*arguments, stdin=request).exit_code == 1
    assert run(*arguments, "--trust-domain", "corp.example", stdin=request).exit_code == 0
    assert run(*arguments, "--trust-domain-alias", "corp.example", stdin=request).exit_code == 0
    assert run(*arguments, "--trust-domain", "UPPER", stdin=request).exit_code == 2
    assert run(*arguments, "--federated-trust-domain", "corp.example=", stdin=request).exit_code == 2


def test_federated_trust_domains_are_flags(tmp_path: Path) -> None:
    """`--federated-trust-domain` lets peers of another trust domain call, everywhere or in a namespace."""
    file = tmp_path / "anybody.yaml"
    file.write_text(role("[{}]"))
    request = json.dumps(as_json(source=principal("a", trust_domain="corp.example")))
    arguments = ["check", "--policies", str(file), "--request", "-"]
    assert run(*arguments, stdin=request).exit_code == 1
    assert run(*arguments, "--federated-trust-domain", "corp.example", stdin=request).exit_code == 0
    assert run(*arguments, "--federated-trust-domain", "corp.example=default", stdin=request).exit_code == 0
    assert run(*arguments, "--federated-trust-domain", "corp.example=shop", stdin=request).exit_code == 1


def test_lint_finds_everything_of_every_kind(tmp_path: Path) -> None:
    """Policies and rate limits are linted together; exit code 1 when there is anything."""
    (tmp_path / "a.yaml").write_text(POLICY.replace("methods", "metods"))
    (tmp_path / "b.yaml").write_text(
        "domain: d\ndescriptors:\n- key: k\n  rate_limit: {unit: eon, requests_per_unit: 1}\n"
    )
    (tmp_path / "c.yaml").write_text("a: [\n")
    result = run("lint", str(tmp_path))
    assert result.exit_code == 1
    found = result.output.splitlines()
    assert [line.removeprefix(f"{tmp_path}/")[:6] for line in found] == ["a.yaml", "b.yaml", "c.yaml"]
    assert all(json.loads(line)["line"] for line in run("lint", str(tmp_path), "--json").output.splitlines())


def test_lint_is_silent_about_good_files(policies: str) -> None:
    """Exit code 0 and one line."""
    result = run("lint", policies)
    assert (result.exit_code, result.output) == (0, "no problems\n")
    assert run("lint", policies, "--json").output == ""


@pytest.mark.parametrize("command", ["serve", "check", "eval", "lint", "demo", "envoy-config"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    """`--help` shows how the command is used."""
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
