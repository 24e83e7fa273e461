"""Other trust domains: which endpoints their bundles may come from, which documents are taken, for how long.

Pure; numbers of sections are those of "SPIFFE Federation". Bundles of two trust domains are never merged, and
ours never comes from outside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from ca.bundle import REFRESH_HINT_SECONDS, SpiffeBundle, parse_spiffe_bundle
from ca.inspection import check_signing
from ca.keys import check_ca_public_key, public_key_pem
from ca.ledger import EndpointProfile, FederatedBundle
from garrison.errors import DependencyError, IssuanceError
from garrison.identity import SpiffeId, TrustDomain
from garrison.pauses import give_or_take
from garrison.urls import check_url

# An endpoint that hints at less would have us at its door all day, one that hints at more would keep roots
# alive that its owner has given up.
MIN_POLL = timedelta(minutes=1)
MAX_POLL = timedelta(hours=1)
DEFAULT_MAX_STALE = timedelta(days=7)
# An authority and its successors have a few; with more, looking for a path would cost too much.
MAX_INTERMEDIATES = 32
# Polls that began together must not go on together.
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the bundle of a trust domain is: all of it is configured, nothing is concluded (section 5.2)."""

    trust_domain: TrustDomain
    url: str
    profile: EndpointProfile
    endpoint_id: SpiffeId | None = None

    @classmethod
    def of(cls, known: FederatedBundle) -> Endpoint:
        """Return the endpoint of what the ledger knows."""
        return cls(known.trust_domain, known.url, known.profile, known.endpoint_id)


def check_endpoint(endpoint: Endpoint, ours: TrustDomain) -> None:
    """Refuse an endpoint that a bundle must not come from.

    Raises:
        IssuanceError: it is for our own trust domain, not https, or does not fit its profile.

    """
    if endpoint.trust_domain == ours:
        raise IssuanceError(f"`{ours}` is our own trust domain, whose bundle never comes from outside")
    # Section 5.2: the URL's scheme is https, and it has no userinfo.
    if problem := check_url(endpoint.url):
        raise IssuanceError(problem)
    if not endpoint.url.startswith("https://") or "#" in endpoint.url:
        raise IssuanceError(f"`{endpoint.url}` is not an https:// URL without a fragment")
    if (endpoint.profile is EndpointProfile.SPIFFE) != (endpoint.endpoint_id is not None):
        raise IssuanceError("the SPIFFE ID of the endpoint goes with profile https_spiffe, and only with it")
    if endpoint.endpoint_id is not None and not endpoint.endpoint_id.segments:
        raise IssuanceError(f"`{endpoint.endpoint_id}` has no path, so no endpoint can be it")


def check_bundle(trust_domain: TrustDomain, bundle: SpiffeBundle) -> None:
    """Refuse a bundle that cannot be the one of `trust_domain`; an empty one is: nobody there is trusted.

    Raises:
        IssuanceError: a certificate is no CA's, has a key that is not accepted, or names another domain;
            there are more than `MAX_INTERMEDIATES`, or two of one name and key.

    """
    for kind, certificates in (
        ("a root", bundle.x509_authorities),
        ("an intermediate", bundle.x509_intermediates),
    ):
        for certificate in certificates:
            _check_authority(trust_domain, kind, certificate)
    if len(bundle.x509_intermediates) > MAX_INTERMEDIATES:
        raise IssuanceError(f"it holds more than {MAX_INTERMEDIATES} intermediates")
    # Each then has one issuer among them at most: there is no maze of paths in which to look for a root.
    if len({_name_and_key(one) for one in bundle.x509_intermediates}) != len(bundle.x509_intermediates):
        raise IssuanceError("it holds two intermediates of one name and key")


def published_intermediates(
    trust_domain: TrustDomain, certificates: Iterable[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """Return what of `certificates` goes into our bundle: nothing for which others would refuse all of it.

    That is no roots, the first of each name and key, and at most `MAX_INTERMEDIATES`.
    """
    found: dict[tuple[x509.Name, bytes], x509.Certificate] = {}
    for certificate in certificates:
        try:
            _check_authority(trust_domain, "an intermediate", certificate)
        except IssuanceError:
            continue
        if certificate.subject != certificate.issuer:
            found.setdefault(_name_and_key(certificate), certificate)
    return tuple(found.values())[:MAX_INTERMEDIATES]


def _check_authority(trust_domain: TrustDomain, kind: str, certificate: x509.Certificate) -> None:
    named = check_signing(certificate)
    if named not in {None, trust_domain}:
        raise IssuanceError(f"it holds {kind} of `{named}`, not of `{trust_domain}`")
    check_ca_public_key(certificate.public_key())


def _name_and_key(certificate: x509.Certificate) -> tuple[x509.Name, bytes]:
    return certificate.subject, public_key_pem(check_ca_public_key(certificate.public_key()))


def accept(known: FederatedBundle, document: bytes, *, now: datetime) -> FederatedBundle:
    """Return what is known once `document` was fetched from the endpoint of `known` at `now`.

    Raises:
        DependencyError: it is no bundle of that trust domain, or one from before what is known.

    """
    where = f"the bundle of `{known.trust_domain}`"
    try:
        bundle = parse_spiffe_bundle(document)
        check_bundle(known.trust_domain, bundle)
    except (ValueError, IssuanceError) as error:
        raise DependencyError(f"{where} is refused: {error}") from error
    if known.sequence is not None and (bundle.sequence is None or bundle.sequence < known.sequence):
        found = "none" if bundle.sequence is None else bundle.sequence
        raise DependencyError(f"{where} is refused: its number is {found}, after {known.sequence}")
    hint = None
    if bundle.refresh_hint is not None:
        hint = timedelta(seconds=min(bundle.refresh_hint, MAX_POLL // timedelta(seconds=1)))
    return replace(known, document=document, sequence=bundle.sequence, refresh_hint=hint, fetched_at=now)


def poll_interval(known: FederatedBundle, configured: timedelta | None, chance: float) -> timedelta:
    """Return how long to wait for the next poll, after a failure as well (section 5.2.3).

    That is what is `configured`, else what the last bundle hints at, within bounds, give or take a tenth;
    `chance` is in [0, 1).
    """
    hint = known.refresh_hint
    if hint is None:
        hint = timedelta(seconds=REFRESH_HINT_SECONDS)
    interval = configured if configured is not None else min(max(hint, MIN_POLL), MAX_POLL)
    return give_or_take(interval, JITTER, chance)


def is_stale(known: FederatedBundle, now: datetime, max_stale: timedelta) -> bool:
    """Tell whether the endpoint has not confirmed the bundle for longer than `max_stale`.

    What was confirmed as far in the future was so by a clock that was wrong.
    """
    return known.fetched_at is None or abs(now - known.fetched_at) > max_stale


def in_force(
    known: Iterable[FederatedBundle], ours: TrustDomain, *, now: datetime, max_stale: timedelta
) -> dict[TrustDomain, bytes]:
    """Return the documents that count at `now`; one that is too old counts as none."""
    return {
        one.trust_domain: one.document
        for one in known
        if one.document is not None and one.trust_domain != ours and not is_stale(one, now, max_stale)
    }
