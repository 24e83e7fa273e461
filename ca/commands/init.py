"""`ca init`: a new authority, one plugged in, or one whose root is elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from cryptography import x509

from ca.atomic_files import sync_directory, write_file
from ca.authority import (
    CA_CERT,
    CA_KEY,
    CERT_CHAIN,
    INTERMEDIATE_LIFETIME,
    REQUEST,
    ROOT_CERT,
    ROOT_KEY,
    ROOT_LIFETIME,
    Authority,
    CaCertificates,
    Hierarchy,
    Lifetimes,
    install_new,
    load_encryption,
    load_key,
)
from ca.bundle import MAX_PEM_BYTES, format_certificates, parse_certificates
from ca.commands import clock
from ca.commands.base import (
    DIRECTORY,
    DURATION,
    EXIT_CODES,
    EXIT_PASSPHRASE,
    EXIT_UNUSABLE,
    FILE,
    READABLE,
    Failure,
    Parsed,
    dir_option,
    json_option,
    name_of,
    passphrase_option,
    passphrase_source,
    print_values,
    read_input,
    warn,
)
from ca.describe import describe_certificate
from ca.directory import NewFile, finish, install, locked
from ca.key_encryption import PLAIN
from ca.keys import CaKey, KeyType, WrongPassphraseError, key_file, new_ca_key, parse_private_key
from ca.outside_root import build_request, check_answer, requested_trust_domain
from ca.token_keys import is_token_uri
from garrison.identity import TrustDomain

KEY_TYPE = click.Choice([kind.value for kind in KeyType])


def new_keys_passphrase(directory: Path, file: Path | None, *, no_passphrase: bool) -> bytes | None:
    """Return what the keys of a new CA are encrypted with; None: they are not.

    Raises:
        Failure: it is given, and unwanted.
        ConfigError: it cannot be used.

    """
    if not no_passphrase:
        return passphrase_source(file).to_write(f"the keys in {directory}")
    if file is not None:
        raise Failure("--no-passphrase and --passphrase-file exclude each other", EXIT_UNUSABLE)
    return None


@click.command(epilog=EXIT_CODES)
@dir_option
@click.argument("files", type=READABLE, nargs=-1)
@click.option("--trust-domain", type=Parsed("trust domain", TrustDomain.parse), help="Such as cluster.local.")
@click.option(
    "--key-type", type=KEY_TYPE, default="p256", show_default=True, help="Of the root and the intermediate."
)
@click.option("--root-lifetime", type=DURATION, default=ROOT_LIFETIME, help="3650d if not given.")
@click.option("--lifetime", type=DURATION, default=INTERMEDIATE_LIFETIME, help="Of the intermediate: 1825d.")
@click.option("--root-key-out", type=FILE, help="Write the root's key there and not into the directory.")
@click.option(
    "--no-root-key-kept", is_flag=True, help="Write the root's key nowhere: no second intermediate."
)
@click.option("--csr", is_flag=True, help="Make a key and a signing request for an outside root.")
@click.option("--take-answer", is_flag=True, help="Take FILES, what the outside root answered to --csr.")
@click.option("--from", "source", type=DIRECTORY, help="Plug in the CA of that directory (Istio's cacerts).")
@click.option(
    "--key-uri",
    help="The intermediate's key is in a token: pkcs11:token=…;object=…?module-path=… (RFC 7512).",
)
@passphrase_option
@click.option("--no-passphrase", is_flag=True, help="Leave the keys unencrypted; do not ask or warn.")
@json_option
def init(**options: Any) -> None:
    """Make a root and an intermediate in a directory that has no CA yet, or plug one in.

    The root key is needed again only for the next intermediate: keep it off this machine (--root-key-out).
    After an interruption the directory holds all of the CA or nothing, and the same command can be repeated.

    \b
    Example:
      ca init --dir ./pki --trust-domain cluster.local --passphrase-file ./passphrase
      ca init --dir ./pki --trust-domain cluster.local --csr
      ca init --dir ./pki --take-answer answer.pem root.pem
      ca init --dir ./pki --from ./cacerts
    """
    modes = [name for name in ("csr", "take_answer", "source") if options[name]]
    if len(modes) > 1:
        raise Failure("--csr, --take-answer and --from exclude each other", EXIT_UNUSABLE)
    mode = modes[0] if modes else "new"
    if bool(options["files"]) != (mode == "take_answer"):
        raise Failure("FILES are given with --take-answer, and only there", EXIT_UNUSABLE)
    if options["trust_domain"] is None and mode in {"new", "csr"}:
        raise Failure("--trust-domain is missing, such as cluster.local", EXIT_UNUSABLE)
    if mode != "new" and (options["root_key_out"] is not None or options["no_root_key_kept"]):
        raise Failure("--root-key-out and --no-root-key-kept are for a root that is made here", EXIT_UNUSABLE)
    if options["key_uri"] is not None and mode not in {"new", "csr"}:
        raise Failure("--key-uri is for a key that is not certified yet", EXIT_UNUSABLE)
    if mode == "take_answer":
        _take_answer(options)
        return
    passphrase = new_keys_passphrase(
        options["directory"], options["passphrase_file"], no_passphrase=options["no_passphrase"]
    )
    {"new": _make, "csr": _request, "source": _plug_in}[mode](options, passphrase)
    if passphrase is None and not options["no_passphrase"] and not options["as_json"]:
        warn(f"the keys are not encrypted; `ca passphrase --dir {options['directory']}` encrypts them")


def _make(options: dict[str, Any], passphrase: bytes | None) -> None:
    directory: Path = options["directory"]
    out: Path | None = options["root_key_out"]
    if out is not None and options["no_root_key_kept"]:
        raise Failure("--root-key-out and --no-root-key-kept exclude each other", EXIT_UNUSABLE)
    kind = KeyType(options["key_type"])
    hierarchy = Hierarchy.create(
        options["trust_domain"],
        now=clock.now(),
        key=_token_key(options),
        new_private_key=lambda: new_ca_key(kind),
        lifetimes=Lifetimes(options["root_lifetime"], options["lifetime"]),
    )
    root_key: Path | None = directory / ROOT_KEY
    if out is not None:
        save_with_root_key_elsewhere(hierarchy, directory, passphrase, out)
        root_key = out
    else:
        hierarchy.save(directory, passphrase, keep_root_key=not options["no_root_key_kept"])
        root_key = None if options["no_root_key_kept"] else directory / ROOT_KEY
    public = CaCertificates.load(directory)
    _print_made(directory, public, as_json=options["as_json"], root_key=root_key)


def _token_key(options: dict[str, Any]) -> CaKey | None:
    uri = options["key_uri"]
    if uri is None:
        return None
    if not is_token_uri(uri.encode()):
        raise Failure("--key-uri is `pkcs11:…`", EXIT_UNUSABLE)
    source = passphrase_source(options["passphrase_file"])
    try:
        return parse_private_key(uri.encode(), lambda: source.to_read(Path("the token")))
    except WrongPassphraseError as error:
        raise Failure(str(error), EXIT_PASSPHRASE) from error
    except ValueError as error:
        raise Failure(str(error), EXIT_UNUSABLE) from error


def save_with_root_key_elsewhere(
    hierarchy: Hierarchy, directory: Path, passphrase: bytes | None, out: Path
) -> None:
    """Write the CA to `directory` and the root's key to `out`, which must not exist.

    The key is written first, under a name of its own beside `out`. So there is never a CA without its root
    key, and what is left of an interrupted attempt is in nobody's way.

    Raises:
        Failure: `out` exists.
        ConfigError: there is a CA already.
        OSError: something cannot be written.

    """
    if os.path.lexists(out):
        raise Failure(f"{out}: exists already, a root key is never replaced", EXIT_UNUSABLE)
    fingerprint = describe_certificate(hierarchy.root)["sha256"][:16]
    waiting = out.with_name(f"{out.name}.{fingerprint}.new")
    write_file(waiting, key_file(hierarchy.root_key, passphrase), mode=0o600, replace=False)
    try:
        hierarchy.save(directory, passphrase, keep_root_key=False)
    except Exception:
        if not _is_root_of(directory, hierarchy):
            waiting.unlink(missing_ok=True)
        raise
    try:
        out.hardlink_to(waiting)
    except FileExistsError as error:
        raise Failure(f"{out}: exists already; the root's key is in {waiting}", EXIT_UNUSABLE) from error
    waiting.unlink()
    sync_directory(out.parent)


def _is_root_of(directory: Path, hierarchy: Hierarchy) -> bool:
    """Tell whether the CA came to be in spite of an error; in doubt it did."""
    try:
        finish(directory)
        return (directory / ROOT_CERT).read_bytes() == format_certificates([hierarchy.root])
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _request(options: dict[str, Any], passphrase: bytes | None) -> None:
    directory: Path = options["directory"]
    key = _token_key(options) or new_ca_key(KeyType(options["key_type"]))
    files = {
        CA_KEY: NewFile(key_file(key, passphrase), 0o600),
        REQUEST: NewFile(build_request(options["trust_domain"], key)),
    }
    install_new(directory, files)
    values = {
        "directory": str(directory),
        "trust_domain": str(options["trust_domain"]),
        "request": str(directory / REQUEST),
        "keys_encrypted": passphrase is not None,
        "next": f"have it signed as a CA, then: ca init --dir {directory} --take-answer CERTIFICATE ROOT",
    }
    print_values(options["as_json"], values)


def _take_answer(options: dict[str, Any]) -> None:
    directory: Path = options["directory"]
    finish(directory)
    if os.path.lexists(directory / CA_CERT):
        raise Failure(f"{directory}: there is a CA here already, which is never replaced", EXIT_UNUSABLE)
    try:
        trust_domain = requested_trust_domain((directory / REQUEST).read_bytes())
    except FileNotFoundError as error:
        message = f"{directory}: no request waits here, `ca init --csr` makes one"
        raise Failure(message, EXIT_UNUSABLE) from error
    _check_trust_domain(options["trust_domain"], trust_domain)
    certificates = read_certificates(options["files"])
    key = load_key(directory / CA_KEY, passphrase_source(options["passphrase_file"]).to_read)
    public = check_answer(certificates, key, trust_domain, clock.now())
    with locked(directory):
        if os.path.lexists(directory / CA_CERT):
            raise Failure(f"{directory}: there is a CA here already, which is never replaced", EXIT_UNUSABLE)
        install(
            directory,
            {
                CA_CERT: NewFile(format_certificates([public.certificate])),
                CERT_CHAIN: NewFile(format_certificates(public.chain)),
                ROOT_CERT: NewFile(format_certificates(public.roots)),
            },
        )
    _print_made(directory, public, as_json=options["as_json"])


def _plug_in(options: dict[str, Any], passphrase: bytes | None) -> None:
    directory, source = options["directory"], options["source"]
    authority = Authority.load(source, passphrase_source(options["passphrase_file"]).to_read)
    _check_trust_domain(options["trust_domain"], authority.trust_domain)
    authority.issuer.check_validity(clock.now())
    files = {
        CA_KEY: NewFile(key_file(authority.issuer.key, passphrase), 0o600),
        CA_CERT: NewFile(format_certificates([authority.issuer.certificate])),
        CERT_CHAIN: NewFile(format_certificates(authority.chain)),
        ROOT_CERT: NewFile(format_certificates(authority.roots)),
    }
    install_new(directory, files)
    _print_made(directory, CaCertificates.load(directory), as_json=options["as_json"])


def read_certificates(files: Sequence[Path]) -> list[x509.Certificate]:
    """Return the certificates in all of `files`, each once.

    Raises:
        Failure: one of them holds none, or something else.
        OSError: one cannot be read.

    """
    found: list[x509.Certificate] = []
    for file in files:
        try:
            found += parse_certificates(read_input(file, MAX_PEM_BYTES))
        except ValueError as error:
            raise Failure(f"{name_of(file)}: {error}", EXIT_UNUSABLE) from error
    return list(dict.fromkeys(found))


def _check_trust_domain(wanted: TrustDomain | None, found: TrustDomain) -> None:
    if wanted not in {None, found}:
        raise Failure(f"it is a CA of `{found}`, not of `{wanted}`", EXIT_UNUSABLE)


def _print_made(
    directory: Path,
    public: CaCertificates,
    *,
    as_json: bool,
    root_key: Path | None = None,
) -> None:
    root = describe_certificate(public.roots[0])
    values = {
        "directory": str(directory),
        "trust_domain": str(public.trust_domain),
        "root_sha256": root["sha256"],
        "root_not_after": root["not_after"],
        "ca_not_after": f"{public.certificate.not_valid_after_utc:%FT%TZ}",
        "root_key": None if root_key is None else str(root_key),
        "keys_encrypted": load_encryption(directory / CA_KEY) != PLAIN,
    }
    print_values(as_json, values)
