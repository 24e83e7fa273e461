"""Attacks on where keys come from: one test for each kind."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.http_server import answer
from support.issuer import DISCOVERY, JWKS, TokenIssuer
from support.tokens import ed_signer

from garrison.errors import DependencyError
from garrison.fetching import Answer, Fetcher
from garrison.keys.cache import KeyCache
from garrison.keys.jwks import KeySource
from garrison.keys.refresher import KeyRefresher, Timing, key_fetch
from garrison.keys.state import Fetched, KeyRules
from garrison.urls import parse_network

SOURCE = KeySource("https://issuer.example/keys")


def refused(issuer: TokenIssuer, source: KeySource, **options: Any) -> str:
    """Return why there are no keys of `source`."""

    async def scenario() -> str:
        refresher = KeyRefresher(key_fetch(Fetcher(ca=issuer.ca, **options)))
        await refresher.prepare([source])
        assert refresher.current(source) is None
        return refresher.status()[0].error

    return asyncio.run(scenario())


FORBIDDEN = [
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://0.0.0.0/",
    "http://[::]/",
    "http://224.0.0.1/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:a9fe:a9fe::]/",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://10.11.12.13/",
    "http://[64:ff9b::a0b:c0d]/",
]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_ssrf_keys_do_not_come_from_blocked_addresses(tmp_path: Path, url: str) -> None:
    """Neither a URL, nor a redirect, nor discovery leads to metadata, link-local or configured networks."""
    block = {"blocked": [parse_network("10.0.0.0/8")]}
    with TokenIssuer(tmp_path, tls=False) as issuer:
        described = {"issuer": issuer.issuer, "jwks_uri": url}
        issuer.answers[JWKS] = answer(b"", 302, location=url)
        issuer.answers[DISCOVERY] = answer(json.dumps(described).encode())
        for source in (KeySource(url), KeySource(issuer.jwks_uri), KeySource("", issuer.issuer)):
            assert "which is not allowed" in refused(issuer, source, **block)


def test_dns_rebinding_between_discovery_and_keys(tmp_path: Path) -> None:
    """A name that was harmless in discovery and leads to metadata afterwards is looked at again."""
    with TokenIssuer(tmp_path, tls=False) as issuer:
        name = issuer.issuer.replace("127.0.0.1", "issuer.example")
        issuer.answers[DISCOVERY] = answer(json.dumps({"issuer": name, "jwks_uri": name + JWKS}).encode())
        addresses = iter([["127.0.0.1"], ["169.254.169.254"]])
        error = refused(issuer, KeySource("", name), resolve=lambda *_: next(addresses))
        assert error == "`issuer.example` leads to `169.254.169.254`, which is not allowed"
        assert issuer.asked == {DISCOVERY: 1}


class Elsewhere(Fetcher):
    """A fetcher whose servers seem to be on another machine."""

    def _exchange(self, *arguments: Any, **options: Any) -> Answer:
        return replace(super()._exchange(*arguments, **options), is_local=False)


def test_ssrf_an_issuer_elsewhere_does_not_send_us_to_this_machine(tmp_path: Path) -> None:
    """A discovery document from another machine cannot name a server on ours."""
    with TokenIssuer(tmp_path) as issuer:
        fetch = key_fetch(Elsewhere(ca=issuer.ca))
        with pytest.raises(DependencyError, match=r"leads to `127\.0\.0\.1`, which is not allowed"):
            fetch(KeySource("", issuer.issuer))
        assert issuer.asked == {DISCOVERY: 1}


def test_issuer_mix_up(tmp_path: Path) -> None:
    """An issuer that describes itself as another one, or is described by another one, lends nobody its keys."""
    (tmp_path / "a").mkdir()
    with TokenIssuer(tmp_path, tls=False) as issuer, TokenIssuer(tmp_path / "a", tls=False) as attacker:
        lie = json.dumps({"issuer": issuer.issuer, "jwks_uri": attacker.jwks_uri}).encode()
        attacker.answers[DISCOVERY] = answer(lie)
        assert "for another issuer" in refused(attacker, KeySource("", attacker.issuer))
        truth = json.dumps({"issuer": attacker.issuer, "jwks_uri": attacker.jwks_uri}).encode()
        issuer.answers[DISCOVERY] = answer(truth)
        assert "for another issuer" in refused(issuer, KeySource("", issuer.issuer))
        assert attacker.asked[JWKS] == issuer.asked[JWKS] == 0


def test_cve_2026_31837_no_key_takes_the_place_of_keys_that_do_not_come(tmp_path: Path) -> None:
    """A fetch that fails leaves no keys at all: nothing that anybody could have the other half of."""
    with TokenIssuer(tmp_path) as issuer:
        issuer.is_up = False
        assert refused(issuer, KeySource(issuer.jwks_uri))
        assert refused(issuer, KeySource("", issuer.issuer))


def test_tokens_with_made_up_key_ids_do_not_flood_the_issuer() -> None:
    """However many tokens name unknown keys: one fetch in ten seconds, and none more while fetches fail."""
    now, asked, down = [0.0], [0], [False]

    def fetch(_: KeySource) -> Fetched:
        asked[0] += 1
        if down[0]:
            raise DependencyError("down")
        return Fetched(json.dumps({"keys": [ed_signer().jwk()]}).encode())

    async def scenario() -> None:
        refresher = KeyRefresher(fetch, KeyRules(), None, Timing(lambda: now[0], lambda: now[0], lambda: 1.0))
        await refresher.prepare([SOURCE])
        for second in range(600):
            now[0] = float(second)
            for _ in range(20):
                refresher.missed(SOURCE)
            await refresher.refresh_due()
        assert asked[0] == 60
        down[0], asked[0] = True, 0
        for second in range(600, 1200):
            now[0] = float(second)
            for _ in range(20):
                refresher.missed(SOURCE)
            await refresher.refresh_due()
        assert asked[0] <= 11

    asyncio.run(scenario())


def test_a_stolen_old_key_does_not_come_back_from_the_cache(tmp_path: Path) -> None:
    """After a restart the issuer is asked before a token is verified with the keys of before."""
    kids = ["stolen"]

    def fetch(_: KeySource) -> Fetched:
        return Fetched(json.dumps({"keys": [ed_signer(kid).jwk() for kid in kids]}).encode())

    async def keys_after_a_start() -> list[str | None]:
        refresher = KeyRefresher(fetch, KeyRules(), KeyCache(tmp_path))
        await refresher.prepare([SOURCE])
        found = refresher.current(SOURCE)
        assert found is not None
        return [key.kid for key in found.keys]

    assert asyncio.run(keys_after_a_start()) == ["stolen"]
    kids[:] = ["new"]
    assert asyncio.run(keys_after_a_start()) == ["new"]
    assert b"stolen" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
