"""What Envoys verify with is made once for all of them: a list of what is revoked may be long."""

from __future__ import annotations

from datetime import timedelta

from support.ledgers import NOW

from ca.api.sds_secrets import roots_secret
from ca.authority import Hierarchy
from ca.crl import build_crl, crl_pem
from garrison.identity import TrustDomain

HIERARCHY = Hierarchy.create(TrustDomain("cluster.local"), now=NOW)


def test_roots_with_a_list_are_one_secret_until_there_is_another_list() -> None:
    """Whoever asks gets the same; the next list, other roots and another name make another one."""
    lists = [
        build_crl(HIERARCHY.issuer, [], number=number, revocations=0, now=NOW + timedelta(hours=number))
        for number in (1, 2)
    ]
    first, second = (roots_secret("ROOTCA", [HIERARCHY.root], [one.der]) for one in lists)
    assert roots_secret("ROOTCA", [HIERARCHY.root], [lists[0].der]) is first
    assert first.version != second.version
    assert first.message.validation_context.crl.inline_bytes == crl_pem([lists[0]])
    assert second.message.validation_context.crl.inline_bytes == crl_pem([lists[1]])
    other = Hierarchy.create(TrustDomain("cluster.local"), now=NOW).root
    assert roots_secret("ROOTCA", [other], [lists[0].der]).version != first.version
    named = roots_secret("spiffe://cluster.local", [HIERARCHY.root], [lists[0].der])
    assert (named.name, named.version) == ("spiffe://cluster.local", first.version)
