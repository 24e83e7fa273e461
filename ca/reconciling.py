"""The files of a CA and what its ledger says of its authorities, brought together.

The ledger decides who signs; files follow it. Each step can be repeated, and any crash between two of them is
repaired by the next time. The caller holds the lock of the directory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from ca.atomic_files import sync_directory
from ca.audit import ClockError, clock_problem
from ca.authority import CA_CERT, ROOT_CERT, ROOT_KEY, CaCertificates
from ca.authority_files import (
    FOLDER,
    ISSUERS,
    OWN,
    UNRECORDED,
    folder_of,
    folders_in,
    is_same,
    is_writable,
    mode_of,
    root_of,
)
from ca.bundle import format_certificates, parse_certificates
from ca.crl import key_identifier_of
from ca.directory import NewFile, install
from ca.ledger import (
    KeyState,
    KeyUse,
    Ledger,
    LedgerCode,
    LedgerRefusalError,
    LedgerUnavailableError,
    SigningKey,
    StateChange,
    fingerprint_of,
)
from ca.rotation import Standing

_GONE = ".gone-"


@dataclass(frozen=True, slots=True)
class Known:
    """An authority of the ledger: its row and what is in it, and where its files are kept."""

    key: SigningKey
    chain: tuple[x509.Certificate, ...]
    root: x509.Certificate

    @classmethod
    def parse(cls, key: SigningKey) -> Known:
        """Return what is in a row.

        Raises:
            LedgerUnavailableError: the ledger is damaged.

        """
        try:
            *chain, root = parse_certificates(key.document.encode())
        except ValueError as error:
            raise LedgerUnavailableError(f"the ledger is damaged: authority {key.key_id}: {error}") from error
        if not chain:
            raise LedgerUnavailableError(f"the ledger is damaged: authority {key.key_id} has no root")
        return cls(key, tuple(chain), root)

    @property
    def folder(self) -> str:
        """Where in the directory of the CA its files are kept."""
        return folder_of(self.chain[0].public_key())

    def standing(self, last_leaf: datetime | None) -> Standing:
        """Return what the rules of rotation look at; `last_leaf` is when the last it signed ends."""
        certificate, root = self.chain[0], self.root
        return Standing(
            key_id=self.key.key_id,
            state=self.key.state,
            root=fingerprint_of(root),
            starts=certificate.not_valid_before_utc,
            ends=certificate.not_valid_after_utc,
            root_starts=root.not_valid_before_utc,
            root_ends=root.not_valid_after_utc,
            known_since=self.key.created_at,
            changed_at=self.key.changed_at,
            last_leaf=last_leaf,
        )


class Reconciler:
    """What brings the files in `directory` and the authorities in `ledger` together."""

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self._directory = directory
        self._ledger = ledger

    def known(self) -> tuple[Known, ...]:
        """Return all authorities of the ledger, oldest first."""
        return tuple(Known.parse(key) for key in self._ledger.keys(KeyUse.X509))

    def roots(self, known: Sequence[Known]) -> tuple[x509.Certificate, ...]:
        """Return the trust bundle: roots of what is published, and those that an operator put there."""
        mine = {one.root for one in known}
        there = parse_certificates((self._directory / ROOT_CERT).read_bytes())
        live = [one.root for one in known if one.key.state is not KeyState.REVOKED]
        return _unique((*live, *(root for root in there if root not in mine)))

    def reconcile(self, now: datetime, by: str) -> None:
        """Finish what a crash left half done; take in files that the ledger does not know.

        Raises:
            ClockError: by the ledger, `now` is in the past.

        """
        if problem := clock_problem(self._ledger.audit_head(), now):
            raise ClockError(problem)
        current = CaCertificates.load(self._directory)
        writable = is_writable(self._directory)
        known = self.known()
        if named(known, key_identifier_of(current.certificate)) is None:
            self._take_in(current, known, now, by)
            known = self.known()
        if writable:
            known = self._adopt_folders(known, now, by)
            known = self._settle_prepared(known, now, by)
            self._install_active(known)
        self._publish(known, now, by)
        if writable:
            self._destroy_revoked(known)

    def _take_in(self, current: CaCertificates, known: Sequence[Known], now: datetime, by: str) -> None:
        """Record the authority whose files are there: the first one, or one that somebody put there."""
        for one in known:
            if one.key.state is KeyState.ACTIVE:
                change = StateChange(KeyUse.X509, one.key.key_id, KeyState.ACTIVE, KeyState.OLD)
                self._ledger.change_states([change], now=now, by=by)
        self._record(current.chain, root_of(current), KeyState.ACTIVE, now, by)

    def _adopt_folders(self, known: tuple[Known, ...], now: datetime, by: str) -> tuple[Known, ...]:
        """Record what a crash, or a ledger that was lost, left unrecorded."""
        for folder in folders_in(self._directory):
            if not (folder / CA_CERT).exists():
                continue
            public = CaCertificates.load(folder)
            if named(known, key_identifier_of(public.certificate)) is None:
                state = KeyState.PREPARED if (folder / UNRECORDED).exists() else KeyState.OLD
                self._record(public.chain, root_of(public), state, now, by)
                known = self.known()
            if (folder / UNRECORDED).exists():
                (folder / UNRECORDED).unlink()
                sync_directory(folder)
        return known

    def _settle_prepared(self, known: tuple[Known, ...], now: datetime, by: str) -> tuple[Known, ...]:
        """Keep the first of several that were prepared at the same time."""
        others = [one for one in known if one.key.state is KeyState.PREPARED][1:]
        for one in others:
            change = StateChange(KeyUse.X509, one.key.key_id, KeyState.PREPARED, KeyState.REVOKED)
            self._ledger.change_states([change], now=now, by=by)
        return self.known() if others else known

    def _install_active(self, known: Sequence[Known]) -> None:
        active = in_state(known, KeyState.ACTIVE)
        if active is None:
            return
        folder = self._directory / active.folder
        if not folder.is_dir():
            return
        names = [name for name in (*OWN, ROOT_KEY) if (folder / name).exists()]
        wrong = [name for name in names if not is_same(self._directory / name, (folder / name).read_bytes())]
        if wrong:
            self._keep_current()
            files = {name: NewFile((folder / name).read_bytes(), mode_of(name)) for name in names}
            # The root of the new one first of all: the files of a CA have to fit together at any moment.
            roots = parse_certificates((self._directory / ROOT_CERT).read_bytes())
            if active.root not in roots:
                files[ROOT_CERT] = NewFile(format_certificates([*roots, active.root]))
            install(self._directory, files)
        left = self._directory / ROOT_KEY
        if ROOT_KEY not in names and left.exists() and self._is_kept_elsewhere(left):
            left.unlink()
            sync_directory(self._directory)

    def _publish(self, known: Sequence[Known], now: datetime, by: str) -> None:
        roots = self.roots(known)
        live = [one for one in known if one.key.state is not KeyState.REVOKED]
        files = {
            ROOT_CERT: NewFile(format_certificates(roots)),
            ISSUERS: NewFile(format_certificates(_unique(link for one in live for link in one.chain))),
        }
        wrong = any(not is_same(self._directory / name, file.content) for name, file in files.items())
        if wrong and is_writable(self._directory) and self._needs_files(known):
            install(self._directory, files)
        for one in known:
            if one.key.state is KeyState.PREPARED and one.key.changed_at is None:
                # From now on its root is known to have been published.
                change = StateChange(KeyUse.X509, one.key.key_id, KeyState.PREPARED, KeyState.PREPARED)
                self._ledger.change_states([change], now=now, by=by)

    def _needs_files(self, known: Sequence[Known]) -> bool:
        return (self._directory / ISSUERS).exists() or len(known) > 1

    def _destroy_revoked(self, known: Sequence[Known]) -> None:
        for one in known:
            folder = self._directory / one.folder
            if one.key.state is KeyState.REVOKED and folder.is_dir():
                # In one step: half a folder would be in everybody's way.
                folder.rename(folder.with_name(f"{_GONE}{folder.name}"))
                sync_directory(folder.parent)
        for gone in (self._directory / FOLDER).glob(f"{_GONE}*"):
            shutil.rmtree(gone)
            sync_directory(gone.parent)

    def _record(
        self,
        chain: Sequence[x509.Certificate],
        root: x509.Certificate,
        state: KeyState,
        now: datetime,
        by: str,
    ) -> None:
        key = SigningKey(
            KeyUse.X509,
            key_identifier_of(chain[0]),
            state,
            format_certificates([*chain, root]).decode(),
            now,
            chain[0].not_valid_after_utc,
            None if state is KeyState.PREPARED else now,
        )
        try:
            self._ledger.add_key(key, by=by)
        except LedgerRefusalError as error:
            # Another process was faster.
            if error.code is not LedgerCode.DUPLICATE:
                raise

    def _keep_current(self) -> None:
        """Copy the authority whose files are there to a folder of its own, if it has none."""
        current = CaCertificates.load(self._directory)
        folder = folder_of(current.certificate.public_key())
        if (self._directory / folder / CA_CERT).exists():
            return
        names = [name for name in (*OWN, ROOT_KEY) if (self._directory / name).exists()]
        files = {
            f"{folder}/{name}": NewFile((self._directory / name).read_bytes(), mode_of(name))
            for name in names
        }
        files[f"{folder}/{ROOT_CERT}"] = NewFile(format_certificates([root_of(current)]))
        # All at once: a crash leaves no folder with a half of it.
        install(self._directory, files)

    def _is_kept_elsewhere(self, root_key: Path) -> bool:
        content = root_key.read_bytes()
        return any(is_same(folder / ROOT_KEY, content) for folder in folders_in(self._directory))


def named(known: Iterable[Known], key_id: str) -> Known | None:
    """Return the authority of that identifier."""
    return next((one for one in known if one.key.key_id == key_id), None)


def in_state(known: Iterable[Known], state: KeyState) -> Known | None:
    """Return the first authority in that state."""
    return next((one for one in known if one.key.state is state), None)


def _unique(certificates: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    return tuple(dict.fromkeys(certificates))
