"""Where counts live and how limits are answered, as settings say it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from garrison.errors import ConfigError
from garrison.process.quota import StoreOptions, build_store, find_servers
from garrison.process.settings import Settings, load_settings
from garrison.redis_address import Credentials
from ratelimit.algorithm import OnStoreFailure
from ratelimit.compile import Options
from ratelimit.response import HeaderNames, ResponseOptions
from ratelimit.store.guard import GuardedStore
from ratelimit.store.memory import MemoryStore
from ratelimit.store.servers import ClusterServers, SentinelServer, SingleServer


def settings_of(text: str, folder: Path) -> Settings:
    """Return settings whose group `rate_limit` is `text`."""
    file = folder / "garrison.yaml"
    file.write_text(f"rate_limit: {text}\n")
    return load_settings(file, {}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{redis: ['redis://a', 'redis://b']}", "several servers need `redis_mode: sentinel`"),
        ("{redis_mode: cluster}", "`redis_mode: cluster` needs `redis`"),
        ("{redis: ['redis://a'], redis_mode: sentinel}", "`sentinel_master` and `redis_mode: sentinel` go"),
        ("{redis: ['redis://a'], sentinel_master: m}", "`sentinel_master` and `redis_mode: sentinel` go"),
        ("{redis: ['unix:///a.sock'], redis_mode: cluster}", "are reached by redis:// and rediss://"),
        ("{redis: ['redis://a/1'], redis_mode: cluster}", "a Cluster has no other database than 0"),
        (
            "{redis: ['redis://a', 'rediss://b'], redis_mode: cluster}",
            "differ in nothing but host and port",
        ),
        (
            "{redis: ['redis://:secret1@a', 'redis://:secret2@b'], redis_mode: cluster}",
            "differ in nothing but host and port",
        ),
        ("{redis_certificate: a.pem}", "`redis_certificate` and `redis_private_key` go together"),
        ("{deadline: 2s}", "`deadline` is between 1ms and 1s"),
        ("{deadline: 0ms}", "`deadline` is between 1ms and 1s"),
        ("{on_store_failure: guess}", "`guess` is none of allow, deny, local"),
        ("{replicas: 0}", "greater than or equal to 1"),
        ("{key_prefix: 'a{b}'}", "pattern"),
        ("{limit_header: 'a b'}", "pattern"),
    ],
)
def test_what_does_not_fit_together(text: str, message: str, tmp_path: Path) -> None:
    """Settings that contradict each other stop the start, and no password is in what is said."""
    with pytest.raises(ConfigError) as caught:
        settings_of(text, tmp_path)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_defaults_count_in_memory() -> None:
    """Without servers counts live in memory, limits deny what they cannot tell, answers are plain."""
    group = load_settings(None, {}, {}).rate_limit
    assert isinstance(build_store(group.store_options()), MemoryStore)
    assert group.limits_options() == Options()
    assert group.response_options() == ResponseOptions()
    assert group.deadline == timedelta(milliseconds=10)


def test_modes_reach_limits_and_answers(tmp_path: Path) -> None:
    """Global modes, headers and the default for failures go where they are used."""
    group = settings_of(
        "{quota_mode: true, merge_domain_config: true, on_store_failure: local, shadow_mode: true,"
        " response_headers: true, reset_header: X-Reset, response_dynamic_metadata: true}",
        tmp_path,
    ).rate_limit
    assert group.limits_options() == Options(True, True, OnStoreFailure.LOCAL)
    headers = HeaderNames(reset="X-Reset")
    assert group.response_options() == ResponseOptions(
        shadow_mode=True, headers=headers, dynamic_metadata=True
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{redis: ['unix:///a.sock']}", SingleServer),
        ("{redis: ['rediss://a']}", SingleServer),
        ("{redis: ['redis://a', 'redis://b'], redis_mode: cluster}", ClusterServers),
        (
            "{redis: ['redis://u:p@a:1'], redis_mode: sentinel, sentinel_master: m, sentinel_auth: 's:q'}",
            SentinelServer,
        ),
    ],
)
def test_servers_are_of_the_mode(text: str, kind: type, tmp_path: Path) -> None:
    """Each mode has its kind of servers, guarded by a breaker."""
    options = settings_of(text, tmp_path).rate_limit.store_options()
    assert isinstance(find_servers(options), kind)
    assert isinstance(build_store(options), GuardedStore)


def test_credentials_do_not_print() -> None:
    """Passwords for Sentinels and servers stand in no text that settings are shown as."""
    credentials = Credentials.parse("user:hidden")
    assert (credentials.username, credentials.password) == ("user", "hidden")
    assert Credentials.parse("hidden") == Credentials(None, "hidden")
    settings = load_settings(
        None,
        {
            "GARRISON_RATE_LIMIT_REDIS": "redis://:hidden@a:1",
            "GARRISON_RATE_LIMIT_REDIS_MODE": "sentinel",
            "GARRISON_RATE_LIMIT_SENTINEL_MASTER": "m",
            "GARRISON_RATE_LIMIT_SENTINEL_AUTH": "user:hidden",
        },
        {},
    )
    options = settings.rate_limit.store_options()
    for shown in (settings, options, credentials, find_servers(options)._endpoint):  # type: ignore[attr-defined]
        assert "hidden" not in f"{shown!r} {shown}"


def test_the_trust_in_a_file_that_is_none(tmp_path: Path) -> None:
    """Roots that cannot be read are a mistake in the settings, with the file's name."""
    (tmp_path / "roots.pem").write_text("nothing")
    options = settings_of("{redis: ['rediss://a'], redis_ca: roots.pem}", tmp_path).rate_limit.store_options()
    with pytest.raises(ConfigError, match=r"roots\.pem"):
        build_store(options)
    assert StoreOptions().addresses == ()
