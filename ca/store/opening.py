"""Which store a ledger is in, by what an operator wrote: a file's path, or the URL of a Redis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ca.ledger import Ledger
from ca.store.redis import RedisLedger
from ca.store.redis_server import RedisPlace, Safety
from ca.store.sentinels import SentinelPlace
from ca.store.sqlite import LEDGER, SqliteLedger
from garrison.identity import TrustDomain
from garrison.redis_address import RedisAddress


@dataclass(frozen=True, slots=True)
class LedgerPlace:
    """Where a ledger is, as it is set: None is the file in the CA's directory; the rest is for Redis only."""

    where: Path | RedisAddress | None = None
    ca: Path | None = None
    safety: Safety = Safety.REQUIRE
    replicas: int = 0
    certificate: Path | None = None
    private_key: Path | None = None
    sentinels: SentinelPlace | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises:
            ValueError: it does not; the message says why.

        """
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("the ledger's certificate and private key go together")
        if self.sentinels is None or not isinstance(self.where, RedisAddress):
            return
        if "unix" in {one.scheme for one in (self.where, *self.sentinels.others)}:
            raise ValueError("Sentinels are reached by redis:// and rediss://")
        if len({replace(one, host="", port=0) for one in (self.where, *self.sentinels.others)}) > 1:
            raise ValueError("the URLs of the ledger's Sentinels differ in nothing but host and port")

    def redis(self, address: RedisAddress) -> RedisPlace:
        """Return what is said of a ledger that is in Redis."""
        return RedisPlace(
            address,
            self.ca,
            self.safety,
            self.replicas,
            self.certificate,
            self.private_key,
            self.sentinels,
        )

    def path(self, directory: Path) -> Path | None:
        """Return the file, None if it is none."""
        return None if isinstance(self.where, RedisAddress) else self.where or directory / LEDGER

    def name(self, directory: Path) -> str:
        """Return what messages call it; without user and password."""
        return str(self.where or self.path(directory))

    def open(self, directory: Path, trust_domain: TrustDomain, *, warn: Callable[[str], None]) -> Ledger:
        """Open the ledger of the CA in `directory`, a new one if there is none.

        `warn` is told what is wrong with a Redis that is used all the same.

        Raises:
            ConfigError: the file cannot be used, or Redis may lose what it confirms.
            LedgerUnavailableError: it cannot be read or written now.

        """
        if isinstance(self.where, RedisAddress):
            return RedisLedger(self.redis(self.where), trust_domain, warn=warn)
        return SqliteLedger(self.where or directory / LEDGER)


def parse_where(text: str) -> Path | RedisAddress:
    """Return the file or the Redis that `text` names.

    Raises:
        ValueError: it is a URL, but not that of a Redis; the message does not repeat it.

    """
    return RedisAddress.parse(text) if "://" in text else Path(text)
