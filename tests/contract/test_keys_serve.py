"""Keys of token issuers in `garrison serve`: settings, wiring, metrics."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from support.checks import role, snapshot
from support.http_server import answer
from support.issuer import JWKS, TokenIssuer

from authz.snapshot import Snapshot
from garrison.errors import ConfigError
from garrison.keys.jwks import KeySource
from garrison.process.serve import Server
from garrison.process.settings import load_settings
from garrison.telemetry.log import LineWriter


def server(folder: Path, **flags: str | tuple[str, ...]) -> Server:
    """Return a server that was built and not started, with settings of the group `keys`."""
    (folder / "policies").mkdir(exist_ok=True)
    names = {f"keys.{name}": value for name, value in flags.items()}
    settings = load_settings(None, {}, {"policies": (str(folder / "policies"),), **names})
    return Server(settings, LineWriter(io.StringIO()))


def needing(*sources: KeySource) -> Snapshot:
    """Return a snapshot whose token rules need these sources."""
    made = snapshot(role("[{}]"))
    return Snapshot(made.version, made.mesh, replace(made.policies, key_sources=sources), ())


def test_a_snapshot_has_its_keys_before_it_is_in_force(tmp_path: Path) -> None:
    """Keys are fetched with the CA of the settings, remembered on disk, shown in metrics, and dropped again."""

    async def scenario(issuer: TokenIssuer) -> None:
        made = server(tmp_path, ca=str(issuer.ca), cache=str(tmp_path / "cache"))
        source, down = KeySource(issuer.jwks_uri + "?key=secret"), KeySource("", "http://127.0.0.1:1")
        issuer.answers[JWKS + "?key=secret"] = answer(issuer.jwks())
        await made._prepare(needing(source, down))
        made._use_policies(needing(source, down))
        keys = made._authorization._environment.keys
        assert keys.current(source) is not None
        assert keys.current(down) is None
        assert len(list((tmp_path / "cache").iterdir())) == 1
        metrics = generate_latest(made._registry()).decode()
        name = f'source="{issuer.jwks_uri}"'
        assert f"garrison_keys_available{{{name}}} 1.0" in metrics
        assert f"garrison_keys_age_seconds{{{name}}}" in metrics
        assert f'garrison_keys_fetches_total{{result="ok",{name}}} 1.0' in metrics
        assert 'garrison_keys_available{source="http://127.0.0.1:1"} 0.0' in metrics
        assert 'garrison_keys_failures{source="http://127.0.0.1:1"} 1.0' in metrics
        assert "secret" not in metrics
        made._use_policies(needing())
        assert keys.current(source) is None
        assert "garrison_keys_available{" not in generate_latest(made._registry()).decode()

    with TokenIssuer(tmp_path) as issuer:
        asyncio.run(scenario(issuer))


def test_blocked_ranges_of_the_settings_are_not_connected_to(tmp_path: Path) -> None:
    """Neither keys nor lists come from a network that the operator excludes."""

    async def scenario(issuer: TokenIssuer) -> None:
        made = server(tmp_path, ca=str(issuer.ca), blocked_ranges=("127.0.0.0/8", "fd00::/8"))
        await made._prepare(needing(KeySource(issuer.jwks_uri)))
        (status,) = made._keys.status()
        assert "leads to `127.0.0.1`, which is not allowed" in status.error
        assert not issuer.asked

    with TokenIssuer(tmp_path) as issuer:
        asyncio.run(scenario(issuer))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("refresh", "59s", "between 1m and 1d"),
        ("refresh", "25h", "between 1m and 1d"),
        ("max_stale", "30s", "between 1m and 365d"),
        ("blocked_ranges", ("10.0.0.1/8",), "has host bits set"),
        ("ca", "/nonexistent.pem", "holds no certificates"),
    ],
)
def test_settings_that_cannot_be_used(
    tmp_path: Path, name: str, value: str | tuple[str, ...], message: str
) -> None:
    """Each mistake is named before the server starts."""
    with pytest.raises(ConfigError) as caught:
        server(tmp_path, **{name: value})
    assert message in str(caught.value)
