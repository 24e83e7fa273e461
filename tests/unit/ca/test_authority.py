"""A CA directory is written whole, and read only when everything in it fits."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from ca.authority import CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT, ROOT_KEY, Authority, Hierarchy
from ca.bundle import format_certificates
from ca.keys import new_private_key, private_key_pem
from garrison.errors import ConfigError, IssuanceError
from garrison.identity import SpiffeId, TrustDomain

STRANGER = Hierarchy.create(TrustDomain("cluster.local"), now=datetime(2030, 1, 2, tzinfo=UTC))
OTHER_DOMAIN = Hierarchy.create(TrustDomain("other.test"), now=datetime(2030, 1, 2, tzinfo=UTC))


@pytest.fixture
def directory(hierarchy: Hierarchy, tmp_path: Path) -> Path:
    """Return a CA directory as `ca init` leaves it."""
    hierarchy.save(tmp_path / "ca")
    return tmp_path / "ca"


def test_a_saved_ca_loads_and_issues(hierarchy: Hierarchy, directory: Path, now: datetime) -> None:
    """What was written is what is read."""
    authority = Authority.load(directory)
    assert authority.trust_domain == TrustDomain("cluster.local")
    assert authority.bundle_pem() == format_certificates([hierarchy.root])
    key = new_private_key()
    svid = authority.issue(
        SpiffeId.parse("spiffe://cluster.local/a"), key.public_key(), now=now, ttl=timedelta(hours=1)
    )
    assert svid.certificates == (svid.leaf, hierarchy.issuer.certificate)
    assert svid.not_after == svid.leaf.not_valid_after_utc
    assert svid.chain_pem.count(b"BEGIN CERTIFICATE") == 2


def test_serials_are_random(authority: Authority, now: datetime) -> None:
    """Two SVIDs never share a serial number."""
    workload = SpiffeId.parse("spiffe://cluster.local/a")
    key = new_private_key().public_key()
    serials = {
        authority.issue(workload, key, now=now, ttl=timedelta(hours=1)).leaf.serial_number for _ in range(20)
    }
    assert len(serials) == 20
    assert max(serials) > 2**100


def test_only_the_owner_reads_keys(directory: Path) -> None:
    """Keys are 0600 in a directory that is 0700, and no temporary file stays."""
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes == {ROOT_KEY: 0o600, CA_KEY: 0o600, ROOT_CERT: 0o644, CA_CERT: 0o644, CERT_CHAIN: 0o644}
    assert directory.stat().st_mode & 0o777 == 0o700


def test_modes_do_not_depend_on_the_umask(hierarchy: Hierarchy, tmp_path: Path) -> None:
    """A strict umask leaves certificates readable, and a lax one keys closed."""
    for mask in (0o077, 0o000):
        before = os.umask(mask)
        try:
            hierarchy.save(tmp_path / str(mask))
        finally:
            os.umask(before)
        assert (tmp_path / str(mask) / ROOT_CERT).stat().st_mode & 0o777 == 0o644
        assert (tmp_path / str(mask) / CA_KEY).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", [ROOT_KEY, CA_KEY, ROOT_CERT, CA_CERT, CERT_CHAIN])
def test_a_ca_is_never_replaced(hierarchy: Hierarchy, tmp_path: Path, name: str) -> None:
    """A directory with any part of a CA is refused, and left as it is."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="never replaced"):
        hierarchy.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_root_key_may_be_elsewhere(directory: Path) -> None:
    """Issuing needs only the intermediate's key."""
    (directory / ROOT_KEY).unlink()
    assert Authority.load(directory).trust_domain == TrustDomain("cluster.local")


def test_a_chain_with_the_root_is_served_without_it(hierarchy: Hierarchy, directory: Path) -> None:
    """Istio's tools put the root into `cert-chain.pem`; a peer has it already."""
    chain = [hierarchy.issuer.certificate, hierarchy.root]
    (directory / CERT_CHAIN).write_bytes(format_certificates(chain))
    assert Authority.load(directory).chain == (hierarchy.issuer.certificate,)


def test_a_ca_made_by_openssl_for_istio_loads(tmp_path: Path) -> None:
    """An RSA CA with Istio's extensions, made by another tool, issues; without a trust domain it is refused."""

    def openssl(arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments.split()], cwd=tmp_path, check=True, capture_output=True, timeout=30
        )

    def plug_in(name: str) -> None:
        usages = (
            "keyUsage=critical,digitalSignature,keyCertSign\nbasicConstraints=critical,CA:true,pathlen:0\n"
        )
        (tmp_path / "extensions").write_text(f"{usages}subjectAltName={name}\n")
        openssl(
            "x509 -req -in ca.csr -CA root-cert.pem -CAkey root-key.pem -days 9 "
            "-out ca-cert.pem -extfile extensions"
        )
        chain = (tmp_path / "ca-cert.pem").read_bytes() + (tmp_path / "root-cert.pem").read_bytes()
        (tmp_path / "cert-chain.pem").write_bytes(chain)

    openssl(
        "req -x509 -newkey rsa:2048 -nodes -keyout root-key.pem -out root-cert.pem -days 9 "
        "-subj /O=Istio/CN=Root -addext keyUsage=critical,keyCertSign"
    )
    openssl("req -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca.csr -subj /O=Istio/CN=Intermediate")
    plug_in("URI:spiffe://cluster.local")
    authority = Authority.load(tmp_path)
    assert len(authority.chain) == 1
    plug_in("DNS:istiod.istio-system.svc")
    with pytest.raises(ConfigError, match="names no trust domain"):
        Authority.load(tmp_path)


def test_several_roots_are_a_bundle(hierarchy: Hierarchy, directory: Path) -> None:
    """During a change of roots both are published; one of them must verify the chain."""
    (directory / ROOT_CERT).write_bytes(format_certificates([STRANGER.root, hierarchy.root]))
    assert Authority.load(directory).roots == (STRANGER.root, hierarchy.root)


def _encrypted(directory: Path) -> None:
    key = load_pem_private_key((directory / CA_KEY).read_bytes(), None)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (directory / CA_KEY).write_bytes(text)


def _stranger_intermediate(directory: Path) -> None:
    certificate = format_certificates([STRANGER.issuer.certificate])
    (directory / CA_CERT).write_bytes(certificate)
    (directory / CERT_CHAIN).write_bytes(certificate)
    (directory / CA_KEY).write_bytes(private_key_pem(STRANGER.issuer.key))


def _leaf_as_ca(directory: Path) -> None:
    key = new_private_key()
    leaf = STRANGER.authority().issue(
        SpiffeId.parse("spiffe://cluster.local/a"),
        key.public_key(),
        now=datetime(2030, 1, 2, tzinfo=UTC),
        ttl=timedelta(hours=1),
    )
    (directory / CA_CERT).write_bytes(format_certificates([leaf.leaf]))
    (directory / CERT_CHAIN).write_bytes(format_certificates([leaf.leaf]))
    (directory / CA_KEY).write_bytes(private_key_pem(key))


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        *[
            (lambda d, n=name: (d / n).unlink(), name, "no such file")
            for name in (ROOT_CERT, CA_CERT, CERT_CHAIN, CA_KEY)
        ],
        *[
            (lambda d, n=name: (d / n).write_bytes(b"garbage"), name, "no PEM certificate")
            for name in (ROOT_CERT, CA_CERT, CERT_CHAIN)
        ],
        (lambda d: (d / CA_KEY).write_bytes(b"\xff\x00"), CA_KEY, "no readable PEM private key"),
        (_encrypted, CA_KEY, "encrypted"),
        (lambda d: (d / CA_KEY).write_bytes(private_key_pem(new_private_key())), CA_KEY, "not that of"),
        (lambda d: (d / ROOT_KEY).write_bytes(private_key_pem(new_private_key())), ROOT_KEY, "not that of"),
        (
            lambda d: (d / CA_CERT).write_bytes((d / CA_CERT).read_bytes() * 2),
            CA_CERT,
            "exactly one",
        ),
        (lambda d: shutil.copy(d / ROOT_CERT, d / CERT_CHAIN), CERT_CHAIN, "first certificate"),
        (
            lambda d: (d / ROOT_CERT).write_bytes((d / ROOT_CERT).read_bytes() + (d / CA_KEY).read_bytes()),
            ROOT_CERT,
            "other than certificates",
        ),
        (
            lambda d: (d / ROOT_CERT).write_bytes(
                (d / ROOT_CERT).read_bytes() + format_certificates([OTHER_DOMAIN.root])
            ),
            ROOT_CERT,
            "root of `other.test`",
        ),
        (
            lambda d: (d / ROOT_CERT).write_bytes(format_certificates([STRANGER.root])),
            ROOT_KEY,
            "not that of a certificate",
        ),
        (_stranger_intermediate, CERT_CHAIN, "does not verify"),
        (_leaf_as_ca, CA_CERT, "not a CA"),
    ],
)
def test_what_does_not_load(
    directory: Path, damage: Callable[[Path], object], name: str, message: str
) -> None:
    """Every damage is refused, and the error names the file to look at."""
    damage(directory)
    with pytest.raises(ConfigError, match=message) as caught:
        Authority.load(directory)
    assert caught.value.diagnostics[0].file == str(directory / name)


def test_an_expired_ca_loads_but_does_not_issue(directory: Path) -> None:
    """The bundle of an expired CA can still be read; a certificate from it cannot be had."""
    authority = Authority.load(directory)
    with pytest.raises(IssuanceError, match="expired"):
        authority.issue(
            SpiffeId.parse("spiffe://cluster.local/a"),
            new_private_key().public_key(),
            now=authority.not_after,
            ttl=timedelta(hours=1),
        )


def test_a_long_trust_domain_fits(tmp_path: Path, now: datetime) -> None:
    """A trust domain of the greatest length gives a CA that loads."""
    trust_domain = TrustDomain.parse("a" * 255)
    Hierarchy.create(trust_domain, now=now).save(tmp_path)
    assert Authority.load(tmp_path).trust_domain == trust_domain
    assert x509.load_pem_x509_certificate((tmp_path / CA_CERT).read_bytes()).subject
