"""`authenticators:` of the settings: one kind each, secrets in files, tokens only where nobody listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from garrison.errors import ConfigError
from garrison.process.authenticators import Authenticators
from garrison.process.settings import Settings, load_settings

INTROSPECTION = "endpoint: 'URL', client_id: c, client_secret_file: s"


def load(folder: Path, text: str) -> Settings:
    """Return the settings with an `authenticators:` section."""
    file = folder / "garrison.yaml"
    file.write_text(f"authenticators: {text}\n")
    return load_settings(file, {}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[{name: a}]", "exactly one of `api_keys`, `basic`, `introspection`, `token_review`"),
        ("[{name: a, api_keys: {file: k}, basic: {file: u}}]", "exactly one of"),
        ("[{name: a, api_keys: {}}]", "exactly one of `file`, `directory` and `redis`"),
        ("[{name: a, api_keys: {file: a, directory: b}}]", "exactly one of"),
        ("[{name: A, basic: {file: u}}]", "authenticators[0].name"),
        ("[{name: anonymous, basic: {file: u}}]", "`anonymous` is what issuers without"),
        ("[{name: certificate, basic: {file: u}}]", "`certificate` is what issuers without"),
        ("[{name: a, basic: {file: u}}, {name: a, basic: {file: v}}]", "`a` stands twice"),
        ("[{name: a, basic: {file: u, password: x}}]", "unknown field `password`"),
        ("[{name: a, api_keys: {redis: {url: 'redis://u:s3cret@h'}}}]", "`password_file`"),
        ("[{name: a, token_review: {}}]", "`audiences` is missing"),
        ("[{name: a, token_review: {audiences: []}}]", "audiences"),
        (f"[{{name: a, introspection: {{{INTROSPECTION}, timeout: 0s}}}}]", "timeout"),
        (f"[{{name: a, introspection: {{{INTROSPECTION}, cache: 2h}}}}]", "cache"),
        (f"[{{name: a, introspection: {{{INTROSPECTION}, scopes: ['a b']}}}}]", "scopes[0]"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, expected: str) -> None:
    """With file and field; no secret is repeated."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text.replace("URL", "https://as.example/i"))
    assert expected in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://as.example/introspect?x=1", True),
        ("http://127.0.0.1:8080/introspect", True),
        ("http://[::1]/introspect", True),
        ("http://localhost/introspect", True),
        ("http://as.example/introspect", False),
        ("http://127.0.0.1.example/introspect", False),
        ("https://user:s3cret@as.example/", False),
        ("https://as.example/#x", False),
        ("ftp://as.example/", False),
        ("as.example", False),
    ],
)
def test_tokens_and_secrets_are_not_sent_in_the_clear(tmp_path: Path, url: str, good: bool) -> None:
    """TLS, or this machine."""
    text = f"[{{name: a, introspection: {{{INTROSPECTION.replace('URL', url)}}}}}]"
    if good:
        assert load(tmp_path, text).mesh.authenticators == (("a", "introspection"),)
        return
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert "s3cret" not in str(caught.value)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """At any depth, as all others; absolute ones stay."""
    found = load(
        tmp_path,
        "[{name: a, api_keys: {file: k}}, {name: b, api_keys: {directory: /d}}, {name: c, basic: {file: u}},"
        " {name: d, api_keys: {redis: {url: 'unix:///r', password_file: p}}},"
        f" {{name: e, introspection: {{{INTROSPECTION.replace('URL', 'https://a')}, ca: r}}}},"
        " {name: f, token_review: {audiences: [x], token_file: t}}]",
    ).authenticators
    keys, folder, basic, redis, introspection, review = found
    assert keys.api_keys is not None
    assert keys.api_keys.file == tmp_path / "k"
    assert folder.api_keys is not None
    assert folder.api_keys.directory == Path("/d")
    assert basic.basic is not None
    assert basic.basic.file == tmp_path / "u"
    assert redis.api_keys is not None
    assert redis.api_keys.redis is not None
    assert redis.api_keys.redis.password_file == tmp_path / "p"
    assert introspection.introspection is not None
    assert introspection.introspection.client_secret_file == tmp_path / "s"
    assert introspection.introspection.ca == tmp_path / "r"
    assert review.token_review is not None
    assert review.token_review.token_file == tmp_path / "t"
    assert review.token_review.ca == Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")


def test_each_kind_has_an_authenticator(tmp_path: Path) -> None:
    """Those that rest on files are reloaded with them, those that ask somebody have a breaker."""
    settings = load(
        tmp_path,
        "[{name: a, api_keys: {file: k}}, {name: b, api_keys: {directory: d}}, {name: c, basic: {file: u}},"
        " {name: d, api_keys: {redis: {url: 'unix:///r'}}},"
        f" {{name: e, introspection: {{{INTROSPECTION.replace('URL', 'https://a')}}}}},"
        " {name: f, token_review: {audiences: [x]}}]",
    )
    made = Authenticators([one for one in settings.authenticators if one.name != "f"])
    assert [reloader.kind for reloader in made.reloaders] == [f"authenticator_{name}" for name in "abc"]
    assert made.breakers() == {"d": False, "e": False}
    assert set(made.remembered()) == set("abcde")
    with pytest.raises(ConfigError):
        made.load()
