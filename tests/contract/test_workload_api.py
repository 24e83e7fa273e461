"""The SPIFFE Workload API over a real Unix socket: raw gRPC for its rules, the SPIFFE project's client for the rest.

Numbers in brackets are sections of the standards "SPIFFE Workload Endpoint" (E) and "SPIFFE Workload API" (A).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key
from support.clocks import Clock
from support.local_identities import local_identities
from support.workload_client import ask, start

from ca.api.workload import SERVICE, WorkloadApi
from ca.attestation import Registrations
from ca.authority import Authority, Hierarchy
from ca.bundle import JwtAuthority, SpiffeBundle
from ca.inspection import check_leaf
from ca.jwt_keys import JwtKey
from ca.jwt_svid import issue_jwt_svid
from ca.keys import new_private_key
from ca.local_identities import LocalIdentities
from ca.protos import workload_pb2
from ca.registration import Registration
from garrison.identity import SpiffeId, TrustDomain
from garrison.transport.unix_peer import PeerCredentialListener

# Of today, because the SPIFFE project's client looks at its own clock.
START = datetime.now(UTC).replace(microsecond=0)
WEB = "spiffe://cluster.local/ns/default/sa/web"
API = "spiffe://cluster.local/ns/default/sa/api"
DOMAIN = "spiffe://cluster.local"
PARTNER = TrustDomain("partner.test")
TIMEOUT = 20
HEADER = (("workload.spiffe.io", "true"),)

HIERARCHY = Hierarchy.create(TrustDomain("cluster.local"), now=START)
AUTHORITY: Authority = HIERARCHY.authority()
PARTNERS = Hierarchy.create(PARTNER, now=START)
PARTNER_KEY = JwtKey(new_private_key(), START)
PARTNER_BUNDLE = SpiffeBundle(
    (PARTNERS.root,), (JwtAuthority(PARTNER_KEY.kid, PARTNER_KEY.key.public_key()),)
)
ME = f"unix:uid:{os.getuid()}"
MY_PATH = f"unix:path:{Path('/proc/self/exe').readlink()}"
STREAMS = ("FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles")
MESSAGES: dict[str, tuple[Any, Any]] = {
    "FetchX509SVID": (workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse),
    "FetchX509Bundles": (workload_pb2.X509BundlesRequest(), workload_pb2.X509BundlesResponse),
    "FetchJWTBundles": (workload_pb2.JWTBundlesRequest(), workload_pb2.JWTBundlesResponse),
    "FetchJWTSVID": (workload_pb2.JWTSVIDRequest(audience=["db"]), workload_pb2.JWTSVIDResponse),
    "ValidateJWTSVID": (
        workload_pb2.ValidateJWTSVIDRequest(audience="db", svid="x"),
        workload_pb2.ValidateJWTSVIDResponse,
    ),
}


@dataclass
class Lab:
    """A running Workload API, and ways to it."""

    api: WorkloadApi
    identities: LocalIdentities
    clock: Clock
    channel: grpc.aio.Channel
    inner_channel: grpc.aio.Channel
    socket: Path

    def call(
        self,
        method: str,
        request: Any = None,
        *,
        metadata: Any = HEADER,
        channel: grpc.aio.Channel | None = None,
    ) -> Any:
        """Start a call: a stream to read from, or something to await."""
        message, response = MESSAGES[method]
        message = message if request is None else request
        opened = channel or self.channel
        maker: Any = opened.unary_stream if method in STREAMS else opened.unary_unary
        return maker(f"/{SERVICE}/{method}", type(message).SerializeToString, response.FromString)(
            message, timeout=TIMEOUT, metadata=metadata
        )

    async def status(self, method: str, request: Any = None, **options: Any) -> tuple[grpc.StatusCode, str]:
        """Return how a call ends that does not work out."""
        call = self.call(method, request, **options)
        return await call.code(), await call.details() or ""


def registration(spiffe_id: str = WEB, *selectors: str, **options: Any) -> Registration:
    """Return a registration for this executable unless `selectors` say otherwise."""
    options.setdefault("federates_with", ["partner.test"])
    return Registration.parse(spiffe_id, selectors or (ME, MY_PATH), **options)


def described(spiffe_id: str, **options: Any) -> Registration:
    """Return a registration with fields that the settings set."""
    plain = registration(spiffe_id)
    return Registration(plain.spiffe_id, plain.selectors, **options)


@contextlib.asynccontextmanager
async def lab(tmp_path: Path, *registrations: Registration) -> AsyncIterator[Lab]:
    """Run the API behind a peer-credential listener."""
    clock = Clock(START)
    listener = PeerCredentialListener(tmp_path / "workload.sock")
    async with local_identities(
        tmp_path,
        AUTHORITY,
        registrations,
        peer_credentials=listener.credentials,
        now=lambda: clock.now,
        jitter=lambda: 0.5,
    ) as identities:
        api = WorkloadApi(identities, now=lambda: clock.now, sleep=clock.sleep)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(api.handlers())
        server.add_insecure_port(listener.inner_target)
        await server.start()
        async with (
            listener,
            grpc.aio.insecure_channel(f"unix:{tmp_path / 'workload.sock'}") as channel,
            grpc.aio.insecure_channel(listener.inner_target) as inner,
        ):
            try:
                yield Lab(api, identities, clock, channel, inner, tmp_path / "workload.sock")
            finally:
                await server.stop(0)


def run(scenario: Callable[[Lab], Awaitable[None]], tmp_path: Path, *registrations: Registration) -> None:
    """Run `scenario` against a fresh lab; this process is WEB unless other registrations are given."""

    async def main() -> None:
        async with lab(tmp_path, *(registrations or (registration(),))) as running:
            await asyncio.wait_for(scenario(running), TIMEOUT)

    asyncio.run(main())


def leaf(svid: Any) -> x509.Certificate:
    """Return the leaf of an X509SVID message, having checked what stands beside it."""
    rest, certificates = svid.x509_svid, []
    while rest:
        # DER carries its own length: four bytes of header for anything between 256 and 65535 bytes.
        size = 4 + int.from_bytes(rest[2:4])
        certificates.append(x509.load_der_x509_certificate(rest[:size]))
        rest = rest[size:]
    key = load_der_private_key(svid.x509_svid_key, None)
    assert certificates[0].public_key() == key.public_key()
    assert certificates[1:] == [HIERARCHY.issuer.certificate]
    assert x509.load_der_x509_certificate(svid.bundle) == HIERARCHY.root
    assert str(check_leaf(certificates[0])) == svid.spiffe_id
    return certificates[0]


@pytest.mark.parametrize("method", list(MESSAGES))
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("workload.spiffe.io", "false"),),
        (("workload.spiffe.io", "True"),),
        (("workload.spiffe.io", ""),),
        (("workload.spiffe.io", "true"), ("workload.spiffe.io", "true")),
    ],
)
def test_a_call_without_the_header_is_refused(tmp_path: Path, method: str, metadata: Any) -> None:
    """(E 4.1) Without exactly `workload.spiffe.io: true` the answer is INVALID_ARGUMENT, on every method."""

    async def scenario(lab: Lab) -> None:
        code, text = await lab.status(method, metadata=metadata)
        assert (code, "workload.spiffe.io: true" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)

    run(scenario, tmp_path)


@pytest.mark.parametrize("method", list(MESSAGES))
def test_a_stranger_is_denied(tmp_path: Path, method: str) -> None:
    """(E 6) Who has no identity gets PERMISSION_DENIED on every method, and the log says who asked."""

    async def scenario(lab: Lab) -> None:
        with structlog.testing.capture_logs() as logs:
            code, text = await lab.status(method)
        assert (code, "no registration matches" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
        assert [(entry["event"], entry["uid"]) for entry in logs] == [("workload denied", os.getuid())]
        assert lab.api.counters.denials == 1
        assert lab.api.counters.responses == 0

    run(scenario, tmp_path, registration(WEB, f"unix:uid:{os.getuid() + 1}"))


@pytest.mark.parametrize("method", list(MESSAGES))
def test_a_caller_without_credentials_is_denied(tmp_path: Path, method: str) -> None:
    """Who comes to the inner server by another way than the attested socket is nobody."""

    async def scenario(lab: Lab) -> None:
        code, text = await lab.status(method, channel=lab.inner_channel)
        assert (code, "attested" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)

    run(scenario, tmp_path)


@pytest.mark.parametrize("method", ["FetchWITSVID", "FetchWITBundles"])
def test_wit_svids_are_not_implemented(tmp_path: Path, method: str) -> None:
    """(A 7) What is optional and not served says so, which clients understand."""

    async def scenario(lab: Lab) -> None:
        stream: Any = lab.channel.unary_stream(f"/{SERVICE}/{method}")
        call = stream(b"", timeout=TIMEOUT, metadata=HEADER)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED

    run(scenario, tmp_path)


def test_x509_svids_come_at_once_and_complete(tmp_path: Path) -> None:
    """(A 5.2.1) Every identity with chain, key and bundle, the default one first, the federated bundles beside them."""

    async def scenario(lab: Lab) -> None:
        lab.identities.use_federated({PARTNER: PARTNER_BUNDLE})
        stream = lab.call("FetchX509SVID")
        first = await stream.read()
        assert [svid.spiffe_id for svid in first.svids] == [API, WEB]
        assert leaf(first.svids[0]) != leaf(first.svids[1])
        assert list(first.crl) == []
        assert dict(first.federated_bundles) == {
            "spiffe://partner.test": PARTNERS.root.public_bytes(Encoding.DER)
        }
        stream.cancel()

    run(scenario, tmp_path, registration(API), registration(WEB))


def test_hints_are_unique_in_a_response(tmp_path: Path) -> None:
    """(A 5.2.1) A hint tells identities apart; the second one of the same hint goes without."""

    async def scenario(lab: Lab) -> None:
        stream = lab.call("FetchX509SVID")
        assert [svid.hint for svid in (await stream.read()).svids] == ["internal", ""]
        stream.cancel()
        tokens = await lab.call("FetchJWTSVID")
        assert [svid.hint for svid in tokens.svids] == ["internal", ""]

    run(scenario, tmp_path, described(WEB, hint="internal"), described(API, hint="internal"))


def test_callers_of_one_identity_share_its_svid(tmp_path: Path) -> None:
    """Nothing is issued for the sake of another call; a one-shot client costs no certificate each time."""

    async def scenario(lab: Lab) -> None:
        found = []
        for _ in range(3):
            stream = lab.call("FetchX509SVID")
            found.append(leaf((await stream.read()).svids[0]))
            stream.cancel()
        assert found[0] == found[1] == found[2]

    run(scenario, tmp_path)


def test_a_rotated_svid_is_pushed_at_half_its_life(tmp_path: Path) -> None:
    """(A 4.1) A new message, with all of it, when an SVID is replaced; none before."""

    async def scenario(lab: Lab) -> None:
        stream = lab.call("FetchX509SVID")
        first = await stream.read()
        lab.clock.advance(timedelta(minutes=29))
        waiting = asyncio.ensure_future(stream.read())
        bundles = lab.call("FetchX509Bundles")
        await bundles.read()
        assert not waiting.done()
        lab.clock.advance(timedelta(minutes=2))
        second = await waiting
        assert leaf(second.svids[0]).public_key() != leaf(first.svids[0]).public_key()
        assert leaf(second.svids[0]).not_valid_after_utc == lab.clock.now + timedelta(hours=1)
        for call in (stream, bundles):
            call.cancel()

    run(scenario, tmp_path)


def test_who_loses_its_identity_loses_its_stream(tmp_path: Path) -> None:
    """(E 6, A 4.1) When the registration goes, every stream ends with PERMISSION_DENIED."""

    async def scenario(lab: Lab) -> None:
        streams = [lab.call(method) for method in STREAMS]
        for stream in streams:
            await stream.read()
        lab.identities.use_registrations(Registrations([registration(WEB, "unix:uid:4000000000")]))
        for stream in streams:
            assert await stream.code() is grpc.StatusCode.PERMISSION_DENIED
        assert lab.api.counters.streams == 0

    run(scenario, tmp_path)


def test_an_identity_that_is_withdrawn_is_not_in_the_next_message(tmp_path: Path) -> None:
    """(A 4.1) Of two identities one goes: what is absent is withdrawn, and the other one stays as it is."""

    async def scenario(lab: Lab) -> None:
        stream = lab.call("FetchX509SVID")
        first = await stream.read()
        lab.identities.use_registrations(Registrations([registration(WEB)]))
        second = await stream.read()
        assert [svid.spiffe_id for svid in second.svids] == [WEB]
        assert leaf(second.svids[0]) == leaf(first.svids[1])
        stream.cancel()

    run(scenario, tmp_path, registration(API), registration(WEB))


def test_bundles_are_pushed_when_they_change(tmp_path: Path) -> None:
    """(A 5.2.2, 6.2.2) A federated trust domain that comes or goes is in the next message of every stream, or not."""

    async def scenario(lab: Lab) -> None:
        streams = [lab.call(method) for method in STREAMS]
        _, x509_bundles, jwt_bundles = [await stream.read() for stream in streams]
        assert list(x509_bundles.bundles) == list(jwt_bundles.bundles) == [DOMAIN]
        lab.identities.use_federated({PARTNER: PARTNER_BUNDLE})
        svids, x509_bundles, jwt_bundles = [await stream.read() for stream in streams]
        assert set(x509_bundles.bundles) == set(jwt_bundles.bundles) == {DOMAIN, "spiffe://partner.test"}
        assert list(svids.federated_bundles) == ["spiffe://partner.test"]
        lab.identities.use_federated({})
        svids, x509_bundles, jwt_bundles = [await stream.read() for stream in streams]
        assert list(x509_bundles.bundles) == list(jwt_bundles.bundles) == [DOMAIN]
        assert list(svids.federated_bundles) == []
        for stream in streams:
            stream.cancel()

    run(scenario, tmp_path)


def test_bundles_go_to_those_whose_registration_names_the_domain(tmp_path: Path) -> None:
    """Without `federates_with` a caller gets our bundle only, and nothing of the others is good to it."""

    async def scenario(lab: Lab) -> None:
        lab.identities.use_federated({PARTNER: PARTNER_BUNDLE, TrustDomain("other.test"): PARTNER_BUNDLE})
        streams = [lab.call(method) for method in STREAMS]
        svids, x509_bundles, jwt_bundles = [await stream.read() for stream in streams]
        assert list(svids.federated_bundles) == []
        assert list(x509_bundles.bundles) == list(jwt_bundles.bundles) == [DOMAIN]
        theirs = issue_jwt_svid(
            PARTNER_KEY,
            SpiffeId.parse("spiffe://partner.test/a"),
            ["db"],
            now=START,
            ttl=timedelta(minutes=5),
            token_issuer=None,
        )
        token = workload_pb2.ValidateJWTSVIDRequest(audience="db", svid=theirs)
        assert (await lab.status("ValidateJWTSVID", token))[0] is grpc.StatusCode.INVALID_ARGUMENT
        both = [registration(WEB, federates_with=()), registration(API, federates_with=["partner.test"])]
        lab.identities.use_registrations(Registrations(both))
        svids, x509_bundles, jwt_bundles = [await stream.read() for stream in streams]
        assert list(svids.federated_bundles) == ["spiffe://partner.test"]
        assert set(x509_bundles.bundles) == set(jwt_bundles.bundles) == {DOMAIN, "spiffe://partner.test"}
        assert (await lab.call("ValidateJWTSVID", token)).spiffe_id == "spiffe://partner.test/a"
        for stream in streams:
            stream.cancel()

    run(scenario, tmp_path, registration(WEB, federates_with=()))


def test_a_crl_comes_with_the_roots(tmp_path: Path) -> None:
    """(A 5.2.1, 5.2.2) What was revoked is in both streams, in DER, and pushed when there is a new list."""

    async def scenario(lab: Lab) -> None:
        streams = [lab.call(method) for method in ("FetchX509SVID", "FetchX509Bundles")]
        assert [list((await stream.read()).crl) for stream in streams] == [[], []]
        issuer = HIERARCHY.issuer
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
        crl = (
            builder.last_update(START)
            .next_update(START + timedelta(days=1))
            .sign(issuer.key, hashes.SHA256())
        )
        lab.identities._crls = lambda: [crl.public_bytes(Encoding.DER)]
        lab.identities.tell_bundle()
        for stream in streams:
            assert list((await stream.read()).crl) == [crl.public_bytes(Encoding.DER)]
            stream.cancel()

    run(scenario, tmp_path)


def test_jwt_bundles_hold_only_keys_for_tokens(tmp_path: Path) -> None:
    """(A 6.2.2) Plain JWK sets: `jwt-svid` keys, each with a `kid`, and nothing private."""

    async def scenario(lab: Lab) -> None:
        lab.identities.use_federated({PARTNER: PARTNER_BUNDLE})
        stream = lab.call("FetchJWTBundles")
        for bundle in (await stream.read()).bundles.values():
            document = json.loads(bundle)
            assert list(document) == ["keys"]
            for key in document["keys"]:
                assert set(key) == {"use", "kid", "kty", "crv", "x", "y"}
                assert key["use"] == "jwt-svid"
        stream.cancel()

    run(scenario, tmp_path)


def test_an_expired_ca_is_unavailable_and_a_stream_survives_it(tmp_path: Path) -> None:
    """(E 6) A new caller is told to come back; who has an SVID keeps its stream."""

    async def scenario(lab: Lab) -> None:
        stream = lab.call("FetchX509SVID")
        await stream.read()
        lab.clock.advance(AUTHORITY.not_after - START)
        code, text = await lab.status("FetchX509SVID")
        assert (code, "expired" in text) == (grpc.StatusCode.UNAVAILABLE, True)
        assert lab.api.counters.streams == 1
        lab.identities.use_registrations(Registrations())
        assert await stream.code() is grpc.StatusCode.PERMISSION_DENIED

    run(scenario, tmp_path)


def test_a_closing_server_sends_everybody_away(tmp_path: Path) -> None:
    """(E 6) Streams end with UNAVAILABLE, after which clients come back; so do new calls."""

    async def scenario(lab: Lab) -> None:
        streams = [lab.call(method) for method in STREAMS]
        for stream in streams:
            await stream.read()
        lab.api.close()
        for stream in (*streams, lab.call("FetchX509SVID"), lab.call("FetchJWTSVID")):
            assert await stream.code() is grpc.StatusCode.UNAVAILABLE

    run(scenario, tmp_path)


def test_no_stream_is_left_behind(tmp_path: Path) -> None:
    """When a caller breaks off, the server forgets it."""

    async def scenario(lab: Lab) -> None:
        streams = [lab.call(method) for method in STREAMS]
        for stream in streams:
            await stream.read()
        assert lab.api.counters.streams == 3
        for stream in streams:
            stream.cancel()
        while lab.api.counters.streams:  # noqa: ASYNC110 - waits for the server, bounded by the lab's timeout
            await asyncio.sleep(0)

    run(scenario, tmp_path)


def test_jwt_svids_are_for_the_callers_own_identities(tmp_path: Path) -> None:
    """(A 6.2.1) All of them, or the one that is named; for another one PERMISSION_DENIED; no audience is an error."""

    async def scenario(lab: Lab) -> None:
        def request(*audience: str, spiffe_id: str = "") -> Any:
            return workload_pb2.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id)

        answer = await lab.call("FetchJWTSVID", request("db", "cache"))
        assert [svid.spiffe_id for svid in answer.svids] == [WEB, API]
        answer = await lab.call("FetchJWTSVID", request("db", spiffe_id=API))
        assert [svid.spiffe_id for svid in answer.svids] == [API]
        for audience in ((), ("",), ("db", ""), ("x" * 3000,), tuple(map(str, range(100)))):
            code, _ = await lab.status("FetchJWTSVID", request(*audience))
            assert code is grpc.StatusCode.INVALID_ARGUMENT, audience
        for other in ("spiffe://cluster.local/other", "spiffe://cluster.local", "web", WEB.upper()):
            with structlog.testing.capture_logs() as logs:
                code, _ = await lab.status("FetchJWTSVID", request("db", spiffe_id=other))
            assert code is grpc.StatusCode.PERMISSION_DENIED, other
            assert [entry["name"] for entry in logs] == [other]

    run(scenario, tmp_path, registration(WEB), registration(API))


def test_tokens_are_validated_with_the_bundle_of_their_own_domain(tmp_path: Path) -> None:
    """(A 6.2.3) Ours and a federated one's are good, with all their claims; a stranger's and a swapped one's are not."""

    async def scenario(lab: Lab) -> None:
        lab.identities.use_federated({PARTNER: PARTNER_BUNDLE})

        def request(token: str, audience: str = "db") -> Any:
            return workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)

        def partners(spiffe_id: str) -> str:
            identity = SpiffeId.parse(spiffe_id)
            return issue_jwt_svid(
                PARTNER_KEY, identity, ["db"], now=START, ttl=timedelta(minutes=5), token_issuer="https://p"
            )

        ours = (await lab.call("FetchJWTSVID")).svids[0].svid
        answer = await lab.call("ValidateJWTSVID", request(ours))
        assert answer.spiffe_id == WEB
        assert dict(answer.claims) == {
            "sub": WEB,
            "aud": ["db"],
            "iat": START.timestamp(),
            "exp": (START + timedelta(minutes=5)).timestamp(),
        }
        answer = await lab.call("ValidateJWTSVID", request(partners("spiffe://partner.test/a")))
        assert (answer.spiffe_id, answer.claims["iss"]) == ("spiffe://partner.test/a", "https://p")
        for bad in (
            request(ours, "cache"),
            request(ours, ""),
            request(ours[:-4] + "AAAA"),
            request(""),
            request("a.b.c"),
            request(partners(WEB)),  # the partner's key has no say about our domain
            request(partners("spiffe://other.test/a")),
        ):
            assert (await lab.status("ValidateJWTSVID", bad))[0] is grpc.StatusCode.INVALID_ARGUMENT
        signed = ".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
            for part in (
                {"alg": "ES256"},
                {"sub": "spiffe://partner.test/a", "aud": "db", "exp": 2**40, "big": 10**400},
            )
        )
        signature = jwt.algorithms.get_default_algorithms()["ES256"].sign(signed.encode(), PARTNER_KEY.key)
        huge = f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
        code, text = await lab.status("ValidateJWTSVID", request(huge))
        assert (code, "cannot be told" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        lab.clock.advance(timedelta(minutes=6))
        code, text = await lab.status("ValidateJWTSVID", request(ours))
        assert (code, "expired" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)

    run(scenario, tmp_path)


def test_garbage_is_answered_and_the_next_call_too(tmp_path: Path) -> None:
    """Bytes that are no message end their call only."""

    async def scenario(lab: Lab) -> None:
        garbage: Any = lab.channel.unary_unary(f"/{SERVICE}/ValidateJWTSVID")
        call = garbage(b"\xff\xff\xff", timeout=TIMEOUT, metadata=HEADER)
        assert await call.code() is not grpc.StatusCode.OK
        assert len((await lab.call("FetchJWTSVID")).svids) == 1

    run(scenario, tmp_path)


def test_the_clients_every_method_works(tmp_path: Path) -> None:
    """The SPIFFE project's own client gets SVIDs, tokens and bundles, and has a token validated."""

    async def scenario(lab: Lab) -> None:
        # The client has a clock of its own, and this module was imported long ago.
        lab.clock.now = datetime.now(UTC)
        lab.identities.use_federated({PARTNER: PARTNER_BUNDLE})
        svids = await ask(lab.socket, "x509")
        assert [(name, chain) for name, _, chain in svids] == [(WEB, 2), (API, 2)]
        names = ("cluster.local", "partner.test", "other.test")
        assert await ask(lab.socket, "x509-bundles", *names) == {"cluster.local": 1, "partner.test": 1}
        bundles = await ask(lab.socket, "jwt-bundles", *names)
        assert bundles["partner.test"] == [PARTNER_KEY.kid]
        ((name, token, audience), _) = await ask(lab.socket, "jwt", "db", "cache")
        assert (name, audience) == (WEB, ["cache", "db"])
        assert await ask(lab.socket, "validate", token, "db") == [WEB, ["cache", "db"]]
        assert "another audience" in (await ask(lab.socket, "validate", token, "mail"))["error"]
        assert (await ask(lab.socket, "jwt-of", API, "db"))[0] == API
        assert "may not have" in (await ask(lab.socket, "jwt-of", "spiffe://cluster.local/x", "db"))["error"]

    run(scenario, tmp_path, registration(WEB), registration(API))


def test_the_client_follows_rotation(tmp_path: Path) -> None:
    """Streams of the SPIFFE project's client see a new SVID, and a new key for tokens before it is used."""

    async def scenario(lab: Lab) -> None:
        x509s = await start(lab.socket, "follow-x509")
        keys = await start(lab.socket, "follow-jwt-bundles", "cluster.local")
        assert x509s.stdout is not None
        assert keys.stdout is not None
        try:
            first = json.loads(await x509s.stdout.readline())
            lab.identities.rotate()
            second = json.loads(await x509s.stdout.readline())
            assert first[0][0] == second[0][0] == WEB
            assert first[0][1] != second[0][1]
            (old,) = json.loads(await keys.stdout.readline())
            lab.clock.advance(timedelta(hours=17))
            both = json.loads(await keys.stdout.readline())
            assert len(both) == 2
            assert old in both
            assert lab.identities._jwt_keys.ring(lab.clock.now).signing(lab.clock.now).kid == old
        finally:
            for process in (x509s, keys):
                process.kill()
                await process.wait()

    run(scenario, tmp_path)
