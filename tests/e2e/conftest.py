"""The demo mesh, once for all tests: real Envoys, a real `garrison serve`, real certificates."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from garrison.demo.mesh import Mesh, run_folder, start


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """Yield the running mesh; it ends with the tests."""
    # pytest's own folders are too deep for the paths of Unix sockets.
    with (
        tempfile.TemporaryDirectory(prefix="garrison-e2e-") as parent,
        run_folder(Path(parent), keep=lambda: False) as run,
        start(run, lambda _: None) as running,
    ):
        yield running
