"""Attestors: what evidence proves, and everything that proves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from support.ledgers import HOUR, NOW, WEB, token
from support.tokens import Signer, ec_signer, encode_part, forge, rsa_signer

from ca.attestors.base import Attested, Reason, Refused
from ca.attestors.join_token import attest_join_token, is_join_token
from ca.attestors.jwt import JwtAttestor, TrustedIssuer
from ca.attestors.kubernetes import attest_reviewed
from ca.attestors.svid import attest_svid
from ca.audit import AuditEvent
from ca.authority import Authority, Hierarchy
from ca.keys import new_private_key
from ca.ledger import CertificateKind, IssuedCertificate, RevocationReason, token_hash
from ca.store.sqlite import SqliteLedger
from garrison.identity import SpiffeId, TrustDomain
from garrison.keys.jwks import KeySet, KeySource, parse_jwks
from garrison.keys.token import Token, TokenError
from garrison.token_review import NotAuthenticated, ReviewedUser

DOMAIN = TrustDomain("cluster.local")
ISSUER = "https://kubernetes.example"
SECRET = "a" * 43
POD = {
    "namespace": "shop",
    "serviceaccount": {"name": "web", "uid": "u"},
    "pod": {"name": "web-0", "uid": "0c7f"},
}
CLAIMS = {"iss": ISSUER, "sub": "system:serviceaccount:shop:web", "aud": ["garrison-ca"], "email": None}

AUTHORITY = Hierarchy.create(DOMAIN, now=NOW).authority()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    """Return a new ledger."""
    opened = SqliteLedger.of(tmp_path)
    yield opened
    opened.close()


def texts(attested: Attested | Refused) -> set[str]:
    """Return the selectors of somebody who is attested."""
    assert isinstance(attested, Attested), attested
    return {str(one) for one in attested.selectors}


def reason(attested: Attested | Refused) -> Reason:
    """Return why somebody is refused."""
    assert isinstance(attested, Refused), attested
    return attested.reason


# ------------------------------------------------------------------------------------------ join tokens


def burn(ledger: SqliteLedger, secret: str = SECRET, now: datetime = NOW) -> Attested | Refused:
    """Bring a join token."""
    return attest_join_token(secret, ledger, DOMAIN, now=now, by="10.0.0.1:5")


def test_a_join_token_is_good_once(ledger: SqliteLedger) -> None:
    """Its bearer has its identity and its selector; the second one has nothing, and the log says so."""
    ledger.add_token(token(SECRET))
    first = burn(ledger)
    assert texts(first) == {f"join_token:id:{token_hash(SECRET)[:16]}"}
    assert isinstance(first, Attested)
    assert (first.identity, first.attested_by) == (WEB, "join_token")
    assert SECRET not in first.requester
    assert reason(burn(ledger)) is Reason.TOKEN_USED
    assert [one.event for one in ledger.audit()][-2:] == [AuditEvent.TOKEN_BURNED, AuditEvent.TOKEN_REFUSED]


def test_unknown_and_expired_join_tokens(ledger: SqliteLedger) -> None:
    """A token that was never made, and one that ended, are refused; so is one of another domain."""
    ledger.add_token(token(SECRET, life=timedelta(minutes=1)))
    assert reason(burn(ledger, "b" * 43)) is Reason.TOKEN_UNKNOWN
    assert reason(burn(ledger, now=NOW + timedelta(minutes=1))) is Reason.TOKEN_EXPIRED
    found = attest_join_token(SECRET, ledger, TrustDomain("other.example"), now=NOW, by="x")
    assert reason(found) is Reason.FOREIGN_TRUST_DOMAIN


def test_a_join_token_is_never_taken_for_a_jwt() -> None:
    """Its form has no dot, and a JWT always has two."""
    assert is_join_token(SECRET)
    for text in (ec_signer().token(), f"{SECRET}.", "a" * 42, "a" * 44, "", f"{SECRET}\n", "ä" * 43):
        assert not is_join_token(text)


# ---------------------------------------------------------------------------------------------- SVIDs


def issue(
    ledger: SqliteLedger | None, authority: Authority = AUTHORITY, **options: Any
) -> tuple[bytes, IssuedCertificate]:
    """Return a certificate of the authority, recorded if there is a ledger."""
    spiffe_id = SpiffeId(authority.trust_domain, ("web",))
    svid = authority.issue(spiffe_id, new_private_key().public_key(), now=NOW, ttl=HOUR)
    record = IssuedCertificate.of(svid.leaf, spiffe_id, now=NOW, requester="x", attested_by="unix", **options)
    if ledger is not None:
        ledger.record_issued([record])
    return svid.leaf.public_bytes(Encoding.DER), record


def show(ledger: SqliteLedger, der: bytes, now: datetime = NOW) -> Attested | Refused:
    """Show a client certificate."""
    return attest_svid(der, AUTHORITY, ledger, now=now)


def test_an_svid_of_ours_proves_its_identity(ledger: SqliteLedger) -> None:
    """Its holder is who it names."""
    found = show(ledger, issue(ledger)[0])
    assert texts(found) == {"x509:id:spiffe://cluster.local/web"}
    assert isinstance(found, Attested)
    assert (found.identity, found.attested_by) == (WEB, "x509_svid")


def test_svids_that_prove_nothing(ledger: SqliteLedger) -> None:
    """Revoked, expired, not begun, not recorded, of another CA of the same or another name, or no SVID."""
    der, record = issue(ledger)
    assert reason(show(ledger, der, NOW + HOUR)) is Reason.EXPIRED
    assert reason(show(ledger, der, NOW - HOUR)) is Reason.NOT_YET_VALID
    ledger.revoke(record.issuer, record.serial, RevocationReason.KEY_COMPROMISE, now=NOW, by="x")
    assert reason(show(ledger, der)) is Reason.REVOKED
    assert reason(show(ledger, issue(None)[0])) is Reason.NOT_ISSUED_HERE
    impostor = Hierarchy.create(DOMAIN, now=NOW).authority()
    assert reason(show(ledger, issue(ledger, impostor)[0])) is Reason.NOT_ISSUED_HERE
    foreign = Hierarchy.create(TrustDomain("other.example"), now=NOW).authority()
    assert reason(show(ledger, issue(ledger, foreign)[0])) is Reason.NOT_ISSUED_HERE
    assert reason(show(ledger, issue(ledger, kind=CertificateKind.SERVER)[0])) is Reason.NOT_ISSUED_HERE
    signing = AUTHORITY.issuer.certificate.public_bytes(Encoding.DER)
    assert reason(show(ledger, signing)) is Reason.NOT_ISSUED_HERE
    for broken in (b"", b"x", der[:-1], der + b"x"):
        assert reason(show(ledger, broken)) is Reason.MALFORMED


# ----------------------------------------------------------------------------------------------- JWTs


class _Keys:
    """Keys that were fetched, or not yet."""

    def __init__(self, keys: KeySet | None) -> None:
        self.keys = keys
        self.misses = 0

    def current(self, source: KeySource) -> KeySet | None:
        """Return them."""
        del source
        return self.keys

    def missed(self, source: KeySource) -> None:
        """Count."""
        del source
        self.misses += 1


def trusted(signer: Signer, *, is_kubernetes: bool = False, issuer: str = ISSUER) -> TrustedIssuer:
    """Trust an issuer for the audience `garrison-ca`."""
    keys = KeySet(parse_jwks(signer.jwks()))
    return TrustedIssuer(issuer, frozenset({"garrison-ca", "istio-ca"}), keys, is_kubernetes)


def jwt(signer: Signer, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """Return a projected token that is good for ten minutes, with changes."""
    expires = int(NOW.timestamp()) + 600
    return signer.token({**CLAIMS, "exp": expires, "kubernetes.io": POD, **claims}, header)


def bring(text: str, *issuers: TrustedIssuer, now: datetime = NOW) -> Attested | Refused:
    """Bring a token to an attestor; what is none is refused too."""
    try:
        return JwtAttestor(issuers or [trusted(ec_signer())]).attest(Token.of(text), now=now)
    except TokenError as error:
        return Refused(Reason.MALFORMED, str(error))


def test_a_token_proves_its_issuer_subject_and_claims() -> None:
    """Texts, numbers, booleans and lists of texts are selectors; anything deeper is not."""
    found = bring(jwt(ec_signer(), groups=["a", "b", 3], admin=True, level=3, deep={"a": "b"}, ratio=0.5))
    assert texts(found) >= {
        f"jwt:iss:{ISSUER}",
        "jwt:sub:system:serviceaccount:shop:web",
        "jwt:claim:groups=a",
        "jwt:claim:groups=b",
        "jwt:claim:admin=true",
        "jwt:claim:level=3",
        "jwt:claim:aud=garrison-ca",
    }
    assert not [one for one in texts(found) if "deep" in one or "ratio" in one or one.startswith("k8s:")]
    assert isinstance(found, Attested)
    assert (found.attested_by, found.identity) == ("jwt", None)


def test_a_claim_cannot_spell_another_ones_selector() -> None:
    """A name with `=` in it, a control character, or a value beyond all bounds meets nothing."""
    claims: dict[str, Any] = {"a=b": "c", "line": "x\ny", "long": "x" * 5000, "": "y"}
    found = bring(jwt(ec_signer(), **claims))
    assert not [one for one in texts(found) if "a=b" in one or "line" in one or "long" in one]


def test_a_projected_token_proves_its_pod() -> None:
    """Namespace, service account and pod come from the claim `kubernetes.io` of an issuer that is a cluster."""
    found = bring(jwt(ec_signer()), trusted(ec_signer(), is_kubernetes=True))
    assert texts(found) >= {"k8s:ns:shop", "k8s:sa:web", "k8s:pod-name:web-0", "k8s:pod-uid:0c7f"}
    without = {"namespace": "shop", "serviceaccount": {"name": "web"}}
    found = bring(jwt(ec_signer(), **{"kubernetes.io": without}), trusted(ec_signer(), is_kubernetes=True))
    assert not [one for one in texts(found) if one.startswith("k8s:pod")]


@pytest.mark.parametrize(
    "changes",
    [
        {"kubernetes.io": None},
        {"kubernetes.io": "shop"},
        {"kubernetes.io": {"namespace": "shop"}},
        {"kubernetes.io": {"namespace": "shop", "serviceaccount": "web"}},
        {"kubernetes.io": {"namespace": "", "serviceaccount": {"name": "web"}}},
        {"kubernetes.io": {**POD, "namespace": "other"}},
        {"sub": "system:serviceaccount:shop"},
        {"sub": "system:serviceaccount"},
        {"sub": "system:serviceaccount:shop:web:x"},
        {"sub": "web"},
        {"sub": None},
        {"sub": 3},
    ],
)
def test_a_projected_token_must_be_consistent(changes: dict[str, Any]) -> None:
    """Without the claim, or with a subject that is another account's, a cluster's token proves nothing."""
    found = bring(jwt(ec_signer(), **changes), trusted(ec_signer(), is_kubernetes=True))
    assert reason(found) is Reason.MALFORMED


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"aud": "other"}, Reason.WRONG_AUDIENCE),
        ({"aud": None}, Reason.WRONG_AUDIENCE),
        ({"aud": [["garrison-ca"]]}, Reason.WRONG_AUDIENCE),
        ({"aud": "garrison-ca "}, Reason.WRONG_AUDIENCE),
        ({"exp": None}, Reason.MALFORMED),
        ({"exp": "9999999999"}, Reason.MALFORMED),
        ({"exp": True}, Reason.MALFORMED),
        ({"exp": 10**400}, Reason.MALFORMED),
        ({"exp": int(NOW.timestamp())}, Reason.EXPIRED),
        ({"nbf": int(NOW.timestamp()) + 3600}, Reason.NOT_YET_VALID),
        ({"iat": int(NOW.timestamp()) + 3600}, Reason.NOT_YET_VALID),
        ({"nbf": "x"}, Reason.MALFORMED),
        ({"iss": "https://other.example"}, Reason.UNKNOWN_ISSUER),
        ({"iss": [ISSUER]}, Reason.UNKNOWN_ISSUER),
        ({"iss": None}, Reason.UNKNOWN_ISSUER),
    ],
)
def test_tokens_that_prove_nothing(changes: dict[str, Any], expected: Reason) -> None:
    """Another audience or issuer, no or another time: each has its own reason."""
    iss = changes.pop("iss", ISSUER)
    if isinstance(iss, list):
        text = forge({"alg": "ES256"}, {**CLAIMS, "iss": iss})
    else:
        text = jwt(ec_signer(), iss=iss, **changes)
    assert reason(bring(text)) is expected


def test_an_hour_between_the_clocks_is_too_much() -> None:
    """A token is not good where it is an hour later or earlier than its issuer says."""
    text = jwt(ec_signer(), iat=int(NOW.timestamp()), nbf=int(NOW.timestamp()))
    assert reason(bring(text, now=NOW + HOUR)) is Reason.EXPIRED
    assert reason(bring(text, now=NOW - HOUR)) is Reason.NOT_YET_VALID
    ends = datetime.fromtimestamp(int(NOW.timestamp()) + 600, UTC)
    assert reason(bring(text, now=ends)) is Reason.EXPIRED
    assert isinstance(bring(text, now=ends - timedelta(microseconds=1)), Attested)
    assert isinstance(bring(text, now=NOW - timedelta(seconds=20)), Attested)


def test_signatures_that_do_not_verify() -> None:
    """`none`, HMAC with the public key, another key under the same name, another algorithm, a kid that is a path."""
    signer, other = ec_signer(), rsa_signer()
    payload = {**CLAIMS, "exp": int(NOW.timestamp()) + 600}
    for header in (
        {"alg": "none"},
        {"alg": "None", "kid": "k1"},
        {"alg": "HS256", "kid": "k1"},
        {"alg": "ES256", "kid": "../../../etc/passwd"},
        {"alg": "ES256", "kid": "' OR 1=1"},
        {"alg": ["ES256"]},
        {"kid": "k1"},
    ):
        assert reason(bring(forge(header, payload))) is Reason.BAD_SIGNATURE
    assert reason(bring(jwt(other))) is Reason.BAD_SIGNATURE
    head, _, tail = jwt(signer).split(".")
    swapped = encode_part(json.dumps({**payload, "sub": "admin"}).encode())
    assert reason(bring(f"{head}.{swapped}.{tail}")) is Reason.BAD_SIGNATURE


def test_headers_that_are_refused() -> None:
    """A key in the token itself changes nothing; critical extensions and tokens for other purposes are refused."""
    signer = ec_signer()
    assert isinstance(
        bring(jwt(signer, header={"jku": "https://evil.example", "jwk": {"kty": "oct"}})), Attested
    )
    assert reason(bring(jwt(signer, header={"crit": ["b64"], "b64": True}))) is Reason.MALFORMED
    assert reason(bring(jwt(signer, header={"typ": "logout+jwt"}))) is Reason.WRONG_TYPE
    assert reason(bring(forge({"alg": "ES256", "kid": 3}, CLAIMS))) is Reason.MALFORMED


def test_keys_that_are_not_there() -> None:
    """Without keys nothing is proved, and a name that no key has makes them be fetched again."""
    signer = ec_signer()
    away = TrustedIssuer(ISSUER, frozenset({"garrison-ca"}), KeySource("https://kubernetes.example/keys"))
    token = Token.of(jwt(signer))
    assert reason(JwtAttestor([away], _Keys(None)).attest(token, now=NOW)) is Reason.NO_KEYS
    keys = _Keys(KeySet(parse_jwks(ec_signer("k2").jwks())))
    assert reason(JwtAttestor([away], keys).attest(token, now=NOW)) is Reason.BAD_SIGNATURE
    assert keys.misses == 1
    keys.keys = KeySet(parse_jwks(signer.jwks()))
    assert isinstance(JwtAttestor([away], keys).attest(token, now=NOW), Attested)


def test_issuers_are_kept_apart() -> None:
    """A token of one issuer does not verify with the keys of another that is trusted as well."""
    other = trusted(rsa_signer(), issuer="https://other.example")
    assert isinstance(bring(jwt(ec_signer()), trusted(ec_signer()), other), Attested)
    assert reason(bring(jwt(rsa_signer()), trusted(ec_signer()), other)) is Reason.BAD_SIGNATURE


# --------------------------------------------------------------------------------------- TokenReviews


def reviewed(**changes: Any) -> ReviewedUser:
    """Return what an API server says of a pod's token."""
    fields: dict[str, Any] = {
        "name": "system:serviceaccount:shop:web",
        "uid": "u",
        "groups": ("system:serviceaccounts", "system:serviceaccounts:shop"),
        "extra": {
            "authentication.kubernetes.io/pod-name": ("web-0",),
            "authentication.kubernetes.io/pod-uid": ("0c7f",),
        },
        "audiences": ("garrison-ca",),
    }
    return ReviewedUser(**{**fields, **changes})


def test_a_reviewed_token_proves_its_pod() -> None:
    """The service account from the user name, the pod from what the API server adds."""
    found = attest_reviewed(reviewed())
    assert texts(found) == {"k8s:ns:shop", "k8s:sa:web", "k8s:pod-name:web-0", "k8s:pod-uid:0c7f"}
    assert texts(attest_reviewed(reviewed(extra=None))) == {"k8s:ns:shop", "k8s:sa:web"}
    two = {"authentication.kubernetes.io/pod-name": ("a", "b")}
    assert texts(attest_reviewed(reviewed(extra=two))) == {"k8s:ns:shop", "k8s:sa:web"}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "system:serviceaccount:shop"},
        {"name": "system:serviceaccount:shop:web:x"},
        {"name": "system:serviceaccount::web"},
        {"name": "system:node:shop:web"},
        {"name": "alice"},
        {"groups": ()},
        {"groups": ("system:authenticated",)},
    ],
)
def test_reviewed_tokens_of_others(changes: dict[str, Any]) -> None:
    """Users and nodes, and names that only look like a service account, prove nothing."""
    assert reason(attest_reviewed(reviewed(**changes))) is Reason.NOT_AUTHENTICATED


def test_a_token_that_the_server_does_not_know() -> None:
    """Its word is passed on to operators."""
    found = attest_reviewed(NotAuthenticated("the token is for another audience"))
    assert found == Refused(Reason.NOT_AUTHENTICATED, "the token is for another audience")
