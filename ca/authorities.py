"""All authorities of one CA: what is in force, and how one follows the other.

The ledger decides who signs; files follow it. A change is made in an order that any crash leaves repairable:
keys and certificates are on disk before the ledger knows of them, a root is published before it counts as
prepared, the one that ends is kept in its folder before another takes its place. `reconcile` brings files and
ledger together again, and comes before each change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ca.authority import (
    CA_CERT,
    CA_KEY,
    CERT_CHAIN,
    MIN_CA_LIFETIME,
    REQUEST,
    ROOT_CERT,
    ROOT_KEY,
    Authority,
    Hierarchy,
    Lifetimes,
    load_encryption,
    load_key,
    verifies,
)
from ca.authority_files import UNRECORDED, folder_of, is_writable, root_key_path, unusable, waiting_in
from ca.bundle import format_certificates
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
    SigningKey,
)
from ca.outside_root import build_request, check_answer
from ca.passphrase import no_passphrase
from ca.reconciling import Known, Reconciler, in_state, named
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
from garrison.errors import ConfigError, IssuanceError

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
        self._reconciler = Reconciler(directory, ledger)
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
        return tuple(one.standing(self._last_leaf_of(one.key, now)) for one in self._reconciler.known())

    def view(self) -> View:
        """Return what is in force; cheap while nothing changes.

        Raises:
            ConfigError: the files of the CA cannot be used.
            LedgerUnavailableError: the ledger cannot be read.

        """
        rows = self._ledger.keys(KeyUse.X509)
        if self._view is None or rows != self._seen:
            self._view = self._look(tuple(map(Known.parse, rows)))
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
                    self._reconciler.reconcile(now, by)
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
            self._reconciler.reconcile(now, by)
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
            self._reconciler.reconcile(now, by)
            active = self._needs_active(now)
            waiting = waiting_in(self._directory)
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
            self._reconciler.reconcile(now, by)
            trust_domain = self._authority(self._needs_active(now)).trust_domain
            waiting = waiting_in(self._directory)
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
            self._reconciler.reconcile(now, by)
            standings = self.standings(now)
            changes = activate(standings, key_id, now, self.policy, at_once=at_once)
            self._authority(self._find(key_id))  # it must be able to sign before anybody relies on it
            self._ledger.change_states(changes, now=now, by=by)
            self._reconciler.reconcile(now, by)

    def taint(self, key_id: str, *, now: datetime, by: str) -> None:
        """Have whatever an old authority signed replaced."""
        with self._locked():
            self._reconciler.reconcile(now, by)
            self._ledger.change_states(taint(self.standings(now), key_id), now=now, by=by)

    def revoke(self, key_id: str, *, now: datetime, by: str, at_once: bool = False) -> None:
        """Take the root of a tainted or prepared authority out of the bundle, and destroy the key."""
        with self._locked():
            self._reconciler.reconcile(now, by)
            changes = revoke(self.standings(now), key_id, now, self.policy, at_once=at_once)
            self._ledger.change_states(changes, now=now, by=by)
            self._reconciler.reconcile(now, by)

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
                    self._reconciler.reconcile(now, by)

    # Making

    def _needs_active(self, now: datetime) -> Known:
        known = self._reconciler.known()
        if not is_writable(self._directory):
            raise unusable(self._directory, "the directory cannot be written, so nothing is rotated in it")
        prepared = in_state(known, KeyState.PREPARED)
        if prepared is not None:
            raise IssuanceError(
                f"authority {prepared.key.key_id} is prepared already: activate or revoke it first"
            )
        active = in_state(known, KeyState.ACTIVE)
        if active is None:
            raise IssuanceError(
                "no authority is active, so there is none to follow: `ca init` makes a new CA"
            )
        if now < (starts := active.chain[0].not_valid_before_utc):
            raise IssuanceError(
                f"the CA certificate is not valid before {starts:%FT%TZ}: is the clock right?"
            )
        return active

    def _needs_root_key(self, active: Known) -> None:
        # A root whose key is kept elsewhere is not replaced by one whose key lies here.
        if root_key_path(self._directory, active.root) is None:
            raise IssuanceError(
                "the root ends and its key is not here, so an operator has to decide on the next: "
                f"`ca authority prepare --dir {self._directory} --new-root`, or --csr for an outside root"
            )

    def _new_hierarchy(self, active: Known, now: datetime, kind: KeyType) -> Hierarchy:
        root_life = max(_life(active.root), MIN_CA_LIFETIME)
        life = min(max(_life(active.chain[0]), MIN_CA_LIFETIME), root_life)
        return Hierarchy.create(
            self._authority(active).trust_domain,
            now=now,
            new_private_key=lambda: new_ca_key(kind),
            lifetimes=Lifetimes(root_life, life),
        )

    def _new_intermediate(
        self, active: Known, now: datetime, kind: KeyType, root_key: CaKey | None
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
        certificate = root.sign(template, now=now, lifetime=life, serial=new_serial()).certificate
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
            f"{folder}/{UNRECORDED}": NewFile(b""),
        }
        if key is not None:
            files[f"{folder}/{CA_KEY}"] = NewFile(key, 0o600)
        if root_key is not None:
            files[f"{folder}/{ROOT_KEY}"] = NewFile(root_key, 0o600)
        install(self._directory, files)
        self._reconciler.reconcile(now, by)
        return find(self.standings(now), key_identifier_of(made.issuer.certificate))

    # Finding

    def _find(self, key_id: str) -> Known:
        found = named(self._reconciler.known(), key_id)
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

    def _look(self, known: Sequence[Known]) -> View:
        roots = self._reconciler.roots(known)
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

    def _authority(self, one: Known) -> Authority:
        """Return an authority with its key.

        Raises:
            ConfigError: its files are not here, or cannot be used.

        """
        key_id = one.key.key_id
        if key_id not in self._loaded:
            folder = self._directory / one.folder
            found = Authority.load(folder if folder.is_dir() else self._directory, self._passphrase)
            if key_identifier_of(found.issuer.certificate) != key_id:
                raise unusable(folder, f"the files of authority {key_id} are not here")
            self._loaded[key_id] = replace(found, chain=one.chain, roots=(one.root,))
        return self._loaded[key_id]

    def _root_key_file(self, root: x509.Certificate) -> bytes | None:
        path = root_key_path(self._directory, root)
        return None if path is None else path.read_bytes()

    def _load_root_key(self, root: x509.Certificate) -> CaKey:
        path = root_key_path(self._directory, root)
        if path is None:
            raise IssuanceError(
                "the key of the root is not here: give it (--root-key), make a new root (--new-root), or ask "
                "an outside root (--csr)"
            )
        return load_key(path, self._passphrase)

    def _secret_for_new(self, active: Known) -> bytes | None:
        """Return what a new key is encrypted with: the same as the active one, if that is."""
        path = self._directory / active.folder / CA_KEY
        if not path.exists():
            path = self._directory / CA_KEY
        if load_encryption(path) == PLAIN:
            return None
        secret = self._passphrase(path)
        load_key(path, lambda _: secret)  # it may have been changed, and all keys have one passphrase
        return secret

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._directory):
            yield


def _kind_of(key: CaPublicKey) -> KeyType:
    match key:
        case ec.EllipticCurvePublicKey():
            return KeyType.P384 if key.curve.name == "secp384r1" else KeyType.P256
        case ed25519.Ed25519PublicKey():
            return KeyType.ED25519
    return KeyType.RSA_3072


def _life(certificate: x509.Certificate) -> timedelta:
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc - BACKDATE
