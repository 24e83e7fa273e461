"""`ca jwt`: tokens by hand."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TextIO

import click

from ca.audit import CLOCK_TOLERANCE
from ca.authority import CA_CERT, CaCertificates, trust_domain_of
from ca.bundle import SpiffeBundle
from ca.commands import clock
from ca.commands.base import (
    DURATION,
    EXIT_CODES,
    Parsed,
    dir_option,
    json_option,
    passphrase_option,
    passphrase_source,
    print_values,
)
from ca.issuer import check_validity
from ca.jwt_key_store import JwtKeyStore, published_authorities
from ca.jwt_svid import MAX_TOKEN_BYTES, issue_jwt_svid, validate_jwt_svid
from ca.registration import DEFAULT_JWT_TTL
from garrison.errors import IssuanceError, RequestError
from garrison.identity import SpiffeId


@click.group(
    epilog="\b\nExample:\n  ca jwt mint --dir ./pki --audience db spiffe://cluster.local/job\n\n" + EXIT_CODES
)
def jwt() -> None:
    """Make JWT-SVIDs by hand, and look whether one is good."""


@jwt.command(epilog=EXIT_CODES)
@dir_option
@click.argument("spiffe_id", type=Parsed("spiffe_id", SpiffeId.parse))
@click.option("--audience", "audiences", multiple=True, required=True, help="Whom it is for; repeatable.")
@click.option(
    "--ttl",
    type=DURATION,
    default=DEFAULT_JWT_TTL,
    help="How long it is valid: 5m if not given, at most 1h.",
)
@click.option("--issuer", "token_issuer", help="The `iss` of the token; none if not given.")
@passphrase_option
@json_option
def mint(
    directory: Path,
    spiffe_id: SpiffeId,
    audiences: tuple[str, ...],
    ttl: timedelta,
    token_issuer: str | None,
    *,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Print a JWT-SVID, signed with the key that `garrison serve` signs with; a key is made if there is none.

    It works for whoever holds it until it ends.

    \b
    Example:
      ca jwt mint --dir ./pki --audience db spiffe://cluster.local/job
    """
    public, now = CaCertificates.load(directory), clock.now()
    trust_domain = public.trust_domain
    if spiffe_id.trust_domain != trust_domain:
        raise IssuanceError(f"`{spiffe_id}` is outside this CA's trust domain `{trust_domain}`")
    check_validity(public.certificate, now)
    store = JwtKeyStore(directory, passphrase=passphrase_source(passphrase_file))
    # Not more than that: when keys change is for the server to say, which knows their lifetime.
    ring = store.published()
    key = (ring if ring.keys else store.ring(now)).signing(now)
    if key.active_from - now > CLOCK_TOLERANCE:
        message = f"the key for tokens is good from {key.active_from:%FT%TZ} on: is the clock right?"
        raise IssuanceError(message)
    token = issue_jwt_svid(key, spiffe_id, audiences, now=now, ttl=ttl, token_issuer=token_issuer)
    if as_json:
        expires = f"{now.replace(microsecond=0) + ttl:%FT%TZ}"
        values = {"spiffe_id": str(spiffe_id), "audience": list(audiences), "not_after": expires}
        print_values(as_json, {**values, "kid": key.kid, "token": token})
    else:
        click.echo(token)


@jwt.command(epilog=EXIT_CODES)
@dir_option
@click.argument("token", type=click.File("r"), default="-")
@click.option("--audience", required=True, help="Whom it should be for.")
@json_option
def validate(directory: Path, token: TextIO, audience: str, *, as_json: bool) -> None:
    """Look whether the JWT-SVID in the file TOKEN (standard input if not given) is good, and show its claims.

    A token is not an argument, because every user of a machine can read those.

    \b
    Example:
      ca jwt validate --dir ./pki --audience db token.jwt
    """
    try:
        text = token.read(MAX_TOKEN_BYTES + 2).strip()
        # After the token came: it may be the first one, and its key as new as it is.
        keys = published_authorities(directory)
        bundles = {trust_domain_of(directory / CA_CERT): SpiffeBundle(jwt_authorities=keys)}
        found = validate_jwt_svid(text, audience, bundles, now=clock.now())
    except UnicodeDecodeError as error:
        raise IssuanceError("the token is malformed") from error
    except RequestError as error:
        raise IssuanceError(str(error)) from error
    print_values(as_json, {"spiffe_id": str(found.spiffe_id), "claims": dict(found.claims)})
