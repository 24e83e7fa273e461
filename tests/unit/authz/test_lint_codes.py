"""docs/lint.md explains every code, and its examples yield just that code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from pydantic import BaseModel

from authz.casbin_policy.compile import MANY_ROWS
from authz.kinds import KINDS
from authz.policy.compile import MeshSettings
from authz.tools.lint import find_problems, other_linters
from garrison.cli import main
from garrison.documents.yaml import MAX_DEPTH, MAX_FILE_BYTES
from ratelimit.documents import LimitsDocument

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/lint.md").read_text()
# Who makes diagnostics, and which argument is the code.
_MAKERS = {
    "error": 1,
    "_error": 1,
    "_warn": 1,
    "_report": 1,
    "report": 2,
    "warn": 2,
    "add": 2,
    "at": 2,
    "_refusal": 2,
    "Diagnostic": 3,
    "_diagnostic": 1,
    "PydanticCustomError": 0,
    "ExpressionError": 0,
    "Mistake": 2,
}
# What pydantic calls mistakes, by what its core schema checks.
_OF_SCHEMA: dict[str, set[str]] = {
    "str": {"string_type"},
    "int": {"int_type"},
    "bool": {"bool_type"},
    "list": {"list_type"},
    "dict": {"dict_type"},
    "model": {"model_type"},
    "model-fields": {"unknown_field", "missing_field"},
    "literal": {"literal_error"},
}
_OF_LIMIT = {
    ("str", "min_length"): "string_too_short",
    ("list", "min_length"): "too_short",
    ("dict", "min_length"): "too_short",
    ("list", "max_length"): "too_long",
    ("int", "ge"): "greater_than_equal",
    ("int", "le"): "less_than_equal",
    ("str", "pattern"): "string_pattern_mismatch",
}
# Checks that make no code of their own.
_SILENT = {"any", "nullable", "default", "model-field", "definitions", "definition-ref", "union"}
_SILENT |= {"function-before", "function-wrap", "function-after"}


# Codes that are put together from parts.
_COMPOSED = {"unknown_handler", "unknown_instance"}


def sections() -> dict[str, list[str]]:
    """Return the examples below each heading of a code."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        code, _, body = part.partition("\n")
        body = body.split("\n## ")[0]
        found[code] = [dedent(text) for text in re.findall(r"```yml\n(.*?)```", body, re.DOTALL)]
    return found


SECTIONS = sections()
EXAMPLES = [(code, text) for code, texts in SECTIONS.items() for text in texts]


def matching(expression: str) -> bytes:
    """Return a Mixer rule with this expression."""
    head = "apiVersion: config.istio.io/v1alpha2\nkind: rule\nmetadata: {name: a}\n"
    operation = "requestHeaderOperations: [{name: x-a, operation: REMOVE}]"
    return f"{head}spec: {{match: '{expression}', {operation}}}\n".encode()


def casbin(
    matcher: str, rows: str, effect: str = "some(where (p.eft == allow))", p: str = "sub, act"
) -> bytes:
    """Return a CasbinPolicy with roles."""
    return dedent(
        f"""\
        apiVersion: garrison.dev/v1alpha1
        kind: CasbinPolicy
        metadata: {{name: a}}
        spec:
          request: [{{attribute: "request.auth.claims[sub]", prefix: "u:"}}, request.method]
          model: |
            [request_definition]
            r = sub, act
            [policy_definition]
            p = {p}
            [role_definition]
            g = _, _
            [policy_effect]
            e = {effect}
            [matchers]
            m = {matcher}
          policy: "{rows}"
        """
    ).encode()


def made(code: str, folder: Path) -> Path:
    """Return a file with a problem that cannot be shown on a page."""
    file = folder / "made.yaml"
    content = {
        "too_deep": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        "encoding": b"kind: \xff",
        "expression_too_deep": matching("(" * 1000 + "true" + ")" * 1000),
        "expression_too_long": matching("true || " * 20_000 + "true"),
        "all_rows": casbin(
            "keyMatch(r.sub, p.sub) && r.act != p.act",
            "".join(f"p, u:{index}*, GET\\n" for index in range(MANY_ROWS)),
        ),
        "model": casbin(
            "g(r.sub, p.sub) && r.act == p.act",
            "p, role:a, GET, allow\\ng, role:a, role:b\\ng, role:b, role:a\\n",
            "subjectPriority(p.eft) || deny",
            "sub, act, eft",
        ),
        "no_shared_store": (
            b"apiVersion: config.istio.io/v1alpha2\nkind: redisquota\nmetadata: {name: a}\nspec: {quotas: []}\n"
        ),
        "file_too_large": b"#" * (MAX_FILE_BYTES + 1),
        "too_long": (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n"
            f"spec: {{rules: [{', '.join(['{}'] * 513)}]}}\n"
        ).encode(),
    }.get(code)
    if content is not None:
        file.write_bytes(content)
    return file  # of `unreadable` there is none


def codes_of(path: Path, *, shared: bool | None = None) -> set[str]:
    """Return the codes that `garrison lint` finds; `shared`: whether it knows that counts are shared."""
    main.get_command(None, "lint")  # type: ignore[arg-type] # so that limits are linted, too
    assert other_linters
    authenticators = (("keys", "api_keys"), ("others", "api_keys"))
    mesh = MeshSettings(providers=frozenset({"opa"}), authenticators=authenticators, has_shared_store=shared)
    return {problem.code for problem in find_problems([path], mesh)}


@pytest.mark.parametrize(("code", "text"), EXAMPLES, ids=[code for code, _ in EXAMPLES])
def test_each_example_yields_its_code(code: str, text: str, tmp_path: Path) -> None:
    """What the page shows below a code is linted to that code and no other."""
    file = tmp_path / "example.yaml"
    file.write_text(text)
    assert codes_of(file) == {code}


@pytest.mark.parametrize("code", sorted(code for code, texts in SECTIONS.items() if not texts))
def test_codes_without_an_example_can_be_made(code: str, tmp_path: Path) -> None:
    """A heading without example is of a problem that a page cannot show."""
    assert codes_of(made(code, tmp_path), shared=False) == {code}


def literal_codes(file: Path) -> Iterator[str]:
    """Yield the codes that a module passes to what makes diagnostics, or yields as remarks."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            at = _MAKERS.get(name, len(node.args))
            candidates = node.args[at : at + 1]
        elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 3:
            candidates = node.value.elts[:1]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "code":
            choice = node.value
            candidates = [choice.body, choice.orelse] if isinstance(choice, ast.IfExp) else []
        elif isinstance(node, ast.Raise) and file.name == "documents.py":
            # pydantic's name for what its validators raise.
            raised = getattr(node.exc, "func", None)
            candidates = [ast.Constant("value_error")] if getattr(raised, "id", "") == "ValueError" else []
        else:
            continue
        for one in candidates:
            if isinstance(one, ast.Constant) and isinstance(one.value, str):
                yield one.value


def schema_codes(schema: Any) -> Iterator[str]:
    """Yield the codes that pydantic can give for a core schema."""
    if isinstance(schema, list | tuple):
        for one in schema:
            yield from schema_codes(one)
        return
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if isinstance(kind, str) and ("schema" in schema or kind in _OF_SCHEMA or kind in _SILENT):
        assert kind in _OF_SCHEMA or kind in _SILENT, f"which codes does pydantic's `{kind}` give?"
        yield from _OF_SCHEMA.get(kind, ())
        for limit in ("min_length", "max_length", "ge", "le", "gt", "lt", "pattern"):
            if schema.get(limit) is not None:
                yield _OF_LIMIT[kind, limit]
    for name, value in schema.items():
        if name not in {"metadata", "config", "serialization", "default"}:
            yield from schema_codes(value)


def packages() -> set[str]:
    """Return the folders that hold what `garrison lint` runs: the shared ones and those of every kind."""
    kinds = {"/".join(model.__module__.split(".")[:2]) for model in KINDS.values()}
    return kinds | {"garrison/documents", "authz/lint", "ratelimit"}


def test_every_code_is_explained() -> None:
    """Whatever code the source can give has a heading, and no heading is left over."""
    models: list[type[BaseModel]] = [*KINDS.values(), LimitsDocument]
    emitted = {code for model in models for code in schema_codes(model.__pydantic_core_schema__)} | _COMPOSED
    files = [file for package in packages() for file in (ROOT / package).rglob("*.py")]
    for file in [*files, ROOT / "garrison/envoy_lint.py", ROOT / "garrison/limit_lint.py"]:
        emitted |= set(literal_codes(file))
    assert set(SECTIONS) == emitted
