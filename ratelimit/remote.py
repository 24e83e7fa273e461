"""`garrison ratelimit show` and `reset`: what a running server counts, asked of its admin HTTP."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import urlencode, urlsplit

import click

DEFAULT_ADMIN = "http://127.0.0.1:9190"
DEFAULT_PORT = 9190
OK, NOT_LIMITED, FAILED, NO_ANSWER = 0, 1, 2, 3
# Longer than the server waits for its own parts.
_TIMEOUT_SECONDS = 15.0
_MAX_BYTES = 64 * 1024 * 1024
_EXIT_CODES = {200: OK, 404: NOT_LIMITED, 500: NO_ANSWER, 503: NO_ANSWER}

_admin = click.option(
    "--admin",
    "admin",
    default=DEFAULT_ADMIN,
    show_default=True,
    metavar="URL",
    help="the server's admin HTTP",
)
_json = click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")


@click.command(
    epilog="""\b
Looking changes nothing. A value may hold any character; an entry is split at its first `=`.

\b
Exit codes: 0 shown, 1 no limit governs the descriptor, 2 the command or the server's address cannot be used,
  3 there is no answer from the server, or from the store that it counts in.

\b
Example:
  garrison ratelimit show shop user=alice path=/cart
  garrison ratelimit show --config"""
)
@click.argument("domain", required=False)
@click.argument("entries", nargs=-1, metavar="[KEY=VALUE...]")
@click.option("--config", "config", is_flag=True, help="the limits in force instead of a counter")
@_admin
@_json
def show(
    domain: str | None,
    entries: tuple[str, ...],
    config: bool,  # noqa: FBT001 - a flag
    admin: str,
    as_json: bool,  # noqa: FBT001 - a flag
) -> None:
    """Show what a running server counts for a descriptor, or the limits that are in force."""
    client = _Client(admin, as_json=as_json)
    if config:
        if domain is not None:
            client.fail("`--config` shows all limits: leave the domain and its entries out")
        found = client.ask("GET", "/ratelimit/config")
        client.show(found, _config_lines(found))
        return
    if domain is None or not entries:
        client.fail("name a counter by its domain and KEY=VALUE for each entry, or say `--config`")
    query = urlencode({"domain": domain, "descriptor": json.dumps(client.parse(entries))})
    found = client.ask("GET", f"/ratelimit/counters?{query}")
    client.show(found, (line for one in found["limits"] for line in _counter_lines(one)))


@click.command(
    epilog="""\b
All limits of the descriptor are as if nothing had been spent, at once and on every worker. The server writes
who asked, and what was there, to its log. Only from the machine that the server runs on.

\b
Exit codes: 0 reset, 1 no limit governs the descriptor, 2 the command, the server's address or the caller is
  refused, 3 there is no answer from the server, from a worker, or from the store that it counts in.

\b
Example:
  garrison ratelimit reset shop user=alice path=/cart"""
)
@click.argument("domain")
@click.argument("entries", nargs=-1, required=True, metavar="KEY=VALUE...")
@_admin
@_json
def reset(domain: str, entries: tuple[str, ...], admin: str, as_json: bool) -> None:  # noqa: FBT001 - a flag
    """Forget what a running server has counted for a descriptor."""
    client = _Client(admin, as_json=as_json)
    name = {"domain": domain, "descriptor": client.parse(entries)}
    found = client.ask("POST", "/ratelimit/reset", name)
    client.show(found, (f"reset: {_limit(one)}: {one['used']} were used" for one in found["before"]))


class _Client:
    """Talks to one server, and ends the command when that fails."""

    def __init__(self, url: str, *, as_json: bool) -> None:
        self._url = url
        self._as_json = as_json
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port or DEFAULT_PORT
        except ValueError:
            self.fail(f"`{url}` is no URL such as `{DEFAULT_ADMIN}`")
        if (
            parts.scheme != "http"
            or not self._host
            or parts.path.strip("/")
            or parts.query
            or "@" in parts.netloc
        ):
            self.fail(f"`{url}` is no address of admin HTTP such as `{DEFAULT_ADMIN}`")

    def parse(self, entries: Sequence[str]) -> list[list[str]]:
        """Return the descriptor that KEY=VALUE words spell."""
        found = []
        for entry in entries:
            key, equals, value = entry.partition("=")
            if not key or not equals:
                self.fail(f"`{entry}` is not KEY=VALUE")
            found.append([key, value])
        return found

    def ask(self, method: str, path: str, content: Any = None) -> dict[str, Any]:
        """Return what the server answers."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        try:
            body = json.dumps(content) if content is not None else None
            headers = {"content-type": "application/json"} if body is not None else {}
            connection.request(method, path, body, headers)
            with connection.getresponse() as response:
                text, status = response.read(_MAX_BYTES), response.status
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            advice = "is `garrison serve` running, and is this its `admin.listen`?"
            self.fail(f"there is no answer at {self._url}: {reason.lower()}; {advice}", NO_ANSWER)
        finally:
            connection.close()
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.fail(f"what answers at {self._url} is no admin HTTP with rate limits (status {status})")
        if status != http.client.OK:
            self.fail(str(found.get("error", f"status {status}")), _EXIT_CODES.get(status, FAILED))
        return found

    def show(self, found: Mapping[str, Any], lines: Iterator[str]) -> None:
        """Print an answer."""
        if self._as_json:
            click.echo(json.dumps(found))
        else:
            click.echo("\n".join(lines))

    def fail(self, message: str, code: int = FAILED) -> NoReturn:
        """Say what is wrong and end the command."""
        if self._as_json:
            click.echo(json.dumps({"error": message}))
        else:
            click.echo(message, err=True)
        sys.exit(code)


def _limit(limit: Mapping[str, Any]) -> str:
    name = f" ({limit['name']})" if limit["name"] else ""
    algorithm = "" if limit["algorithm"] == "fixed_window" else f", {limit['algorithm']}"
    return f"{limit['source']}: {limit['requests_per_unit']} a {limit['window']}{name}{algorithm}"


def _counter_lines(counter: Mapping[str, Any]) -> Iterator[str]:
    modes = [mode.replace("_", " ") for mode in ("shadow_mode", "quota_mode") if counter[mode]]
    notes = [*(["over the limit"] if counter["over_limit"] else []), *modes]
    yield _limit(counter)
    told = f"  {counter['used']} used, {counter['remaining']} left, reset in {counter['reset_seconds']:.1f} s"
    yield ", ".join([told, *notes])


def _config_lines(config: Mapping[str, Any]) -> Iterator[str]:
    yield f"version {config['version']}, in force since {config['loaded_at']}"
    if config["shadow_mode"]:
        yield "shadow mode: nothing is denied"
    for domain in config["domains"]:
        yield _printable(domain["domain"])
        yield from _descriptor_lines(domain["descriptors"], "  ")


def _descriptor_lines(descriptors: Sequence[Mapping[str, Any]], indent: str) -> Iterator[str]:
    for one in descriptors:
        what = _printable(one["key"])
        if "value" in one:
            what += f"={_printable(one['value'])}"
        for kind, text in one.get("match", {}).items():
            what += f" ({kind} {_printable(text)})"
        if one.get("share_threshold"):
            what += ", counted together"
        if "deduplicate_seconds" in one:
            what += f", identifies calls for {one['deduplicate_seconds']:g} s"
        yield f"{indent}{what}"
        for limit in one.get("limits", ()):
            modes = [mode.replace("_", " ") for mode in ("shadow_mode", "quota_mode") if limit[mode]]
            yield ", ".join([f"{indent}  {_limit(limit)}", *modes])
        if "unlimited" in one:
            yield f"{indent}  {one['unlimited']['source']}: unlimited"
        yield from _descriptor_lines(one.get("descriptors", ()), f"{indent}  ")


def _printable(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)
