"""The documentation says what the code does.

Tables between `<!-- generated: NAME -->` and `<!-- end -->` are made from the code. Run this file as a script to
write them again after a change: `PYTHONPATH=tests .venv/bin/python tests/contract/test_docs.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from textwrap import dedent
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import click
import pytest
import yaml
from click.testing import CliRunner
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf import json_format
from pydantic import BaseModel
from support.checks import role

from authz.attributes import ATTRIBUTES
from authz.authenticators.clients import KeyFile
from authz.decision import ReasonCode
from authz.kinds import KINDS
from authz.policy.compile import MeshSettings, compile_policies
from garrison.cli import main
from garrison.documents import parse, validate
from garrison.errors import ConfigError
from garrison.process.settings import Settings, leaves, load_settings
from garrison.process.settings.attestation import TokenIssuerSettings
from garrison.process.settings.authenticators import (
    ApiKeySettings,
    AuthenticatorSettings,
    BasicSettings,
    IntrospectionSettings,
    RedisKeySettings,
    TokenReviewSettings,
)
from garrison.process.settings.policies import CasbinAdapterSettings, ProviderSettings
from garrison.process.settings.workloads import (
    FederatedBundleSettings,
    TrustBundleSettings,
    WorkloadSettings,
)
from garrison.telemetry import names
from garrison.telemetry.metrics import (
    AuthenticatorCollector,
    AuthorityCollector,
    CaCollector,
    DistributionCollector,
    FederationCollector,
    KeyCollector,
    RlqsCollector,
    ServerCollector,
    StoreCollector,
    WorkerCollector,
)
from garrison.transport.address import Address
from ratelimit.compile import lint as lint_limits
from ratelimit.service import Counters, Fault
from ratelimit.statistics import Hits

ROOT = Path(__file__).resolve().parents[2]
_SKIPPED = {"node_modules", "dist", "build"}
_HELP_WIDTH = 100
# How a bar stands in a table cell, also inside backticks.
_BAR = r"\|"


def markdown_files() -> list[Path]:
    """Return every Markdown file of the project."""
    return sorted(
        file
        for file in ROOT.rglob("*.md")
        if not any(part.startswith(".") or part in _SKIPPED for part in file.relative_to(ROOT).parts)
    )


def name_of(file: Path) -> str:
    """Return the path that messages and test names show."""
    return str(file.relative_to(ROOT))


# ------------------------------------------------------------------------------------- generated tables


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', _BAR) for cell in line)} |" for line in lines)


def type_name(annotation: Any, name: str = "") -> str:
    """Return what a setting takes, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if hasattr(annotation, "__metadata__"):
        return type_name(annotation.__origin__, name)
    others = [one for one in arguments if one is not NoneType]
    if arguments and len(others) < len(arguments):
        return type_name(others[0], name)
    if origin is UnionType:
        return " or ".join(type_name(one) for one in arguments)
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return ", ".join(f"`{value.value}`" for value in annotation)
    if name.endswith("unix_mode"):
        return "octal file mode"
    if origin is dict:
        return f"map of {type_name(arguments[1])}" if arguments[1] is not str else "map of strings"
    plain = {str: "string", int: "whole number", bool: "`true`, `false`", timedelta: "duration", Path: "path"}
    words: str = re.sub(r"(?<!^)([A-Z])", r" \1", annotation.__name__).lower()
    return plain.get(annotation) or words.replace("spiffe id", "SPIFFE ID")


def value_text(value: Any, name: str = "") -> str:
    """Return a default as it would be written in the settings file."""
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, list):
        return ", ".join(value_text(one) for one in value)
    if isinstance(value, timedelta):
        milliseconds = value // timedelta(milliseconds=1)
        for unit, length in (("h", 3_600_000), ("s", 1000)):
            if milliseconds % length == 0:
                return f"`{milliseconds // length}{unit}`"
        return f"`{milliseconds}ms`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if name.endswith("unix_mode"):
        return f"`{value:04o}`"
    return f"`{value}`"


def settings_table() -> str:
    """Return every setting that has one value or a list of plain ones, in its three spellings."""
    rows = [
        (
            f"`{leaf.name}`",
            f"`{leaf.variable}`",
            f"`{leaf.flag}`",
            type_name(leaf.annotation, leaf.name),
            value_text(leaf.default, leaf.name),
            leaf.description,
        )
        for leaf in leaves()
    ]
    return table(("file", "environment", "flag", "takes", "default", "meaning"), rows)


def workloads_table() -> str:
    """Return the fields of one of `workloads`."""
    return fields_table(WorkloadSettings)


def providers_table() -> str:
    """Return the fields of one of `ext_authz_providers`."""
    return fields_table(ProviderSettings)


def bundles_table() -> str:
    """Return the fields of one of `trust_bundles`."""
    return fields_table(TrustBundleSettings)


def federated_table() -> str:
    """Return the fields of one of `federated_bundles`."""
    return fields_table(FederatedBundleSettings)


def adapters_table() -> str:
    """Return the fields of one of `casbin_adapters`."""
    return fields_table(CasbinAdapterSettings)


def authenticators_table() -> str:
    """Return the fields of one of `authenticators`."""
    return fields_table(AuthenticatorSettings)


def fields_table(model: type[BaseModel]) -> str:
    """Return the fields of a model of settings."""
    rows = [
        (
            f"`{name}`",
            type_name(info.annotation, name),
            "required" if info.is_required() else value_text(info.default, name),
        )
        for name, info in model.model_fields.items()
    ]
    return table(("field", "takes", "default"), rows)


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words that call `command` and each of its subcommands."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


def help_text(path: tuple[str, ...]) -> str:
    """Return what `--help` prints."""
    result = CliRunner().invoke(main, [*path, "--help"], prog_name="garrison", terminal_width=_HELP_WIDTH)
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.rstrip().split("\n"))


def help_pages() -> str:
    """Return the help of every command."""
    return "\n\n".join(
        f"### {' '.join(('garrison', *path))}\n\n```text\n{help_text(path)}\n```" for path in commands(main)
    )


def metrics_table() -> str:
    """Return every metric of ours, as Prometheus sees it."""
    nothing: Callable[[], Mapping[Any, Any]] = dict
    collector = ServerCollector(
        decisions=nothing,
        rate_limits=nothing,
        rule_hits=nothing,
        reloads=nothing,
        left_out=nothing,
        sds=nothing,
        workload=nothing,
        refused_buckets=lambda: 0,
        resets=nothing,
        snapshots=nothing,
        ready=lambda: True,
    )
    follower = DistributionCollector(connected=lambda: True, bundles=dict, in_force=lambda: None)
    keys = KeyCollector(list)
    authenticators = AuthenticatorCollector(answers=dict, breakers=dict, remembered=dict)
    store = StoreCollector(breakers=dict, failures=dict, local_answers=dict)
    quotas = RlqsCollector(
        streams=lambda: 0, buckets=lambda: 0, actions=nothing, reported=nothing, refused=nothing
    )
    workers = WorkerCollector(ready=dict, restarts=dict, silent=dict, store_restarts=lambda: 0)
    authorities = AuthorityCollector(dict, dict, {})
    ca = CaCollector(issued=dict, refused=dict)
    federation = FederationCollector(list)
    collectors = (
        *(collector, ca, keys, store, follower, authenticators, authorities, quotas, workers, federation),
    )
    types = {metric.name: metric.type for one in collectors for metric in one.collect()}
    rows = []
    for constant, text in vars(names).items():
        if not constant.endswith("_HELP"):
            continue
        base = constant.removesuffix("_HELP")
        name = getattr(names, base)
        labels = ", ".join(f"`{label}`" for label in getattr(names, f"{base}_LABELS", ()))
        suffix = "_total" if types[name] == "counter" else ""
        rows.append((f"`{name}{suffix}`", types.pop(name), labels or "none", text))
    assert not types, "a metric is collected that has no constants in garrison/telemetry/names.py"
    return table(("metric", "type", "labels", "meaning"), rows)


def kinds_table() -> str:
    """Return every kind of policy document."""
    return table(("`apiVersion`", "`kind`"), [(f"`{group}`", f"`{kind}`") for group, kind in KINDS])


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("docs/reference/settings.md", settings_table),
    "workloads": ("docs/reference/settings.md", workloads_table),
    "providers": ("docs/reference/settings.md", providers_table),
    "bundles": ("docs/reference/settings.md", bundles_table),
    "federated": ("docs/reference/settings.md", federated_table),
    "adapters": ("docs/reference/settings.md", adapters_table),
    "authenticators": ("docs/reference/credentials.md", authenticators_table),
    "api_keys": ("docs/reference/credentials.md", lambda: fields_table(ApiKeySettings)),
    "api_keys.redis": ("docs/reference/credentials.md", lambda: fields_table(RedisKeySettings)),
    "basic": ("docs/reference/credentials.md", lambda: fields_table(BasicSettings)),
    "introspection": ("docs/reference/credentials.md", lambda: fields_table(IntrospectionSettings)),
    "token_review": ("docs/reference/credentials.md", lambda: fields_table(TokenReviewSettings)),
    "token_issuers": ("docs/reference/attestation.md", lambda: fields_table(TokenIssuerSettings)),
    "cli": ("docs/reference/cli.md", help_pages),
    "metrics": ("docs/reference/metrics.md", metrics_table),
    "kinds": ("docs/semantics.md", kinds_table),
}


def split(name: str) -> tuple[str, str, str]:
    """Return a page as what stands before a generated block, the block, and the rest."""
    text = (ROOT / GENERATED[name][0]).read_text()
    start, end = f"<!-- generated: {name} -->\n\n", "\n\n<!-- end -->"
    before, found, rest = text.partition(start)
    generated, ended, after = rest.partition(end)
    assert found, f"{GENERATED[name][0]} has no block `{name}`"
    assert ended, f"{GENERATED[name][0]}: the block `{name}` does not end"
    return before + start, generated, end + after


@pytest.mark.parametrize("name", GENERATED)
def test_generated_tables_are_current(name: str) -> None:
    """Settings, commands, metrics and kinds are documented as they are."""
    where, generate = GENERATED[name]
    assert split(name)[1] == generate(), f"{where} is out of date: run this test file as a script"


def rewrite() -> None:
    """Write every generated block again."""
    for name, (where, generate) in GENERATED.items():
        before, _, after = split(name)
        (ROOT / where).write_text(before + generate() + after)


# ------------------------------------------------------------------------------- what is written by hand


def rows_of(file: str) -> Iterator[list[str]]:
    """Yield the cells of every table row in a file."""
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: a}}
spec: {{rules: [{{when: [{{key: "{key}", values: ["1"]}}]}}]}}
"""


def places_of(key: str) -> set[str]:
    """Return where policies can name an attribute."""
    texts = {
        "constraint": role(f"[{{constraints: [{{key: '{key}', values: ['1']}}]}}]"),
        "property": role("[{}]", f"[{{properties: {{'{key}': '1'}}}}]"),
        "`when`": POLICY.format(key=key),
    }
    found = set()
    for place, text in texts.items():
        documents, problems = parse(text.encode(), "policy.yaml")
        assert not problems
        _, problems = compile_policies(documents, MeshSettings())
        if "unknown_key" not in {problem.code for problem in problems}:
            found.add(place)
    return found


def test_every_attribute_is_documented() -> None:
    """docs/attributes.md has a row for each attribute and says in which keys policies can name it."""
    documented = {cells[0].strip("`"): cells for cells in rows_of("docs/attributes.md") if len(cells) == 5}
    bare = {re.sub(r"(\.X)?\[.*", "", name) for name in documented}
    # Other readings of an attribute, which no policy names.
    internal = {name for name in ATTRIBUTES if name.endswith((".any", ".pair"))}
    assert set(ATTRIBUTES) - internal == bare
    for name, cells in documented.items():
        said = {place for place in ("constraint", "property", "`when`") if place in cells[-1]}
        assert said == places_of(name), name


def test_every_label_value_is_documented() -> None:
    """docs/reference/metrics.md has each value of `code` and of `outcome`."""
    rows = rows_of("docs/reference/metrics.md")
    documented = {name.strip(" `") for cells in rows for name in cells[0].split(",")}
    assert {code.value for code in ReasonCode} <= documented
    assert {outcome.name for outcome in fields(Counters)} <= documented
    assert {outcome.name for outcome in fields(Hits)} <= documented


def test_every_rate_limit_fault_is_documented() -> None:
    """docs/reference/ratelimit.md has each fault that a caller can see."""
    text = (ROOT / "docs/reference/ratelimit.md").read_text()
    assert all(f"`{fault.value}`" in text for fault in Fault)


# ----------------------------------------------------------------------------------------------- examples

# Envoy's own configuration: only its syntax is checked here, the files in `deploy/` are run by tests/e2e.
_ENVOY_KEYS = {
    "typed_config",
    "check_settings",
    "clusters",
    "grpc_service",
    "http_filters",
    "name",
    "rate_limits",
    "typed_per_filter_config",
}
# The authenticators of the examples.
MESH = MeshSettings(authenticators=(("partners", "api_keys"), ("staff", "basic")))
_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A fenced block: `language` is the first word after the fence, `wrong` says the second one does."""

    file: str
    line: int
    language: str
    wrong: bool
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def examples(*languages: str) -> list[Example]:
    """Return the blocks of every Markdown file that are in one of `languages`."""
    found = []
    for file in markdown_files():
        text = file.read_text()
        for match in _FENCE.finditer(text):
            language, _, more = match[2].partition(" ")
            if language in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Example(name_of(file), line, language, more == "wrong", dedent(match[3])))
    return found


def problems_of(example: Example, folder: Path) -> list[str]:
    """Return what the loader of its kind says about an example."""
    documents, problems = parse(example.text.encode(), str(example))
    if problems:
        return [str(problem) for problem in problems]
    assert documents, "the example is empty"
    keys = {key for document in documents for key in document.data}
    if keys & {"apiVersion", "kind"}:
        _, problems = compile_policies(documents, MESH)
        # A binding may stand apart from its role on a page.
        return [str(problem) for problem in problems if problem.code != "missing_role"]
    if keys & {"domain", "descriptors"}:
        return [str(problem) for problem in lint_limits(documents)]
    if keys == {"keys"}:
        found = validate(KeyFile, documents[0])
        return [str(problem) for problem in found] if isinstance(found, list) else []
    if keys <= _ENVOY_KEYS:
        return []
    file = folder / "garrison.yaml"
    file.write_text(example.text)
    try:
        load_settings(file, {}, {})
    except ConfigError as error:
        return [str(error)]
    return []


@pytest.mark.parametrize("example", examples("yaml"), ids=str)
def test_yaml_examples_load(example: Example, tmp_path: Path) -> None:
    """Policies, limits and settings in the documentation are accepted, those marked `wrong` refused."""
    problems = problems_of(example, tmp_path)
    assert bool(problems) == example.wrong, problems


@pytest.mark.parametrize("example", examples("json"), ids=str)
def test_json_examples_are_check_requests(example: Example) -> None:
    """Every JSON example is JSON, and a CheckRequest if it says so."""
    data = json.loads(example.text)
    if "attributes" in data:
        json_format.ParseDict(data, CheckRequest())


def test_an_example_that_is_not_marked_is_found(tmp_path: Path) -> None:
    """The test above sees mistakes in each kind of file."""
    wrong = (
        "kind: ServiceRole\n",
        "apiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRole\nmetadata: {name: a}\nspec: {rule: []}\n",
        "domain: a\ndescriptors: [{value: b}]\n",
        "request: {transports: ngh2}\n",
        "a: *b\n",
    )
    for text in wrong:
        assert problems_of(Example("x.md", 1, "yaml", wrong=False, text=text), tmp_path), text


# ------------------------------------------------------------------------------------------ links and paths

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def prose(file: Path) -> str:
    """Return a Markdown file without its fenced blocks."""
    return _FENCE.sub("", file.read_text())


def anchors(file: Path) -> set[str]:
    """Return the fragments that a Markdown file's headings can be linked by, as forges make them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        for heading in _HEADING.findall(prose(file))
    }


@pytest.mark.parametrize("file", markdown_files(), ids=name_of)
def test_links_lead_somewhere(file: Path) -> None:
    """Every relative link points to a file that is there, and its fragment to a heading in it."""
    for link in _LINK.findall(prose(file)):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, fragment = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if fragment:
            assert fragment in anchors(target), link


@pytest.mark.parametrize("file", markdown_files(), ids=name_of)
def test_files_that_are_named_exist(file: Path) -> None:
    """A path in backticks that starts with a folder of ours is a file or folder of ours."""
    tops = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    for word in _CODE.findall(prose(file)):
        path = word.split("#")[0].split(":")[0]
        top, slash, rest = path.partition("/")
        if not slash or top not in tops or not re.fullmatch(r"[\w./-]*", rest):
            continue
        known = (ROOT / path).exists() or (ROOT / f"{path}.py").exists() or path == "benchmarks/README.md"
        assert known, f"`{word}`"


def test_pages_that_code_names_exist() -> None:
    """A comment or message that sends readers to a page sends them to one that is there."""
    tops = ("authz", "benchmarks", "ca", "deploy", "examples", "garrison", "ratelimit", "tests")
    for top in tops:
        for file in sorted((ROOT / top).rglob("*")):
            if file.suffix in {".py", ".yaml", ".md", ".lua"}:
                for page in re.findall(r"docs/[a-z0-9/_-]+\.md", file.read_text()):
                    assert (ROOT / page).exists(), f"{name_of(file)}: {page}"


@pytest.mark.parametrize("file", markdown_files(), ids=name_of)
def test_no_page_names_a_machine(file: Path) -> None:
    """Paths of a developer's machine mean nothing to a reader."""
    assert not re.findall(r"(?<![\w.}-])/(?:home|root|Users|tmp|work|mnt)/\S*", file.read_text())


def test_deployed_yaml_is_named_in_the_docs() -> None:
    """Each Envoy file in deploy/ can be found from a page."""
    pages = "\n".join(file.read_text() for file in markdown_files())
    for file in sorted((ROOT / "deploy").rglob("*.yaml")):
        yaml.safe_load(file.read_text())
        assert name_of(file) in pages


def test_settings_groups_are_documented() -> None:
    """Each group of settings says what it is for, in the code and so in the table's neighbourhood."""
    text = (ROOT / "docs/reference/settings.md").read_text()
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            assert f"`{name}.`" in text, name
    assert str(Address.parse("unix:///run/garrison.sock")) in text


if __name__ == "__main__":
    rewrite()
