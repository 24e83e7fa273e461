"""Bundles of other trust domains from files: what is taken, and that one mistake names its file."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from ca.authority import Hierarchy
from ca.bundle import SpiffeBundle, format_certificates, format_spiffe_bundle
from ca.federated import load_federated
from garrison.errors import ConfigError
from garrison.identity import TrustDomain

PARTNER = TrustDomain("partner.test")


def test_both_forms_are_taken(tmp_path: Path, hierarchy: Hierarchy) -> None:
    """A SPIFFE bundle as it is; of PEM the roots alone, because an intermediate is not to be trusted by itself."""
    bundle = SpiffeBundle((hierarchy.root,), sequence=7)
    spiffe, pem = tmp_path / "a.json", tmp_path / "a.pem"
    spiffe.write_text(format_spiffe_bundle(bundle))
    pem.write_bytes(format_certificates([hierarchy.issuer.certificate, hierarchy.root]))
    other = TrustDomain("other.test")
    found = load_federated([(PARTNER, spiffe), (other, pem)])
    assert found.bundles == {PARTNER: bundle, other: SpiffeBundle((hierarchy.root,))}
    again = load_federated([(PARTNER, spiffe), (other, pem)])
    assert again.version == found.version
    assert load_federated([(PARTNER, pem)]).version != load_federated([(other, pem)]).version


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"{" + b" " * 5 * 1024 * 1024])
def test_what_is_no_bundle_is_named(tmp_path: Path, content: bytes) -> None:
    """Also next to good ones nothing is loaded then."""
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_federated([(PARTNER, path), (TrustDomain("other.test"), tmp_path / "missing")])
    assert [(one.file, one.code) for one in caught.value.diagnostics] == [
        (str(path), "bad_bundle"),
        (str(tmp_path / "missing"), "unreadable"),
    ]


def test_an_intermediate_alone_is_no_bundle(tmp_path: Path, hierarchy: Hierarchy, now: datetime) -> None:
    """PEM without a root vouches for nobody."""
    path = tmp_path / "a.pem"
    path.write_bytes(format_certificates([hierarchy.issuer.certificate]))
    with pytest.raises(ConfigError, match="no root"):
        load_federated([(PARTNER, path)])
