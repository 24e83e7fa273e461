"""An intermediate under a root that is elsewhere: the request for it, and whether the answer will do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from ca.authority import Authority, CaCertificates, is_issued_by, verifies
from ca.inspection import check_signing
from ca.issuer import Issuer, check_validity
from ca.keys import CaKey, signature_hash
from ca.template import INTERMEDIATE_PATH_LENGTH, ca_template
from garrison.errors import IssuanceError
from garrison.identity import TrustDomain

# More certificates than these are no answer.
MAX_CERTIFICATES = 16


def build_request(trust_domain: TrustDomain, key: CaKey) -> bytes:
    """Return the signing request (PKCS#10 PEM) for an intermediate of `trust_domain`.

    It asks for what an intermediate made here would have. An authority that ignores requested extensions has
    to be told them: CA with path length 0, keyCertSign and cRLSign, and the URI.
    """
    template = ca_template(
        trust_domain,
        key.public_key(),
        name="Garrison intermediate CA",
        path_length=INTERMEDIATE_PATH_LENGTH,
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(template.subject)
    for one in template.extensions:
        builder = builder.add_extension(one.value, critical=one.critical)
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.PEM)


def requested_trust_domain(pem: bytes) -> TrustDomain:
    """Return the trust domain that `build_request` was told.

    Raises:
        IssuanceError: it is no such request.

    """
    try:
        request = x509.load_pem_x509_csr(pem)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return TrustDomain.parse(uri.removeprefix("spiffe://"))
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
    ) as error:
        raise IssuanceError("the request that waits for an answer cannot be read") from error


def check_answer(
    certificates: Sequence[x509.Certificate], key: CaKey, trust_domain: TrustDomain, now: datetime
) -> CaCertificates:
    """Return the CA that `certificates`, in any order, make of the waiting `key`.

    Exactly one certificate is for the key. From it the chain goes to a self-signed one, which becomes the
    only root: others that came along are not trusted, since nobody asked for them.

    Raises:
        IssuanceError: there is no such chain, it breaks the profile, is for another trust domain, or is not
            valid now.

    """
    if len(certificates) > MAX_CERTIFICATES:
        raise IssuanceError(f"an answer has at most {MAX_CERTIFICATES} certificates")
    mine = {one for one in certificates if _is_of(one, key)}
    if len(mine) != 1:
        found = "none" if not mine else f"{len(mine)} of them"
        raise IssuanceError(f"expected exactly one certificate for the waiting key, {found} is")
    (certificate,) = mine
    named = check_signing(certificate)
    if named != trust_domain:
        wanted = f"its alternative name must be the URI `{trust_domain.spiffe_id}`"
        raise IssuanceError(f"the certificate names {f'`{named}`' if named else 'no trust domain'}: {wanted}")
    chain = [certificate]
    while not is_issued_by(chain[-1], chain[-1]):
        issuers = [one for one in certificates if one not in chain and is_issued_by(chain[-1], one)]
        if not issuers:
            raise IssuanceError(
                f"the certificate of `{chain[-1].issuer.rfc4514_string()}` is missing: "
                "give every certificate up to the root, and the root"
            )
        chain.append(issuers[0])
    if len(chain) == 1:
        raise IssuanceError("the certificate is self-signed: an answer comes from an outside root")
    for link in chain:
        check_validity(link, now)
        if check_signing(link) not in {None, trust_domain}:
            raise IssuanceError(
                f"a certificate of the chain is for another trust domain than `{trust_domain}`"
            )
    public = CaCertificates(certificate, tuple(chain[:-1]), (chain[-1],), trust_domain)
    authority = Authority(Issuer.build(certificate, key), public.chain, public.roots)
    if not verifies(authority, chain[-1]):
        raise IssuanceError(
            "what this certificate signs would not verify under the root (path lengths, names?)"
        )
    return public


def _is_of(certificate: x509.Certificate, key: CaKey) -> bool:
    try:
        return certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
