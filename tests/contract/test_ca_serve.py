"""`garrison serve` with a CA whose key is encrypted."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ca_files import done, secret
from support.serving import serving, write_settings


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a CA in `ca`, its passphrase in `pass`, and a name short enough for sockets."""
    folder = tmp_path_factory.mktemp("s")
    file = secret(folder / "pass", "correct horse\n")
    where = ("--dir", folder / "ca", "--trust-domain", "cluster.local")
    done("init", *where, "--passphrase-file", file)
    return folder


@pytest.mark.parametrize("way", ["settings", "environment"])
def test_the_passphrase_opens_the_ca(folder: Path, way: str) -> None:
    """It comes from the file that the settings name, or from the environment."""
    more = ", passphrase_file: pass" if way == "settings" else ""
    environment = {} if way == "settings" else {"GARRISON_CA_PASSPHRASE": "correct horse"}
    file = write_settings(folder, f"ca: {{dir: ca{more}}}")
    with serving("--config", str(file), environment=environment) as server:
        server.wait_for("ready")
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("environment", "message"),
    [({}, "GARRISON_CA_PASSPHRASE"), ({"GARRISON_CA_PASSPHRASE": "incorrect"}, "passphrase is wrong")],
)
def test_without_it_there_is_no_start(folder: Path, environment: dict[str, str], message: str) -> None:
    """Exit code 2 and a line that says what to do; the passphrase is in no line."""
    file = write_settings(folder, "ca: {dir: ca}")
    with serving("--config", str(file), environment=environment) as server:
        assert server.wait() == 2
        lines = []
        while (event := server._arriving.get()) is not None:
            lines.append(str(event))
    assert any(message in line for line in lines)
    assert not any("incorrect'" in line or "Traceback" in line for line in lines)
