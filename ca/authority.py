"""The CA of a trust domain as it lies in a directory, and what a server does with it.

| file             | content                                                      |
| ---------------- | ------------------------------------------------------------ |
| `root-cert.pem`  | the roots: the trust bundle                                  |
| `root-key.pem`   | the root's key; not needed to issue, keep it elsewhere       |
| `ca-cert.pem`    | the intermediate that signs                                  |
| `ca-key.pem`     | its key                                                      |
| `cert-chain.pem` | what a workload sends after its own certificate              |
| `ca-csr.pem`     | the request to an outside root, where there is one           |

The names are those of Istio's plug-in CA (`cacerts`). A CA made for Istio loads if its intermediate names
the trust domain, which Istio does not ask for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from ca.bundle import format_certificates, parse_certificates
from ca.directory import NewFile, finish, install, locked
from ca.inspection import check_key_pair, check_signing
from ca.issuer import MIN_TTL, Issuer, self_sign
from ca.key_encryption import PLAIN, KeyEncryption, describe_encryption
from ca.keys import (
    CaKey,
    PublicKey,
    WrongPassphraseError,
    key_file,
    new_private_key,
    new_serial,
    parse_private_key,
)
from ca.passphrase import WRONG_PASSPHRASE, no_passphrase
from ca.template import INTERMEDIATE_PATH_LENGTH, ROOT_PATH_LENGTH, ca_template
from ca.verification import verify_chain
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError, IssuanceError
from garrison.identity import SpiffeId, TrustDomain

ROOT_CERT = "root-cert.pem"
ROOT_KEY = "root-key.pem"
CA_CERT = "ca-cert.pem"
CA_KEY = "ca-key.pem"
CERT_CHAIN = "cert-chain.pem"
REQUEST = "ca-csr.pem"

ROOT_LIFETIME = timedelta(days=3650)
# Half the root's life: one root outlives one change of its intermediate without hurry.
INTERMEDIATE_LIFETIME = timedelta(days=1825)
MIN_CA_LIFETIME = timedelta(hours=1)
MAX_CA_LIFETIME = timedelta(days=36500)


@dataclass(frozen=True, slots=True)
class X509Svid:
    """An issued X509-SVID: the leaf (also in DER) and what must be sent with it, without the root."""

    spiffe_id: SpiffeId
    certificates: tuple[x509.Certificate, ...]
    leaf_der: bytes

    @property
    def leaf(self) -> x509.Certificate:
        """The workload's own certificate."""
        return self.certificates[0]

    @property
    def not_after(self) -> datetime:
        """When it ends (UTC)."""
        return self.leaf.not_valid_after_utc

    @property
    def chain_pem(self) -> bytes:
        """The certificates as PEM, leaf first."""
        return format_certificates(self.certificates)


@dataclass(frozen=True, slots=True)
class Authority:
    """Issues identities of one trust domain.

    `chain` is sent after each leaf; `roots` is what others verify with. Immutable: a rotated CA is a new one.
    """

    issuer: Issuer
    chain: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...]
    new_serial: Callable[[], int] = new_serial

    @property
    def trust_domain(self) -> TrustDomain:
        """The trust domain whose identities this CA issues."""
        return self.issuer.trust_domain

    @property
    def not_after(self) -> datetime:
        """When the signing certificate ends, and issuing with it (UTC)."""
        return self.issuer.certificate.not_valid_after_utc

    def bundle_pem(self) -> bytes:
        """Return the roots as PEM."""
        return format_certificates(self.roots)

    def issue(
        self,
        spiffe_id: SpiffeId,
        public_key: PublicKey,
        *,
        now: datetime,
        ttl: timedelta,
        dns_names: Sequence[str] = (),
    ) -> X509Svid:
        """Return an X509-SVID for `spiffe_id`, which the caller must be entitled to.

        Raises:
            IssuanceError: as `Issuer.issue`.

        """
        leaf = self.issuer.issue(
            spiffe_id, public_key, now=now, ttl=ttl, serial=self.new_serial(), dns_names=dns_names
        )
        return X509Svid(spiffe_id, (leaf.certificate, *self.chain), leaf.der)

    @classmethod
    def load(cls, directory: Path, passphrase: Callable[[Path], bytes] = no_passphrase) -> Authority:
        """Return the CA in `directory`, checked as a whole; its expiry is checked at each issue instead.

        `passphrase` is called with the path of `ca-key.pem` if that is encrypted. An encrypted root key is
        left alone: issuing does not need it.

        Raises:
            ConfigError: a file is missing or unusable, or the files do not fit together; it names the file.

        """
        while True:
            before = _state(directory)
            try:
                return cls._load(directory, passphrase)
            except ConfigError:
                # Another authority took over while we read: some files were of the one, some of the other.
                if _state(directory) == before:
                    raise

    @classmethod
    def _load(cls, directory: Path, passphrase: Callable[[Path], bytes]) -> Authority:
        public = CaCertificates.load(directory)
        key = load_key(directory / CA_KEY, passphrase)
        try:
            check_key_pair(public.certificate, key)
        except IssuanceError as error:
            message = f"the key is not that of `{CA_CERT}`"
            raise _problem(directory / CA_KEY, "wrong_key", message) from error
        issuer = Issuer.build(public.certificate, key)
        if (directory / ROOT_KEY).exists() and not is_encrypted(directory / ROOT_KEY):
            root_key = load_key(directory / ROOT_KEY, passphrase)
            if root_key.public_key() not in [root.public_key() for root in public.roots]:
                message = f"the key is not that of a certificate in `{ROOT_CERT}`"
                raise _problem(directory / ROOT_KEY, "wrong_key", message)
        authority = cls(issuer, public.chain, public.roots)
        if not any(verifies(authority, root) for root in public.roots):
            message = f"what `{CA_CERT}` signs does not verify under any root in `{ROOT_CERT}`"
            raise _problem(directory / CERT_CHAIN, "unverified_chain", message)
        return authority


@dataclass(frozen=True, slots=True)
class CaCertificates:
    """What is public of a CA: enough to verify what it issued, and to say what it is."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...]
    trust_domain: TrustDomain

    @classmethod
    def load(cls, directory: Path) -> CaCertificates:
        """Return the certificates in `directory`, without a look at keys; a crashed change is finished first.

        Raises:
            ConfigError: a file is missing or unusable, or names no or another trust domain.

        """
        try:
            finish(directory)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise _problem(directory, "unfinished", f"a change cannot be finished: {reason}") from error
        roots = _load_certificates(directory / ROOT_CERT)
        (certificate, *others) = _load_certificates(directory / CA_CERT)
        if others:
            raise _problem(directory / CA_CERT, "not_one", "expected exactly one certificate")
        chain = _load_certificates(directory / CERT_CHAIN)
        if chain[0] != certificate:
            raise _problem(
                directory / CERT_CHAIN, "wrong_chain", f"its first certificate is not the one in `{CA_CERT}`"
            )
        try:
            trust_domain = check_signing(certificate)
        except IssuanceError as error:
            raise _problem(directory / CA_CERT, "not_a_ca", str(error)) from error
        if trust_domain is None:
            message = "the signing certificate names no trust domain (no `spiffe://` URI)"
            raise _problem(directory / CA_CERT, "not_a_ca", message)
        _check_roots(directory / ROOT_CERT, roots, trust_domain)
        links = tuple(link for link in chain if link not in roots) or (certificate,)
        return cls(certificate, links, roots, trust_domain)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long the certificates of a new CA are valid."""

    root: timedelta = ROOT_LIFETIME
    intermediate: timedelta = INTERMEDIATE_LIFETIME


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A new CA with its private keys, before it is written down."""

    root: x509.Certificate
    root_key: CaKey
    issuer: Issuer

    @classmethod
    def create(
        cls,
        trust_domain: TrustDomain,
        *,
        now: datetime,
        new_private_key: Callable[[], CaKey] = new_private_key,
        new_serial: Callable[[], int] = new_serial,
        key: CaKey | None = None,
        lifetimes: Lifetimes = Lifetimes(),
    ) -> Hierarchy:
        """Return a new root for `trust_domain` and an intermediate under it, whose key is new or `key`.

        Raises:
            IssuanceError: a lifetime is not positive, or the root would end before the intermediate.

        """
        if not MIN_CA_LIFETIME <= lifetimes.intermediate <= lifetimes.root <= MAX_CA_LIFETIME:
            raise IssuanceError(
                f"lifetimes of CAs are {MIN_CA_LIFETIME // timedelta(hours=1)}h to "
                f"{MAX_CA_LIFETIME // timedelta(days=1)}d, and the intermediate ends no later than the root"
            )
        root_key, key = new_private_key(), key or new_private_key()
        template = ca_template(
            trust_domain, root_key.public_key(), name="Garrison root CA", path_length=ROOT_PATH_LENGTH
        )
        root = self_sign(
            template, root_key, now=now, lifetime=lifetimes.root, serial=new_serial()
        ).certificate
        template = ca_template(
            trust_domain,
            key.public_key(),
            name="Garrison intermediate CA",
            path_length=INTERMEDIATE_PATH_LENGTH,
        )
        intermediate = Issuer.build(root, root_key).sign(
            template, now=now, lifetime=lifetimes.intermediate, serial=new_serial()
        )
        return cls(root, root_key, Issuer.build(intermediate.certificate, key))

    def authority(self) -> Authority:
        """Return the CA for use in this process."""
        return Authority(self.issuer, (self.issuer.certificate,), (self.root,))

    def save(self, directory: Path, passphrase: bytes | None = None, *, keep_root_key: bool = True) -> None:
        """Write the CA to `directory` (made if needed, and closed to others: 0700): all of it or nothing.

        No file is replaced. With a passphrase the keys are encrypted.

        Raises:
            ConfigError: there is a CA, or a part of one, already.
            OSError: a file cannot be written.

        """
        files = {
            CA_KEY: NewFile(key_file(self.issuer.key, passphrase), 0o600),
            CERT_CHAIN: NewFile(format_certificates([self.issuer.certificate])),
            CA_CERT: NewFile(format_certificates([self.issuer.certificate])),
            ROOT_CERT: NewFile(format_certificates([self.root])),
        }
        if keep_root_key:
            files[ROOT_KEY] = NewFile(key_file(self.root_key, passphrase), 0o600)
        install_new(directory, files)


def install_new(directory: Path, files: Mapping[str, NewFile]) -> None:
    """Write the first files of a CA to `directory`, which is made if needed and closed to others (0700).

    Raises:
        ConfigError: there is a CA, or a part of one, already.
        OSError: a file cannot be written; nothing is there then.

    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(directory):
        refuse_existing(directory)
        directory.chmod(0o700)
        install(directory, files)


def refuse_existing(directory: Path) -> None:
    """Refuse a directory that holds any file of a CA.

    Raises:
        ConfigError: it does.

    """
    for name in (ROOT_KEY, CA_KEY, CERT_CHAIN, CA_CERT, ROOT_CERT, REQUEST):
        if os.path.lexists(directory / name):
            raise _problem(directory / name, "exists", "there is a CA here already, which is never replaced")


def trust_domain_of(path: Path) -> TrustDomain:
    """Return the trust domain that the signing certificate in `path` names; its key is not needed.

    Raises:
        ConfigError: the file cannot be used.

    """
    certificate = _load_certificates(path)[0]
    try:
        named = check_signing(certificate)
    except IssuanceError as error:
        raise _problem(path, "not_a_ca", str(error)) from error
    if named is None:
        raise _problem(path, "not_a_ca", "it names no trust domain (no `spiffe://` URI)")
    return named


@cache
def root_of_nobody() -> x509.Certificate:
    """Return a root that has signed nothing and never will: its key is gone. Who trusts it trusts nobody."""
    key = new_private_key()
    now = datetime.now(UTC)
    template = ca_template(TrustDomain("invalid"), key.public_key(), name="Nobody", path_length=0)
    return self_sign(template, key, now=now, lifetime=ROOT_LIFETIME, serial=new_serial()).certificate


def _check_roots(path: Path, roots: Sequence[x509.Certificate], trust_domain: TrustDomain) -> None:
    for root in roots:
        try:
            named = check_signing(root)
        except IssuanceError as error:
            raise _problem(path, "not_a_root", str(error)) from error
        # An Istio root carries no URI; one that does must not be another domain's.
        if named not in {None, trust_domain}:
            raise _problem(
                path, "wrong_trust_domain", f"it holds a root of `{named}`, not of `{trust_domain}`"
            )


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Tell whether `certificate` names `issuer` and is signed with its key; nothing else is looked at."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def verifies(authority: Authority, root: x509.Certificate) -> bool:
    """Tell whether a throw-away SVID verifies under `root`, at a moment when all of the chain is valid."""
    links = (*authority.chain, root)
    moment = max(link.not_valid_before_utc for link in links)
    workload = SpiffeId(authority.trust_domain, ("self-check",))
    try:
        svid = authority.issue(workload, new_private_key().public_key(), now=moment, ttl=MIN_TTL)
        verify_chain(svid.leaf, authority.chain, [root], moment)
    except IssuanceError:
        return False
    return True


def _state(directory: Path) -> tuple[tuple[int, int] | None, ...]:
    """Return what is different after files of a CA were replaced."""
    found: list[tuple[int, int] | None] = []
    for name in (ROOT_KEY, CA_KEY, CERT_CHAIN, CA_CERT, ROOT_CERT):
        try:
            status = (directory / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns))
    return tuple(found)


def _load_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    try:
        return parse_certificates(_read(path))
    except ValueError as error:
        raise _problem(path, "bad_certificate", str(error)) from error


def load_key(path: Path, passphrase: Callable[[Path], bytes] = no_passphrase) -> CaKey:
    """Return the private key in the file; `passphrase` is called with `path` if it is encrypted.

    Raises:
        ConfigError: it cannot be read; the code is `wrong_passphrase` if that is why.

    """
    try:
        return parse_private_key(_read(path), lambda: passphrase(path))
    except WrongPassphraseError as error:
        raise _problem(path, WRONG_PASSPHRASE, str(error)) from error
    except ValueError as error:
        raise _problem(path, "bad_key", str(error)) from error


def load_encryption(path: Path) -> KeyEncryption:
    """Return how the key in the file is protected.

    Raises:
        ConfigError: it cannot be read, or holds no key.

    """
    try:
        return describe_encryption(_read(path))
    except ValueError as error:
        raise _problem(path, "bad_key", str(error)) from error


def is_encrypted(path: Path) -> bool:
    """Tell whether the key in the file is encrypted; raises as `load_encryption`."""
    return load_encryption(path) != PLAIN


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise _problem(path, "unreadable", f"cannot be read: {reason}") from error


def _problem(path: Path, code: str, message: str) -> ConfigError:
    return ConfigError([Diagnostic(str(path), Position(1, 1), (), code, message)])
