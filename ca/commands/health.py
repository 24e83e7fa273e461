"""`ca status` and `ca lint`: how a CA is, and what should be done about it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from ca.authority import CA_CERT, CA_KEY, REQUEST, ROOT_KEY, CaCertificates, load_encryption
from ca.authority_files import key_files
from ca.bundle import MAX_PEM_BYTES, parse_certificates, parse_spiffe_bundle
from ca.commands import clock
from ca.commands.base import (
    DIRECTORY,
    EXIT_CODES,
    EXIT_REFUSED,
    EXIT_UNUSABLE,
    READABLE,
    Failure,
    dir_option,
    json_option,
    name_of,
    print_values,
    read_input,
)
from ca.describe import describe_certificate, format_time_left
from ca.directory import finish
from ca.lint import SUCCESSOR_DUE, Finding, lint_certificate, lint_directory
from garrison.documents import Severity


@click.command(epilog=EXIT_CODES)
@dir_option
@json_option
def status(directory: Path, as_json: bool) -> None:  # noqa: FBT001
    """Say what is in a CA's directory, how long it lasts, how its keys are kept, and what to do next.

    No key is decrypted, so no passphrase is needed.

    \b
    Example:
      ca status --dir ./pki
    """
    if not directory.is_dir():
        raise Failure(f"{directory}: no such directory, `ca init` makes one", EXIT_UNUSABLE)
    finish(directory)
    keys = {name: load_encryption(directory / name) for name in key_files(directory)}
    values: dict[str, Any] = {"directory": str(directory), "state": "empty"}
    following: list[str] = []
    if (directory / CA_CERT).exists():
        values |= _of_ca(directory, clock.now(), following)
    elif (directory / REQUEST).exists():
        values["state"] = "waiting for an answer"
        following.append(
            f"have {REQUEST} signed, then: ca init --dir {directory} --take-answer CERTIFICATE ROOT"
        )
    else:
        following.append(f"ca init --dir {directory} --trust-domain NAME")
    following += [
        f"encrypt {name} well: ca passphrase --dir {directory}" for name, found in keys.items() if found.weak
    ]
    values |= {f"{name}_encryption": found.text for name, found in keys.items()}
    values["next"] = following if as_json else "; ".join(following)
    print_values(as_json, values)


def _of_ca(directory: Path, now: datetime, following: list[str]) -> dict[str, Any]:
    public = CaCertificates.load(directory)
    starts, ends = public.certificate.not_valid_before_utc, public.certificate.not_valid_after_utc
    root_ends = max(root.not_valid_after_utc for root in public.roots)
    state = "ready"
    if now >= min(ends, root_ends):
        state = "expired"
    elif now < starts:
        state = "not valid yet"
        following.append("check the clock of this machine")
    elif not (directory / CA_KEY).exists():
        state = "without its key"
        following.append(f"put {CA_KEY} back: without it nothing can be issued")
    elif ends - now < (ends - starts) * SUCCESSOR_DUE:
        state = "ends soon"
    if state in {"expired", "ends soon"}:
        following.append(
            f"ca authority prepare --dir {directory}, and activate it once everybody has its root"
        )
    root_keys = [name for name in key_files(directory) if name.endswith(ROOT_KEY)]
    if root_keys:
        following.append(f"move {' and '.join(root_keys)} off this machine")
    shown = describe_certificate(public.certificate)
    return {
        "state": state,
        "trust_domain": str(public.trust_domain),
        "ca": shown["subject"],
        "ca_key": shown["key"],
        "ca_not_after": f"{ends:%FT%TZ}",
        "ca_time_left": format_time_left(ends - now),
        "ca_seconds_left": int((ends - now).total_seconds()),
        "roots": [describe_certificate(root)["sha256"] for root in public.roots],
        "root_not_after": f"{root_ends:%FT%TZ}",
        "root_key_here": bool(root_keys),
    }


@click.command(epilog=EXIT_CODES)
@click.argument("files", type=READABLE, nargs=-1)
@click.option("--dir", "directory", type=DIRECTORY, help="Look at a CA and how its keys are kept.")
@json_option
def lint(files: tuple[Path, ...], directory: Path | None, *, as_json: bool) -> None:
    """Say what is wrong with certificates (X509-SVID, RFC 5280, key policy, lifetimes), or with a CA (--dir).

    Exit code 3 says that there is an error; warnings alone are 0.

    \b
    Example:
      ca lint ./web/svid.pem
      ca lint --dir ./pki
    """
    if not files and directory is None:
        raise Failure("give files, or the directory of a CA with --dir", EXIT_UNUSABLE)
    now = clock.now()
    found: list[Finding] = [] if directory is None else lint_directory(directory, now)
    for file in files:
        content = read_input(file, MAX_PEM_BYTES)
        try:
            is_bundle = content.lstrip()[:1] == b"{"
            certificates = (
                parse_spiffe_bundle(content).x509_authorities if is_bundle else parse_certificates(content)
            )
        except ValueError as error:
            raise Failure(f"{name_of(file)}: {error}", EXIT_UNUSABLE) from error
        for number, certificate in enumerate(certificates, 1):
            found += lint_certificate(certificate, f"{name_of(file)}: certificate {number}", now)
    if as_json:
        click.echo(json.dumps([one.as_json() for one in found], indent=2))
    elif found:
        click.echo("\n".join(str(one) for one in found))
    errors = sum(1 for one in found if one.severity is Severity.ERROR)
    if errors:
        raise Failure(f"{errors} of {len(found)} findings are errors", EXIT_REFUSED)
