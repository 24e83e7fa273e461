"""`ca federation`: other trust domains, and where their bundles come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ca.authority import CA_CERT, CaCertificates, trust_domain_of
from ca.bundle import (
    MAX_PEM_BYTES,
    SpiffeBundle,
    format_certificates,
    format_spiffe_bundle,
    parse_spiffe_bundle,
)
from ca.commands import clock
from ca.commands.base import (
    EXIT_CODES,
    EXIT_REFUSED,
    EXIT_UNUSABLE,
    FILE,
    READABLE,
    Commands,
    Failure,
    Parsed,
    dir_option,
    json_option,
    name_of,
    print_values,
    read_input,
)
from ca.commands.ledger import ledger_option, open_ledger, operator
from ca.federated import parse_bundle
from ca.federation import Endpoint, check_bundle, check_endpoint
from ca.federator import bundle_fetch
from ca.federator import refresh as refresh_bundle
from ca.ledger import EndpointProfile, FederatedBundle, Ledger
from ca.store.opening import LedgerPlace
from garrison.errors import GarrisonError, IssuanceError
from garrison.identity import SpiffeId, TrustDomain

DOMAIN = Parsed("domain", TrustDomain.parse)


@click.group(cls=Commands, epilog=EXIT_CODES)
def federation() -> None:
    """Federate with other trust domains: whose bundles are fetched, from where.

    A server that uses this ledger follows within seconds. Workloads get the bundles of those trust domains
    that their registrations name (`--federates-with`).

    \b
    Example:
      ca federation list --dir ./pki
    """


@federation.command(epilog=EXIT_CODES)
@dir_option
@click.argument("trust_domain", type=DOMAIN)
@click.argument("url")
@click.option(
    "--profile",
    type=click.Choice([profile.value for profile in EndpointProfile]),
    default=EndpointProfile.WEB.value,
    show_default=True,
    help="How the endpoint proves itself: by the Web PKI, or by an X509-SVID.",
)
@click.option(
    "--endpoint-id",
    type=Parsed("spiffe_id", SpiffeId.parse),
    help="With https_spiffe: the SPIFFE ID that the endpoint has.",
)
@click.option(
    "--bundle",
    "bundle_file",
    type=READABLE,
    help="The bundle to begin with (SPIFFE bundle or PEM, - is standard input), got in a way that you trust.",
)
@ledger_option
@json_option
def create(
    directory: Path,
    trust_domain: TrustDomain,
    url: str,
    *,
    profile: str,
    endpoint_id: SpiffeId | None,
    bundle_file: Path | None,
    ledger: LedgerPlace,
    as_json: bool,
) -> None:
    """Fetch the bundle of TRUST_DOMAIN from URL from now on.

    An https_spiffe endpoint that is in TRUST_DOMAIN itself needs --bundle, which its first answer is verified
    with. There is one federation for each trust domain: delete it to make it anew.

    \b
    Example:
      ca federation create --dir ./pki partner.example https://partner.example/bundle
    """
    endpoint = Endpoint(trust_domain, url, EndpointProfile(profile), endpoint_id)
    check_endpoint(endpoint, trust_domain_of(directory / CA_CERT))
    now = clock.now()
    made = FederatedBundle(trust_domain, url, endpoint.profile, endpoint_id)
    if bundle_file is not None:
        bundle = _read_bundle(bundle_file)
        check_bundle(trust_domain, bundle)
        document = format_spiffe_bundle(bundle).encode()
        made = FederatedBundle(
            trust_domain,
            url,
            endpoint.profile,
            endpoint_id,
            document=document,
            sequence=bundle.sequence,
            fetched_at=now,
        )
    elif endpoint_id is not None and endpoint_id.trust_domain == trust_domain:
        message = f"`{endpoint_id}` cannot be verified without --bundle, the bundle of `{trust_domain}`"
        raise Failure(message, EXIT_REFUSED)
    with open_ledger(directory, ledger) as opened:
        opened.replace_federated(None, made, now=now, by=operator())
    print_values(as_json, _plain(made))


@federation.command("list", epilog=EXIT_CODES)
@dir_option
@ledger_option
@json_option
def list_federations(directory: Path, *, ledger: LedgerPlace, as_json: bool) -> None:
    """List the trust domains, and when the bundle of each was fetched last.

    \b
    Example:
      ca federation list --dir ./pki
    """
    with open_ledger(directory, ledger) as opened:
        found = [_plain(one) for one in opened.federated()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        fetched = one["fetched_at"] or "never"
        click.echo(f"{one['trust_domain']}  {one['profile']:<12}  {fetched:<20}  {one['url']}")


@federation.command(epilog=EXIT_CODES)
@dir_option
@click.argument("trust_domain", type=DOMAIN)
@click.option("--pem", is_flag=True, help="Print the roots of its bundle in PEM instead.")
@ledger_option
@json_option
def show(
    directory: Path, trust_domain: TrustDomain, *, pem: bool, ledger: LedgerPlace, as_json: bool
) -> None:
    """Show one trust domain, with the bundle that was fetched last in --json.

    \b
    Example:
      ca federation show --dir ./pki partner.example
    """
    with open_ledger(directory, ledger) as opened:
        found = _find(opened, trust_domain)
    if pem:
        roots = _bundle_of(found).x509_authorities
        if not roots:
            raise Failure(f"there is no root of `{trust_domain}`", EXIT_UNUSABLE)
        click.echo(format_certificates(roots), nl=False)
        return
    bundle = None if found.document is None else json.loads(found.document)
    print_values(as_json, {**_plain(found), "bundle": bundle} if as_json else _plain(found))


@federation.command(epilog=EXIT_CODES)
@dir_option
@click.argument("trust_domains", type=DOMAIN, nargs=-1)
@click.option(
    "--web-roots",
    type=FILE,
    help="The roots that https_web endpoints are verified with (PEM); those of the system if not given.",
)
@ledger_option
@json_option
def refresh(
    directory: Path,
    trust_domains: tuple[TrustDomain, ...],
    *,
    web_roots: Path | None,
    ledger: LedgerPlace,
    as_json: bool,
) -> None:
    """Fetch the bundles of TRUST_DOMAINS now, of all if none is given. A running server follows.

    Exit code 2 says that one could not be fetched, or was refused; then what was known of it stays.

    \b
    Example:
      ca federation refresh --dir ./pki partner.example
    """
    certificates = CaCertificates.load(directory)
    ours = trust_domain_of(directory / CA_CERT)
    others = {ours: SpiffeBundle(certificates.roots)}
    fetch = bundle_fetch(web_roots)
    refreshed, problems = [], []
    with open_ledger(directory, ledger) as opened:
        wanted = [_find(opened, name) for name in trust_domains] or list(opened.federated())
        for known in wanted:
            try:
                check_endpoint(Endpoint.of(known), ours)
                new = refresh_bundle(opened, known, others, fetch, now=clock.now(), by=operator())
            except GarrisonError as error:
                problems.append(f"{known.trust_domain}: {error}")
            else:
                refreshed.append({**_plain(new), "changed": new.document != known.document})
    if as_json:
        click.echo(json.dumps(refreshed, indent=2))
    else:
        for one in refreshed:
            click.echo(f"{one['trust_domain']}  {'changed' if one['changed'] else 'as it was'}")
    if problems:
        raise Failure("; ".join(problems), EXIT_UNUSABLE)


@federation.command(epilog=EXIT_CODES)
@dir_option
@click.argument("trust_domain", type=DOMAIN)
@ledger_option
@json_option
def delete(directory: Path, trust_domain: TrustDomain, *, ledger: LedgerPlace, as_json: bool) -> None:
    """Forget TRUST_DOMAIN and its bundle: nobody there is trusted any more, from the next connection on.

    \b
    Example:
      ca federation delete --dir ./pki partner.example
    """
    with open_ledger(directory, ledger) as opened:
        found = _find(opened, trust_domain)
        opened.delete_federated(trust_domain, now=clock.now(), by=operator())
    print_values(as_json, _plain(found))


def _find(ledger: Ledger, trust_domain: TrustDomain) -> FederatedBundle:
    for one in ledger.federated():
        if one.trust_domain == trust_domain:
            return one
    raise Failure(f"there is no federation with `{trust_domain}`", EXIT_UNUSABLE)


def _read_bundle(file: Path) -> SpiffeBundle:
    try:
        return parse_bundle(read_input(file, MAX_PEM_BYTES))
    except ValueError as error:
        raise Failure(f"{name_of(file)}: {error}", EXIT_UNUSABLE) from error


def _bundle_of(one: FederatedBundle) -> SpiffeBundle:
    if one.document is None:
        return SpiffeBundle()
    try:
        return parse_spiffe_bundle(one.document)
    except ValueError as error:
        raise IssuanceError(f"what the ledger has for `{one.trust_domain}` is damaged: {error}") from error


def _plain(one: FederatedBundle) -> dict[str, Any]:
    bundle = _bundle_of(one)
    return {
        "trust_domain": str(one.trust_domain),
        "url": one.url,
        "profile": one.profile.value,
        "endpoint_id": None if one.endpoint_id is None else str(one.endpoint_id),
        "fetched_at": None if one.fetched_at is None else f"{one.fetched_at:%FT%TZ}",
        "sequence": one.sequence,
        "refresh_hint_seconds": None if one.refresh_hint is None else int(one.refresh_hint.total_seconds()),
        "roots": len(bundle.x509_authorities),
        "jwt_keys": [authority.kid for authority in bundle.jwt_authorities],
    }
