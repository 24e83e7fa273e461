"""Mixer documents compile, or every mistake in them is named where it stands."""

from __future__ import annotations

import pytest

from authz.destination import Destination
from authz.mixer.compile import compile_mixer
from authz.mixer.documents import KINDS
from authz.mixer.lists import EntryType, ListSource
from authz.mixer.rules import Denier, ListChecker, MixerPolicies
from authz.policy.documents import Resource
from garrison.documents import Diagnostic, Document, parse, validate


def load(text: str) -> tuple[list[tuple[Resource, Document]], list[Diagnostic]]:
    """Return the validated documents in `text` (`config.istio.io/v1alpha2` is added) and all problems."""
    documents, problems = parse(text.encode(), "m.yaml")
    loaded: list[tuple[Resource, Document]] = []
    for document in documents:
        document.data.setdefault("apiVersion", "config.istio.io/v1alpha2")
        resource = validate(KINDS[document.data["apiVersion"], document.data["kind"]], document)
        if isinstance(resource, list):
            problems += resource
        else:
            loaded.append((resource, document))
    return loaded, problems


def compiled(text: str) -> MixerPolicies:
    """Return the policies in `text`, which has no error."""
    loaded, problems = load(text)
    assert problems == []
    policies, problems = compile_mixer(loaded, "istio-system")
    assert policies is not None, [str(problem) for problem in problems]
    return policies


def problems_of(text: str) -> list[str]:
    """Return all problems in `text` as they print, without the file's name."""
    loaded, shapes = load(text)
    _, problems = compile_mixer(loaded, "istio-system")
    return [str(problem).removeprefix("m.yaml:") for problem in [*shapes, *problems]]


OLD = """
kind: denier
metadata: {name: deny-handler, namespace: default}
spec: {status: {code: 7, message: Not allowed}, valid_duration: 10s, validUseCount: 7}
---
kind: checknothing
metadata: {name: deny-request, namespace: default}
spec:
---
kind: rule
metadata: {name: deny, namespace: default}
spec:
  match: destination.labels["app"] == "ratings" && source.labels["app"]=="reviews"
  actions:
  - handler: deny-handler.denier
    instances: [deny-request.checknothing]
"""
NEW = """
kind: handler
metadata: {name: whitelist, namespace: istio-system}
spec:
  compiledAdapter: listchecker
  params: {overrides: [v1, v2], entryType: CASE_INSENSITIVE_STRINGS, cachingInterval: 30s, caching_use_count: 5}
---
kind: instance
metadata: {name: appversion, namespace: istio-system}
spec:
  compiledTemplate: listentry
  params: {value: 'source.labels["version"]'}
---
kind: rule
metadata: {name: check, namespace: istio-system}
spec:
  actions:
  - handler: whitelist
    instances: [appversion]
    name: look
"""


def test_istio_1_0_documents() -> None:
    """A handler and an instance of their own kinds, referred to as `name.kind`."""
    (rule,) = compiled(OLD).by_namespace["default"]
    (action,) = rule.actions
    assert rule.policy == "rule default/deny"
    assert action.handler.name == "deny-handler.denier.default"
    assert action.handler.adapter == Denier(7, "Not allowed", 10_000_000_000, 7)
    assert [instance.name for instance in action.instances] == ["deny-request.checknothing.default"]


def test_istio_1_1_documents() -> None:
    """`handler` and `instance`, referred to by their bare names; parameters in either spelling."""
    (rule,) = compiled(NEW).by_namespace["istio-system"]
    (action,) = rule.actions
    checker = action.handler.adapter
    assert isinstance(checker, ListChecker)
    assert checker.overrides.holds("V1")
    assert (checker.blacklist, checker.valid_duration, checker.valid_use_count) == (False, 30_000_000_000, 5)
    assert rule.match is None
    assert action.instances[0].template == "listentry"


@pytest.mark.parametrize(
    "reference",
    ["whitelist.handler.istio-system", "whitelist.handler", "whitelist.istio-system", "whitelist"],
)
def test_references(reference: str) -> None:
    """Full names, short names and names with a namespace find the same handler."""
    text = NEW.replace("handler: whitelist", f"handler: {reference}")
    assert (
        compiled(text).by_namespace["istio-system"][0].actions[0].handler.name
        == "whitelist.handler.istio-system"
    )


def test_a_short_name_stays_in_its_namespace() -> None:
    """What stands in another namespace is only found by its full name."""
    text = NEW.replace("name: check, namespace: istio-system", "name: check, namespace: default")
    found = problems_of(text)
    assert len(found) == 2
    assert "unknown handler `whitelist` (known: whitelist.handler.istio-system) [unknown_handler]" in found[0]
    full = text.replace("handler: whitelist", "handler: whitelist.handler.istio-system").replace(
        "[appversion]", "[appversion.instance.istio-system]"
    )
    assert list(compiled(full).by_namespace) == ["default"]


def test_defaults_are_mixers() -> None:
    """A denier without parameters answers FAILED_PRECONDITION for 5 s and 1000 uses; a list allows nothing."""
    policies = compiled(
        """
kind: denier
metadata: {name: d}
---
kind: listchecker
metadata: {name: l}
spec: {provider_url: "https://lists.example/x"}
---
kind: checknothing
metadata: {name: n}
spec: {}
---
kind: listentry
metadata: {name: e}
spec: {value: source.ip | ip("0.0.0.0")}
---
kind: rule
metadata: {name: r}
spec:
  match: ""
  actions:
  - {handler: d.denier, instances: [n.checknothing, e.listentry]}
  - {handler: l.listchecker, instances: [e.listentry.default]}
"""
    )
    (rule,) = policies.by_namespace["default"]
    source = ListSource("https://lists.example/x", EntryType.STRINGS, 60, 300)
    assert rule.actions[0].handler.adapter == Denier(9, "", 5_000_000_000, 1000)
    checker = rule.actions[1].handler.adapter
    assert isinstance(checker, ListChecker)
    assert (checker.source, checker.blacklist) == (source, False)
    assert (checker.valid_duration, checker.valid_use_count) == (300_000_000_000, 10_000)
    assert policies.sources == {source}


def rule(spec: str, name: str = "r") -> str:
    """Return a rule after a denier `d`, a list `l` and instances `n` and `e`."""
    return f"""kind: denier
metadata: {{name: d}}
---
kind: listchecker
metadata: {{name: l}}
---
kind: checknothing
metadata: {{name: n}}
---
kind: listentry
metadata: {{name: e}}
spec: {{value: source.user}}
---
kind: rule
metadata: {{name: {name}}}
spec:
{spec}"""


def direct(detail: str) -> str:
    """Return a denier with a direct response."""
    kind = '"@type": type.googleapis.com/istio.policy.v1beta1.DirectHttpResponse'
    return (
        f"kind: denier\nmetadata: {{name: d}}\nspec: {{status: {{code: 7, details: [{{{kind}, {detail}}}]}}}}"
    )


DENY = "  actions: [{handler: d.denier, instances: [n.checknothing]}]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            rule('  match: request.pth == "/"\n' + DENY),
            "17:10: spec.match: unknown attribute `request.pth` (character 1 of the expression) (did you mean `request.path`?)",
        ),
        (
            rule("  match: request.path == 1\n" + DENY),
            "17:26: spec.match: `==` compares STRING with STRING, this is INT64 (character 17 of the expression)",
        ),
        (
            rule("  match: request.path\n" + DENY),
            "17:10: spec.match: expected BOOL, this is STRING [expression_type]",
        ),
        (
            rule("  match: >-\n    request.path\n    == 1\n" + DENY),
            "[expression_type]",
        ),
        (
            rule("  match: response.code == 200\n" + DENY),
            "17:10: spec.match: `response.code` is not known when a call is checked [known_too_late]",
        ),
        (rule("  match: true\n" + DENY), "17:10: spec.match: expected a string, got a boolean"),
        (rule("  mach: x\n" + DENY), "17:3: spec.mach: unknown field `mach` (did you mean `match`?)"),
        (
            rule("  actions: [{handler: x.denier, instances: [n.checknothing]}]\n"),
            "17:23: spec.actions[0].handler: unknown handler `x.denier`",
        ),
        (
            rule("  actions: [{handler: d.denier, instances: [x]}]\n"),
            "17:45: spec.actions[0].instances[0]: unknown instance `x`",
        ),
        (
            rule("  actions: [{handler: d.denier}]\n"),
            "17:13: spec.actions[0]: `d.denier` gets no instance, so it never runs [no_instances]",
        ),
        (
            rule("  actions: [{handler: l.listchecker, instances: [n.checknothing]}]\n"),
            "is a listchecker and takes no checknothing (it takes: listentry) [wrong_template]",
        ),
        (rule("  match: 'true'\n"), "17:3: warning: spec: the rule has no actions and no header operations"),
        (rule("  sampling: {}\n" + DENY), "checks are not sampled"),
        (
            rule('  requestHeaderOperations: [{name: "x y", values: [source.user]}]\n'),
            "17:36: spec.requestHeaderOperations[0].name: `x y` is no header name [header_name]",
        ),
        (
            rule('  response_header_operations: [{name: ":status", values: [source.user]}]\n'),
            "spec.response_header_operations[0].name: `:status` is set by Envoy alone [header_name]",
        ),
        (rule("  requestHeaderOperations: [{name: host, values: [source.user]}]\n"), "is set by Envoy alone"),
        (rule("  requestHeaderOperations: [{name: x}]\n"), "REPLACE needs a value [header_values]"),
        (
            rule("  requestHeaderOperations: [{name: x, operation: REMOVE, values: [source.user]}]\n"),
            "REMOVE takes no values [header_values]",
        ),
        (
            rule("  requestHeaderOperations: [{name: x, values: [source.ip]}]\n"),
            "17:48: spec.requestHeaderOperations[0].values[0]: expected STRING, this is IP_ADDRESS",
        ),
        (
            rule(
                "  actions: [{handler: d.denier, instances: [n.checknothing], name: a}]\n"
                "  requestHeaderOperations: [{name: x, values: [a.output.value]}]\n"
            ),
            "the instances of action `a` have no output",
        ),
        (
            "kind: denier\nmetadata: {name: d}\nspec: {status: {message: x}}",
            "the required field `code` is missing",
        ),
        ("kind: denier\nmetadata: {name: d}\nspec: {status: {code: 17}}", "[less_than_equal]"),
        ("kind: denier\nmetadata: {name: d}\nspec: {validDuration: 5}", "expected a duration such as `5s`"),
        ("kind: denier\nmetadata: {name: d}\nspec: {validDuration: -5s}", "the duration `-5s` is negative"),
        (
            "kind: denier\nmetadata: {name: d}\nspec: {validDuration: 5s, valid_duration: 6s}",
            "3:27: spec.valid_duration: unknown field `valid_duration`",
        ),
        (
            direct("code: Nope"),
            "spec.status.details[0].code: `Nope` is not an HTTP status [http_status]",
        ),
        (
            direct('headers: {x: "a\\nb"}'),
            "a header value has no control characters [header_value]",
        ),
        (
            "kind: listchecker\nmetadata: {name: l}\nspec: {entryType: IP_ADDRESSES, overrides: [10.0.0.1, x]}",
            "3:55: spec.overrides[1]: `x` is neither an IP address nor a network [list_entry]",
        ),
        (
            "kind: listchecker\nmetadata: {name: l}\nspec: {entry_type: REGEX, overrides: ['(']}",
            "3:39: spec.overrides[0]: `(` is not an RE2 pattern: missing ): ( [list_entry]",
        ),
        (
            "kind: listchecker\nmetadata: {name: l}\nspec: {provider_url: 'ftp://x/'}",
            "3:22: spec.provider_url: `ftp://x/` is neither http:// nor https:// [list_url]",
        ),
        (
            "kind: listchecker\nmetadata: {name: l}\nspec: {providerUrl: 'http://x/', refreshInterval: 10ms}",
            "3:51: spec.refreshInterval: the refresh interval is at least `1s` [list_refresh]",
        ),
        (
            "kind: listchecker\nmetadata: {name: l}\nspec: {providerUrl: 'http://x/', ttl: 59s}",
            "3:39: spec.ttl: the ttl is shorter than the refresh interval [list_ttl]",
        ),
        ("kind: listentry\nmetadata: {name: e}\nspec: {value: request.headers}", "this is STRING_MAP"),
        (
            "kind: handler\nmetadata: {name: h}\nspec: {compiledAdapter: denyer}",
            "3:25: spec.compiledAdapter: unknown adapter `denyer` (known: denier, listchecker, memquota, redisquota)",
        ),
        (
            "kind: handler\nmetadata: {name: h}\nspec: {compiledAdapter: opa}",
            "the adapter `opa` is not supported yet [unsupported_adapter]",
        ),
        (
            "kind: handler\nmetadata: {name: h}\nspec: {adapter: mine, connection: {address: 'x:1'}}",
            "adapters in other processes are not supported [unsupported_adapter]",
        ),
        (
            "kind: handler\nmetadata: {name: h}\nspec: {compiledAdapter: list, params: {blacklst: true}}",
            "3:40: spec.params.blacklst: unknown field `blacklst` (did you mean `blacklist`?) [unknown_field]",
        ),
        (
            "kind: instance\nmetadata: {name: i}\nspec: {compiledTemplate: listentry}",
            "spec.params.value: the required field `value` is missing [missing_field]",
        ),
        (
            "kind: instance\nmetadata: {name: i}\nspec: {compiledTemplate: apikey}",
            "the template `apikey` is not supported yet",
        ),
        (
            "kind: instance\nmetadata: {name: i}\nspec: {template: nope}",
            "the template `nope` is not known here",
        ),
        (
            "kind: instance\nmetadata: {name: i}\nspec: {template: checknothing, attributeBindings: {a: b}}",
            "attribute bindings are not supported",
        ),
        (
            "kind: attributemanifest\nmetadata: {name: m}\nspec: {attributes: {source.ip: {valueType: STRING}}}",
            "`source.ip` is declared as STRING here and is IP_ADDRESS elsewhere [attribute_type]",
        ),
        (
            "kind: attributemanifest\nmetadata: {name: m}\nspec: {attributes: {a.b: {value_type: TEXT}}}",
            "`TEXT` is not known here",
        ),
        (
            "kind: opa\nmetadata: {name: q}\nspec: {policy: []}",
            "1:7: kind: kind `opa` is not supported yet: no authorization by an adapter from Mixer configuration",
        ),
        ("kind: HTTPAPISpec\nmetadata: {name: q}", "kind `HTTPAPISpec` is not supported yet"),
        ("kind: rbac\nmetadata: {name: q}", "kind `rbac` is not supported yet"),
        ("kind: authorization\nmetadata: {name: q}", "kind `authorization` is not supported yet"),
        ("kind: prometheus\nmetadata: {name: p}", "1:7: warning: kind: `prometheus` only reports: ignored"),
    ],
)
def test_mistakes(text: str, expected: str) -> None:
    """Each mistake is reported once, at its position."""
    found = problems_of(text)
    assert len(found) == 1, found
    assert expected in found[0]


def test_several_mistakes_come_at_once() -> None:
    """Every rule, handler and instance is looked at before anything fails."""
    text = (
        rule("  match: a == 1\n" + DENY)
        + "---\n"
        + rule("  match: b\n  actions: [{handler: x, instances: [y]}]\n")
    )
    codes = [problem.rpartition("[")[2] for problem in problems_of(text)]
    assert codes == ["unknown_attribute]", "unknown_handler]", "unknown_instance]", "unknown_attribute]"]


def test_what_an_unsupported_action_refers_to_is_one_problem() -> None:
    """A rule that uses an unsupported kind adds nothing to what is said about that kind."""
    text = (
        "kind: opa\nmetadata: {name: q}\n---\nkind: authorization\nmetadata: {name: i}\n---\n"
        "kind: rule\nmetadata: {name: r}\nspec: {actions: [{handler: q.opa, instances: [i.authorization]}]}"
    )
    assert [problem.rpartition("[")[2] for problem in problems_of(text)] == ["unsupported_kind]"] * 2


def test_rules_that_only_report_are_left_out() -> None:
    """Metrics rules are accepted with a warning, also when they look at responses."""
    text = """
kind: metric
metadata: {name: requestcount, namespace: istio-system}
spec: {value: "1", dimensions: {code: response.code | 200}}
---
kind: handler
metadata: {name: prom, namespace: istio-system}
spec: {compiledAdapter: prometheus, params: {metrics: []}}
---
kind: rule
metadata: {name: promhttp, namespace: istio-system}
spec:
  match: response.code == 200
  actions: [{handler: prom, instances: [requestcount.metric]}]
"""
    assert all("warning" in problem for problem in problems_of(text))
    assert compiled_with_warnings(text).by_namespace == {}


def compiled_with_warnings(text: str) -> MixerPolicies:
    """Return the policies in `text`, whatever the warnings."""
    policies, _ = compile_mixer(load(text)[0], "istio-system")
    assert policies is not None
    return policies


def test_a_manifest_adds_attributes() -> None:
    """Declared attributes are known with their type; declaring a known one again changes nothing."""
    text = (
        "kind: attributemanifest\nmetadata: {name: m}\n"
        "spec: {attributes: {my.level: {valueType: INT64}, source.ip: {valueType: IP_ADDRESS, description: x}}}\n---\n"
    )
    assert (
        compiled(text + rule("  match: my.level > 3\n" + DENY)).by_namespace["default"][0].match is not None
    )
    assert "unknown attribute `my.level`" in problems_of(rule("  match: my.level > 3\n" + DENY))[0]


def names(policies: MixerPolicies, destination: Destination) -> list[str]:
    """Return the rules for a destination."""
    return [one.policy for one in policies.for_destination(destination).rules]


def test_scope() -> None:
    """Rules of the root namespace are for all, others for destinations of their own namespace; root first."""
    policies = compiled(OLD.replace("destination.labels", "request.headers") + "---\n" + NEW)
    assert names(policies, Destination("a.default.svc", "default")) == [
        "rule istio-system/check",
        "rule default/deny",
    ]
    assert names(policies, Destination("a.other.svc", "other")) == ["rule istio-system/check"]
    assert names(policies, Destination("a.istio-system.svc", "istio-system")) == ["rule istio-system/check"]


def test_rules_for_other_destinations_are_left_out() -> None:
    """What a match says of the destination is decided once per destination, not once per call."""
    policies = compiled(OLD)
    ratings = Destination("a.default.svc", "default", labels={"app": "ratings"})
    assert names(policies, ratings) == ["rule default/deny"]
    assert names(policies, Destination("a.default.svc", "default", labels={"app": "other"})) == []
    # Without the label nobody can tell, so the rule is asked and says why.
    assert names(policies, Destination("a.default.svc", "default")) == ["rule default/deny"]


def test_either_or_keeps_a_rule() -> None:
    """Only conjunctions say that a rule cannot match."""
    policies = compiled(OLD.replace("&&", "||"))
    assert names(policies, Destination("a.default.svc", "default", labels={"app": "x"})) == [
        "rule default/deny"
    ]
