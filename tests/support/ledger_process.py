"""A process that works on a ledger: `python ledger_process.py ACTION DIRECTORY LEDGER`.

LEDGER is as `ca --ledger` takes it, `-` for the one in DIRECTORY; with `sentinel` after it, it is that of a
Sentinel which calls the server `ledger`.
It says `ready`, begins when a line arrives on its standard input, and writes a line for each thing done.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ca.authority import Authority
from ca.issuer import DEFAULT_TTL
from ca.keys import new_private_key
from ca.ledger import IssuedCertificate, Ledger, LedgerRefusalError, token_hash
from ca.recording import record
from ca.store.opening import LedgerPlace, parse_where
from ca.store.sentinels import SentinelPlace
from garrison.errors import IssuanceError
from garrison.identity import SpiffeId
from support.ledgers import NOW, TRUST_DOMAIN, certificate

ROUNDS = 40


def burn(ledger: Ledger) -> None:
    """Burn tokens 0, 1, …, and say whether each was ours."""
    for number in range(ROUNDS):
        try:
            ledger.burn_token(token_hash(str(number)), now=NOW, by="process")
        except LedgerRefusalError as error:
            say(error.code)
        else:
            say("granted")


def issue_same_serials(ledger: Ledger) -> None:
    """Record serial numbers 1, 2, …, as if the random numbers of two processes met."""
    for number in range(1, ROUNDS + 1):
        try:
            ledger.record_issued([certificate(number)])
        except LedgerRefusalError as error:
            say(error.code)
        else:
            say("recorded")


def issue_for_ever(ledger: Ledger, directory: Path) -> None:
    """Issue and record, and say each serial number once it could leave."""
    authority = Authority.load(directory)
    spiffe_id, key = SpiffeId(authority.trust_domain, ("web",)), new_private_key().public_key()
    moment = authority.chain[0].not_valid_before_utc
    while True:
        svid = authority.issue(spiffe_id, key, now=moment, ttl=DEFAULT_TTL)
        issued = IssuedCertificate.of(svid.leaf, spiffe_id, now=moment, requester="test", attested_by="cli")
        # Two at a time, so that a half written pair would show.
        twin = replace(issued, serial=issued.serial ^ 1, fingerprint=f"{issued.serial ^ 1:064x}")
        record(ledger, [issued, twin])
        say(f"{issued.serial:x}")


def issue_through_failures(ledger: Ledger, directory: Path) -> None:
    """Issue and record for ever, and say each serial number once it could leave; what fails does not leave."""
    authority = Authority.load(directory)
    spiffe_id, key = SpiffeId(authority.trust_domain, ("web",)), new_private_key().public_key()
    moment = authority.chain[0].not_valid_before_utc
    while True:
        svid = authority.issue(spiffe_id, key, now=moment, ttl=DEFAULT_TTL)
        issued = IssuedCertificate.of(svid.leaf, spiffe_id, now=moment, requester="test", attested_by="cli")
        try:
            record(ledger, [issued])
        except IssuanceError:
            say("failed")
        else:
            say(f"{issued.serial:x}")


def say(text: str) -> None:
    """Write a line that the other side gets at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    action, directory, where = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    sentinels = SentinelPlace("ledger") if "sentinel" in sys.argv[4:] else None
    address = None if where == "-" else parse_where(where)
    place = LedgerPlace(address, replicas=1 if sentinels else 0, sentinels=sentinels)
    opened = place.open(directory, TRUST_DOMAIN, warn=say)
    say("ready")
    sys.stdin.readline()
    match action:
        case "burn":
            burn(opened)
        case "issue_same_serials":
            issue_same_serials(opened)
        case "issue_for_ever":
            issue_for_ever(opened, directory)
        case "issue_through_failures":
            issue_through_failures(opened, directory)
