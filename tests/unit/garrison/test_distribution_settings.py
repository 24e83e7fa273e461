"""Where policies may come from is checked before anything is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from garrison.errors import ConfigError
from garrison.process.settings import load_settings
from garrison.redis_address import RedisAddress

KEY = "ed25519:iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="


def problem(folder: Path, text: str) -> str:
    """Return what loading a `distribution:` section complains about."""
    file = folder / "garrison.yaml"
    file.write_text(f"distribution: {text}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {}, {})
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{redis: 'redis://h'}", "without, nobody can be believed"),
        ("{redis: 'rediss://h'}", "without, nobody can be believed"),
        (
            "{redis: 'redis://h', unsigned_from_trusted_connection: true}",
            "needs a `rediss://` or `unix://` URL",
        ),
        (
            f"{{redis: 'rediss://h', unsigned_from_trusted_connection: true, public_keys: ['{KEY}']}}",
            "not both",
        ),
        (f"{{public_keys: ['{KEY}']}}", "need `redis`"),
        ("{unsigned_from_trusted_connection: true}", "need `redis`"),
        (f"{{redis: 'redis://h', public_keys: ['{KEY[:-4]}']}}", "is not `ed25519:`"),
        (f"{{redis: 'redis://h', public_keys: ['{KEY}'], channel: 'a}}b'}}", "is no channel"),
        (f"{{redis: 'redis://h', public_keys: ['{KEY}'], poll: 1ms}}", "between 100ms and 1h"),
        (f"{{redis: 'redis://h', public_keys: ['{KEY}'], max_bundle_bytes: 1}}", "1024"),
    ],
)
def test_signed_or_from_a_trusted_connection_only(tmp_path: Path, section: str, expected: str) -> None:
    """Without keys, nothing but an explicit wish and a connection that nobody can tamper with will do."""
    assert expected in problem(tmp_path, section)


@pytest.mark.parametrize("url", ["rediss://redis.example:6380/2", "unix:///run/redis.sock?db=2"])
def test_unsigned_from_a_trusted_connection(url: str) -> None:
    """Verified TLS or a Unix socket, and an explicit wish, stand in for signatures."""
    environment = {
        "GARRISON_DISTRIBUTION_REDIS": url,
        "GARRISON_DISTRIBUTION_UNSIGNED_FROM_TRUSTED_CONNECTION": "true",
    }
    trust = load_settings(None, environment, {}).distribution.trust()
    assert trust.unsigned_from_trusted_connection
    assert trust.keys == ()


def test_by_default_policies_come_from_files() -> None:
    """Nothing is followed unless somebody says so."""
    settings = load_settings(None, {}, {}).distribution
    assert settings.redis is None
    assert not settings.trust().unsigned_from_trusted_connection


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://h", RedisAddress("redis", "h", 6379)),
        ("redis://h:1/3", RedisAddress("redis", "h", 1, database=3)),
        ("rediss://u:p%40@[::1]:2", RedisAddress("rediss", "::1", 2, username="u", password="p@")),
        ("unix:///a%20b?db=4", RedisAddress("unix", path="/a b", database=4)),
        ("unix://u:p@/a", RedisAddress("unix", path="/a", username="u", password="p")),
    ],
)
def test_redis_urls(text: str, expected: RedisAddress) -> None:
    """The usual spellings are read; passwords are read and never printed."""
    found = RedisAddress.parse(text)
    assert found == expected
    assert "p@" not in f"{found} {found!r}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h:6379",
        "http://secret@h",
        "redis://",
        "redis://:secret@h:99999",
        "redis://h/secret",
        "unix://host/a",
        "unix://a",
        "redis://[secret",
        "rediss://:secret@h?ssl_cert_reqs=none",
        "rediss://:secret@h?ssl_check_hostname=false&db=1",
        "rediss://:secret@h#x",
    ],
)
def test_other_urls_are_refused(text: str) -> None:
    """Above all those that switch off verification; the message never repeats what may hold a password."""
    with pytest.raises(ValueError, match=r"Redis URL|unix://") as caught:
        RedisAddress.parse(text)
    assert "secret" not in str(caught.value)


def test_tls_is_always_verified(tmp_path: Path) -> None:
    """The certificate and its name are checked for every rediss:// URL."""
    arguments = RedisAddress.parse("rediss://h")._arguments(tmp_path / "ca.pem")
    assert arguments["ssl_cert_reqs"] == "required"
    assert arguments["ssl_check_hostname"] is True


def test_a_wrong_url_in_the_settings_is_not_repeated(tmp_path: Path) -> None:
    """Settings errors end up in logs; passwords must not."""
    assert "secret" not in problem(tmp_path, "{redis: 'rediss://:secret@h?a=b'}")
