"""CreateCertificate over real gRPC, TLS and Unix sockets: who gets which certificate, and everything refused."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from support.ca_api import DOMAIN, CaLab, Holder, asynchronous, bearer, ca_lab, create, refusal, server_files
from support.tokens import ec_signer, encode_part, forge, rsa_signer

from ca.api.istio_csr import SERVICE, IstioCertificates
from ca.attestors.jwt import TrustedIssuer
from ca.authority import Hierarchy
from ca.csr import MAX_CSR_BYTES
from ca.inspection import check_leaf
from ca.ledger import CertificateQuery, RevocationReason, fingerprint_of, issuer_of
from ca.registration import Registration
from ca.verification import verify_svid
from garrison.identity import TrustDomain
from garrison.keys.jwks import KeySet, parse_jwks
from garrison.transport.address import Address
from garrison.transport.listeners import RequestServer, Transport
from garrison.transport.tls import load_server_credentials

WEB = "spiffe://cluster.local/ns/shop/sa/web"
API = "spiffe://cluster.local/ns/shop/sa/api"
ISSUER = "https://kubernetes.example"
ISSUERS = [
    TrustedIssuer(ISSUER, frozenset({"istio-ca"}), KeySet(parse_jwks(ec_signer().jwks())), is_kubernetes=True)
]
POD = Registration.parse(WEB, ["k8s:ns:shop", "k8s:sa:web"])
ME = f"unix:uid:{os.getuid()}"
SECRET = "s" * 43

OPAQUE = (grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")


def pod_token(account: str = "web", **changes: Any) -> str:
    """Return a projected token of a pod."""
    claims = {
        "iss": ISSUER,
        "sub": f"system:serviceaccount:shop:{account}",
        "aud": "istio-ca",
        "exp": int(time.time()) + 600,
        "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": account}},
    }
    return ec_signer().token({**claims, **changes})


def leaf(chain: list[str]) -> x509.Certificate:
    """Return the first certificate of an answer."""
    return x509.load_pem_x509_certificate(chain[0].encode())


def issued(lab: CaLab) -> int:
    """Return how many certificates are recorded."""
    return len(lab.ledger.issued(CertificateQuery(limit=100), now=lab.clock.now()).certificates)


@pytest.mark.parametrize("transport", Transport)
@asynchronous
async def test_an_istio_agent_gets_its_certificate(tmp_path: Path, transport: Transport) -> None:
    """Token and signing request in; leaf, intermediate and last the roots out; recorded before it left."""
    async with ca_lab(tmp_path, POD, issuers=ISSUERS, transport=transport) as lab, lab.channel() as channel:
        holder = Holder()
        chain = await create(channel, holder.csr(WEB), bearer(pod_token()), seconds=24 * 3600)
        assert len(chain) == 3
        assert all(one.endswith("-----END CERTIFICATE-----\n") for one in chain)
        assert chain[-1].encode() == lab.authority.bundle_pem()
        certificates = [x509.load_pem_x509_certificate(one.encode()) for one in chain[:-1]]
        spiffe_id, _ = verify_svid(certificates[0], certificates[1:], lab.authority.roots, lab.clock.now())
        assert str(spiffe_id) == WEB
        assert certificates[0].public_key() == holder.key.public_key()
        (record,) = lab.ledger.find(fingerprint=fingerprint_of(certificates[0]))
        assert record.attested_by == "jwt"
        assert record.requester == f"system:serviceaccount:shop:web of {ISSUER}"
        # A day was asked for, an hour is registered.
        assert record.not_after - record.issued_at <= timedelta(hours=1)
        assert lab.issuing.issued == {"jwt": 1}


@asynchronous
async def test_an_agent_renews_with_what_it_has(tmp_path: Path) -> None:
    """First a join token, then its own certificate; each renewal is for the same identity and another key."""
    async with ca_lab(tmp_path) as lab:
        await lab.register("web", WEB, f"x509:id:{WEB}")
        holder = Holder()
        async with lab.channel() as channel:
            holder.take((await create(channel, holder.csr(), bearer(lab.token(WEB, SECRET))))[:-1])
        for _ in range(2):
            renewed = Holder()
            async with lab.channel(holder) as channel:
                renewed.take((await create(channel, renewed.csr(WEB)))[:-1])
            assert str(check_leaf(renewed.chain[0])) == WEB
            holder = renewed
        assert lab.issuing.issued == {"join_token": 1, "x509_svid": 2}


@asynchronous
async def test_renewal_ends_with_revocation_and_registration(tmp_path: Path) -> None:
    """A revoked certificate proves nothing; a good one of an identity that is not registered is not renewed."""
    async with ca_lab(tmp_path) as lab:
        await lab.register("web", WEB, f"x509:id:{WEB}")
        holder = Holder()
        async with lab.channel() as channel:
            holder.take((await create(channel, holder.csr(), bearer(lab.token(WEB, SECRET))))[:-1])
        lab.ledger.delete_entry("web", now=lab.clock.now(), by="test")
        await lab.memory.refresh()
        async with lab.channel(holder) as channel:
            code, text = await refusal(create(channel, holder.csr()))
            assert (code, "not registered any more" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
            await lab.register("web", WEB, f"x509:id:{WEB}")
            await create(channel, holder.csr())
            certificate = holder.chain[0]
            lab.ledger.revoke(
                issuer_of(certificate),
                certificate.serial_number,
                RevocationReason.KEY_COMPROMISE,
                now=lab.clock.now(),
                by="test",
            )
            # Also on a connection that was opened before.
            assert await refusal(create(channel, holder.csr())) == OPAQUE
        assert [one["reason"] for one in await lab.denials(2)] == ["not_registered", "revoked"]


@asynchronous
async def test_what_an_agent_attests_is_not_renewed_past_it(tmp_path: Path) -> None:
    """The SVID of a workload that has a parent is for its agent to renew."""
    async with ca_lab(tmp_path) as lab:
        holder = Holder()
        async with lab.channel() as channel:
            holder.take((await create(channel, holder.csr(), bearer(lab.token(WEB, SECRET))))[:-1])
        await lab.register("web", WEB, ME, parent_id="spiffe://cluster.local/agent/one")
        async with lab.channel(holder) as channel:
            code, _ = await refusal(create(channel, holder.csr()))
        assert code is grpc.StatusCode.PERMISSION_DENIED


@asynchronous
async def test_a_local_process_needs_no_token(tmp_path: Path) -> None:
    """Over the Unix socket the kernel says who asks."""
    async with ca_lab(tmp_path, Registration.parse(API, [ME])) as lab, lab.local() as channel:
        assert str(check_leaf(leaf(await create(channel, Holder().csr())))) == API
        (record,) = lab.ledger.issued(CertificateQuery(), now=lab.clock.now()).certificates
        assert (record.attested_by, f"uid {os.getuid()}" in record.requester) == ("unix", True)


@asynchronous
async def test_a_local_process_on_a_socket_without_a_splice(tmp_path: Path) -> None:
    """`h2` asks the kernel itself; a program of another user would be another caller."""
    async with ca_lab(tmp_path, Registration.parse(API, [ME])) as lab:
        address = Address.parse(f"unix://{tmp_path}/h2.sock")
        server = RequestServer(Transport.NGH2, [address], IstioCertificates(lab.issuing).methods())
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{address.path}") as channel:
            assert str(check_leaf(leaf(await create(channel, Holder().csr())))) == API
        await server.drain(1)
        (record,) = lab.ledger.issued(CertificateQuery(), now=lab.clock.now()).certificates
        assert f"pid {os.getpid()}" in record.requester


@asynchronous
async def test_a_join_token_is_burnt_once_by_two_servers(tmp_path: Path) -> None:
    """Many callers with one token, on two ledgers' handles of one file: exactly one gets a certificate."""
    other = tmp_path / "other"
    other.mkdir()
    hierarchy = Hierarchy.create(DOMAIN, now=datetime.now(UTC))
    async with ca_lab(tmp_path, hierarchy=hierarchy) as lab:
        lab.token(WEB, SECRET)
        async with (
            ca_lab(other, hierarchy=hierarchy, ledger_in=tmp_path) as second,
            lab.channel() as one,
            second.channel() as two,
        ):
            answers = await asyncio.gather(
                *(create(channel, Holder().csr(), bearer(SECRET)) for channel in (one, two) * 8),
                return_exceptions=True,
            )
        good = [one for one in answers if isinstance(one, list)]
        codes = {one.code() for one in answers if isinstance(one, grpc.aio.AioRpcError)}
        assert (len(good), codes) == (1, {grpc.StatusCode.UNAUTHENTICATED})
        assert issued(lab) == 1
        assert lab.ledger.verify_audit().intact


@asynchronous
async def test_a_bad_request_does_not_cost_the_token(tmp_path: Path) -> None:
    """What can be seen to be wrong before is refused before the token is burnt."""
    async with ca_lab(tmp_path) as lab, lab.channel() as channel:
        token = bearer(lab.token(WEB, SECRET))
        for csr, seconds in ((b"x", 0), (Holder().csr(), 10**9), (Holder().csr(), -1)):
            code, _ = await refusal(create(channel, csr, token, seconds=seconds))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
        await create(channel, Holder().csr(), token)
        assert await refusal(create(channel, Holder().csr(), token)) == OPAQUE


@asynchronous
async def test_one_of_several_identities_must_be_named(tmp_path: Path) -> None:
    """A caller with two registrations gets neither until it says which, and never a third."""
    also = Registration.parse(API, ["k8s:ns:shop"])
    async with ca_lab(tmp_path, POD, also, issuers=ISSUERS) as lab, lab.channel() as channel:
        token = bearer(pod_token())
        code, text = await refusal(create(channel, Holder().csr(WEB), token))
        assert (code, "garrison-spiffe-id" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        for name in (WEB, API):
            chain = await create(channel, Holder().csr(), token, ("garrison-spiffe-id", name))
            assert str(check_leaf(leaf(chain))) == name
        third = ("garrison-spiffe-id", "spiffe://cluster.local/admin")
        code, _ = await refusal(create(channel, Holder().csr(), token, third))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        for bad in ("web", "spiffe://cluster.local/../x", ""):
            code, _ = await refusal(create(channel, Holder().csr(), token, ("garrison-spiffe-id", bad)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "uris",
    [
        [API],
        ["spiffe://other.example/ns/shop/sa/web"],
        [WEB, API],
        ["https://example.com/"],
        ["spiffe://cluster.local/ns/shop/sa/web/"],
        ["spiffe://CLUSTER.LOCAL/ns/shop/sa/web"],
    ],
)
@asynchronous
async def test_a_request_for_somebody_else_is_refused(tmp_path: Path, uris: list[str]) -> None:
    """The identity comes from the registration; whoever asks for another one is told, not answered with it."""
    async with ca_lab(tmp_path, POD, issuers=ISSUERS) as lab, lab.channel() as channel:
        code, text = await refusal(create(channel, Holder().csr(*uris), bearer(pod_token())))
        assert (code, WEB in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        assert issued(lab) == 0


@asynchronous
async def test_callers_that_are_not_believed(tmp_path: Path) -> None:
    """Nothing, and every kind of bad token, get one and the same answer; the log says why."""
    now = int(time.time())
    payload = {"iss": ISSUER, "sub": "system:serviceaccount:shop:web", "aud": "istio-ca", "exp": now + 600}
    tokens: list[tuple[tuple[str, str] | None, str]] = [
        (None, "no_evidence"),
        (bearer(pod_token(exp=now - 1)), "expired"),
        (bearer(pod_token(aud="other")), "wrong_audience"),
        (bearer(pod_token(iss="https://other.example")), "unknown_issuer"),
        (bearer(pod_token(iat=now + 3600)), "not_yet_valid"),
        (bearer(forge({"alg": "none"}, payload, b"x")), "bad_signature"),
        (bearer(forge({"alg": "ES256", "kid": "../../../../dev/null"}, payload)), "bad_signature"),
        (bearer(rsa_signer().token(payload)), "bad_signature"),
        (bearer(pod_token(sub="system:serviceaccount:shop")), "malformed"),
        (bearer("x.y.z"), "malformed"),
        (bearer("a" * 20_000), "malformed"),
        (("authorization", pod_token()), "malformed"),
        (("authorization", f"Basic {encode_part(b'a:b')}"), "malformed"),
        (("authorization", ""), "malformed"),
        (bearer("u" * 43), "token_unknown"),
    ]
    async with ca_lab(tmp_path, POD, issuers=ISSUERS) as lab, lab.channel() as channel:
        for metadata, _ in tokens:
            sent = [metadata] if metadata is not None else []
            assert await refusal(create(channel, Holder().csr(), *sent)) == OPAQUE
        twice = bearer(pod_token())
        assert await refusal(create(channel, Holder().csr(), twice, twice)) == OPAQUE
        reasons = [one["reason"] for one in await lab.denials(len(tokens) + 1)]
        assert reasons == [*(reason for _, reason in tokens), "malformed"]
        assert sum(lab.refusals.counts.values()) == len(reasons)
        assert issued(lab) == 0


@asynchronous
async def test_who_is_not_registered_is_told(tmp_path: Path) -> None:
    """A good token of somebody without a registration: denied, with the subject in the answer and the log."""
    async with ca_lab(tmp_path, POD, issuers=ISSUERS) as lab, lab.channel() as channel:
        code, text = await refusal(create(channel, Holder().csr(), bearer(pod_token("other"))))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "no registration matches" in text
        (record,) = await lab.denials(1)
        assert (record["reason"], record["method"]) == ("not_registered", "CreateCertificate")


@asynchronous
async def test_no_certificate_over_plaintext(tmp_path: Path) -> None:
    """Over TCP without TLS nobody gets anything, however good the token."""
    async with ca_lab(tmp_path, POD, issuers=ISSUERS) as lab:
        for transport in Transport:
            methods = IstioCertificates(lab.issuing).methods()
            server = RequestServer(transport, [Address.parse("tcp://127.0.0.1:0")], methods)
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.addresses[0].port}") as channel:
                code, _ = await refusal(create(channel, Holder().csr(), bearer(pod_token())))
            await server.drain(1)
            assert code is grpc.StatusCode.PERMISSION_DENIED
        assert issued(lab) == 0


@asynchronous
async def test_times_of_life(tmp_path: Path) -> None:
    """As asked for up to what is registered; above the maximum, beyond all numbers, or negative is an error."""
    most = timedelta(hours=2)
    async with ca_lab(tmp_path, POD, issuers=ISSUERS, max_ttl=most) as lab, lab.channel() as channel:
        token = bearer(pod_token())
        for asked, got in ((0, 3600), (60, 60), (3600, 3600), (7200, 3600)):
            found = leaf(await create(channel, Holder().csr(), token, seconds=asked))
            life = found.not_valid_after_utc - found.not_valid_before_utc
            assert life - timedelta(minutes=2) == timedelta(seconds=got), asked
        for asked in (7201, 2**63 - 1, -1, -(2**63)):
            code, _ = await refusal(create(channel, Holder().csr(), token, seconds=asked))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
        code, text = await refusal(create(channel, Holder().csr(), token, seconds=10800))
        assert text == "requested TTL of 10800 s is greater than the max allowed TTL of 7200 s"


@asynchronous
async def test_signing_requests_that_are_refused(tmp_path: Path) -> None:
    """None, two, DER, cut off, too large, with a foreign signature, or a weak key: never a certificate."""
    good = Holder().csr()
    der = x509.load_pem_x509_csr(good)
    weak: list[Any] = [
        Holder(rsa.generate_private_key(65537, 1024)),
        Holder(ec.generate_private_key(ec.SECP256K1())),
        Holder(ec.generate_private_key(ec.SECP521R1())),
    ]
    edwards = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = edwards.sign(ed25519.Ed25519PrivateKey.generate(), None)
    bad = [
        b"",
        good + Holder().csr(),
        good + good,
        good[:-40],
        good.replace(b"REQUEST", b"X", 1),
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        good + b" " * MAX_CSR_BYTES,
        der.public_bytes(Encoding.DER).hex().encode(),
        signed.public_bytes(Encoding.PEM),
        *(one.csr() for one in weak),
    ]
    async with ca_lab(tmp_path, POD, issuers=ISSUERS) as lab, lab.channel() as channel:
        for csr in bad:
            code, _ = await refusal(create(channel, csr, bearer(pod_token())))
            assert code is grpc.StatusCode.INVALID_ARGUMENT, csr[:80]
        assert issued(lab) == 0


@asynchronous
async def test_what_istio_can_ask_for_and_does_not_get(tmp_path: Path) -> None:
    """No impersonation and no choice of signer, rather than a certificate of another kind than was meant."""
    async with ca_lab(tmp_path, POD, issuers=ISSUERS) as lab, lab.channel() as channel:
        token = bearer(pod_token())
        code, text = await refusal(
            create(channel, Holder().csr(), token, fields={"ImpersonatedIdentity": API})
        )
        assert (code, text) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "request impersonation authentication failure",
        )
        code, _ = await refusal(create(channel, Holder().csr(), token, fields={"CertSigner": "other"}))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        # As in Istio, what is no text is not there.
        await create(channel, Holder().csr(), token, fields={"ImpersonatedIdentity": 3, "CertSigner": ""})


@asynchronous
async def test_messages_that_are_none(tmp_path: Path) -> None:
    """Bytes that are no request, and one that is too large, are answered with a reason."""
    async with ca_lab(tmp_path, POD, issuers=ISSUERS) as lab, lab.channel() as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/CreateCertificate")
        for message in (b"\xff", b"\x0a\xff\xff", b"\x0a\x02\xff\xfe", b"\x1a" * 100_000):
            code, _ = await refusal(call(message, metadata=[bearer(pod_token())], timeout=10))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
        code, _ = await refusal(call(b"x" * (9 << 20), metadata=[bearer(pod_token())], timeout=10))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


@asynchronous
async def test_certificates_of_others_do_not_get_in(tmp_path: Path) -> None:
    """A certificate of another trust domain, or of a CA of the same name, ends the handshake."""
    async with ca_lab(tmp_path) as lab:
        await lab.register("web", WEB, f"x509:id:{WEB}")
        for domain in (TrustDomain("other.example"), DOMAIN):
            other = Hierarchy.create(domain, now=lab.clock.now()).authority()
            holder = Holder()
            spiffe_id = other.trust_domain.spiffe_id
            svid = other.issue(
                type(spiffe_id)(other.trust_domain, ("ns", "shop", "sa", "web")),
                holder.key.public_key(),
                now=lab.clock.now(),
                ttl=timedelta(hours=1),
            )
            holder.chain = list(svid.certificates)
            async with lab.channel(holder) as channel:
                code, _ = await refusal(create(channel, holder.csr()))
            assert code is grpc.StatusCode.UNAVAILABLE
        assert issued(lab) == 0


@asynchronous
async def test_an_hour_between_the_clocks(tmp_path: Path) -> None:
    """A CA whose clock is an hour ahead takes tokens and certificates for expired; an hour behind, for early."""
    async with ca_lab(tmp_path, POD, issuers=ISSUERS) as lab:
        await lab.register("api", API, f"x509:id:{API}")
        holder = Holder()
        async with lab.channel() as channel:
            holder.take((await create(channel, holder.csr(), bearer(lab.token(API, SECRET))))[:-1])
            for off in (timedelta(hours=1), timedelta(hours=-1)):
                lab.clock.off = off
                token = bearer(pod_token(iat=int(time.time())))
                code, _ = await refusal(create(channel, Holder().csr(), token))
                assert code is (grpc.StatusCode.UNAUTHENTICATED)
                async with lab.channel(holder) as mine:
                    assert await refusal(create(mine, holder.csr())) == OPAQUE
        reasons = [one["reason"] for one in await lab.denials(4)]
        assert reasons == ["expired", "expired", "not_yet_valid", "not_yet_valid"]


@asynchronous
async def test_a_clock_behind_the_ledger_issues_nothing(tmp_path: Path) -> None:
    """By the newest record it is an hour late: a join token is not wasted, and nobody else gets anything."""
    hierarchy = Hierarchy.create(DOMAIN, now=datetime.now(UTC) - timedelta(days=2))
    async with ca_lab(tmp_path, hierarchy=hierarchy) as lab, lab.channel() as channel:
        await lab.register("web", WEB, ME)
        token = lab.token(WEB, SECRET)
        lab.clock.off = -timedelta(hours=1)
        code, _ = await refusal(create(channel, Holder().csr(), bearer(token)))
        assert code is grpc.StatusCode.UNAVAILABLE
        await lab.memory.refresh()
        async with lab.local() as local:
            code, text = await refusal(create(local, Holder().csr()))
        assert (code, "newest record" in text) == (grpc.StatusCode.INTERNAL, True)
        (denial,) = await lab.denials(1)
        assert (denial["reason"], "newest record" in denial["detail"]) == ("unavailable", True)
        assert (issued(lab), lab.ledger.tokens()[0].used_at) == (0, None)
        lab.clock.off = timedelta(0)
        await lab.memory.refresh()
        await create(channel, Holder().csr(), bearer(token))


@asynchronous
async def test_an_expired_signer_refuses(tmp_path: Path) -> None:
    """Nothing is signed after the CA's end, and a join token is not wasted on it."""
    async with ca_lab(tmp_path) as lab, lab.channel() as channel:
        lab.clock.off = lab.authority.not_after - lab.clock.now()
        token = lab.token(WEB, SECRET)
        code, text = await refusal(create(channel, Holder().csr(), bearer(token)))
        assert (code, "not ready" in text) == (grpc.StatusCode.INTERNAL, True)
        assert lab.ledger.tokens()[0].used_at is None
        # Close to its end, no certificate outlives it.
        lab.clock.off -= timedelta(minutes=5)
        found = leaf(await create(channel, Holder().csr(), bearer(token)))
        assert found.not_valid_after_utc == lab.authority.not_after


@asynchronous
async def test_guessing_join_tokens_is_slowed_down(tmp_path: Path) -> None:
    """One address may try so many, then its tries are not looked at; a good token elsewhere is not affected."""
    async with ca_lab(tmp_path) as lab, lab.channel() as channel:
        codes = [
            (await refusal(create(channel, Holder().csr(), bearer(f"{number:043}"))))[0]
            for number in range(40)
        ]
        assert codes[:20] == [grpc.StatusCode.UNAUTHENTICATED] * 20
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        async with lab.local() as local:
            await create(local, Holder().csr(), bearer(lab.token(WEB, SECRET)))


def test_grpcio_cannot_ask_for_optional_certificates(tmp_path: Path) -> None:
    """Rather than asking nobody or everybody, it says so."""
    authority = Hierarchy.create(DOMAIN, now=datetime.now(UTC)).authority()
    files = server_files(tmp_path, authority, is_client_optional=True)
    with pytest.raises(ValueError, match="from everybody or from nobody"):
        load_server_credentials(lambda: files)
