"""Whatever bytes a caller of the CA sends: a parsed request or a reason, never anything else."""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from ca.api.evidence import (
    BearerToken,
    JoinSecret,
    LocalProcess,
    named_identity,
    read_evidence,
)
from ca.api.issuing import check_same, parse_request
from ca.api.istio_csr import parse
from ca.attestors.base import Reason, Refused
from ca.csr import CheckedCsr
from ca.keys import new_private_key
from ca.protos.istio_ca_pb2 import IstioCertificateRequest
from garrison.identity import SpiffeId
from garrison.transport import Call, Peer
from garrison.transport.unix_peer import PeerCredentials

KEY = new_private_key()
WEB = SpiffeId.parse("spiffe://cluster.local/web")
CSR = (
    x509.CertificateSigningRequestBuilder()
    .subject_name(x509.Name([]))
    .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(WEB))]), critical=True)
    .sign(KEY, hashes.SHA256())
    .public_bytes(Encoding.PEM)
)
PROCESS = PeerCredentials(1, 1000, 1000, "/bin/x")

values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
fields = st.dictionaries(st.sampled_from(["ImpersonatedIdentity", "CertSigner", "x"]), values)


@given(st.binary(max_size=300))
@example(b"")
@example(b"\x0a\x01\xff")
def test_any_bytes(message: bytes) -> None:
    """They are a request, or they are refused."""
    found = parse(message)
    assert isinstance(found, IstioCertificateRequest | Refused)


@given(st.text(max_size=100), st.integers(-(2**63), 2**63 - 1), fields)
def test_any_request(csr: str, seconds: int, metadata: dict[str, Any]) -> None:
    """It is read as it was written, unless it asks for another signer or to be somebody else."""
    request = IstioCertificateRequest(csr=csr, validity_duration=seconds)
    request.metadata.update(metadata)
    found = parse(request.SerializeToString())
    asks = [name for name in ("ImpersonatedIdentity", "CertSigner") if metadata.get(name)]
    if any(isinstance(metadata[name], str) for name in asks):
        assert isinstance(found, Refused)
        assert found.reason in {Reason.IMPERSONATION, Reason.BAD_REQUEST}
    else:
        assert found == request


@given(st.integers(0, len(CSR) - 1), st.integers(0, 255))
def test_a_changed_signing_request(at: int, byte: int) -> None:
    """One byte of it changed: it says the same, or it is refused."""
    changed = bytes([*CSR[:at], byte, *CSR[at + 1 :]])
    found = parse_request(changed)
    if isinstance(found, CheckedCsr):
        assert (found.public_key, found.uris) == (KEY.public_key(), (str(WEB),))
    else:
        assert found.reason is Reason.BAD_REQUEST


@given(st.integers(0, len(CSR)), st.binary(max_size=40))
def test_a_cut_signing_request(at: int, tail: bytes) -> None:
    """What was cut off or goes on after it is refused, or is the same."""
    found = parse_request(CSR[:at] + tail)
    assert isinstance(found, Refused) or found.public_key == KEY.public_key()


@given(st.lists(st.text(max_size=40) | st.just(str(WEB)), max_size=4))
def test_a_request_is_for_the_one_identity_or_for_nobody(uris: list[str]) -> None:
    """Any other URI in it is a reason to refuse."""
    refused = check_same(CheckedCsr(KEY.public_key(), "", tuple(uris)), WEB)
    assert (refused is None) == all(uri == str(WEB) for uri in uris)


@given(st.lists(st.binary(max_size=80), max_size=3), st.booleans(), st.booleans())
@example([b"Bearer " + b"a" * 43], False, False)
@example([b"Bearer " + b"a" * 43, b"Bearer " + b"a" * 43], False, False)
def test_any_authorization(sent: list[bytes], is_private: bool, is_local: bool) -> None:
    """Over plaintext nothing counts, two are none, and a bad one is not made up for by what else is there."""
    call = Call(Peer("x", is_private=is_private), [(b"authorization", value) for value in sent])
    found = read_evidence(call, PROCESS if is_local else None)
    if not is_private:
        assert found == Refused(Reason.PLAINTEXT, "certificates are given only over TLS and Unix sockets")
    elif sent:
        assert isinstance(found, Refused | JoinSecret | BearerToken)
        assert len(sent) == 1 or isinstance(found, Refused)
    else:
        assert isinstance(found, LocalProcess if is_local else Refused)


@given(st.lists(st.binary(max_size=60) | st.just(str(WEB).encode()), max_size=2))
def test_any_name(sent: list[bytes]) -> None:
    """One SPIFFE ID is a name; everything else is refused."""
    found = named_identity(Call(Peer("x"), [(b"garrison-spiffe-id", value) for value in sent]))
    if not sent:
        assert found is None
    elif len(sent) == 1 and isinstance(found, SpiffeId):
        assert str(found).encode() == sent[0]
    else:
        assert isinstance(found, Refused)
