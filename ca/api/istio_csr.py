"""`istio.v1.auth.IstioCertificateService`: the CA as Istio's agents, ztunnel and gateways speak to it.

What is answered when is istiod's (`security/pkg/server/ca`); where this is stricter, docs/reference/ca-api.md
says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from google.protobuf.message import DecodeError

from ca import der
from ca.api.evidence import describe
from ca.api.issuing import Issuing
from ca.attestors.base import Reason, Refused
from ca.bundle import format_certificates
from ca.protos.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from garrison.transport import Call, Method, Methods

SERVICE = "istio.v1.auth.IstioCertificateService"
# The largest request that is parsed: a signing request of 16 KiB, and some metadata.
MAX_REQUEST_BYTES = 64 * 1024
_IMPERSONATED = "ImpersonatedIdentity"
_SIGNER = "CertSigner"


class IstioCertificates:
    """Answers CreateCertificate."""

    def __init__(self, issuing: Issuing) -> None:
        self._issuing = issuing
        self._ending = b""
        self._ending_of: tuple[Sequence[x509.Certificate], Sequence[x509.Certificate]] = (), ()

    def methods(self) -> Methods:
        """Return the methods by their paths."""
        return {f"/{SERVICE}/CreateCertificate": Method(self._create)}

    async def _create(self, message: bytes, call: Call) -> bytes:
        request = parse(message)
        if isinstance(request, Refused):
            raise self._issuing.refuse(
                request, now=self._issuing.now(), by=describe(call), method="CreateCertificate"
            )
        issued = await self._issuing.issue(
            call, request.csr.encode(), seconds=request.validity_duration, method="CreateCertificate"
        )
        roots = self._issuing.registry.issuer.authority.roots
        # The elements of a message's list stand one after the other, so answers share their end.
        leaf = _element(der.pem("CERTIFICATE", issued.svid.leaf_der))
        return leaf + self._after_leaf(issued.svid.certificates[1:], roots)

    def _after_leaf(self, links: tuple[x509.Certificate, ...], roots: tuple[x509.Certificate, ...]) -> bytes:
        """Return the intermediates, and all roots: clients take the last element as the trust bundle."""
        if self._ending_of != (links, roots):
            parts = [*((one,) for one in links), roots]
            self._ending = b"".join(_element(format_certificates(part)) for part in parts)
            self._ending_of = links, roots
        return self._ending


def _element(pem: bytes) -> bytes:
    """Return an answer whose list has one element."""
    return IstioCertificateResponse(cert_chain=[pem.decode()]).SerializeToString()


def parse(message: bytes) -> IstioCertificateRequest | Refused:
    """Return the request in `message`, or what is wrong with it."""
    if len(message) > MAX_REQUEST_BYTES:
        return Refused(Reason.BAD_REQUEST, f"a request has at most {MAX_REQUEST_BYTES} bytes")
    try:
        request = IstioCertificateRequest.FromString(message)
    except DecodeError:
        return Refused(Reason.BAD_REQUEST, "the request is no IstioCertificateRequest")
    fields = request.metadata.fields
    # A value that is no text reads as none (istiod: `GetStringValue`).
    if _IMPERSONATED in fields and fields[_IMPERSONATED].string_value:
        return Refused(Reason.IMPERSONATION, f"`{_IMPERSONATED}` is not supported")
    if _SIGNER in fields and fields[_SIGNER].string_value:
        return Refused(Reason.BAD_REQUEST, f"`{_SIGNER}`: this CA has one signer, which cannot be chosen")
    return request
