"""The CA of a trust domain as it lies in a directory, and what a server does with it.

| file             | content                                                      |
| ---------------- | ------------------------------------------------------------ |
| `root-cert.pem`  | the roots: the trust bundle                                  |
| `root-key.pem`   | the root's key; not needed to issue, keep it elsewhere       |
| `ca-cert.pem`    | the intermediate that signs                                  |
| `ca-key.pem`     | its key                                                      |
| `cert-chain.pem` | what a workload sends after its own certificate              |

The names are those of Istio's plug-in CA (`cacerts`). A CA made for Istio loads if its intermediate names
the trust domain, which Istio does not ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.x509 import verification

from ca.atomic_files import write_file
from ca.bundle import format_certificates, parse_certificates
from ca.inspection import check_key_pair, check_signing
from ca.issuer import MIN_TTL, Issuer, self_sign
from ca.keys import PrivateKey, PublicKey, new_private_key, new_serial, parse_private_key, private_key_pem
from ca.template import INTERMEDIATE_PATH_LENGTH, ROOT_PATH_LENGTH, ca_template
from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError, IssuanceError
from garrison.identity import SpiffeId, TrustDomain

ROOT_CERT = "root-cert.pem"
ROOT_KEY = "root-key.pem"
CA_CERT = "ca-cert.pem"
CA_KEY = "ca-key.pem"
CERT_CHAIN = "cert-chain.pem"

ROOT_LIFETIME = timedelta(days=3650)
# Half the root's life: one root outlives one change of its intermediate without hurry.
INTERMEDIATE_LIFETIME = timedelta(days=1825)


@dataclass(frozen=True, slots=True)
class X509Svid:
    """An issued X509-SVID: the leaf and what must be sent with it, without the root."""

    spiffe_id: SpiffeId
    certificates: tuple[x509.Certificate, ...]

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
        return X509Svid(spiffe_id, (leaf, *self.chain))

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """Return the CA in `directory`, checked as a whole; its expiry is checked at each issue instead.

        Raises:
            ConfigError: a file is missing or unusable, or the files do not fit together; it names the file.

        """
        roots = _load_certificates(directory / ROOT_CERT)
        (certificate, *others) = _load_certificates(directory / CA_CERT)
        if others:
            raise _problem(directory / CA_CERT, "not_one", "expected exactly one certificate")
        chain = _load_certificates(directory / CERT_CHAIN)
        if chain[0] != certificate:
            raise _problem(
                directory / CERT_CHAIN, "wrong_chain", f"its first certificate is not the one in `{CA_CERT}`"
            )
        key = _load_key(directory / CA_KEY)
        try:
            check_key_pair(certificate, key)
        except IssuanceError as error:
            message = f"the key is not that of `{CA_CERT}`"
            raise _problem(directory / CA_KEY, "wrong_key", message) from error
        try:
            issuer = Issuer.build(certificate, key)
        except IssuanceError as error:
            raise _problem(directory / CA_CERT, "not_a_ca", str(error)) from error
        _check_roots(directory / ROOT_CERT, roots, issuer.trust_domain)
        if (directory / ROOT_KEY).exists():
            root_key = _load_key(directory / ROOT_KEY)
            if root_key.public_key() not in [root.public_key() for root in roots]:
                message = f"the key is not that of a certificate in `{ROOT_CERT}`"
                raise _problem(directory / ROOT_KEY, "wrong_key", message)
        authority = cls(issuer, tuple(link for link in chain if link not in roots) or (certificate,), roots)
        if not any(_verifies(authority, root) for root in roots):
            message = f"what `{CA_CERT}` signs does not verify under any root in `{ROOT_CERT}`"
            raise _problem(directory / CERT_CHAIN, "unverified_chain", message)
        return authority


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A new CA with its private keys, before it is written down."""

    root: x509.Certificate
    root_key: PrivateKey
    issuer: Issuer

    @classmethod
    def create(
        cls,
        trust_domain: TrustDomain,
        *,
        now: datetime,
        new_private_key: Callable[[], PrivateKey] = new_private_key,
        new_serial: Callable[[], int] = new_serial,
    ) -> Hierarchy:
        """Return a new root for `trust_domain` and an intermediate under it."""
        root_key, key = new_private_key(), new_private_key()
        template = ca_template(
            trust_domain, root_key.public_key(), name="Garrison root CA", path_length=ROOT_PATH_LENGTH
        )
        root = self_sign(template, root_key, now=now, lifetime=ROOT_LIFETIME, serial=new_serial())
        template = ca_template(
            trust_domain,
            key.public_key(),
            name="Garrison intermediate CA",
            path_length=INTERMEDIATE_PATH_LENGTH,
        )
        certificate = Issuer.build(root, root_key).sign(
            template, now=now, lifetime=INTERMEDIATE_LIFETIME, serial=new_serial()
        )
        return cls(root, root_key, Issuer.build(certificate, key))

    def authority(self) -> Authority:
        """Return the CA for use in this process."""
        return Authority(self.issuer, (self.issuer.certificate,), (self.root,))

    def save(self, directory: Path) -> None:
        """Write the CA to `directory` (made if needed, and closed to others: 0700), keys first.

        No file is replaced. After a crash half way `Authority.load` names the file that is missing.

        Raises:
            ConfigError: there is a CA, or a part of one, already.
            OSError: a file cannot be written.

        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {
            ROOT_KEY: (private_key_pem(self.root_key), 0o600),
            CA_KEY: (private_key_pem(self.issuer.key), 0o600),
            CERT_CHAIN: (format_certificates([self.issuer.certificate]), 0o644),
            CA_CERT: (format_certificates([self.issuer.certificate]), 0o644),
            ROOT_CERT: (format_certificates([self.root]), 0o644),
        }
        for name in content:
            if (directory / name).exists() or (directory / name).is_symlink():
                raise _problem(
                    directory / name, "exists", "there is a CA here already, which is never replaced"
                )
        directory.chmod(0o700)
        for name, (data, mode) in content.items():
            try:
                write_file(directory / name, data, mode=mode, replace=False)
            except FileExistsError as error:
                message = "another `ca init` is at work here"
                raise _problem(directory / name, "exists", message) from error


@cache
def root_of_nobody() -> x509.Certificate:
    """Return a root that has signed nothing and never will: its key is gone. Who trusts it trusts nobody."""
    key = new_private_key()
    now = datetime.now(UTC)
    template = ca_template(TrustDomain("invalid"), key.public_key(), name="Nobody", path_length=0)
    return self_sign(template, key, now=now, lifetime=ROOT_LIFETIME, serial=new_serial())


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


def _verifies(authority: Authority, root: x509.Certificate) -> bool:
    """Tell whether a throw-away SVID verifies under `root`, at a moment when all of the chain is valid."""
    links = (*authority.chain, root)
    moment = max(link.not_valid_before_utc for link in links)
    workload = SpiffeId(authority.trust_domain, ("self-check",))
    verifier = (
        verification.PolicyBuilder().store(verification.Store([root])).time(moment).build_client_verifier()
    )
    try:
        svid = authority.issue(workload, new_private_key().public_key(), now=moment, ttl=MIN_TTL)
        verifier.verify(svid.leaf, list(authority.chain))
    except (IssuanceError, verification.VerificationError, ValueError):
        return False
    return True


def _load_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    try:
        return parse_certificates(_read(path))
    except ValueError as error:
        raise _problem(path, "bad_certificate", str(error)) from error


def _load_key(path: Path) -> PrivateKey:
    try:
        return parse_private_key(_read(path))
    except ValueError as error:
        raise _problem(path, "bad_key", str(error)) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise _problem(path, "unreadable", f"cannot be read: {reason}") from error


def _problem(path: Path, code: str, message: str) -> ConfigError:
    return ConfigError([Diagnostic(str(path), Position(1, 1), (), code, message)])
