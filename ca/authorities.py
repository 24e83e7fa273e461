"""All authorities of one CA: where each is kept, what the ledger says of it, how one follows the other.

In the directory of a CA lie the files of the one that signs, under the names they always had, and beside them

| file                       | content                                                                   |
| -------------------------- | ------------------------------------------------------------------------- |
| `authorities/KEY/…`        | the same files for one authority each; KEY is the hash of its public key   |
| `root-cert.pem`            | the roots of all that are published: the trust bundle                      |
| `issuers.pem`              | their intermediates, to verify leaves that come without                    |

The ledger decides who signs; files follow it. A change is made in an order that any crash leaves repairable:
keys and certificates are on disk before the ledger knows of them, a root is published before it counts as
prepared, the one that ends is kept in its folder before another takes its place. `reconcile` brings files and
ledger together again, and comes before each change.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ca.atomic_files import sync_directory
from ca.audit import ClockError, clock_problem
from ca.authority import (
    CA_CERT,
    CA_KEY,
    CERT_CHAIN,
    MIN_CA_LIFETIME,
    REQUEST,
    ROOT_CERT,
    ROOT_KEY,
    Authority,
    CaCertificates,
    Hierarchy,
    Lifetimes,
    load_encryption,
    load_key,
    verifies,
)
from ca.bundle import format_certificates, parse_certificates
from ca.crl import key_identifier_of
from ca.directory import NewFile, install, locked
from ca.inspection import check_key_pair
from ca.issuer import BACKDATE, Issuer
from ca.key_encryption import PLAIN
from ca.keys import CaKey, CaPublicKey, KeyType, key_file, new_ca_key, new_serial
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
from ca.outside_root import build_request, check_answer
from ca.passphrase import no_passphrase
from ca.rotation import (
    Act,
    Policy,
    Standing,
    Step,
    activate,
    due,
    find,
    retire,
    revoke,
    schedule,
    taint,
)
from ca.template import INTERMEDIATE_PATH_LENGTH, ca_template
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError, IssuanceError

FOLDER = "authorities"
ISSUERS = "issuers.pem"

_OWN = (CA_KEY, CA_CERT, CERT_CHAIN)
# In a folder that was just written, until the ledger knows of it. What the ledger does not know otherwise was
# used before that ledger was lost, and must not sign again.
_UNRECORDED = "unrecorded"
_GONE = ".gone-"
_DEFAULT = Policy()
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class View:
    """What is in force: who signs, or why nobody does; whose CRLs are published; whose leaves must go.

    The roots of `authority` are those of the bundle, also when nothing can be signed.
    """

    authority: Authority
    refusal: str
    issuers: tuple[Issuer, ...]
    tainted: frozenset[str]
    standings: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """An authority of the ledger: its row and what is in it."""

    key: SigningKey
    chain: tuple[x509.Certificate, ...]
    root: x509.Certificate

    @classmethod
    def parse(cls, key: SigningKey) -> _Known:
        try:
            *chain, root = parse_certificates(key.document.encode())
        except ValueError as error:
            raise LedgerUnavailableError(f"the ledger is damaged: authority {key.key_id}: {error}") from error
        if not chain:
            raise LedgerUnavailableError(f"the ledger is damaged: authority {key.key_id} has no root")
        return cls(key, tuple(chain), root)

    @property
    def folder(self) -> str:
        return folder_of(self.chain[0].public_key())

    def standing(self, last_leaf: datetime | None) -> Standing:
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


class Authorities:
    """The authorities of the CA in `directory`, as `ledger` knows them. Used by one thread at a time.

    `passphrase` is called with the path of a key that is encrypted; new keys are encrypted with the same.
    """

    def __init__(
        self,
        directory: Path,
        ledger: Ledger,
        passphrase: Callable[[Path], bytes] = no_passphrase,
        *,
        policy: Policy = _DEFAULT,
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._passphrase = passphrase
        self.policy = policy
        self._loaded: dict[str, Authority] = {}
        self._last_leaf: dict[str, datetime | None] = {}
        self._seen: tuple[SigningKey, ...] | None = None
        self._view: View | None = None

    # Looking

    def standings(self, now: datetime) -> tuple[Standing, ...]:
        """Return all authorities, oldest first.

        Raises:
            LedgerUnavailableError: the ledger cannot be read.

        """
        return tuple(one.standing(self._last_leaf_of(one.key, now)) for one in self._known())

    def view(self) -> View:
        """Return what is in force; cheap while nothing changes.

        Raises:
            ConfigError: the files of the CA cannot be used.
            LedgerUnavailableError: the ledger cannot be read.

        """
        rows = self._ledger.keys(KeyUse.X509)
        if self._view is None or rows != self._seen:
            self._view = self._look(tuple(map(_Known.parse, rows)))
            self._seen = rows
        return self._view

    def path_of(self, key_id: str) -> Path:
        """Return where the files of an authority are kept."""
        return self._directory / self._find(key_id).folder

    # Changing: each raises IssuanceError if the rules refuse, ConfigError or OSError if files are in the way,
    # LedgerUnavailableError; what was not done then is done by the next one. By a clock that is wrong
    # (`ca.audit.clock_problem`) nothing is even begun.

    def reconcile(self, *, now: datetime, by: str) -> None:
        """Finish what a crash left half done; take in files that the ledger does not know."""
        for attempt in range(_ATTEMPTS):
            try:
                with self._locked():
                    self._reconcile(now, by)
            except LedgerRefusalError as error:
                # Another replica, with a directory of its own, did something at the same time.
                if error.code is not LedgerCode.STATE_CHANGED or attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def prepare(
        self,
        *,
        now: datetime,
        by: str,
        new_root: bool | None = None,
        root_key: CaKey | None = None,
        kind: KeyType | None = None,
        save_root_key: Callable[[bytes], None] | None = None,
    ) -> Standing:
        """Make the next authority, with a new root or under the same, and publish its root.

        Without `new_root` its age decides. `root_key` is the key of the root if that is not in the directory;
        `save_root_key` takes the file of a new root's key, before anything else is done, in place of the
        directory.
        """
        with self._locked():
            self._reconcile(now, by)
            active = self._needs_active(now)
            current = self._authority(active)
            if new_root is None:
                new_root = now >= schedule(active.standing(None), self.policy).new_root_at
                if new_root:
                    self._needs_root_key(active)
            kind = kind or _kind_of(current.issuer.key.public_key())
            secret = self._secret_for_new(active)
            kept: bytes | None
            if new_root:
                hierarchy = self._new_hierarchy(active, now, kind)
                made, kept = hierarchy.authority(), key_file(hierarchy.root_key, secret)
                if save_root_key is not None:
                    save_root_key(kept)
                    kept = None
            else:
                made = self._new_intermediate(active, now, kind, root_key)
                kept = self._root_key_file(active.root)
            return self._add(made, key_file(made.issuer.key, secret), kept, now=now, by=by)

    def request(self, *, now: datetime, by: str, kind: KeyType | None = None) -> Path:
        """Make a key and a request to an outside root; return the request's path."""
        with self._locked():
            self._reconcile(now, by)
            active = self._needs_active(now)
            waiting = self._waiting()
            if waiting:
                raise IssuanceError(f"a request waits already: `{waiting[0] / REQUEST}` (--answer takes it)")
            current = self._authority(active)
            key = new_ca_key(kind or _kind_of(current.issuer.key.public_key()))
            secret = self._secret_for_new(active)
            folder = folder_of(key.public_key())
            files = {
                f"{folder}/{CA_KEY}": NewFile(key_file(key, secret), 0o600),
                f"{folder}/{REQUEST}": NewFile(build_request(current.trust_domain, key)),
            }
            install(self._directory, files)
            return self._directory / folder / REQUEST

    def answer(self, certificates: Sequence[x509.Certificate], *, now: datetime, by: str) -> Standing:
        """Take what an outside root answered to the request, and publish its root."""
        with self._locked():
            self._reconcile(now, by)
            trust_domain = self._authority(self._needs_active(now)).trust_domain
            waiting = self._waiting()
            if not waiting:
                raise IssuanceError("no request waits for an answer: `prepare --csr` makes one")
            folder = waiting[0]
            key = load_key(folder / CA_KEY, self._passphrase)
            public = check_answer(certificates, key, trust_domain, now)
            made = Authority(Issuer.build(public.certificate, key), public.chain, public.roots)
            return self._add(made, None, None, now=now, by=by)

    def activate(self, key_id: str, *, now: datetime, by: str, at_once: bool = False) -> None:
        """Make a prepared authority the one that signs."""
        with self._locked():
            self._reconcile(now, by)
            standings = self.standings(now)
            changes = activate(standings, key_id, now, self.policy, at_once=at_once)
            self._authority(self._find(key_id))  # it must be able to sign before anybody relies on it
            self._ledger.change_states(changes, now=now, by=by)
            self._reconcile(now, by)

    def taint(self, key_id: str, *, now: datetime, by: str) -> None:
        """Have whatever an old authority signed replaced."""
        with self._locked():
            self._reconcile(now, by)
            self._ledger.change_states(taint(self.standings(now), key_id), now=now, by=by)

    def revoke(self, key_id: str, *, now: datetime, by: str, at_once: bool = False) -> None:
        """Take the root of a tainted or prepared authority out of the bundle, and destroy the key."""
        with self._locked():
            self._reconcile(now, by)
            changes = revoke(self.standings(now), key_id, now, self.policy, at_once=at_once)
            self._ledger.change_states(changes, now=now, by=by)
            self._reconcile(now, by)

    def run(self, step: Step, *, now: datetime, by: str) -> None:
        """Do what was due; nothing, if another process has done it."""
        try:
            self._do(step, now, by)
        except IssuanceError:
            if step in self.due(now):
                raise

    def due(self, now: datetime) -> tuple[Step, ...]:
        """Return what the schedule asks for."""
        return due(self.standings(now), now, self.policy)

    def _do(self, step: Step, now: datetime, by: str) -> None:
        match step.act:
            case Act.PREPARE_INTERMEDIATE | Act.PREPARE_ROOT:
                self.prepare(now=now, by=by)
            case Act.ACTIVATE:
                self.activate(step.key_id, now=now, by=by)
            case Act.RETIRE:
                with self._locked():
                    self._last_leaf.pop(step.key_id, None)
                    changes = retire(self.standings(now), step.key_id, now, self.policy)
                    self._ledger.change_states(changes, now=now, by=by)
                    self._reconcile(now, by)

    # How files and ledger are brought together; the caller holds the lock

    def _reconcile(self, now: datetime, by: str) -> None:
        if problem := clock_problem(self._ledger.audit_head(), now):
            raise ClockError(problem)
        current = CaCertificates.load(self._directory)
        writable = self._is_writable()
        known = self._known()
        if _named(known, key_identifier_of(current.certificate)) is None:
            self._take_in(current, known, now, by)
            known = self._known()
        if writable:
            known = self._adopt_folders(known, now, by)
            known = self._settle_prepared(known, now, by)
            self._install_active(known)
        self._publish(known, now, by)
        if writable:
            self._destroy_revoked(known)

    def _take_in(self, current: CaCertificates, known: Sequence[_Known], now: datetime, by: str) -> None:
        """Record the authority whose files are there: the first one, or one that somebody put there."""
        for one in known:
            if one.key.state is KeyState.ACTIVE:
                change = StateChange(KeyUse.X509, one.key.key_id, KeyState.ACTIVE, KeyState.OLD)
                self._ledger.change_states([change], now=now, by=by)
        self._record(current.chain, _root_of(current), KeyState.ACTIVE, now, by)

    def _adopt_folders(self, known: tuple[_Known, ...], now: datetime, by: str) -> tuple[_Known, ...]:
        """Record what a crash, or a ledger that was lost, left unrecorded."""
        for folder in self._folders():
            if not (folder / CA_CERT).exists():
                continue
            public = CaCertificates.load(folder)
            if _named(known, key_identifier_of(public.certificate)) is None:
                state = KeyState.PREPARED if (folder / _UNRECORDED).exists() else KeyState.OLD
                self._record(public.chain, _root_of(public), state, now, by)
                known = self._known()
            if (folder / _UNRECORDED).exists():
                (folder / _UNRECORDED).unlink()
                sync_directory(folder)
        return known

    def _settle_prepared(self, known: tuple[_Known, ...], now: datetime, by: str) -> tuple[_Known, ...]:
        """Keep the first of several that were prepared at the same time."""
        others = [one for one in known if one.key.state is KeyState.PREPARED][1:]
        for one in others:
            change = StateChange(KeyUse.X509, one.key.key_id, KeyState.PREPARED, KeyState.REVOKED)
            self._ledger.change_states([change], now=now, by=by)
        return self._known() if others else known

    def _install_active(self, known: Sequence[_Known]) -> None:
        active = _of(known, KeyState.ACTIVE)
        if active is None:
            return
        folder = self._directory / active.folder
        if not folder.is_dir():
            return
        names = [name for name in (*_OWN, ROOT_KEY) if (folder / name).exists()]
        wrong = [name for name in names if not _is_same(self._directory / name, (folder / name).read_bytes())]
        if wrong:
            self._keep_current()
            files = {name: NewFile((folder / name).read_bytes(), _mode(name)) for name in names}
            # The root of the new one first of all: the files of a CA have to fit together at any moment.
            roots = parse_certificates((self._directory / ROOT_CERT).read_bytes())
            if active.root not in roots:
                files[ROOT_CERT] = NewFile(format_certificates([*roots, active.root]))
            install(self._directory, files)
        left = self._directory / ROOT_KEY
        if ROOT_KEY not in names and left.exists() and self._is_kept_elsewhere(left):
            left.unlink()
            sync_directory(self._directory)

    def _publish(self, known: Sequence[_Known], now: datetime, by: str) -> None:
        roots = self._roots(known)
        live = [one for one in known if one.key.state is not KeyState.REVOKED]
        files = {
            ROOT_CERT: NewFile(format_certificates(roots)),
            ISSUERS: NewFile(format_certificates(_unique(link for one in live for link in one.chain))),
        }
        wrong = any(not _is_same(self._directory / name, file.content) for name, file in files.items())
        if wrong and self._is_writable() and (self._needs_files(known) or len(known) > 1):
            install(self._directory, files)
        for one in known:
            if one.key.state is KeyState.PREPARED and one.key.changed_at is None:
                # From now on its root is known to have been published.
                change = StateChange(KeyUse.X509, one.key.key_id, KeyState.PREPARED, KeyState.PREPARED)
                self._ledger.change_states([change], now=now, by=by)

    def _needs_files(self, known: Sequence[_Known]) -> bool:
        return (self._directory / ISSUERS).exists() or len(known) > 1

    def _destroy_revoked(self, known: Sequence[_Known]) -> None:
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
        names = [name for name in (*_OWN, ROOT_KEY) if (self._directory / name).exists()]
        files = {
            f"{folder}/{name}": NewFile((self._directory / name).read_bytes(), _mode(name)) for name in names
        }
        files[f"{folder}/{ROOT_CERT}"] = NewFile(format_certificates([_root_of(current)]))
        # All at once: a crash leaves no folder with a half of it.
        install(self._directory, files)

    def _is_kept_elsewhere(self, root_key: Path) -> bool:
        content = root_key.read_bytes()
        return any(_is_same(folder / ROOT_KEY, content) for folder in self._folders())

    # Making

    def _needs_active(self, now: datetime) -> _Known:
        known = self._known()
        if not self._is_writable():
            raise _problem(self._directory, "the directory cannot be written, so nothing is rotated in it")
        prepared = _of(known, KeyState.PREPARED)
        if prepared is not None:
            raise IssuanceError(
                f"authority {prepared.key.key_id} is prepared already: activate or revoke it first"
            )
        active = _of(known, KeyState.ACTIVE)
        if active is None:
            raise IssuanceError(
                "no authority is active, so there is none to follow: `ca init` makes a new CA"
            )
        if now < (starts := active.chain[0].not_valid_before_utc):
            raise IssuanceError(
                f"the CA certificate is not valid before {starts:%FT%TZ}: is the clock right?"
            )
        return active

    def _needs_root_key(self, active: _Known) -> None:
        # A root whose key is kept elsewhere is not replaced by one whose key lies here.
        if self._root_key_path(active.root) is None:
            raise IssuanceError(
                "the root ends and its key is not here, so an operator has to decide on the next: "
                f"`ca authority prepare --dir {self._directory} --new-root`, or --csr for an outside root"
            )

    def _new_hierarchy(self, active: _Known, now: datetime, kind: KeyType) -> Hierarchy:
        root_life = max(_life(active.root), MIN_CA_LIFETIME)
        life = min(max(_life(active.chain[0]), MIN_CA_LIFETIME), root_life)
        return Hierarchy.create(
            self._authority(active).trust_domain,
            now=now,
            new_private_key=lambda: new_ca_key(kind),
            lifetimes=Lifetimes(root_life, life),
        )

    def _new_intermediate(
        self, active: _Known, now: datetime, kind: KeyType, root_key: CaKey | None
    ) -> Authority:
        trust_domain = self._authority(active).trust_domain
        if root_key is None:
            root_key = self._load_root_key(active.root)
        check_key_pair(active.root, root_key)
        key = new_ca_key(kind)
        template = ca_template(
            trust_domain,
            key.public_key(),
            name="Garrison intermediate CA",
            path_length=INTERMEDIATE_PATH_LENGTH,
        )
        # An Istio root names no trust domain, as `Issuer.build` would want it to.
        root = Issuer(active.root, root_key, trust_domain)
        life = max(_life(active.chain[0]), MIN_CA_LIFETIME)
        certificate = root.sign(template, now=now, lifetime=life, serial=new_serial())
        return Authority(Issuer.build(certificate, key), (certificate,), (active.root,))

    def _add(
        self, made: Authority, key: bytes | None, root_key: bytes | None, *, now: datetime, by: str
    ) -> Standing:
        (root,) = made.roots
        if not verifies(made, root):
            raise IssuanceError("what the new authority signs would not verify under its root")
        folder = folder_of(made.issuer.certificate.public_key())
        files = {
            f"{folder}/{CA_CERT}": NewFile(format_certificates([made.issuer.certificate])),
            f"{folder}/{CERT_CHAIN}": NewFile(format_certificates(made.chain)),
            f"{folder}/{ROOT_CERT}": NewFile(format_certificates(made.roots)),
            f"{folder}/{_UNRECORDED}": NewFile(b""),
        }
        if key is not None:
            files[f"{folder}/{CA_KEY}"] = NewFile(key, 0o600)
        if root_key is not None:
            files[f"{folder}/{ROOT_KEY}"] = NewFile(root_key, 0o600)
        install(self._directory, files)
        self._reconcile(now, by)
        return find(self.standings(now), key_identifier_of(made.issuer.certificate))

    # Finding

    def _known(self) -> tuple[_Known, ...]:
        return tuple(_Known.parse(key) for key in self._ledger.keys(KeyUse.X509))

    def _find(self, key_id: str) -> _Known:
        found = _named(self._known(), key_id)
        if found is None:
            raise IssuanceError(f"there is no authority {key_id}")
        return found

    def _last_leaf_of(self, key: SigningKey, now: datetime) -> datetime | None:
        if key.state not in {KeyState.OLD, KeyState.TAINTED}:
            return None
        held = self._last_leaf.get(key.key_id)
        # It only ever rises, so while it is ahead there is no need to look again.
        if held is None or held <= now:
            held = self._ledger.last_expiry(key.key_id)
            self._last_leaf[key.key_id] = held
        return held

    def _look(self, known: Sequence[_Known]) -> View:
        roots = self._roots(known)
        issuers: list[Issuer] = []
        signing: Authority | None = None
        refusal = ""
        for one in known:
            if one.key.state is KeyState.REVOKED:
                self._loaded.pop(one.key.key_id, None)
                continue
            try:
                authority = self._authority(one)
            except ConfigError as error:
                if one.key.state is KeyState.ACTIVE:
                    refusal = f"authority {one.key.key_id} is active, but cannot be used: {error}"
                continue
            issuers.append(authority.issuer)
            if one.key.state is KeyState.ACTIVE:
                signing = authority
        if signing is None:
            refusal = refusal or "no authority is active"
            signing = Authority.load(self._directory, self._passphrase)
        return View(
            authority=replace(signing, roots=roots),
            refusal=refusal,
            issuers=tuple(issuers),
            tainted=frozenset(one.key.key_id for one in known if self._must_go(one.key)),
            standings=tuple(one.standing(None) for one in known),
        )

    def _must_go(self, key: SigningKey) -> bool:
        """Tell whether there is something signed by it that has to be replaced."""
        if key.state is not KeyState.REVOKED:
            return key.state is KeyState.TAINTED
        # Tainted and revoked before anybody looked.
        last = self._ledger.last_expiry(key.key_id)
        return last is not None and key.changed_at is not None and last > key.changed_at

    def _roots(self, known: Sequence[_Known]) -> tuple[x509.Certificate, ...]:
        """Return the trust bundle: roots of what is published, and those that an operator put there."""
        mine = {one.root for one in known}
        there = parse_certificates((self._directory / ROOT_CERT).read_bytes())
        live = [one.root for one in known if one.key.state is not KeyState.REVOKED]
        return _unique((*live, *(root for root in there if root not in mine)))

    def _authority(self, one: _Known) -> Authority:
        """Return an authority with its key.

        Raises:
            ConfigError: its files are not here, or cannot be used.

        """
        key_id = one.key.key_id
        if key_id not in self._loaded:
            folder = self._directory / one.folder
            found = Authority.load(folder if folder.is_dir() else self._directory, self._passphrase)
            if key_identifier_of(found.issuer.certificate) != key_id:
                raise _problem(folder, f"the files of authority {key_id} are not here")
            self._loaded[key_id] = replace(found, chain=one.chain, roots=(one.root,))
        return self._loaded[key_id]

    def _key_path(self, one: _Known, name: str) -> Path:
        path = self._directory / one.folder / name
        return path if path.exists() else self._directory / name

    def _root_key_path(self, root: x509.Certificate) -> Path | None:
        for place in (self._directory, *self._folders()):
            if not (place / ROOT_KEY).exists():
                continue
            public = CaCertificates.load(place)
            if _root_of(public) == root:
                return place / ROOT_KEY
        return None

    def _root_key_file(self, root: x509.Certificate) -> bytes | None:
        path = self._root_key_path(root)
        return None if path is None else path.read_bytes()

    def _load_root_key(self, root: x509.Certificate) -> CaKey:
        path = self._root_key_path(root)
        if path is None:
            raise IssuanceError(
                "the key of the root is not here: give it (--root-key), make a new root (--new-root), or ask "
                "an outside root (--csr)"
            )
        return load_key(path, self._passphrase)

    def _folders(self) -> list[Path]:
        return _folders_in(self._directory)

    def _waiting(self) -> list[Path]:
        return [
            folder
            for folder in self._folders()
            if (folder / REQUEST).exists() and not (folder / CA_CERT).exists()
        ]

    def _secret_for_new(self, active: _Known) -> bytes | None:
        """Return what a new key is encrypted with: the same as the active one, if that is."""
        path = self._key_path(active, CA_KEY)
        if load_encryption(path) == PLAIN:
            return None
        secret = self._passphrase(path)
        load_key(path, lambda _: secret)  # it may have been changed, and all keys have one passphrase
        return secret

    def _is_writable(self) -> bool:
        return os.access(self._directory, os.W_OK)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._directory):
            yield


def folder_of(public_key: object) -> str:
    """Return where in a CA's directory the authority with this key is kept."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)  # type: ignore[arg-type]  # any key
    return f"{FOLDER}/{identifier.digest.hex()}"


def load_issuer(directory: Path, key_id: str, passphrase: Callable[[Path], bytes]) -> Issuer:
    """Return the issuer of that key identifier, whichever authority of the CA it is.

    Raises:
        ConfigError: its files are not here, or cannot be used.

    """
    for place in (directory, *_folders_in(directory)):
        if (place / CA_CERT).exists():
            public = CaCertificates.load(place)
            if key_identifier_of(public.certificate) == key_id:
                return Authority.load(place, passphrase).issuer
    raise _problem(directory, f"the files of authority {key_id} are not here")


def key_files(directory: Path) -> list[str]:
    """Return the names of all keys in the directory of a CA."""
    places = ("", *(f"{FOLDER}/{path.name}/" for path in _folders_in(directory)))
    return [
        f"{place}{name}"
        for place in places
        for name in (CA_KEY, ROOT_KEY)
        if (directory / f"{place}{name}").exists()
    ]


def _folders_in(directory: Path) -> list[Path]:
    try:
        found = sorted((directory / FOLDER).iterdir())
    except FileNotFoundError:
        return []
    return [path for path in found if path.is_dir() and not path.name.startswith(".")]


def _root_of(public: CaCertificates) -> x509.Certificate:
    """Return the root that the chain ends in; that it verifies under it was found out when it was loaded."""
    for root in public.roots:
        if root == public.certificate or any(_issued(link, root) for link in public.chain):
            return root
    raise IssuanceError(f"`{CERT_CHAIN}` does not end in a root of `{ROOT_CERT}`")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _kind_of(key: CaPublicKey) -> KeyType:
    match key:
        case ec.EllipticCurvePublicKey():
            return KeyType.P384 if key.curve.name == "secp384r1" else KeyType.P256
        case ed25519.Ed25519PublicKey():
            return KeyType.ED25519
    return KeyType.RSA_3072


def _life(certificate: x509.Certificate) -> timedelta:
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc - BACKDATE


def _named(known: Iterable[_Known], key_id: str) -> _Known | None:
    return next((one for one in known if one.key.key_id == key_id), None)


def _of(known: Iterable[_Known], state: KeyState) -> _Known | None:
    return next((one for one in known if one.key.state is state), None)


def _unique(certificates: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    return tuple(dict.fromkeys(certificates))


def _is_same(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except FileNotFoundError:
        return False


def _mode(name: str) -> int:
    return 0o600 if name in {CA_KEY, ROOT_KEY} else 0o644


def _problem(path: Path, message: str) -> ConfigError:
    return ConfigError([Diagnostic(str(path), Position(1, 1), (), "authority", message)])
