"""Keys for tokens outlive restarts, are shared by processes, and survive a disk that does not."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import structlog

from ca.authority import Hierarchy
from ca.jwt_key_store import JWT_KEYS, JwtKeyStore, has_plain_keys, published_authorities
from ca.keys import new_private_key, public_key_pem
from ca.passphrase import PassphraseSource
from garrison.errors import ConfigError
from garrison.identity import TrustDomain


def test_a_restart_finds_the_same_keys(tmp_path: Path, now: datetime) -> None:
    """What is written is what is read, closed to others; nothing is made by just looking."""
    assert JwtKeyStore(tmp_path).published().keys == ()
    assert list(tmp_path.iterdir()) == []
    first = JwtKeyStore(tmp_path).ring(now)
    assert (tmp_path / JWT_KEYS).stat().st_mode & 0o777 == 0o600
    second = JwtKeyStore(tmp_path).ring(now)
    assert second.authorities() == first.authorities()
    assert second.signing(now).active_from == first.signing(now).active_from


def test_two_processes_keep_one_set_of_keys(tmp_path: Path, now: datetime) -> None:
    """Whoever comes first makes the next key; the other one finds it, also when both looked at the same time."""
    one, other = JwtKeyStore(tmp_path), JwtKeyStore(tmp_path)
    assert one.ring(now).authorities() == other.ring(now).authorities()
    later = now + timedelta(hours=17)
    assert len(one.ring(later).keys) == 2
    assert other.ring(later).authorities() == one.ring(later).authorities()
    assert other.published().authorities() == one.published().authorities()


def test_a_disk_that_cannot_be_written_leaves_known_keys_in_force(tmp_path: Path, now: datetime) -> None:
    """Tokens that are out go on to verify; it is said once, and tried again. Without any key it is an error."""
    store = JwtKeyStore(tmp_path)
    known = store.ring(now)
    later = now + timedelta(hours=17)
    with (
        structlog.testing.capture_logs() as logs,
        patch("ca.jwt_key_store.write_file", side_effect=OSError(28, "No space left on device")),
    ):
        assert store.ring(later) == known
        assert store.ring(later) == known
        with pytest.raises(ConfigError, match="No space left"):
            JwtKeyStore(tmp_path / "..").ring(now)
    assert [entry["event"] for entry in logs] == ["jwt keys cannot be kept"]
    assert len(store.ring(later).keys) == 2


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"keys": [{}]}', '{"keys": [1]}', "\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, now: datetime, content: str) -> None:
    """At the start it is an error with the name of the file; nothing is put in its place."""
    (tmp_path / JWT_KEYS).write_text(content, "latin-1")
    with pytest.raises(ConfigError, match=JWT_KEYS):
        JwtKeyStore(tmp_path).ring(now)
    assert (tmp_path / JWT_KEYS).read_text("latin-1") == content


def test_a_damaged_or_missing_file_later_leaves_known_keys_in_force(tmp_path: Path, now: datetime) -> None:
    """Also a folder that is gone for a moment must not make new keys."""
    store = JwtKeyStore(tmp_path)
    known = store.ring(now)
    content = (tmp_path / JWT_KEYS).read_bytes()
    (tmp_path / JWT_KEYS).write_text("?")
    assert store.ring(now) == known
    (tmp_path / JWT_KEYS).unlink()
    assert store.ring(now) == known
    assert not (tmp_path / JWT_KEYS).exists()
    (tmp_path / JWT_KEYS).write_bytes(content)
    assert store.ring(now).authorities() == known.authorities()


def test_a_kid_that_is_not_its_keys_is_refused(tmp_path: Path, now: datetime) -> None:
    """A file that was put together by hand wrongly would publish keys under false names."""
    JwtKeyStore(tmp_path).ring(now)
    document = json.loads((tmp_path / JWT_KEYS).read_text())
    document["keys"][0]["kid"] = "x"
    (tmp_path / JWT_KEYS).write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="`kid`"):
        JwtKeyStore(tmp_path).published()


def test_keys_are_encrypted_as_the_key_of_the_ca_is(tmp_path: Path, now: datetime) -> None:
    """With the same passphrase; what they verify with is read without it, and another one opens nothing."""
    hierarchy = Hierarchy.create(TrustDomain("cluster.local"), now=now)
    hierarchy.save(tmp_path, b"correct horse")
    right = PassphraseSource(None, {"GARRISON_CA_PASSPHRASE": "correct horse"})
    ring = JwtKeyStore(tmp_path, passphrase=right).ring(now)
    content = (tmp_path / JWT_KEYS).read_text()
    assert "ENCRYPTED PRIVATE KEY" in content
    assert not has_plain_keys(tmp_path / JWT_KEYS)
    assert published_authorities(tmp_path) == ring.authorities()
    assert JwtKeyStore(tmp_path, passphrase=right).published().authorities() == ring.authorities()
    for wrong in (PassphraseSource(None, {"GARRISON_CA_PASSPHRASE": "wrong horse"}), None):
        with pytest.raises(ConfigError):
            JwtKeyStore(tmp_path, passphrase=wrong).published()
    plain = JwtKeyStore(tmp_path, passphrase=right).reencrypted(None)
    assert plain is not None
    (tmp_path / JWT_KEYS).write_bytes(plain)
    assert has_plain_keys(tmp_path / JWT_KEYS)
    assert JwtKeyStore(tmp_path).published().authorities() == ring.authorities()


def test_a_public_key_under_another_name_is_refused(tmp_path: Path, now: datetime) -> None:
    """Whoever can write the file must not publish a key under the name of another."""
    JwtKeyStore(tmp_path).ring(now)
    document = json.loads((tmp_path / JWT_KEYS).read_text())
    document["keys"][0]["public_key"] = public_key_pem(new_private_key().public_key()).decode()
    (tmp_path / JWT_KEYS).write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="`kid`"):
        published_authorities(tmp_path)
