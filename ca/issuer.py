"""template -> sign -> inspect: the only place where something is signed.

An issuer reads no clock and draws no number: `now` and `serial` are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509

from ca import der
from ca.inspection import check_key_pair, check_leaf, check_signed, check_signing
from ca.keys import SERIAL_BITS, CaKey, PublicKey
from ca.signing import signed
from ca.template import READY_NAMES, Signatory, Stamp, Template, key_der_of, leaf_template
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId, TrustDomain

DEFAULT_TTL = timedelta(hours=1)
MAX_TTL = timedelta(hours=24)
# X.509 counts in whole seconds.
MIN_TTL = timedelta(seconds=1)
# A certificate is used at once, by machines whose clocks may be behind ours; istiod grants the same.
BACKDATE = timedelta(minutes=2)

# What is signed within one second has its times in common.
_time_der = lru_cache(maxsize=64)(der.time)
_VERSION_3 = der.element(der.explicit_tag(0), der.integer(2))


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate that was signed and inspected: its DER, and what was read from it."""

    der: bytes
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Issuer:
    """A signing certificate of a trust domain, with its key.

    Construct with `Issuer.build`, which checks that they belong together.
    """

    certificate: x509.Certificate
    key: CaKey
    trust_domain: TrustDomain
    # Read from the certificate once.
    _signatory: Signatory = field(init=False, repr=False, compare=False)
    _not_before: datetime = field(init=False, repr=False, compare=False)
    _not_after: datetime = field(init=False, repr=False, compare=False)
    # Names (DER) with which a leaf was held against the profile.
    _inspected: set[bytes] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_signatory", Signatory.of(self.certificate))
        object.__setattr__(self, "_not_before", self.certificate.not_valid_before_utc)
        object.__setattr__(self, "_not_after", self.certificate.not_valid_after_utc)

    @property
    def key_identifier(self) -> str:
        """The key identifier (hex) that its certificates name: what a ledger knows it by."""
        return self._signatory.key_identifier

    @classmethod
    def build(cls, certificate: x509.Certificate, key: CaKey) -> Issuer:
        """Return the issuer of the trust domain that `certificate` names in its URI.

        Raises:
            IssuanceError: the certificate may not sign, names no trust domain, or has another key.

        """
        trust_domain = check_signing(certificate)
        if trust_domain is None:
            raise IssuanceError("the signing certificate names no trust domain (no `spiffe://` URI)")
        check_key_pair(certificate, key)
        return cls(certificate, key, trust_domain)

    def issue(
        self,
        spiffe_id: SpiffeId,
        public_key: PublicKey,
        *,
        now: datetime,
        ttl: timedelta,
        serial: int,
        dns_names: Sequence[str] = (),
    ) -> Signed:
        """Return a leaf X509-SVID for `spiffe_id`, which the caller must be entitled to.

        It ends `ttl` after `now`, or with the issuer's certificate if that is sooner.

        Raises:
            IssuanceError: another trust domain, a name or key that is not acceptable, a TTL out of range,
                or an issuer that is expired or not valid yet.

        """
        if spiffe_id.trust_domain != self.trust_domain:
            raise IssuanceError(f"`{spiffe_id}` is outside this CA's trust domain `{self.trust_domain}`")
        if not MIN_TTL <= ttl <= MAX_TTL:
            raise IssuanceError(f"a TTL is {MIN_TTL} to {MAX_TTL}, not {ttl}")
        template = leaf_template(spiffe_id, public_key, dns_names)
        leaf = self.sign(template, now=now, lifetime=ttl, serial=serial)
        # Byte for byte it is as its template says: one with these names was read back, and no rule looks at
        # what else differs, its key and the key's identifier.
        if template.names.der not in self._inspected:
            if check_leaf(leaf.certificate) != spiffe_id:
                raise IssuanceError("the signed certificate has another SPIFFE ID than was asked for")
            if len(self._inspected) >= READY_NAMES:
                self._inspected.clear()
            self._inspected.add(template.names.der)
        return leaf

    def sign(self, template: Template, *, now: datetime, lifetime: timedelta, serial: int) -> Signed:
        """Return what `template` describes, signed and inspected; clamped to the issuer's own validity.

        Raises:
            IssuanceError: the issuer is expired or not valid yet, or the result is not as described.

        """
        self.check_validity(now)
        stamp = Stamp(
            not_before=_seconds(max(now - BACKDATE, self._not_before)),
            not_after=_seconds(min(now + lifetime, self._not_after)),
            serial=serial,
            by=self._signatory,
        )
        return _sign(template, self.key, stamp)

    def check_validity(self, now: datetime) -> None:
        """Refuse to sign at `now` if the signing certificate is not valid then.

        Raises:
            IssuanceError: it is expired or not valid yet.

        """
        _check_period(self._not_before, self._not_after, now)


def self_sign(template: Template, key: CaKey, *, now: datetime, lifetime: timedelta, serial: int) -> Signed:
    """Return a root: `template` signed with its own key.

    Raises:
        IssuanceError: `key` is not the template's, or the result is not as described.

    """
    if key_der_of(key.public_key()) != template.key_der:
        raise IssuanceError("a root is signed with its own key, and this is another")
    stamp = Stamp(
        not_before=_seconds(now - BACKDATE),
        not_after=_seconds(now + lifetime),
        serial=serial,
        by=Signatory.itself(template, key.public_key()),
    )
    return _sign(template, key, stamp)


def check_validity(certificate: x509.Certificate, now: datetime) -> None:
    """Refuse a signing certificate that is not valid at `now`.

    Raises:
        IssuanceError: it is expired or not valid yet.

    """
    _check_period(certificate.not_valid_before_utc, certificate.not_valid_after_utc, now)


def _check_period(not_before: datetime, not_after: datetime, now: datetime) -> None:
    if now >= not_after:
        raise IssuanceError(f"the CA certificate expired at {not_after:%FT%TZ}")
    if now < not_before:
        raise IssuanceError(f"the CA certificate is not valid before {not_before:%FT%TZ}")


def _seconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


def _sign(template: Template, key: CaKey, stamp: Stamp) -> Signed:
    if not 0 < stamp.serial < 2**SERIAL_BITS:
        raise IssuanceError(f"a serial number is positive and has at most {SERIAL_BITS} bits")
    made = signed(_to_be_signed(template, stamp), key, stamp.by.scheme)
    return Signed(made, check_signed(made, template, stamp))


def _to_be_signed(template: Template, stamp: Stamp) -> bytes:
    """Return a TBSCertificate (RFC 5280, 4.1), as the library's builder would in several times the time."""
    extensions = b"".join(one.der for one in (stamp.by.authority_key, *template.extensions))
    return der.element(
        der.SEQUENCE,
        _VERSION_3
        + der.integer(stamp.serial)
        + stamp.by.scheme.identifier
        + stamp.by.name_der
        + der.element(der.SEQUENCE, _time_der(stamp.not_before) + _time_der(stamp.not_after))
        + template.subject_der
        + template.key_der
        + der.element(der.explicit_tag(3), der.element(der.SEQUENCE, extensions)),
    )
