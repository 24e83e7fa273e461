"""A file is given to those only who could read it themselves: the server must not read for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ca.api.identities import EntitlementError
from ca.api.sds_files import FileSecrets
from ca.authority import Hierarchy
from ca.bundle import format_certificates
from garrison.errors import DependencyError
from garrison.transport.unix_peer import PeerCredentials

ME, MY_GROUP = os.getuid(), os.getgid()
STRANGER = 4_000_000_000


def caller(uid: int, gid: int) -> PeerCredentials:
    """Return a caller of that user and group."""
    return PeerCredentials(1, uid, gid, "/usr/bin/envoy")


@pytest.mark.parametrize(
    ("mode", "who", "given"),
    [
        (0o604, (STRANGER, STRANGER), True),
        (0o640, (STRANGER, STRANGER), False),
        (0o600, (STRANGER, STRANGER), False),
        (0o640, (STRANGER, MY_GROUP), True),
        (0o604, (STRANGER, MY_GROUP), False),  # the group's own bits count, not those of others
        (0o600, (STRANGER, MY_GROUP), False),
    ],
)
def test_the_callers_own_rights_count(
    tmp_path: Path, hierarchy: Hierarchy, mode: int, who: tuple[int, int], given: bool
) -> None:
    """Mode, user and group of the file decide, as the kernel would for the caller."""
    path = tmp_path / "roots.pem"
    path.write_bytes(format_certificates([hierarchy.root]))
    os.chown(path, ME, MY_GROUP)
    path.chmod(mode)
    source = FileSecrets([tmp_path]).resolve(f"file-root:{path}", caller(*who))
    if given:
        assert source.load().name == f"file-root:{path}"
    else:
        with pytest.raises(EntitlementError, match="may not have"):
            source.load()


def test_without_folders_there_are_no_files(tmp_path: Path) -> None:
    """What no operator has listed is not even looked at."""
    with pytest.raises(EntitlementError):
        FileSecrets([]).resolve("file-root:/etc/ssl/cert.pem", caller(0, 0))


@pytest.mark.parametrize("content", [b"", b"garbage", b"x" * (2 * 1024 * 1024)])
def test_a_file_that_cannot_be_used_is_not_the_callers_fault(tmp_path: Path, content: bytes) -> None:
    """It may be mended soon: Envoy asks again."""
    path = tmp_path / "roots.pem"
    path.write_bytes(content)
    source = FileSecrets([tmp_path]).resolve(f"file-root:{path}", caller(ME, MY_GROUP))
    with pytest.raises(DependencyError):
        source.load()
