"""JSON Schemas (draft 2020-12) of policy documents, for editors; made from the models that load them.

A schema takes whatever the loader takes. Where a model reads text in a way of its own (durations, short
forms), it takes any text.
"""

from __future__ import annotations

from typing import Any

from pydantic import AliasChoices, BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from authz.kinds import KINDS
from authz.suites.documents import SuiteSpec

_DIALECT = GenerateJsonSchema.schema_dialect
# Not a kind of policy: the files of `garrison test`.
SUITE = "suite"


def _or_text(found: JsonSchemaValue) -> JsonSchemaValue:
    return {"anyOf": [found, {"type": "string"}]}


class _Generator(GenerateJsonSchema):
    """Writes what models say with validators and second spellings, which pydantic leaves out."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        found = super().function_before_schema(schema)
        # Around the fields of a model: `model_schema` says it, which adds to what it gets here.
        return found if schema["schema"]["type"] == "model-fields" else _or_text(found)

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        for field in schema["cls"].model_fields.values():
            if not isinstance(field.validation_alias, AliasChoices):
                continue
            first, *others = (str(one) for one in field.validation_alias.choices)
            for name in others:
                found["properties"][name] = found["properties"][first]
            if first in found.get("required", ()):  # one of the spellings is, which editors need not know
                found["required"] = [name for name in found["required"] if name != first]
        return _or_text(found) if schema["schema"]["type"] == "function-before" else found


def kinds() -> list[str]:
    """Return the names that `schema` takes."""
    return [*dict.fromkeys(kind for _, kind in KINDS), SUITE]


def schema(name: str) -> dict[str, Any]:
    """Return the schema of one kind of document.

    Raises:
        KeyError: there is no such kind.

    """
    if name == SUITE:
        found = SuiteSpec.model_json_schema(by_alias=True, schema_generator=_Generator)
        return {"$schema": _DIALECT, "title": "a suite of `garrison test`", **found}
    models = [model for (_, kind), model in KINDS.items() if kind == name]
    if not models:
        raise KeyError(name)
    found = models[0].model_json_schema(by_alias=True, schema_generator=_Generator)
    return {"$schema": _DIALECT, **_with_identity(found, name)}


def whole_schema() -> dict[str, Any]:
    """Return one schema for a document of any kind, or a `List` of such."""
    models: dict[str, type[BaseModel]] = {kind: model for (_, kind), model in KINDS.items()}
    refs, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models.values())],
        by_alias=True,
        schema_generator=_Generator,
    )
    found: dict[str, Any] = definitions["$defs"]
    shapes = {kind: found[_definition(refs[model, "validation"])] for kind, model in models.items()}
    # Under its own name each: kinds that nothing is read of share a model.
    found |= {kind: _with_identity(shape, kind) for kind, shape in shapes.items()}
    known = [{"$ref": f"#/$defs/{kind}"} for kind in models]
    found["List"] = {
        "type": "object",
        "description": "several documents as one",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"const": "List"},
            "metadata": {"type": "object"},
            "items": {"type": "array", "items": {"anyOf": known}},
        },
        "required": ["kind", "items"],
    }
    return {"$schema": _DIALECT, "$defs": found, "anyOf": [*known, {"$ref": "#/$defs/List"}]}


def _definition(reference: dict[str, Any]) -> str:
    name: str = reference["$ref"].rpartition("/")[2]
    return name


def _with_identity(found: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a kind's schema with its name and API versions, which models may leave to the loader."""
    versions = [group for group, name in KINDS if name == kind]
    properties = {**found["properties"], "kind": {"title": "kind", "type": "string", "const": kind}}
    version = {"const": versions[0]} if len(versions) == 1 else {"enum": versions}
    properties["apiVersion"] = {"title": "apiVersion", "type": "string", **version}
    return {**found, "properties": properties}
