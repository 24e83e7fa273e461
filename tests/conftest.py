"""What holds for all tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove what servers leave behind in the folder for temporary files: some tests kill them."""
    tmp_path_factory.getbasetemp()  # pytest's own folders stay where they are, and outlive the tests
    # A short name: there are paths of Unix sockets below it.
    with tempfile.TemporaryDirectory(prefix="g-") as folder, pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", folder)
        patched.setattr(tempfile, "tempdir", folder)
        yield
