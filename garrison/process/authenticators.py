"""`authenticators:` of the settings -> who knows credentials, running, and what keeps them current."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, Field, field_validator, model_validator

from authz.authenticators.api_keys import (
    ApiKeys,
    client_files,
    load_directory,
    load_file,
)
from authz.authenticators.base import Managed
from authz.authn.credentials import Kind, Result
from authz.policy.credentials import RESERVED_NAMES
from garrison.documents import Listing, list_files
from garrison.process.reload import Reloader
from garrison.process.setting_types import STRICT, FilePath


class ApiKeySettings(BaseModel):
    """Where API keys are: exactly one of a file, a folder and Redis."""

    model_config = STRICT
    file: FilePath | None = None
    directory: FilePath | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.file, self.directory)) != 1:
            raise ValueError("exactly one of `file` and `directory` is needed")
        return self


class AuthenticatorSettings(BaseModel):
    """Who knows which credentials are good; `CredentialAuthentication` documents name them."""

    model_config = STRICT
    name: Annotated[str, Field(pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    api_keys: ApiKeySettings | None = None

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value in RESERVED_NAMES:
            raise ValueError(f"`{value}` is what issuers without an authenticator end in")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind.value, None) is not None for kind in Kind) != 1:
            raise ValueError(f"exactly one of {', '.join(f'`{kind.value}`' for kind in Kind)} is needed")
        return self

    @property
    def kind(self) -> Kind:
        """What this authenticator knows."""
        return next(kind for kind in Kind if getattr(self, kind.value, None) is not None)


def path_fields(data: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the mappings in `authenticators:` that hold paths, each with the path's key.

    `data` is as it stands in the file, and has been validated.
    """
    for one in data:
        for kind, section in one.items():
            model = AuthenticatorSettings.model_fields[kind].annotation
            if not isinstance(section, dict):
                continue
            for name in section:
                if _takes_path(model, name):
                    yield section, name


def _takes_path(model: Any, name: str) -> bool:
    (section,) = (one for one in get_args(model) if issubclass(one, BaseModel))
    return Path in _types(section.model_fields[name].annotation)


def _types(annotation: Any) -> set[Any]:
    return {annotation}.union(*map(_types, get_args(annotation)))


class Authenticators:
    """The authenticators of a process, by name; `reloaders` keep those that rest on files current."""

    def __init__(self, settings: Sequence[AuthenticatorSettings]) -> None:
        self.by_name: dict[str, Managed] = {}
        self.reloaders: list[Reloader[Any]] = []
        for one in settings:
            self.by_name[one.name] = self._make(one)

    def load(self) -> None:
        """Read all files for the first time.

        Raises:
            ConfigError: one of them cannot be used.

        """
        for reloader in self.reloaders:
            reloader.load()

    def _make(self, settings: AuthenticatorSettings) -> Managed:
        if settings.api_keys is not None:
            return self._api_keys(settings.name, settings.api_keys)
        raise AssertionError(settings.kind)

    def _api_keys(self, name: str, settings: ApiKeySettings) -> Managed:
        keys = ApiKeys()
        if settings.file is not None:
            self._follow(name, settings.file, load_file, keys.use)
        elif settings.directory is not None:
            self._follow(name, settings.directory, load_directory, keys.use, list_clients)
        return keys

    def _follow(
        self,
        name: str,
        path: Path,
        load: Callable[[Path], Any],
        use: Callable[[Any], None],
        files: Callable[[Sequence[Path]], Listing] | None = None,
    ) -> None:
        self.reloaders.append(
            Reloader(f"authenticator_{name}", [path], lambda paths: load(paths[0]), use, files=files)
        )

    def results(self) -> dict[tuple[str, ...], int]:
        """Return how many credentials came to what, by authenticator and result."""
        return {
            (name, result.value): one.results[result]
            for name, one in self.by_name.items()
            for result in Result
        }

    def breakers(self) -> dict[str, bool]:
        """Return which circuit breakers are open."""
        found = {name: one.is_open for name, one in self.by_name.items()}
        return {name: is_open for name, is_open in found.items() if is_open is not None}

    def remembered(self) -> dict[str, int]:
        """Return how many keys or answers each one has in memory."""
        return {name: one.remembered for name, one in self.by_name.items()}

    async def close(self) -> None:
        """Let go of all of them."""
        for one in self.by_name.values():
            await one.close()


def list_clients(folders: Sequence[Path]) -> Listing:
    """Return the state of each file in folders of API keys, which have no suffix to know them by."""
    found: dict[Path, Any] = {}
    for folder in folders:
        try:
            found.update(list_files(client_files(folder)))
        except OSError as error:
            found[folder] = (error.strerror or str(error)).lower()
    return found
