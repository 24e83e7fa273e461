"""Trust bundles: PEM files of roots and intermediates, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.checks import NOW, principal
from support.peer_certificates import CertificateAuthority, encoded

from authz.bundles import TrustBundles, TrustFile, load_bundles
from garrison.errors import ConfigError
from garrison.identity import SpiffeId, TrustDomain

ROOT = CertificateAuthority()
MIDDLE = CertificateAuthority("test intermediate", ROOT)
STRANGER = CertificateAuthority()
A = SpiffeId.parse(principal("a"))


def write(folder: Path, *certificates: x509.Certificate, name: str = "b.pem") -> Path:
    """Return a PEM file."""
    file = folder / name
    file.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
    return file


OURS = TrustDomain("cluster.local")


def test_files_of_one_trust_domain_are_one_bundle(tmp_path: Path) -> None:
    """Root and intermediate may be in different files; the version is that of their content."""
    root, middle = write(tmp_path, ROOT.certificate), write(tmp_path, MIDDLE.certificate, name="m.pem")
    verifier = load_bundles([TrustFile(OURS, root), TrustFile(OURS, middle)], required=False)
    assert verifier.problem(encoded(MIDDLE.issue()), A, NOW) is None
    assert (
        verifier.version
        == load_bundles([TrustFile(OURS, root), TrustFile(OURS, middle)], required=True).version
    )
    write(tmp_path, STRANGER.certificate)
    assert (
        verifier.version
        != load_bundles([TrustFile(OURS, root), TrustFile(OURS, middle)], required=False).version
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: no such file"),
        (b"", "holds no certificates in PEM"),
        (b"garbage", "holds no certificates in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no certificates in PEM"),
        (b"#" * 5_000_000, "more than 4194304 bytes"),
        (MIDDLE.certificate.public_bytes(Encoding.PEM), "there is no root"),
        (
            ROOT.certificate.public_bytes(Encoding.PEM) + ROOT.issue().public_bytes(Encoding.PEM),
            "certificate 2 is not that of a CA",
        ),
    ],
)
def test_a_file_that_is_no_bundle_is_an_error(tmp_path: Path, content: bytes | None, why: str) -> None:
    """Each with its file; nothing is half used."""
    file = tmp_path / "b.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"b\.pem") as found:
        load_bundles([TrustFile(OURS, file)], required=False)
    assert why in str(found.value)


def test_the_bundles_in_force_are_swapped(tmp_path: Path) -> None:
    """None at first; then the ones used last."""
    bundles, file = TrustBundles(), write(tmp_path, ROOT.certificate)
    assert bundles.current is None
    for _ in range(2):
        verifier = load_bundles([TrustFile(OURS, file)], required=False)
        bundles.use(verifier)
        assert bundles.current is verifier


def test_roots_in_a_chain_are_not_trusted(tmp_path: Path) -> None:
    """A file of intermediates makes nobody a root."""
    roots = write(tmp_path, ROOT.certificate)
    chain = write(tmp_path, MIDDLE.certificate, STRANGER.certificate, name="chain.pem")
    verifier = load_bundles([TrustFile(OURS, roots), TrustFile(OURS, chain, has_roots=False)], required=False)
    assert verifier.problem(encoded(MIDDLE.issue()), A, NOW) is None
    assert verifier.problem(encoded(STRANGER.issue()), A, NOW) is not None
    with pytest.raises(ConfigError, match="there is no root"):
        load_bundles([TrustFile(OURS, chain, has_roots=False)], required=False)
