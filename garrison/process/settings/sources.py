"""Process settings: defaults, then the file, then the environment, then flags; later ones win.

Every leaf of `Settings` has one name in three spellings: `request.transport` in the file,
`GARRISON_REQUEST_TRANSPORT` in the environment, `--request-transport` as a flag. A name that no setting has
is an error in each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel

from garrison.documents import Diagnostic, Document, parse, validate
from garrison.documents.diagnostic import Position
from garrison.errors import ConfigError
from garrison.process.settings.attestation import TokenIssuerSettings
from garrison.process.settings.authenticators import AuthenticatorSettings, path_fields
from garrison.process.settings.policies import CasbinAdapterSettings, ProviderSettings
from garrison.process.settings.tree import Settings
from garrison.process.settings.types import types_in
from garrison.process.settings.workloads import (
    FederatedBundleSettings,
    TrustBundleSettings,
    WorkloadSettings,
)
from garrison.redis_address import RedisAddress

ENVIRONMENT_PREFIX = "GARRISON_"
# Kubernetes gives these to containers when a Service is called `garrison`; GARRISON_ENVOY is the demo's, and
# the passphrases are no settings, so that nothing prints them.
_NOT_OURS = re.compile(
    r"GARRISON_(SERVICE_(HOST|PORT.*)|PORT(_.*)?|ENVOY|CONFIG|CA_PASSPHRASE|CA_NEW_PASSPHRASE|AGENT_.*)"
)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: its path, type and description."""

    path: tuple[str, ...]
    annotation: Any
    description: str
    default: Any

    @property
    def name(self) -> str:
        """The setting as the file spells it: `request.transport`."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The setting as the environment spells it."""
        return ENVIRONMENT_PREFIX + "_".join(self.path).upper()

    @property
    def flag(self) -> str:
        """The setting as the command line spells it."""
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def is_list(self) -> bool:
        """Whether the setting holds several values."""
        return get_origin(self.annotation) is list


# Lists of mappings can only be written in the file.
_OF_OBJECTS = (
    list[WorkloadSettings],
    list[ProviderSettings],
    list[CasbinAdapterSettings],
    list[TrustBundleSettings],
    list[FederatedBundleSettings],
    list[AuthenticatorSettings],
    list[TokenIssuerSettings],
)


def leaves(model: type[BaseModel] = Settings, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Yield every setting that has one value or a list of plain values."""
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, (*path, name))
        elif get_origin(annotation) is not dict and annotation not in _OF_OBJECTS:
            yield Leaf((*path, name), annotation, info.description or "", info.default)


def load_settings(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, str | tuple[str, ...]]
) -> Settings:
    """Return the settings; `flags` maps a setting's name (`request.transport`) to its text or texts.

    Relative paths in the file are relative to the file's folder, others to the working directory.

    Raises:
        ConfigError: a setting is unknown or wrong; each is named with where it came from.

    """
    return load_settings_and_data(file, environment, flags)[0]


def parse_settings(data: Mapping[str, Any]) -> Settings:
    """Return the settings that `load_settings_and_data` returned as `data`, in another process perhaps."""
    return Settings.model_validate(data)


def load_settings_and_data(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, str | tuple[str, ...]]
) -> tuple[Settings, dict[str, Any]]:
    """Do as `load_settings` does, and return as well what all sources say together, as plain data."""
    problems: list[Diagnostic] = []
    data: dict[str, Any] = {}
    document = Document("settings", data)
    if file is not None:
        document, problems = _read(file)
        data = document.data
        if not problems:
            checked = validate(Settings, document)
            problems = checked if isinstance(checked, list) else []
        if problems:
            raise ConfigError(problems)
        _anchor_paths(data, file.parent)
    origins: dict[tuple[str, ...], str] = {}
    for origin, leaf, value in [*_from_environment(environment, problems), *_from_flags(flags)]:
        _put(data, leaf.path, _value(leaf, value))
        origins[leaf.path] = origin
    merged = Document(document.file, data, dict.fromkeys(_paths(data), Position(1, 1)))
    result = validate(Settings, merged)
    if isinstance(result, list):
        problems += [_at_origin(problem, origins) for problem in result]
    if problems or isinstance(result, list):
        raise ConfigError(problems)
    return result, data


def _read(file: Path) -> tuple[Document, list[Diagnostic]]:
    name = str(file)
    empty = Document(name, {})
    try:
        text = file.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return empty, [Diagnostic(name, Position(1, 1), (), "unreadable", f"cannot be read: {reason}")]
    documents, problems = parse(text, name)
    if len(documents) > 1:
        second = documents[1].position(())
        problems.append(Diagnostic(name, second, (), "two_documents", "there can be only one document"))
    document = documents[0] if documents else empty
    if not isinstance(document.data, dict):
        problems.append(document.error((), "dict_type", "expected a mapping of settings"))
    return document, problems


def _from_environment(
    environment: Mapping[str, str], problems: list[Diagnostic]
) -> Iterator[tuple[str, Leaf, str | tuple[str, ...]]]:
    known = {leaf.variable: leaf for leaf in leaves()}
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX) or _NOT_OURS.fullmatch(name):
            continue
        leaf = known.get(name)
        if leaf is None:
            message = f"no setting is called `{name}`"
            problems.append(Diagnostic("environment", Position(1, 1), (), "unknown_setting", message))
            continue
        text = environment[name]
        value = tuple(part.strip() for part in text.split(",") if part.strip()) if leaf.is_list else text
        yield f"environment {name}", leaf, value


def _from_flags(
    flags: Mapping[str, str | tuple[str, ...]],
) -> Iterator[tuple[str, Leaf, str | tuple[str, ...]]]:
    for leaf in leaves():
        if leaf.name in flags:
            yield f"flag {leaf.flag}", leaf, flags[leaf.name]


def _value(leaf: Leaf, value: str | tuple[str, ...]) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if leaf.annotation in {int, bool}:
        documents, _ = parse(value.encode(), leaf.name)
        return documents[0].data if documents else value
    return value


def _put(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
    data[path[-1]] = value


def _anchor_paths(data: dict[str, Any], folder: Path) -> None:
    """Make the file's relative paths relative to the file's folder."""
    for leaf in leaves():
        holder: Any = data
        for part in leaf.path[:-1]:
            holder = holder.get(part, {})
        value = holder.get(leaf.path[-1])
        if value is None or Path not in types_in(leaf.annotation):
            continue
        if RedisAddress in types_in(leaf.annotation) and "://" in value:
            continue
        anchored = [str(folder / one) for one in value] if isinstance(value, list) else str(folder / value)
        holder[leaf.path[-1]] = anchored
    for bundle in (*data.get("trust_bundles", ()), *data.get("federated_bundles", ())):
        for name in {"file", "intermediates"} & bundle.keys():
            bundle[name] = str(folder / bundle[name])
    for issuer in data.get("ca", {}).get("token_issuers", ()):
        if "jwks_file" in issuer:
            issuer["jwks_file"] = str(folder / issuer["jwks_file"])
    for section, name in path_fields(data.get("authenticators", ())):
        section[name] = str(folder / section[name])


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _paths(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, (*path, index))


def _at_origin(problem: Diagnostic, origins: Mapping[tuple[str, ...], str]) -> Diagnostic:
    for path, origin in origins.items():
        if problem.field[: len(path)] == path:
            return Diagnostic(
                origin, Position(1, 1), problem.field, problem.code, problem.message, problem.help
            )
    return problem
