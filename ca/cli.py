"""The `ca` command: thin, every rule lives in `ca.authority` and below."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import click

from ca.atomic_files import write_file
from ca.authority import Authority, Hierarchy
from ca.bundle import SpiffeBundle, format_spiffe_bundle
from ca.bundle_sequence import published_bundle
from ca.describe import describe_certificate, describe_file, format_description
from ca.issuer import DEFAULT_TTL
from ca.jwt_key_store import JwtKeyStore
from ca.jwt_svid import MAX_TOKEN_BYTES, issue_jwt_svid, validate_jwt_svid
from ca.keys import new_private_key, private_key_pem
from ca.registration import DEFAULT_JWT_TTL
from garrison.errors import ConfigError, GarrisonError, IssuanceError, RequestError
from garrison.identity import SpiffeId, TrustDomain

EXIT_UNUSABLE = 2
EXIT_REFUSED = 3
EXIT_CODES = """\b
Exit codes:
  0  done
  2  a command line, file or directory that cannot be used
  3  refused by the rules of the CA"""

_UNITS = {"h": "hours", "m": "minutes", "s": "seconds"}
_DURATION = re.compile(r"(?:[0-9]{1,6}[hms])+")


class _Failure(click.ClickException):
    """One line on stderr and an exit code, under whichever group the command hangs."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance


class _Commands(click.Group):
    """A group whose commands end with a documented exit code for every foreseen failure."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; failures of ours become a message and an exit code."""
        try:
            return super().invoke(ctx)
        except IssuanceError as error:
            raise _Failure(str(error), EXIT_REFUSED) from error
        except ConfigError as error:
            text = "; ".join(f"{problem.file}: {problem.message}" for problem in error.diagnostics)
            raise _Failure(text, EXIT_UNUSABLE) from error
        except GarrisonError as error:
            raise _Failure(str(error), EXIT_UNUSABLE) from error
        except BrokenPipeError:
            raise  # click ends quietly when the reader of our output went away
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            text = f"{where}{(error.strerror or str(error)).lower()}"
            raise _Failure(text, EXIT_UNUSABLE) from error


class _Parsed(click.ParamType[Any]):
    """A parameter read by one of our parsers."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the parsed value, or fail with the parser's reason."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _parse_duration(text: str) -> timedelta:
    if not _DURATION.fullmatch(text):
        raise ValueError(f"`{text}` is not a duration such as `1h`, `90m` or `1h30m`")
    total = timedelta(0)
    for number, unit in re.findall(r"([0-9]+)([hms])", text):
        total += timedelta(**{_UNITS[unit]: int(number)})
    return total


_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_dir_option = click.option(
    "--dir", "directory", type=_DIRECTORY, required=True, help="The directory of the CA."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(
    cls=_Commands,
    epilog="\b\nExample:\n  ca init --dir ./pki --trust-domain cluster.local\n\n" + EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def ca() -> None:
    """Make a certificate authority for SPIFFE identities, issue from it, and look at certificates."""


@ca.command(epilog=EXIT_CODES)
@_dir_option
@click.option(
    "--trust-domain",
    type=_Parsed("trust domain", TrustDomain.parse),
    required=True,
    help="Such as cluster.local.",
)
@_json_option
def init(directory: Path, trust_domain: TrustDomain, as_json: bool) -> None:  # noqa: FBT001
    """Make a root and an intermediate in a directory that has no CA yet.

    The root key is needed again only for the next intermediate: move root-key.pem off this machine.

    \b
    Example:
      ca init --dir ./pki --trust-domain cluster.local
    """
    hierarchy = Hierarchy.create(trust_domain, now=datetime.now(UTC))
    hierarchy.save(directory)
    root = describe_certificate(hierarchy.root)
    _print(
        as_json,
        {
            "directory": str(directory),
            "trust_domain": str(trust_domain),
            "root_sha256": root["sha256"],
            "root_not_after": root["not_after"],
            "ca_not_after": f"{hierarchy.issuer.certificate.not_valid_after_utc:%FT%TZ}",
        },
    )


@ca.command(epilog=EXIT_CODES)
@_dir_option
@click.argument("spiffe_id", type=_Parsed("spiffe_id", SpiffeId.parse))
@click.option("--out", type=_DIRECTORY, required=True, help="Where svid.pem, svid.key and bundle.pem go.")
@click.option(
    "--ttl",
    type=_Parsed("duration", _parse_duration),
    default=DEFAULT_TTL,
    help="How long it is valid: 1h if not given, at most 24h.",
)
@click.option("--dns", "dns_names", multiple=True, metavar="NAME", help="A DNS name to add; repeatable.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@_json_option
def issue(
    directory: Path,
    spiffe_id: SpiffeId,
    out: Path,
    ttl: timedelta,
    dns_names: tuple[str, ...],
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Issue an X509-SVID with a new key: svid.pem (leaf, intermediate), svid.key, bundle.pem.

    \b
    Example:
      ca issue --dir ./pki spiffe://cluster.local/ns/default/sa/web --out ./web
    """
    authority = Authority.load(directory)
    key = new_private_key()
    svid = authority.issue(spiffe_id, key.public_key(), now=datetime.now(UTC), ttl=ttl, dns_names=dns_names)
    files = {
        out / "bundle.pem": (authority.bundle_pem(), 0o644),
        out / "svid.key": (private_key_pem(key), 0o600),
        out / "svid.pem": (svid.chain_pem, 0o644),
    }
    taken = [str(path) for path in files if os.path.lexists(path)]
    if taken and not force:
        raise _Failure(f"{', '.join(taken)}: exists already (--force replaces)", EXIT_UNUSABLE)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, (content, mode) in files.items():
        write_file(path, content, mode=mode, replace=force)
    description = describe_certificate(svid.leaf)
    shown = ("spiffe_id", "names", "not_after", "serial", "sha256")
    _print(as_json, {**{name: description[name] for name in shown}, "files": [str(path) for path in files]})


@ca.command(epilog=EXIT_CODES)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@_json_option
def show(file: Path, as_json: bool) -> None:  # noqa: FBT001
    """Show every certificate in FILE (- reads stdin): PEM, DER, a signing request, or a SPIFFE bundle.

    \b
    Example:
      ca show ./web/svid.pem
    """
    standard_input = str(file) == "-"
    content = sys.stdin.buffer.read() if standard_input else file.read_bytes()
    try:
        descriptions = describe_file(content)
    except ValueError as error:
        name = "standard input" if standard_input else file
        raise _Failure(f"{name}: {error}", EXIT_UNUSABLE) from error
    if as_json:
        click.echo(json.dumps(descriptions, indent=2))
    else:
        click.echo("\n\n".join(format_description(description) for description in descriptions))


@ca.command(epilog=EXIT_CODES)
@_dir_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["pem", "spiffe"]),
    default="pem",
    show_default=True,
    help="PEM, or the SPIFFE bundle format (JSON).",
)
@_json_option
def bundle(directory: Path, form: str, as_json: bool) -> None:  # noqa: FBT001
    """Print the trust bundle: the roots that others verify our SVIDs with. --json is --format spiffe.

    \b
    Example:
      ca bundle --dir ./pki > bundle.pem
    """
    authority = Authority.load(directory)
    if as_json or form == "spiffe":
        click.echo(format_spiffe_bundle(published_bundle(directory, authority.roots, datetime.now(UTC))))
    else:
        click.echo(authority.bundle_pem().decode(), nl=False)


@ca.group(
    epilog="\b\nExample:\n  ca jwt mint --dir ./pki --audience db spiffe://cluster.local/job\n\n" + EXIT_CODES
)
def jwt() -> None:
    """Make JWT-SVIDs by hand, and look whether one is good."""


@jwt.command(epilog=EXIT_CODES)
@_dir_option
@click.argument("spiffe_id", type=_Parsed("spiffe_id", SpiffeId.parse))
@click.option("--audience", "audiences", multiple=True, required=True, help="Whom it is for; repeatable.")
@click.option(
    "--ttl",
    type=_Parsed("duration", _parse_duration),
    default=DEFAULT_JWT_TTL,
    help="How long it is valid: 5m if not given, at most 1h.",
)
@click.option("--issuer", "token_issuer", help="The `iss` of the token; none if not given.")
@_json_option
def mint(
    directory: Path,
    spiffe_id: SpiffeId,
    audiences: tuple[str, ...],
    ttl: timedelta,
    token_issuer: str | None,
    *,
    as_json: bool,
) -> None:
    """Print a JWT-SVID, signed with the key that `garrison serve` signs with; a key is made if there is none.

    It works for whoever holds it until it ends.

    \b
    Example:
      ca jwt mint --dir ./pki --audience db spiffe://cluster.local/job
    """
    trust_domain = Authority.load(directory).trust_domain
    if spiffe_id.trust_domain != trust_domain:
        raise IssuanceError(f"`{spiffe_id}` is outside this CA's trust domain `{trust_domain}`")
    now = datetime.now(UTC)
    store = JwtKeyStore(directory)
    # Not more than that: when keys change is for the server to say, which knows their lifetime.
    ring = store.published()
    key = (ring if ring.keys else store.ring(now)).signing(now)
    token = issue_jwt_svid(key, spiffe_id, audiences, now=now, ttl=ttl, token_issuer=token_issuer)
    if as_json:
        expires = f"{now.replace(microsecond=0) + ttl:%FT%TZ}"
        values = {"spiffe_id": str(spiffe_id), "audience": list(audiences), "not_after": expires}
        _print(as_json, {**values, "kid": key.kid, "token": token})
    else:
        click.echo(token)


@jwt.command(epilog=EXIT_CODES)
@_dir_option
@click.argument("token", type=click.File("r"), default="-")
@click.option("--audience", required=True, help="Whom it should be for.")
@_json_option
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
        keys = JwtKeyStore(directory).published().authorities()
        bundles = {Authority.load(directory).trust_domain: SpiffeBundle(jwt_authorities=keys)}
        found = validate_jwt_svid(text, audience, bundles, now=datetime.now(UTC))
    except UnicodeDecodeError as error:
        raise IssuanceError("the token is malformed") from error
    except RequestError as error:
        raise IssuanceError(str(error)) from error
    _print(as_json, {"spiffe_id": str(found.spiffe_id), "claims": dict(found.claims)})


def main() -> None:
    """Run the `ca` command and exit."""
    sys.exit(ca(prog_name="ca"))


def _print(as_json: bool, values: dict[str, Any]) -> None:  # noqa: FBT001
    click.echo(json.dumps(values, indent=2) if as_json else format_description(values))
