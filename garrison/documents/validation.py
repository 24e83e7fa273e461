"""Plain data -> pydantic model, with every mistake at its line and column."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from garrison.documents.diagnostic import Diagnostic, Field, Position
from garrison.documents.document import Document

Model = TypeVar("Model", bound=BaseModel)

_KINDS = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}
_EXPECTED = {
    "string_type": "a string",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "list_type": "a list",
    "tuple_type": "a list",
    "frozen_set_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
}


def validate(model: type[Model], document: Document) -> Model | list[Diagnostic]:
    """Return `document` as a `model`, or one diagnostic for each thing that is wrong with it."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        return [_diagnostic(model, document, problem) for problem in problems]


def _diagnostic(model: type[BaseModel], document: Document, problem: Any) -> Diagnostic:
    code: str = problem["type"]
    path = _present(document, problem["loc"])
    context = problem.get("ctx", {})
    value = problem.get("input")
    hint = ""
    if code == "extra_forbidden":
        name = str(path[-1])
        siblings = _sibling_names(model, path[:-1])
        close = difflib.get_close_matches(name, siblings, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(sorted(siblings))}"
        return Diagnostic(
            document.file, _key(document, path), path, "unknown_field", f"unknown field `{name}`", hint
        )
    if code == "missing":
        name = str(problem["loc"][-1])
        message = f"the required field `{name}` is missing"
        return Diagnostic(document.file, document.position(path), (*path, name), "missing_field", message)
    if code in _EXPECTED:
        got = "nothing" if value is None else _KINDS.get(type(value), type(value).__name__)
        message = f"expected {_EXPECTED[code]}, got {got}"
        if code == "string_type" and not isinstance(value, list | dict) and value is not None:
            hint = "put the value in quotes"
    elif code in {"literal_error", "enum"}:
        message, hint = f"`{value}` is not known here", f"expected {context['expected']}"
        if isinstance(value, bool):
            hint += "; in quotes: without, YAML takes on, off, yes and no for true and false"
    elif code in {"value_error", "assertion_error"}:
        message = str(context.get("error", problem["msg"]))
    elif code in {"union_tag_invalid", "union_tag_not_found"}:
        message = problem["msg"][:1].lower() + problem["msg"][1:]
    else:
        message = problem["msg"][:1].lower() + problem["msg"][1:]
    return Diagnostic(document.file, document.position(path), path, code, message, hint)


def _present(document: Document, loc: tuple[str | int, ...]) -> Field:
    """Return pydantic's location without the parts it adds for unions and functions."""
    path: Field = ()
    value = document.data
    for part in loc:
        inside = isinstance(value, dict) and part in value
        if inside or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            path = (*path, part)
            value = value[part]
    return path


def _key(document: Document, path: Field) -> Position:
    return document.keys.get(path) or document.position(path)


def _sibling_names(model: type[BaseModel], path: Field) -> list[str]:
    """Return the field names that the mapping at `path` may have, as they are written in YAML."""
    current: Any = model
    for part in path:
        current = _step(current, part)
    found: list[str] = []
    for candidate in _models(current):
        found += [field.alias or name for name, field in candidate.model_fields.items()]
    return found


def _step(annotation: Any, part: str | int) -> Any:
    for candidate in _models(annotation):
        if isinstance(part, str):
            for name, field in candidate.model_fields.items():
                if part in {name, field.alias}:
                    return field.annotation
    return annotation if isinstance(part, int) else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models(argument)]
