"""Secrets from files, as Istio names them: `file-cert:CERT~KEY` and `file-root:PATH`.

A caller chooses the path, so it is held to two bounds: the file lies in a folder that the operator has
listed, links followed, and the caller could read it itself. Both are checked on the file that was found, not
on its name, so nothing can be exchanged in between.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ca.api.identities import EntitlementError, describe
from ca.api.sds_secrets import NamedSecret, certificate_secret, roots_secret
from ca.bundle import parse_certificates
from ca.keys import parse_private_key
from garrison.errors import DependencyError, IssuanceError
from garrison.transport.unix_peer import PeerCredentials

FILE_CERT = "file-cert:"
FILE_ROOT = "file-root:"
FILE_PREFIXES = (FILE_CERT, FILE_ROOT)
# How often files are looked at again.
FILE_INTERVAL = timedelta(seconds=5)

_MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileSource:
    """The files that a name stands for, and for whom; `load` reads them anew each time."""

    name: str
    paths: tuple[Path, ...]
    folders: tuple[Path, ...]
    credentials: PeerCredentials

    def load(self) -> NamedSecret:
        """Return what the files hold now, checked.

        Raises:
            EntitlementError: one of them is not in a listed folder, or the caller could not read it itself.
            DependencyError: one of them cannot be read or used.

        """
        contents = [self._read(path) for path in self.paths]
        try:
            if self.name.startswith(FILE_ROOT):
                return roots_secret(self.name, parse_certificates(contents[0]))
            return certificate_secret(
                self.name, parse_certificates(contents[0]), parse_private_key(contents[1])
            )
        except (ValueError, IssuanceError) as error:
            raise DependencyError(f"`{self.name}` cannot be used: {error}") from error

    def _read(self, path: Path) -> bytes:
        try:
            found = os.open(path, os.O_PATH)  # touches nothing: opening some devices does something
        except FileNotFoundError as error:
            # Whether a path exists elsewhere is not for callers to know.
            if not self._is_listed(path.resolve()):
                raise self._denied() from error
            raise DependencyError(f"`{path}` cannot be read: {error.strerror}") from error
        except OSError as error:
            raise self._denied() from error
        try:
            opened, status = Path(f"/proc/self/fd/{found}"), os.fstat(found)
            if (
                not stat.S_ISREG(status.st_mode)
                or not self._is_listed(opened.readlink())
                or not _may_read(status, self.credentials)
            ):
                raise self._denied()
            with opened.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise DependencyError(f"`{path}` cannot be read: {error.strerror}") from error
        finally:
            os.close(found)
        if len(content) > _MAX_FILE_BYTES:
            raise DependencyError(f"`{path}` is larger than {_MAX_FILE_BYTES} bytes")
        return content

    def _is_listed(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self.folders)

    def _denied(self) -> EntitlementError:
        message = f"this caller ({describe(self.credentials)}) may not have `{self.name}`"
        return EntitlementError(message, self.credentials, name=self.name)


class FileSecrets:
    """Files below `folders` that callers may name; without folders there are none."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)

    def resolve(self, name: str, credentials: PeerCredentials) -> FileSource:
        """Return the files that `name` stands for.

        Raises:
            EntitlementError: it is not a name of files that callers may have.

        """
        kind = next(prefix for prefix in FILE_PREFIXES if name.startswith(prefix))
        texts = name.removeprefix(kind).split("~")
        expected = 2 if kind == FILE_CERT else 1
        # Resolved now, not at the start: the folders of a mounted volume come and go.
        folders = tuple(folder.resolve() for folder in self._folders)
        paths = tuple(Path(text) for text in texts)
        source = FileSource(name, paths, folders, credentials)
        if (
            not folders
            or len(texts) != expected
            or any(
                "\0" in text or not path.is_absolute() or ".." in path.parts
                for text, path in zip(texts, paths, strict=True)
            )
        ):
            raise source._denied()  # noqa: SLF001 - its maker
        return source


def _may_read(status: os.stat_result, credentials: PeerCredentials) -> bool:
    """Tell whether the mode lets the caller read; supplementary groups and access lists do not count."""
    if credentials.uid == 0:
        return True
    if status.st_uid == credentials.uid:
        return bool(status.st_mode & stat.S_IRUSR)
    if status.st_gid == credentials.gid:
        return bool(status.st_mode & stat.S_IRGRP)
    return bool(status.st_mode & stat.S_IROTH)
