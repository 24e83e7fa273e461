"""Settings: file, environment and flags, in that order; what is unknown or wrong is named."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from authz.authn.peers import FederatedDomain
from authz.paths import PathNormalization
from authz.service import DecisionLog
from ca.store.opening import LedgerPlace
from ca.store.redis_server import Safety
from garrison.durations import parse_duration
from garrison.errors import ConfigError
from garrison.identity import SpiffeId, TrustDomain
from garrison.process.settings import Settings, leaves, load_settings
from garrison.redis_address import Credentials
from ratelimit.quotas import QuotaOptions


def write(folder: Path, text: str) -> Path:
    """Return a settings file with `text`."""
    file = folder / "garrison.yaml"
    file.write_text(text)
    return file


def problems(folder: Path, text: str = "", environment: dict[str, str] | None = None, **flags: str) -> str:
    """Return what loading complains about."""
    with pytest.raises(ConfigError) as caught:
        load_settings(
            write(folder, text), environment or {}, {name.replace("__", "."): v for name, v in flags.items()}
        )
    return str(caught.value)


def test_defaults_are_safe() -> None:
    """Without any setting: loopback, enforcing, no SDS."""
    settings = load_settings(None, {}, {})
    addresses = [*settings.request.listen, *settings.control.listen, settings.admin.listen]
    assert [str(address) for address in addresses] == [
        "tcp://127.0.0.1:9191",
        "tcp://127.0.0.1:9192",
        "tcp://127.0.0.1:9190",
    ]
    assert (settings.policies, settings.ca.dir, settings.destination_from_host) == ([], None, False)


def test_later_sources_win(tmp_path: Path) -> None:
    """Flags win over the environment, that over the file."""
    file = write(tmp_path, "trust_domain: a.example\nroot_namespace: file\nrequest: {transport: grpcio}\n")
    environment = {"GARRISON_TRUST_DOMAIN": "b.example", "GARRISON_ROOT_NAMESPACE": "env"}
    settings = load_settings(file, environment, {"trust_domain": "c.example"})
    assert str(settings.trust_domain) == "c.example"
    assert settings.root_namespace == "env"
    assert settings.request.transport == "grpcio"


def test_every_type_can_come_from_everywhere(tmp_path: Path) -> None:
    """Lists, numbers, booleans, durations and modes parse from text."""
    settings = load_settings(
        None,
        {
            "GARRISON_REQUEST_LISTEN": "unix:///a.sock, tcp://[::1]:1",
            "GARRISON_REQUEST_MAX_MESSAGE_BYTES": "4096",
            "GARRISON_DESTINATION_FROM_HOST": "true",
            "GARRISON_DRAIN_GRACE": "1m30s",
            "GARRISON_REQUEST_UNIX_MODE": "0660",
            "GARRISON_PATH_NORMALIZATION": "NONE",
            "GARRISON_LOG_DECISIONS": "all",
        },
        {"policies": (str(tmp_path), "b")},
    )
    assert [str(address) for address in settings.request.listen] == ["unix:///a.sock", "tcp://[::1]:1"]
    assert (settings.request.max_message_bytes, settings.destination_from_host) == (4096, True)
    assert (settings.drain_grace, settings.request.unix_mode) == (timedelta(seconds=90), 0o660)
    assert (settings.path_normalization, settings.log.decisions) == (PathNormalization.NONE, DecisionLog.ALL)
    assert settings.policies == [tmp_path, Path("b")]


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    """A settings file works from any working directory."""
    settings = load_settings(write(tmp_path, "policies: [p]\nca: {dir: ca}\n"), {}, {})
    assert (settings.policies, settings.ca.dir) == ([tmp_path / "p"], tmp_path / "ca")


def test_a_ledger_is_a_file_or_a_redis(tmp_path: Path) -> None:
    """A file is relative to the settings, a URL is not; what is for Redis only says so; no password is shown."""
    file = load_settings(write(tmp_path, "ca: {ledger: state/ledger}\n"), {}, {}).ca.ledger_place()
    assert file == LedgerPlace(tmp_path / "state/ledger")
    text = "ca: {ledger: 'rediss://x:s3cret@redis.example/2', ledger_ca: roots.pem, ledger_replicas: 1}\n"
    place = load_settings(write(tmp_path, text), {}, {}).ca.ledger_place()
    assert (place.name(tmp_path), place.ca) == (
        "rediss://redis.example:6379?db=2",
        tmp_path / "roots.pem",
    )
    assert (place.safety, place.replicas, place.path(tmp_path)) == (Safety.REQUIRE, 1, None)
    assert "s3cret" not in repr(place)
    assert "for a ledger in Redis" in problems(tmp_path, "ca: {ledger_ca: roots.pem}\n")
    for text, expected in (
        ("ledger_certificate: a, ledger_private_key: b", "for a ledger in Redis"),
        ("ledger_sentinel_master: a", "for a ledger in Redis"),
        ("ledger: 'rediss://a', ledger_certificate: a", "certificate and private key go together"),
        ("ledger: 'redis://a', ledger_sentinels: ['redis://b']", "go with `ledger_sentinel_master`"),
        ("ledger: 'redis://a', ledger_sentinel_auth: s3cret", "go with `ledger_sentinel_master`"),
        ("ledger: 'unix:///a', ledger_sentinel_master: m", "reached by redis:// and rediss://"),
        (
            "ledger: 'redis://a', ledger_sentinels: ['rediss://b'], ledger_sentinel_master: m",
            "differ in nothing but host and port",
        ),
        (
            "ledger: 'redis://:s3cret@a', ledger_sentinels: ['redis://b'], ledger_sentinel_master: m",
            "differ in nothing but host and port",
        ),
    ):
        wrong = problems(tmp_path, f"ca: {{{text}}}\n")
        assert expected in wrong
        assert "s3cret" not in wrong
    wrong = problems(tmp_path, "ca: {ledger: 'redis://x:s3cret@y?z=1'}\n")
    assert "no parameter but `db`" in wrong
    assert "s3cret" not in wrong


def test_a_ledger_may_be_behind_sentinels(tmp_path: Path) -> None:
    """Everything that is said of them arrives, and of a certificate of our own; nothing of it is shown."""
    text = """
ca:
  ledger: rediss://:s3cret@s1:26379/2
  ledger_sentinels: ["rediss://:s3cret@s2:26379/2"]
  ledger_sentinel_master: ledger
  ledger_sentinel_auth: me:t0psecret
  ledger_replicas: 1
  ledger_certificate: own.pem
  ledger_private_key: own.key
"""
    place = load_settings(write(tmp_path, text), {}, {}).ca.ledger_place()
    assert place.sentinels is not None
    assert (str(place.where), place.sentinels.master) == ("rediss://s1:26379?db=2", "ledger")
    assert [str(one) for one in place.sentinels.others] == ["rediss://s2:26379?db=2"]
    assert place.sentinels.credentials == Credentials("me", "t0psecret")
    assert (place.certificate, place.private_key) == (tmp_path / "own.pem", tmp_path / "own.key")
    assert "secret" not in repr(place)


def test_quotas_are_given_out_as_the_settings_say(tmp_path: Path) -> None:
    """Every field of the group arrives at the service."""
    text = "{assignment_ttl: 1m, replicas: 2, max_streams: 3, max_buckets: 4, max_total_buckets: 5}"
    settings = load_settings(write(tmp_path, f"rlqs: {text}\n"), {}, {})
    assert settings.rlqs.options(shadow_mode=True) == QuotaOptions(60, 2, 3, 4, 5, shadow_mode=True)
    assert Settings().rlqs.options(shadow_mode=False) == QuotaOptions()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reqest: {}\n", "garrison.yaml:1:1: reqest: unknown field `reqest` (did you mean `request`?)"),
        ("request:\n  transport: h3\n", "garrison.yaml:2:14: request.transport: `h3` is not known here"),
        (
            "request: {listen: [http://x]}\n",
            "garrison.yaml:1:20: request.listen[0]: `http://x` does not start",
        ),
        ("admin: {listen: 'unix:///a'}\n", "admin HTTP listens on `tcp://HOST:PORT` only"),
        ("drain_grace: 5\n", "drain_grace"),
        ("drain_grace: 5x\n", "`5x` is not a duration"),
        ("trust_domain: UP\n", "trust domain `UP`"),
        ("trust_bundles: [{trust_domain: x, file: a}]\n", "`x`, which is neither ours nor federated"),
        (
            "trust_bundles: [{trust_domain: cluster.local, file: a}, {trust_domain: cluster.local, file: b}]\n",
            "`trust_bundles` has `cluster.local` twice",
        ),
        ("trust_bundles: [{trust_domain: cluster.local}]\n", "roots come from a `file` or"),
        (
            "trust_bundles: [{trust_domain: cluster.local, file: a, federation: true}]\n",
            "roots come from a `file` or",
        ),
        (
            "trust_bundles: [{trust_domain: cluster.local, file: a, intermediates: b}]\n",
            "`intermediates` go with `federation: true`",
        ),
        (
            "ca: {dir: a}\ntrust_bundles: [{trust_domain: cluster.local, federation: true}]\n",
            "`cluster.local` from federation, but it is ours",
        ),
        (
            "ca: {dir: a}\ntrust_bundles: [{trust_domain: x, federation: true}]\n",
            "`x`, which is neither ours nor federated",
        ),
        (
            "federated_trust_domains: [x]\ntrust_bundles: [{trust_domain: x, federation: true}]\n",
            "needs `ca.dir`",
        ),
        ("ca: {jwt_key_lifetime: 1h}\n", "a key signs for at least 9:00:00"),
        ("ca: {oidc: {listen: unix:///tmp/a}}\n", "`listen` is `tcp://HOST:PORT` or `tls://HOST:PORT`"),
        ("ca: {oidc: {listen: tls://127.0.0.1:1}}\n", "needs `tls.certificate` and `tls.private_key`"),
        ("ca: {oidc: {issuer: 'https://a.test/'}}\n", "ca.oidc.issuer"),
        ("ca: {oidc: {issuer: 'https://u@a.test'}}\n", "ca.oidc.issuer"),
        ("ca: {federation: {listen: tls://127.0.0.1:1}}\n", "`listen` and `spiffe_id` go together"),
        (
            "ca: {federation: {listen: tcp://127.0.0.1:1, spiffe_id: spiffe://cluster.local/b}}\n",
            "`listen` is `tls://HOST:PORT`",
        ),
        (
            "ca: {federation: {listen: tls://127.0.0.1:1, spiffe_id: spiffe://cluster.local}}\n",
            "has no path",
        ),
        (
            "ca: {dir: a, federation: {listen: tls://127.0.0.1:1, spiffe_id: spiffe://other/b}}\n",
            "`ca.federation.spiffe_id` is not in trust domain `cluster.local`",
        ),
        (
            "ca: {federation: {listen: tls://127.0.0.1:1, spiffe_id: spiffe://cluster.local/b}}\n",
            "needs `ca.dir`",
        ),
        ("ca: {federation: {poll: 500ms}}\n", "`poll` is between 1s and 24h"),
        ("ca: {federation: {max_stale: 30s}}\n", "`max_stale` is between 1m and 365d"),
        (
            "workloads: [{spiffe_id: spiffe://cluster.local/a, selectors: [a], federates_with: [UP]}]\n",
            "workloads[0].federates_with[0]: trust domain `UP`",
        ),
        ("federated_bundles: [{trust_domain: cluster.local, file: a}]\n", "which is ours"),
        (
            "federated_bundles: [{trust_domain: a.test, file: a}, {trust_domain: a.test, file: b}]\n",
            "`federated_bundles` has `a.test` twice",
        ),
        ("require_peer_certificate: true\n", "needs `trust_bundles` or `ca.dir` to verify with"),
        ("request: {require_asker_svid: true}\n", "`require_asker_svid` needs `tls.client_ca`"),
        (
            "workloads: [{spiffe_id: 'spiffe://cluster.local/a', may_ask_about: ['a*b']}]\n",
            "workloads[0].may_ask_about[0]",
        ),
        ("federated_trust_domains: [UP]\n", "federated_trust_domains[0]: trust domain `UP`"),
        ("federated_trust_domains: [a=]\n", "`a=` names no namespace after `=`"),
        ("federated_trust_domains: [cluster.local=shop]\n", "`cluster.local` is ours"),
        ("trust_domain_aliases: [a]\nfederated_trust_domains: [a]\n", "`a` is ours, so it may call"),
        ("request: {tls: {certificate: a}}\n", "`certificate` and `private_key` go together"),
        ("a: 1\n---\nb: 2\n", "there can be only one document"),
        ("- a\n", "expected a mapping of settings"),
        ("workloads: [{spiffe_id: 'spiffe://other/a'}]\n", "`spiffe://other/a` is not in trust domain"),
        ("rlqs: {assignment_ttl: 5s}\n", "whole seconds between 6s and 1h"),
        ("rlqs: {assignment_ttl: 15500ms}\n", "whole seconds between 6s and 1h"),
        ("rlqs: {replicas: 0}\n", "garrison.yaml:1:18: rlqs.replicas"),
        (
            "workloads: [{spiffe_id: 'spiffe://cluster.local/a', selectors: ['unix:name:x']}]\n",
            "selector `unix:name:x`",
        ),
        ("ca: {listen: ['tls://127.0.0.1:1']}\n", "`listen` needs `dir`"),
        ("ca: {dir: a, listen: ['tcp://127.0.0.1:1']}\n", "`listen` takes `tls://HOST:PORT` and"),
        ("ca: {dir: a, listen: ['tls://127.0.0.1:1']}\n", "needs `tls.certificate` and `tls.private_key`"),
        (
            "ca: {dir: a, tls: {certificate: a}}\n",
            "`certificate` and `private_key` go together",
        ),
        ("ca: {max_ttl: 25h}\n", "`max_ttl` is between 1s and 24h"),
        ("ca: {token_issuers: [{issuer: 'https://a', audiences: []}]}\n", "ca.token_issuers[0].audiences"),
        ("ca: {token_issuers: [{issuer: 'https://a'}]}\n", "`audiences` is missing"),
        (
            "ca: {token_issuers: [{issuer: a, audiences: [x]}]}\n",
            "ca.token_issuers[0]",
        ),
        (
            "ca: {token_issuers: [{issuer: 'https://a', audiences: [x], jwks: '{}'}]}\n",
            "`jwks` has no list `keys`",
        ),
        (
            "ca: {token_issuers: [{issuer: 'https://a', audiences: [x], jwks: '{}', jwks_uri: 'https://b'}]}\n",
            "only one of `jwks_uri`, `jwks_file` and `jwks`",
        ),
        (
            "ca: {token_issuers: [{issuer: 'https://a', audiences: [x]}, {issuer: 'https://a', audiences: [y]}]}\n",
            "`https://a` stands twice",
        ),
        (
            "ext_authz_providers: [{name: a, address: 'tcp://h:1'}, {name: a, address: 'tcp://h:2'}]\n",
            "ext_authz_providers: `a` stands twice",
        ),
        (
            "casbin_adapters: [{name: a, adapter: 'm:A'}, {name: a, adapter: 'm:B'}]\n",
            "casbin_adapters: `a` stands twice",
        ),
        ("ca: {token_review: {server: 'http://a'}}\n", "`https://` only"),
        ("ca: {token_review: {timeout: 1h}}\n", "`timeout` is between 10ms and 30s"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, expected: str) -> None:
    """Each mistake is reported with its position and field."""
    assert expected in problems(tmp_path, text)


def test_bundle_files_are_relative_to_the_settings(tmp_path: Path) -> None:
    """As every path in the file is."""
    text = "trust_bundles: [{trust_domain: cluster.local, file: a/b.pem}]\nrequire_peer_certificate: true\n"
    (bundle,) = load_settings(write(tmp_path, text), {}, {}).trust_bundles
    assert bundle.file == tmp_path / "a/b.pem"
    text = """
ca: {dir: pki}
federated_trust_domains: [x]
trust_bundles: [{trust_domain: x, federation: true, intermediates: a/c.pem}]
"""
    (bundle,) = load_settings(write(tmp_path, text), {}, {}).trust_bundles
    assert (bundle.file, bundle.intermediates) == (None, tmp_path / "a/c.pem")


def test_federated_trust_domains_reach_policies(tmp_path: Path) -> None:
    """They are text in file, environment and flags, each once, and part of what policies are compiled with."""
    expected = (FederatedDomain(TrustDomain("a.example")), FederatedDomain(TrustDomain("b.example"), "shop"))
    file = write(tmp_path, "federated_trust_domains: [b.example=shop, a.example, b.example=shop]\n")
    assert load_settings(file, {}, {}).mesh.federated_trust_domains == expected
    environment = {"GARRISON_FEDERATED_TRUST_DOMAINS": "a.example, b.example=shop"}
    assert load_settings(None, environment, {}).mesh.federated_trust_domains == expected
    flags = {"federated_trust_domains": ("a.example", "b.example=shop")}
    assert load_settings(None, {}, flags).mesh.federated_trust_domains == expected


def test_mistakes_elsewhere(tmp_path: Path) -> None:
    """Unknown variables and wrong values name the variable or flag."""
    assert "no setting is called `GARRISON_TRUST_DOMIAN`" in problems(
        tmp_path, environment={"GARRISON_TRUST_DOMIAN": "x"}
    )
    assert "environment GARRISON_REQUEST_TRANSPORT" in problems(
        tmp_path, environment={"GARRISON_REQUEST_TRANSPORT": "x"}
    )
    assert "flag --request-transport" in problems(tmp_path, request__transport="x")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "none", {}, {})


def test_variables_of_kubernetes_services_are_not_settings() -> None:
    """A Service called `garrison` must not keep the server from starting."""
    environment = {"GARRISON_SERVICE_HOST": "10.0.0.1", "GARRISON_PORT_9191_TCP": "tcp://10.0.0.1:9191"}
    assert load_settings(None, environment, {}) == Settings()


def test_workloads_become_registrations_and_destinations(tmp_path: Path) -> None:
    """One entry says who gets an SVID and which service that SVID stands for."""
    text = """
workloads:
- spiffe_id: spiffe://cluster.local/ns/default/sa/web
  selectors: ["unix:uid:1000"]
  service: web.default.svc.cluster.local
  labels: {app: web}
- spiffe_id: spiffe://cluster.local/ns/default/sa/none
"""
    settings = load_settings(write(tmp_path, text), {}, {})
    web = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/web")
    assert [registration.spiffe_id for registration in settings.registrations()] == [web]
    destination = settings.destinations()[web]
    assert (destination.service, destination.namespace, destination.user, destination.labels) == (
        *("web.default.svc.cluster.local", "default", "web", {"app": "web"}),
    )
    assert len(settings.destinations()) == 1


def test_names_of_settings_are_unique() -> None:
    """No two settings share an environment variable or a flag."""
    found = list(leaves())
    assert len({leaf.variable for leaf in found}) == len({leaf.flag for leaf in found}) == len(found)
    assert all(leaf.description for leaf in found)


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1.5s", "1 s", "1s ", "1y", "1s\n"])
def test_what_is_no_duration(text: str) -> None:
    """A number without a unit is refused: nobody knows what it counts."""
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_namespaces_can_have_their_own_path_normalization(tmp_path: Path) -> None:
    """One namespace may need paths as they are sent."""
    settings = load_settings(write(tmp_path, "namespace_path_normalization: {legacy: NONE}\n"), {}, {})
    assert settings.mesh.namespace_path_normalization == (("legacy", PathNormalization.NONE),)
    assert "`SOME` is none of NONE, BASE" in problems(
        tmp_path, "namespace_path_normalization: {legacy: SOME}\n"
    )


def test_casbin_adapters_are_made_from_a_class(tmp_path: Path) -> None:
    """An adapter is `module:Class` with arguments; one that cannot be imported is an error that names it."""
    text = "casbin_adapters: [{name: file, adapter: '%s', arguments: {file_path: p.csv}}]\n"
    settings = load_settings(write(tmp_path, text % "casbin.persist.adapters:FileAdapter"), {}, {})
    assert type(settings.adapters()["file"]()).__name__ == "FileAdapter"
    broken = load_settings(write(tmp_path, text % "no.such:Thing"), {}, {})
    with pytest.raises(ConfigError, match=r"`no\.such:Thing` cannot be imported"):
        broken.adapters()
    assert "casbin_adapters[0].adapter" in problems(tmp_path, text % "nonsense")
