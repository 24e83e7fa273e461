"""`garrison policies`: publish to all replicas, go back, see who has what."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from authz.tools.options import mesh_of, mesh_options
from garrison.distribution.announcement import Announcement, Trust
from garrison.distribution.bundle import DEFAULT_MAX_BUNDLE_BYTES, pack
from garrison.distribution.channel import Channel, Report
from garrison.distribution.keys import PublicKey, parse_private_key, private_pem
from garrison.distribution.policies import check_files, read_files
from garrison.distribution.publisher import DEFAULT_KEEP, Entry, Publisher
from garrison.errors import ConfigError, DependencyError, RequestError
from garrison.process.settings import Settings, load_settings
from garrison.redis_address import RedisAddress, TlsFiles

# 0: done. 1: refused, or replicas differ. 2: usage. 3: Redis does not answer.
OK, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3
_MAX_KEY_FILE_BYTES = 64 * 1024

Command = TypeVar("Command", bound=Callable[..., Any])


class _Parsed(click.ParamType[Any]):
    """An option's text, parsed; what is wrong is said without repeating the text."""

    def __init__(self, name: str, parser: Callable[[str], Any]) -> None:
        self.name = name
        self._parser = parser

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parser(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _options(command: Command, options: Iterable[Callable[[Command], Command]]) -> Command:
    for option in reversed(list(options)):
        command = option(command)
    return command


def _channel_options(command: Command) -> Command:
    """Add the options that every command on a channel has; replicas have settings of the same names."""
    return _options(
        command,
        [
            click.option(
                "--redis",
                "address",
                metavar="URL",
                type=_Parsed("url", RedisAddress.parse),
                required=True,
                envvar="GARRISON_DISTRIBUTION_REDIS",
                help="redis://, rediss:// or unix://; also GARRISON_DISTRIBUTION_REDIS",
            ),
            click.option(
                "--redis-ca",
                type=click.Path(path_type=Path, exists=True, dir_okay=False),
                envvar="GARRISON_DISTRIBUTION_REDIS_CA",
                help="roots for rediss:// (PEM)",
            ),
            click.option(
                "--channel",
                type=_Parsed("name", lambda text: Channel(text).name),
                default="default",
                envvar="GARRISON_DISTRIBUTION_CHANNEL",
                show_default=True,
            ),
            click.option(
                "--public-key",
                "public_keys",
                metavar="KEY",
                type=_Parsed("key", PublicKey.parse),
                multiple=True,
                help="another publisher to believe, `ed25519:...`; repeatable",
            ),
            click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text"),
        ],
    )


def _signing_options(command: Command) -> Command:
    """Add the options that say who announces."""
    return _options(
        command,
        [
            click.option(
                "--key",
                "key_file",
                type=click.Path(path_type=Path),
                help="private key from `garrison policies keygen`",
            ),
            click.option(
                "--unsigned", is_flag=True, help="for replicas that believe it; needs rediss:// or unix://"
            ),
        ],
    )


@click.group(
    epilog="""\b
Exit codes: 0 done, 1 refused or replicas differ, 2 usage, 3 Redis does not answer.

\b
Example:
  garrison policies keygen --out publisher.pem
  garrison policies publish policies/ --redis rediss://redis:6380 --key publisher.pem"""
)
def policies() -> None:
    """Publish policies to all replicas over Redis, go back to older ones, see who has what."""


@policies.command(
    epilog="""\b
Exit codes: 0 written, 2 the file cannot be written.

\b
Example:
  garrison policies keygen --out publisher.pem"""
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="private key; must not exist")
@click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")
def keygen(*, out: Path, as_json: bool) -> None:
    """Make a key to publish with; print its public half, for the settings of the replicas."""
    key = Ed25519PrivateKey.generate()
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(out, flags, 0o600), "wb") as file:
            file.write(private_pem(key))
    except OSError as error:
        _fail(USAGE, f"{out}: {(error.strerror or str(error)).lower()}")
    public = PublicKey.of(key.public_key())
    _print({"public_key": str(public), "identifier": public.identifier}, str(public), as_json=as_json)


@policies.command(
    epilog="""\b
Exit codes: 0 announced, 1 the policies do not load and nothing was changed, 2 usage, 3 Redis does not answer.

\b
Example:
  garrison policies publish policies/ --redis rediss://redis:6380 --key publisher.pem"""
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@_channel_options
@_signing_options
@click.option(
    "--keep",
    type=click.IntRange(2, 1000),
    default=DEFAULT_KEEP,
    show_default=True,
    help="how many announcements to keep, with their bundles",
)
@click.option(
    "--max-bundle-bytes",
    type=click.IntRange(1024, 2**29),
    default=DEFAULT_MAX_BUNDLE_BYTES,
    show_default=True,
    help="what replicas take at most",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="settings of a replica: its mesh, providers and Casbin stores instead of the options below",
)
@mesh_options
def publish(
    *,
    paths: tuple[Path, ...],
    key_file: Path | None,
    unsigned: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Put policy files in force on every replica that follows the channel.

    They are loaded here first, as replicas with these settings would; what does not load is not published.
    """
    key = _key(key_file, options["address"], unsigned=unsigned)
    settings = _settings(options["config"])
    mesh = settings.mesh if settings else mesh_of(options)
    try:
        files = read_files(paths)
        if not files:
            _fail(
                REFUSED,
                "there is no policy file below these paths; an empty bundle would remove all policies",
            )
        snapshot, warnings = check_files(files, mesh, settings.adapters() if settings else {})
        bundle = pack([file for _, file in files])
    except ConfigError as error:
        _fail(REFUSED, *map(str, error.diagnostics))
    except ValueError as error:
        _fail(REFUSED, str(error))
    if len(bundle) > options["max_bundle_bytes"]:
        _fail(REFUSED, f"the bundle has {len(bundle)} bytes, replicas take {options['max_bundle_bytes']}")
    with _publisher(options, key, unchecked=unsigned) as publisher:
        done = publisher.publish(bundle, key, _now_ms(), options["keep"])
    _print(
        {**_announcement_json(done), "files": len(files), "snapshot": snapshot.version},
        f"published version {done.version} on channel {done.channel}: {len(files)} files, {done.size} bytes,"
        f" snapshot {snapshot.version}",
        as_json=as_json,
    )
    for warning in warnings:
        click.echo(str(warning), err=True)


@policies.command(
    epilog="""\b
Exit codes: 0 announced, 1 there is no such version and nothing was changed, 2 usage, 3 Redis does not answer.

\b
Example:
  garrison policies rollback --redis rediss://redis:6380 --key publisher.pem"""
)
@click.argument("version", required=False)
@_channel_options
@_signing_options
def rollback(
    *,
    version: str | None,
    key_file: Path | None,
    unsigned: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Put VERSION in force again, or else what was there before the current version was published."""
    key = _key(key_file, options["address"], unsigned=unsigned)
    with _publisher(options, key, unchecked=unsigned) as publisher:
        done = publisher.rollback(version, key, _now_ms())
    _print(
        _announcement_json(done),
        f"rolled back to version {done.version} on channel {done.channel}",
        as_json=as_json,
    )


@policies.command(
    epilog="""\b
Exit codes: 0 every entry is believed, or no key was given; 1 one is not; 2 usage; 3 Redis does not answer.

\b
Example:
  garrison policies history --redis rediss://redis:6380 --public-key ed25519:..."""
)
@_channel_options
def history(*, as_json: bool, **options: Any) -> None:
    """List what was announced, the newest first."""
    checked = bool(options["public_keys"])
    with _publisher(options, None, unchecked=not checked) as publisher:
        entries = publisher.history()
    lines = [_entry_text(entry, checked=checked) for entry in entries]
    rows = [_entry_json(entry, checked=checked) for entry in entries]
    _print({"entries": rows}, *(lines or ["nothing was published"]), as_json=as_json)
    sys.exit(REFUSED if any(entry.doubt for entry in entries) else OK)


@policies.command(
    epilog="""\b
Exit codes: 0 every replica has the current version, 1 one has not or there is none, 2 usage, 3 Redis does not
answer.

\b
Example:
  garrison policies status --redis rediss://redis:6380"""
)
@_channel_options
def status(*, as_json: bool, **options: Any) -> None:
    """Show each replica's version, since when, and its last error."""
    with _publisher(options, None, unchecked=not options["public_keys"]) as publisher:
        current, replicas = publisher.current(), publisher.replicas()
    wanted = current.announcement.version if current and current.announcement else ""
    _print(
        {"current": wanted, "replicas": [_report_json(report) for report in replicas]},
        f"current {wanted or 'nothing was published'}",
        *(_report_text(report, wanted) for report in replicas),
        *([] if replicas else ["no replica has reported"]),
        as_json=as_json,
    )
    right = wanted and replicas and all(one.bundle == wanted and not one.error for one in replicas)
    sys.exit(OK if right and current and not current.doubt else REFUSED)


@contextmanager
def _publisher(
    options: dict[str, Any], key: Ed25519PrivateKey | None, *, unchecked: bool
) -> Iterator[Publisher]:
    """Give the channel of the options; end the process when it cannot be used."""
    keys = list(options["public_keys"])
    if key is not None:
        keys.append(PublicKey.of(key.public_key()))
    client = options["address"].connect(TlsFiles(options["redis_ca"]))
    try:
        yield Publisher(client, Trust(options["channel"], keys, unchecked))
    except DependencyError as error:
        _fail(UNREACHABLE, str(error))
    except RequestError as error:
        _fail(REFUSED, str(error))
    finally:
        client.close()


def _key(file: Path | None, address: RedisAddress, *, unsigned: bool) -> Ed25519PrivateKey | None:
    """Return the key to sign with, None for unsigned; end the process when it is neither."""
    if (file is None) is not unsigned:
        raise click.UsageError("give either --key or --unsigned")
    if file is None:
        if not address.is_trusted_connection:
            raise click.UsageError("--unsigned needs a rediss:// or unix:// URL")
        return None
    try:
        with file.open("rb") as content:
            return parse_private_key(content.read(_MAX_KEY_FILE_BYTES))
    except OSError as error:
        _fail(USAGE, f"{file}: {(error.strerror or str(error)).lower()}")
    except ValueError as error:
        _fail(USAGE, f"{file}: {error}")


def _settings(file: Path | None) -> Settings | None:
    """Return a replica's settings; end the process when they are wrong."""
    try:
        return load_settings(file, {}, {}) if file else None
    except ConfigError as error:
        _fail(USAGE, *map(str, error.diagnostics))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _fail(code: int, *messages: str) -> NoReturn:
    for message in messages:
        click.echo(f"error: {message}", err=True)
    sys.exit(code)


def _print(data: dict[str, Any], *lines: str, as_json: bool) -> None:
    click.echo(json.dumps(data) if as_json else "\n".join(lines))


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "?"


def _announcement_json(announcement: Announcement) -> dict[str, Any]:
    return {
        "version": announcement.version,
        **asdict(announcement),
        "created": _time(announcement.created_ms / 1000),
    }


def _entry_json(entry: Entry, *, checked: bool) -> dict[str, Any]:
    fields = _announcement_json(entry.announcement) if entry.announcement else {}
    return {**fields, "verified": checked and not entry.doubt, "doubt": entry.doubt}


def _entry_text(entry: Entry, *, checked: bool) -> str:
    one = entry.announcement
    claimed = (
        f"{one.version}  {_time(one.created_ms / 1000)}  {one.action.value:8}  {one.size:>9} bytes"
        if one
        else "?"
    )
    verdict = entry.doubt or ("signature good" if checked else "signature not checked")
    return f"{claimed}  {verdict}"


def _report_json(report: Report) -> dict[str, Any]:
    return {**asdict(report), "since": _time(report.since), "seen": _time(report.seen)}


def _report_text(report: Report, wanted: str) -> str:
    state = "current" if report.bundle == wanted else "behind"
    since = _time(report.since) if report.bundle else "-"
    version, snapshot = report.bundle or "-", report.snapshot or "-"
    text = f"{report.replica}  {state}  version {version}  snapshot {snapshot}  since {since}"
    return f"{text}  error: {report.error}" if report.error else text
