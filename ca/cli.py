"""The `ca` command: thin, every rule lives in `ca.authority` and below."""

from __future__ import annotations

import sys

import click

from ca.commands.agent import agent
from ca.commands.archive import backup, restore
from ca.commands.audit import audit
from ca.commands.authority import authority
from ca.commands.base import EXIT_CODES, Commands
from ca.commands.certificates import crl, list_certificates, revoke
from ca.commands.clock import clock_command
from ca.commands.entries import entry
from ca.commands.federation import federation
from ca.commands.health import lint, status
from ca.commands.init import init
from ca.commands.jwt import jwt
from ca.commands.keys import passphrase
from ca.commands.look import bundle, inspect, verify
from ca.commands.migrate import ledger_commands
from ca.commands.renew import renew
from ca.commands.svids import issue, sign
from ca.commands.tokens import token


@click.group(
    cls=Commands,
    epilog="\b\nExample:\n  ca init --dir ./pki --trust-domain cluster.local\n\n" + EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def ca() -> None:
    """Make a certificate authority for SPIFFE identities, issue from it, and look at certificates."""


for _command in (
    init,
    status,
    issue,
    sign,
    renew,
    inspect,
    verify,
    lint,
    bundle,
    list_certificates,
    revoke,
    crl,
    token,
    entry,
    federation,
    audit,
    clock_command,
    agent,
    ledger_commands,
    jwt,
    authority,
    passphrase,
    backup,
    restore,
):
    ca.add_command(_command)


def main() -> None:
    """Run the `ca` command and exit."""
    sys.exit(ca(prog_name="ca"))
