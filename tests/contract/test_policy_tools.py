"""`garrison lint --format`, `test`, `diff`, `new`, `can`, `schema`, `completion`: output and exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from click.testing import CliRunner, Result
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checks import SERVICE, check_request, principal, role
from support.tokens import Authentication, rsa_signer

from authz.kinds import KINDS
from authz.schema import kinds, schema, whole_schema
from garrison.cli import main
from garrison.documents import parse, validate

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path, stdin: str | bytes = "") -> Result:
    """Run `garrison` in this process."""
    return CliRunner().invoke(main, [*map(str, arguments)], input=stdin, catch_exceptions=False)


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """Return a folder in which account `a` may GET and members may PUT."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "readers.yaml").write_text(role("[{methods: [GET]}]", "[{user: a}]", name="readers"))
    (folder / "writers.yaml").write_text(role("[{methods: [PUT]}]", "[{group: members}]", name="writers"))
    (folder / "tokens.yaml").write_text(str(Authentication(rsa_signer().jwks())))
    return folder


# ----------------------------------------------------------------------------------------------------- lint


def test_lint_writes_sarif(tmp_path: Path) -> None:
    """Each problem is a result with rule, level, place and field; the rules are listed once."""
    (tmp_path / "a b.yaml").write_text(role("[{methods: [get]}, {methods: [get]}]"))
    result = run("lint", "--format", "sarif", tmp_path)
    log = json.loads(result.output)
    (only,) = log["runs"]
    assert (result.exit_code, log["version"]) == (1, "2.1.0")
    assert [rule["id"] for rule in only["tool"]["driver"]["rules"]] == ["method_case", "shadowed_rule"]
    first = only["results"][0]
    assert (first["ruleId"], first["ruleIndex"], first["level"]) == ("method_case", 0, "warning")
    place = first["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"].endswith("/a%20b.yaml")
    assert place["physicalLocation"]["region"] == {"startLine": 5, "startColumn": 27}
    assert place["logicalLocations"] == [{"fullyQualifiedName": "spec.rules[0].methods[0]"}]


def test_lint_formats_agree(tmp_path: Path) -> None:
    """Text, JSON and SARIF tell of the same problems; nothing found is an empty run."""
    file = tmp_path / "a.yaml"
    file.write_text(role("[{methods: [get]}, {methods: [get]}]"))
    lines = run("lint", file).output.splitlines()
    objects = [json.loads(line) for line in run("lint", file, "--format", "json").output.splitlines()]
    results = json.loads(run("lint", file, "--format", "sarif").output)["runs"][0]["results"]
    assert [line.rsplit("[", 1)[1][:-1] for line in lines] == [one["code"] for one in objects]
    assert [one["code"] for one in objects] == [one["ruleId"] for one in results]
    assert run("lint", file, "--json").output == run("lint", file, "--format", "json").output
    file.write_text(role("[{methods: [GET]}]"))
    clean = run("lint", file, "--format", "sarif")
    assert (clean.exit_code, json.loads(clean.output)["runs"][0]["results"]) == (0, [])


def test_lint_leaves_out_warnings_and_never_errors(tmp_path: Path) -> None:
    """`--ignore` takes warnings away; an error stays."""
    file = tmp_path / "a.yaml"
    file.write_text(role("[{methods: [get]}]"))
    assert run("lint", file, "--ignore", "method_case").exit_code == 0
    file.write_text(role("[{method: [get]}]"))
    assert run("lint", file, "--ignore", "unknown_field").exit_code == 1


# ----------------------------------------------------------------------------------------------------- test

SUITE = f"""
suite: products
policies: [policies]
callers:
  a: {{principal: cluster.local/ns/default/sa/a}}
  member: {{claims: {{groups: [members]}}}}
  nobody: {{}}
requests:
  read: {{path: /x}}
  write: {{method: PUT, path: /x}}
defaults: {{destination: {SERVICE}}}
"""


def suite(folder: Path, cases: str, head: str = SUITE) -> Path:
    """Write a suite with `cases` beside the policies."""
    file = folder / "suite.yaml"
    file.write_text(head + dedent(cases))
    return file


def test_matrix_table_and_claims_pass(policies: Path) -> None:
    """A suite with a matrix, a table, claims and every expectation passes with exit code 0."""
    file = suite(
        policies.parent,
        """\
        cases:
        - name: one
          caller: a
          request: read
          expect: {verdict: allow, policy: ServiceRole default/readers, rule: 0, http_status: 200,
                   code: role_matched, reason: granted}
        - name: all
          matrix: {caller: [a, member, nobody], request: [read, write]}
          allow: [{caller: [a], request: [read]}, {caller: [member], request: [write]}]
        - name: table
          caller: a
          table:
            columns: [method, path, expect, http_status]
            rows: [[GET, /a, allow, null], [DELETE, /b, deny, 403]]
        - name: a connection
          request: {protocol: tcp}
          caller: a
          expect: deny
        - name: headers and labels
          caller: cluster.local/ns/default/sa/a
          request: {headers: {x-a: [b, c], x-d: e}, host: products}
          destination: {service: products.default.svc.cluster.local, labels: {app: x}, port: 80, ip: 10.0.0.1}
          attributes: {remote.ip: 10.0.0.9}
          expect: allow
        """,
    )
    result = run("test", file, "--coverage")
    assert result.output.splitlines() == [
        "11 passed, 0 failed",
        "coverage: 2 of 2 rules, 100.0 %",
    ]
    assert result.exit_code == 0


def test_failures_show_expected_got_and_the_tree(policies: Path) -> None:
    """Exit code 1, with what was expected, what there was, and every rule that was considered."""
    file = suite(
        policies.parent,
        "cases: [{name: wrong, caller: nobody, request: read, expect: {verdict: allow, rule: 0, policy: X}}]",
    )
    result = run("test", file)
    assert result.exit_code == 1
    assert f"FAIL products/wrong ({file}:" in result.output
    assert "verdict: expected `allow`, got `deny`" in result.output
    assert "policy: expected `X`, got none" in result.output
    assert "- ServiceRole default/readers rule 0: the rule matched, but no subject did" in result.output


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("iss: https://issuer.test, aud: x", "allow"),
        ("iss: https://issuer.test, aud: y", "{verdict: deny, http_status: 403, code: audience_not_allowed}"),
        ("iss: https://other.test, aud: x", "{verdict: deny, http_status: 401, reason: issuer}"),
        ("iss: https://issuer.test, aud: x, exp: 1", "{verdict: deny, http_status: 401, reason: expired}"),
        ("iss: https://issuer.test, aud: x, exp: null", "{verdict: deny, http_status: 401, reason: exp}"),
    ],
)
def test_tokens_go_through_the_rules_of_the_destination(tmp_path: Path, token: str, expected: str) -> None:
    """`token` is checked for issuer, audience and times like a real one; only its signature is a given."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "a.yaml").write_text(
        role("[{methods: [PUT]}]", "[{group: members}]")
        + f"""
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: t}}
spec:
  jwtRules:
  - issuer: https://issuer.test
    audiences: [x]
    fromHeaders: [{{name: x-token, prefix: "T "}}]
    jwks: '{rsa_signer().jwks()}'
"""
    )
    cases = f"""
cases:
- name: t
  request: write
  caller: {{token: {{{token}, groups: [members]}}}}
  expect: {expected}
"""
    result = run("test", suite(tmp_path, cases))
    assert result.exit_code == 0, result.output


def test_time_is_that_of_the_case(policies: Path) -> None:
    """A token that is not good yet, or no longer, is refused at the time of the case, whenever the test runs."""
    cases = """
    cases:
    - name: t
      caller: {token: {iss: https://nowhere.test, exp: 1000}}
      request: write
      at: "1970-01-01T00:16:39Z"
      expect: deny
    - {name: bad, caller: a, request: read, at: yesterday, expect: allow}
    """
    result = run("test", suite(policies.parent, cases))
    assert result.exit_code == 2
    assert "`at` is not an RFC 3339 time" in result.stderr


def test_coverage_names_what_is_missed(policies: Path) -> None:
    """A rule that no case made match is listed with its place, and too few of them fail the run."""
    file = suite(policies.parent, "cases: [{name: one, caller: a, request: read, expect: allow}]")
    result = run("test", file, "--coverage")
    assert result.exit_code == 0
    assert (
        f"{policies}/writers.yaml:5: ServiceRole default/writers rule 0 is matched by no case"
        in result.output
    )
    assert "coverage: 1 of 2 rules, 50.0 %" in result.output
    assert run("test", file, "--threshold", "50").exit_code == 0
    assert run("test", file, "--threshold", "51").exit_code == 1


def test_filters_choose_cases_and_choosing_none_is_no_pass(policies: Path) -> None:
    """Text and patterns choose; a run without a case is exit code 2."""
    cases = """
    cases:
    - {name: good one, caller: a, request: read, expect: allow}
    - {name: bad one, caller: a, request: read, expect: deny}
    """
    file = suite(policies.parent, cases)
    assert run("test", file).exit_code == 1
    assert run("test", file, "--filter", "good").exit_code == 0
    assert run("test", file, "--filter", "products/bad*").exit_code == 1
    nothing = run("test", file, "--filter", "neither")
    assert (nothing.exit_code, nothing.stderr) == (2, "error: no case was run\n")


def test_reports_for_machines(policies: Path) -> None:
    """JUnit has a failure with the explanation, JSON the same cases; characters that XML lacks are replaced."""
    cases = """
    cases:
    - {name: good, caller: a, request: read, expect: allow}
    - {name: "bad \\x01 <&>", caller: a, request: read, expect: deny}
    """
    report = policies.parent / "report.xml"
    result = run("test", suite(policies.parent, cases), "--json", "--coverage", "--junit", report)
    data = json.loads(result.output)
    assert (result.exit_code, data["passed"], data["failed"], data["coverage"]["covered"]) == (1, 1, 1, 1)
    assert data["cases"][1]["failures"] == ["verdict: expected `deny`, got `allow`"]
    root = ET.fromstring(report.read_text())
    assert [one.attrib["name"] for one in root.iter("testcase")] == ["good", "bad \ufffd <&>"]
    assert [one.attrib["failures"] for one in root.iter("testsuite")] == ["1"]
    assert "ServiceRole default/readers rule 0" in str(next(root.iter("failure")).text)


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ("cases: []", "[too_short]"),
        ("cases: [{name: a, expects: allow}]", "did you mean `expect`?"),
        ("cases: [{name: a, caller: b, expect: allow}]", "there is no caller `b`"),
        ("cases: [{name: a, caller: membr, expect: allow}]", "did you mean `member`?"),
        ("cases: [{name: a, caller: {principl: x}, expect: allow}]", "did you mean `principal`?"),
        ("cases: [{name: a, expect: maybe}]", "`maybe` is not known here"),
        ("cases: [{name: a}]", "the required field `expect` is missing"),
        ("cases: [{name: a, matrix: {caller: [a]}}]", "either `expect`, for all, or `allow`"),
        (
            "cases: [{name: a, matrix: {caller: [a]}, allow: [{caller: [member]}]}]",
            "the matrix has no caller `member`",
        ),
        ("cases: [{name: a, table: {columns: [caller], rows: [[a, b]]}}]", "2 values for 1 columns"),
        ("cases: [{name: a, table: {columns: [caller, expect], rows: [[1, allow]]}}]", "`1` is no caller"),
        ("cases: [{name: a, table: {columns: [caller], rows: [[a]]}}]", "a row needs `expect`"),
        ("cases: [{name: a, caller: {claims: {}, token: {}}, expect: deny}]", "exclude each other"),
        ("cases: [{name: a, caller: {principal: UP/x}, expect: deny}]", "trust domain `UP`"),
        ("mesh: {trust_domain: UP}\ncases: [{name: a, expect: deny}]", "trust domain `UP`"),
        ("cases: [", "[yaml_syntax]"),
    ],
)
def test_suites_with_mistakes_are_refused_with_positions(policies: Path, cases: str, message: str) -> None:
    """Exit code 2 and one line with file, line and column; nothing is run."""
    file = suite(policies.parent, cases)
    result = run("test", file)
    assert result.exit_code == 2
    assert message in result.stderr
    assert re.match(rf"error: {re.escape(str(file))}:\d+:\d+: ", result.stderr)
    assert result.stdout == ""


def test_suites_without_policies_are_refused(policies: Path) -> None:
    """A suite names its policies, or the command line does."""
    file = suite(
        policies.parent, "cases: [{name: a, expect: deny}]", SUITE.replace("policies: [policies]", "")
    )
    assert run("test", file).exit_code == 2
    assert run("test", file, "--policies", policies).exit_code == 0
    assert run("test", file, "--policies", policies / "missing").exit_code == 2


def test_suites_know_what_is_asked_of_callers(tmp_path: Path) -> None:
    """Plaintext, trust domains, and what a v1alpha1 policy asks: claims are taken for its token, too."""
    (tmp_path / "p.yaml").write_text(
        role("[{methods: [GET]}]")
        + """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p}
spec: {selector: {matchLabels: {app: a}}, portLevelMtls: {8080: {mode: STRICT}}}
---
apiVersion: authentication.istio.io/v1alpha1
kind: Policy
metadata: {name: tokens}
spec:
  targets: [{name: t}]
  origins: [{jwt: {issuer: i, jwksUri: "https://i/keys", jwtHeaders: [x-token]}}]
  principalBinding: USE_ORIGIN
"""
    )
    ports = "{service: a.default.svc.x, labels: {app: a}, port: %s}"
    head = f"""
policies: [p.yaml]
mesh: {{federated_trust_domains: [partner.example=default]}}
callers:
  ours: {{principal: cluster.local/ns/default/sa/a}}
  partner: {{principal: partner.example/ns/default/sa/a}}
  stranger: {{principal: stranger.example/ns/default/sa/a}}
  plain: {{}}
  good: {{token: {{iss: i, sub: s}}}}
  bad: {{token: {{iss: j, sub: s}}}}
  known: {{claims: {{iss: i}}}}
destinations: {{open: {ports % 80}, strict: {ports % 8080}, tokens: {{service: t.default.svc.x}}}}
"""
    file = suite(
        tmp_path,
        """\
        cases:
        - name: peers
          matrix: {caller: [ours, partner, stranger, plain], destination: [open, strict]}
          allow:
          - {caller: [ours, partner], destination: [open, strict]}
          - {caller: [plain], destination: [open]}
        - name: tokens
          matrix: {caller: [good, bad, known, plain], destination: [tokens]}
          allow: [{caller: [good, known]}]
        - name: why
          caller: bad
          destination: tokens
          expect: {verdict: deny, http_status: 401, code: origin_authentication_failed, reason: issuer}
        """,
        head,
    )
    result = run("test", file)
    assert result.exit_code == 0, result.output


def test_suites_keep_what_the_options_say(tmp_path: Path) -> None:
    """What a suite's `mesh` does not say is as on the command line: all of it."""
    (tmp_path / "p.yaml").write_text(role("[{paths: ['/a/../b']}]"))
    head = "policies: [p.yaml]\nmesh: {root_namespace: mesh}\n"
    file = suite(
        tmp_path,
        """\
        cases:
        - {name: raw, request: {path: /a/../b}, destination: s.default.svc.x, expect: allow}
        """,
        head,
    )
    assert run("test", file).exit_code == 1
    assert run("test", file, "--namespace-path-normalization", "default=NONE").exit_code == 0


def test_the_page_shows_a_suite_that_runs(tmp_path: Path) -> None:
    """The example in docs/reference/policy-tests.md passes on policies that it is about."""
    page = (ROOT / "docs/reference/policy-tests.md").read_text()
    (text,) = re.findall(r"```yml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "policies").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/orders.yaml").write_text(text)
    (tmp_path / "policies/orders.yaml").write_text(
        role(
            "[{methods: [GET], paths: ['/orders*']}]",
            "[{user: frontend}, {group: members}]",
            "reader",
            "shop",
        )
    )
    result = run("test", tmp_path / "tests", "--threshold", "100")
    assert result.exit_code == 0, result.output


# ----------------------------------------------------------------------------------------------------- diff


def recorded(*calls: dict[str, Any]) -> str:
    """Return calls as JSON lines."""
    return "".join(
        json.dumps({"id": f"call-{number}", "request": json_format.MessageToDict(check_request(**call))})
        + "\n"
        for number, call in enumerate(calls)
    )


def test_diff_groups_by_cause_and_shows_newly_allowed_first(policies: Path, tmp_path: Path) -> None:
    """What is newly allowed comes first, however many calls are newly denied."""
    new = tmp_path / "new"
    shutil.copytree(policies, new)
    (new / "readers.yaml").write_text(role("[{methods: [HEAD]}]", "[{user: a}]", name="readers"))
    get, head = {"source": principal("a")}, {"source": principal("a"), "method": "HEAD"}
    calls = recorded(get, head, get, get, {"source": principal("b")})
    result = run("diff", policies, new, "--requests", "-", "--limit", "2", stdin=calls)
    lines = result.output.splitlines()
    assert result.exit_code == 1
    assert lines[0] == "DENY -> ALLOW: 1 calls"
    assert lines[2].startswith("  after:  ServiceRole default/readers rule 0: ")
    assert lines[3] == "    call-1"
    assert lines[4] == "ALLOW -> DENY: 3 calls"
    assert lines[-2:] == ["    and 1 more", "4 of 5 calls change verdict"]
    data = json.loads(run("diff", policies, new, "--requests", "-", "--json", stdin=calls).output)
    assert [len(cause["calls"]) for cause in data["causes"]] == [1, 3]
    assert data["causes"][0]["before"]["decision"] == "deny"
    assert data["causes"][0]["after"] == {
        "decision": "allow",
        "policy": "ServiceRole default/readers",
        "rule": 0,
        "code": "role_matched",
    }


def test_diff_of_nothing(policies: Path) -> None:
    """The same policies: exit code 0."""
    result = run("diff", policies, policies, "--requests", "-", stdin=recorded({"source": principal("a")}))
    assert (result.exit_code, result.output) == (0, "0 of 1 calls change verdict\n")


def test_diff_counts_other_reasons(policies: Path, tmp_path: Path) -> None:
    """A call that keeps its verdict for another reason is no change."""
    new = tmp_path / "new"
    new.mkdir()
    (new / "a.yaml").write_text(role("[{methods: [GET]}]", "[{user: a}]", name="others"))
    result = run("diff", policies, new, "--requests", "-", stdin=recorded({"source": principal("a")}))
    assert result.exit_code == 0
    assert "0 of 1 calls change verdict, 1 keep theirs for another reason" in result.output


@pytest.mark.parametrize("line", ["nonsense", "{}", '{"request": {"x": 1}}'])
def test_diff_does_not_pass_over_what_it_cannot_read(policies: Path, line: str) -> None:
    """A line that is no request may be one that changes: exit code 2."""
    result = run("diff", policies, policies, "--requests", "-", stdin=recorded({}) + line + "\n")
    assert (result.exit_code, result.stderr[:11]) == (2, "error: -:2:")


def test_diff_of_broken_policies(policies: Path, tmp_path: Path) -> None:
    """Policies or recordings that cannot be used are exit code 2."""
    assert run("diff", policies, tmp_path / "no", "--requests", "-").exit_code == 2
    assert run("diff", policies, policies, "--requests", tmp_path / "no").exit_code == 2


# ------------------------------------------------------------------------------------------------ new and can


def documents_of(text: str) -> Any:
    """Return the validated documents in `text`."""
    documents, problems = parse(text.encode(), "new.yaml")
    assert problems == []
    return [validate(KINDS[one.data["apiVersion"], one.data["kind"]], one) for one in documents]


def test_new_documents_load_and_work_together(tmp_path: Path) -> None:
    """Role, binding, policy and token rule from `new` load, lint clean and decide as asked."""
    keys = tmp_path / "keys.json"
    keys.write_text(rsa_signer().jwks())
    folder = tmp_path / "policies"
    folder.mkdir()
    for name, arguments in {
        "role": ["role", "reader", "--service", SERVICE, "--method", "GET", "--path", "/x*"],
        "binding": ["binding", "readers", "--role", "reader", "--user", "a", "--group", "members"],
        "jwt": ["jwt", "tokens", "--issuer", "https://issuer.test", "--jwks", str(keys), "--forward"],
        "policy": [
            "policy",
            "p",
            "--namespace",
            "other",
            "--label",
            "a=b",
            "--port",
            "80",
            "--method",
            "GET",
        ],
    }.items():
        result = run("new", *arguments)
        assert result.exit_code == 0, result.output
        assert not isinstance(documents_of(result.output)[0], list)
        (folder / f"{name}.yaml").write_text(result.output)
    assert run("lint", folder).output == "no problems\n"
    assert run("can", "a", "GET", "/x/1", "--policies", folder, "--service", SERVICE).exit_code == 0
    assert run("can", "a", "PUT", "/x/1", "--policies", folder, "--service", SERVICE).exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["binding", "b", "--role", "r"],
        ["jwt", "t", "--issuer", "i", "--jwks", "missing.json"],
        ["policy", "p", "--label", "nothing"],
        ["policy", "p", "--port", "http"],
        ["role", "r", "--method", ""],
    ],
)
def test_new_prints_nothing_that_does_not_load(arguments: list[str]) -> None:
    """What would be refused is refused here: exit code 2 and no document."""
    result = run("new", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=8).filter(lambda text: not text.startswith("-")))
def test_new_quotes_whatever_it_is_given(value: str) -> None:
    """Text is text in the document, also where YAML would read something else."""
    result = run("new", "binding", "b", "--role", "r", "--user", value)
    if result.exit_code == 0:
        assert documents_of(result.output)[0].spec.subjects[0].user == value
    else:
        assert result.exit_code == 2


def test_can_says_why(policies: Path) -> None:
    """One line with yes or no and the reason; names, claims and headers stand for the caller."""
    ask = ["--policies", str(policies), "--service", SERVICE]
    assert run("can", "a", "GET", "/", *ask).output.startswith("yes: ServiceRole default/readers rule 0 ")
    no = run("can", "b", "GET", "/", *ask)
    assert (no.exit_code, no.output.startswith("no: ")) == (1, True)
    assert run("can", "default/a", "GET", "/", *ask).exit_code == 0
    assert run("can", "other/a", "GET", "/", *ask).exit_code == 1
    assert run("can", principal("a"), "GET", "/", *ask).exit_code == 0
    assert run("can", "-", "GET", "/", *ask).exit_code == 1
    assert (
        run("can", "-", "PUT", "/", *ask, "--claim", "groups=x", "--claim", "groups=members").exit_code == 0
    )
    assert "rules considered" in run("can", "b", "GET", "/", *ask, "--explain").output


@pytest.mark.parametrize(
    ("user", "service", "options"),
    [
        ("a b", SERVICE, []),
        ("a", "short", []),
        ("a", "", []),
        ("a", SERVICE, ["--label", "x"]),
        ("spiffe://UP/x", SERVICE, []),
    ],
)
def test_can_refuses_what_is_no_question(policies: Path, user: str, service: str, options: list[str]) -> None:
    """A caller or destination that there cannot be is exit code 2, not `no`."""
    result = run("can", user, "GET", "/", "--policies", policies, "--service", service, *options)
    assert (result.exit_code, result.stdout) == (2, "")


# --------------------------------------------------------------------------------------- schema and completion


def fits(value: Any, rule: Any, root: Any) -> Any:
    """Return whether `value` is valid under the JSON Schema `rule`, for the words our schemas use."""
    if rule is True:
        return True
    if "$ref" in rule:
        found = root
        for step in rule["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        if not fits(value, found, root):
            return False
    known: dict[str, Callable[[Any], Any]] = {
        "type": lambda one: (
            isinstance(value, _TYPES[one]) and not (one in {"integer", "number"} and isinstance(value, bool))
        ),
        "const": lambda one: value == one,
        "enum": lambda them: value in them,
        "anyOf": lambda them: any(fits(value, one, root) for one in them),
        "oneOf": lambda them: sum(fits(value, one, root) for one in them) == 1,
        "required": lambda names: not isinstance(value, dict) or set(names) <= set(value),
        "properties": lambda them: (
            not isinstance(value, dict)
            or all(fits(value[name], one, root) for name, one in them.items() if name in value)
        ),
        "items": lambda one: not isinstance(value, list) or all(fits(item, one, root) for item in value),
        "minItems": lambda size: not isinstance(value, list) or len(value) >= size,
        "maxItems": lambda size: not isinstance(value, list) or len(value) <= size,
        "pattern": lambda text: not isinstance(value, str) or re.search(text, value) is not None,
        "minLength": lambda size: not isinstance(value, str) or len(value) >= size,
        "minimum": lambda least: not isinstance(value, int) or value >= least,
        "maximum": lambda most: not isinstance(value, int) or value <= most,
        "propertyNames": lambda one: (
            not isinstance(value, dict) or all(fits(name, one, root) for name in value)
        ),
        "additionalProperties": lambda one: (
            not isinstance(value, dict)
            or all(
                one is not False and fits(item, one, root)
                for name, item in value.items()
                if name not in rule.get("properties", {})
            )
        ),
    }
    silent = {"$ref", "$schema", "$defs", "title", "description", "default"}
    assert set(rule) <= set(known) | silent, set(rule) - set(known) - silent
    return all(known[word](argument) for word, argument in rule.items() if word in known)


_TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}
# Groups whose models have no validators of their own.
_SHAPE_ONLY = {"rbac.istio.io", "security.istio.io"}
EXAMPLES = [
    document
    for file in [*(ROOT / "examples").rglob("policies/*.yaml"), *(ROOT / "docs").rglob("*.md")]
    for text in (
        [file.read_text()]
        if file.suffix == ".yaml"
        else re.findall(r"```ya?ml[^\n]*\n(.*?)```", file.read_text(), re.DOTALL)
    )
    for document in parse(text.encode(), file.name)[0]
    if isinstance(document.data, dict) and {"apiVersion", "kind"} <= set(document.data)
]


def test_schemas_say_what_the_loader_says() -> None:
    """Every example in docs and demo that loads is valid under the schema, and what is of a wrong shape is not.

    Kinds that read text in a way of their own may refuse more than their schema does, never less.
    """
    whole = whole_schema()
    seen = set()
    for document in EXAMPLES:
        model = KINDS.get((document.data["apiVersion"], document.data["kind"]))
        loads = model is not None and not isinstance(validate(model, document), list)
        group = document.data["apiVersion"].partition("/")[0]
        if not loads and group not in _SHAPE_ONLY:
            continue
        assert fits(document.data, whole, whole) is loads, document.data
        if model is not None:
            one = schema(document.data["kind"])
            assert fits(document.data, one, one) is loads
            seen.add((document.data["kind"], loads))
    assert {("ServiceRole", True), ("ServiceRole", False), ("AuthorizationPolicy", True)} <= seen


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_has_a_closed_schema(kind: str) -> None:
    """`garrison schema KIND` prints a schema with fixed names and versions, and refuses unknown fields."""
    printed = json.loads(run("schema", kind).output)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert printed["additionalProperties"] is False
    if kind != "suite":
        versions = [group for group, name in KINDS if name == kind]
        version = printed["properties"]["apiVersion"]
        assert printed["properties"]["kind"]["const"] == kind
        assert version.get("enum", [version.get("const")]) == versions


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(EXAMPLES), st.data())
def test_a_changed_document_is_judged_alike(document: Any, data: st.DataObject) -> None:
    """Taking a value away, or putting another one in its place, changes loader and schema together.

    Kinds that read text in a way of their own may refuse more than their schema does, never less.
    """
    model = KINDS.get((document.data["apiVersion"], document.data["kind"]))
    paths = sorted((path for path in document.values if path and path[0] != "apiVersion"), key=str)
    if model is None or not paths:
        return
    changed = json.loads(json.dumps(document.data))
    *steps, last = data.draw(st.sampled_from(paths))
    holder = changed
    for step in steps:
        holder = holder[step]
    new = data.draw(st.sampled_from([None, "", "x", 1, True, [], ["x"], {}, {"x": "y"}, "gone"]))
    if new == "gone":
        del holder[last]
    else:
        holder[last] = new
    if "kind" not in changed:
        return
    one = schema(document.data["kind"])
    text = yaml.safe_dump(changed).encode()
    (again,) = parse(text, "changed.yaml")[0]
    # A kind is found by its name first; of those that are only accepted, one model takes several.
    is_kind = changed["kind"] == document.data["kind"]
    loads = is_kind and not isinstance(validate(model, again), list)
    if loads or document.data["apiVersion"].partition("/")[0] in _SHAPE_ONLY:
        assert fits(changed, one, one) is loads, changed


def test_the_suite_schema_takes_suites() -> None:
    """The schema for `garrison test` files accepts the documented suite and refuses a misspelt one."""
    page = (ROOT / "docs/reference/policy-tests.md").read_text()
    (text,) = re.findall(r"```yml\n(.*?)```", page, re.DOTALL)
    found = schema("suite")
    data = yaml.safe_load(text)
    assert fits(data, found, found)
    data["cases"][0]["expects"] = "allow"
    assert not fits(data, found, found)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    """Each shell gets a script that its parser takes, and asking it for words gives commands."""
    script = run("completion", shell).output
    assert "_GARRISON_COMPLETE" in script
    binary = shutil.which(shell)
    if binary is not None:
        option = "--no-execute" if shell == "fish" else "-n"
        subprocess.run([binary, option], input=script.encode(), check=True, timeout=30)
    answer = CliRunner().invoke(
        main,
        [],
        prog_name="garrison",
        env={"_GARRISON_COMPLETE": "bash_complete", "COMP_WORDS": "garrison sche", "COMP_CWORD": "1"},
    )
    assert "plain,schema" in answer.output
