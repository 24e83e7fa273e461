"""Documents -> compiled policies. Collects every problem before it fails; nothing is half applied.

`rbac` and `security` know the kinds of their API group; this module knows what they share. Where Istio widens
a policy by accident (keys that it does not know, values that it cannot parse) this is an error;
`docs/semantics.md` lists the differences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from authz.authn.peers import FederatedDomain, TrustDomains
from authz.casbin_policy import AdapterFactory, CasbinPolicies, CasbinPolicy, compile_casbin, load_sources
from authz.kinds import KINDS
from authz.mixer.compile import compile_mixer
from authz.paths import PathNormalization
from authz.policy.documents import (
    AuthenticationPolicy,
    AuthorizationPolicy,
    CredentialAuthentication,
    MeshAuthenticationPolicy,
    PeerAuthentication,
    RateLimitPolicy,
    RequestAuthentication,
    Resource,
    ResponsePolicy,
    ServiceRole,
    ServiceRoleBinding,
)
from authz.policy.matchers import AddressMatcher, Matcher, StringMatcher
from authz.policy.rules import (
    NO_MIXER,
    CredentialPolicy,
    LimitPolicy,
    PeerPolicy,
    Policy,
    PolicySet,
    TargetedAuthentication,
    TokenPolicy,
)
from garrison.documents import Diagnostic, Document, Field, Severity, format_field, validate
from garrison.identity import SCHEME, TrustDomain
from garrison.keys.jwks import KeySource

if TYPE_CHECKING:
    from authz.policy.rbac import Grant, Role
    from authz.policy.shaping import Shape

# What a document comes to that is compiled by itself.
Product: TypeAlias = (
    "CredentialPolicy | Grant | LimitPolicy | PeerPolicy | Policy | Role | Shape | TargetedAuthentication"
    " | TokenPolicy"
)
# The kinds of such documents.
_SINGLE = frozenset(
    {
        AuthenticationPolicy,
        AuthorizationPolicy,
        CredentialAuthentication,
        MeshAuthenticationPolicy,
        PeerAuthentication,
        RateLimitPolicy,
        RequestAuthentication,
        ResponsePolicy,
        ServiceRole,
        ServiceRoleBinding,
    }
)

# Istio: `cluster.local` in a policy means "our trust domain" (trustdomain/bundle.go).
LOCAL_TRUST_DOMAIN = "cluster.local"

_FILTER_METADATA = re.compile(r"[^\[\]]+\[[^\[\]]+\]")


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """What holds for the whole mesh and changes how policies read."""

    trust_domain: TrustDomain = field(default=TrustDomain(LOCAL_TRUST_DOMAIN))
    trust_domain_aliases: tuple[TrustDomain, ...] = ()
    root_namespace: str = "istio-system"
    path_normalization: PathNormalization = PathNormalization.BASE
    namespace_path_normalization: tuple[tuple[str, PathNormalization], ...] = ()  # where it differs
    providers: frozenset[str] = frozenset()  # names that CUSTOM policies may use
    federated_trust_domains: tuple[FederatedDomain, ...] = ()
    authenticators: tuple[tuple[str, str], ...] = ()  # names that methods may use, each with its kind
    # Whether counts are shared between replicas (None: nobody knows); policies mean the same either way, so
    # it is no part of their version.
    has_shared_store: bool | None = field(default=None, repr=False, compare=False)

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """The names of all trust domains that are ours."""
        return (self.trust_domain.name, *(alias.name for alias in self.trust_domain_aliases))


@dataclass(slots=True)
class Loaded:
    """A validated document with the YAML it came from."""

    resource: Resource
    document: Document


@dataclass(slots=True)
class Compiler:
    """What the compilers of all kinds share: mesh settings, the problems found, matchers made once."""

    mesh: MeshSettings
    problems: list[Diagnostic] = field(default_factory=list)
    _strings: dict[tuple[str, ...], StringMatcher] = field(default_factory=dict)

    def alone(self) -> Compiler:
        """Return a compiler with problems of its own that shares the matchers."""
        return Compiler(self.mesh, _strings=self._strings)

    def close(self) -> None:
        """Forget which matchers were made; one by one, see `compile_policies`."""
        while self._strings:
            self._strings.popitem()

    def strings(self, patterns: Iterable[str]) -> StringMatcher:
        """Return the matcher for `patterns`; equal lists share one."""
        key = tuple(patterns)
        found = self._strings.get(key)
        if found is None:
            found = self._strings[key] = StringMatcher.of(key)
        return found

    def report(self, loaded: Loaded, path: Field, code: str, message: str, hint: str = "") -> None:
        """Record an error at the value at `path`."""
        self.problems.append(loaded.document.error(path, code, message, hint))

    def warn(self, document: Document, path: Field, code: str, message: str) -> None:
        """Record something that is allowed and probably not meant."""
        self.problems.append(
            Diagnostic(document.file, document.position(path), path, code, message, severity=Severity.WARNING)
        )

    def addresses(self, loaded: Loaded, where: Field, blocks: Sequence[str]) -> Matcher | None:
        """Return the matcher for IP addresses and CIDRs, None after reporting one that is neither."""
        for number, block in enumerate(blocks):
            try:
                AddressMatcher.of((block,))
            except ValueError:
                message = f"`{block}` is neither an IP address nor a CIDR without host bits"
                self.report(loaded, item(loaded, where, number), "address", message)
                return None
        return AddressMatcher.of(blocks)

    def ports(self, loaded: Loaded, where: Field, ports: Sequence[str]) -> Matcher | None:
        """Return the matcher for ports, None after reporting one that is none."""
        for number, port in enumerate(ports):
            if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
                self.report(loaded, item(loaded, where, number), "port", f"`{port}` is not a port")
                return None
        return self.strings(str(int(port)) for port in ports)

    def principals(
        self,
        loaded: Loaded,
        where: Field,
        values: Iterable[str],
        *,
        denies: bool = False,
        patterns: bool = False,
    ) -> StringMatcher:
        """Return the matcher for principals; our trust domains stand for each other (Istio 1.4 and later).

        With `patterns` also one with a star that fits one of ours, such as `*-td/ns/n/sa/a`, stands for all.
        """
        ours = self.mesh.trust_domains
        found: list[str] = []
        for value in self.without_scheme(loaded, where, values, denies=denies):
            domain, *rest = value.split("/")
            if len(rest) == 4 and (domain in ours or domain == LOCAL_TRUST_DOMAIN):
                found += ["/".join((name, *rest)) for name in ours]
            elif len(rest) == 4 and patterns and _fits_any(domain, ours):
                # A suffix is kept for those that it fits; a star after the start would be a literal.
                found += ["/".join((name, *rest)) for name in ours]
                found += [value] if domain.startswith("*") else []
            else:
                found.append(value)
        return self.strings(found)

    def without_scheme(
        self, loaded: Loaded, where: Field, values: Iterable[str], *, denies: bool
    ) -> Iterable[str]:
        """Yield principals, after a warning for those with a scheme; what denies takes them without it."""
        for value in values:
            if value.startswith(SCHEME):
                message = f"principals are written without `{SCHEME}`"
                message += "" if denies else ", so this matches nobody"
                self.warn(loaded.document, where, "principal_scheme", message)
            yield value.removeprefix(SCHEME) if denies else value

    def split_key(
        self, loaded: Loaded, where: Field, key: str, known: Iterable[str], with_argument: Iterable[str]
    ) -> tuple[str, str] | None:
        """Return `request.headers[x-a]` as `("request.headers", "x-a")`; None after reporting a wrong key."""
        if key.startswith("experimental.envoy.filters.") and "experimental.envoy.filters" in known:
            return self._filter_metadata(loaded, where, key)
        name, bracket, rest = key.partition("[")
        argument = rest[:-1] if rest.endswith("]") else ""
        if name not in known or (bracket and name not in with_argument):
            hint = f"known: {', '.join(sorted(known))}"
            self.report(loaded, where, "unknown_key", f"`{key}` is not known here", hint)
            return None
        parts = argument.split("][") if name == "request.auth.claims" else [argument]
        if name in with_argument and not all(part and "[" not in part and "]" not in part for part in parts):
            self.report(loaded, where, "key_argument", f"`{key}` is not of the form `{name}[NAME]`")
            return None
        return name, argument.lower() if name == "request.headers" else argument

    def _filter_metadata(self, loaded: Loaded, where: Field, key: str) -> tuple[str, str] | None:
        path = key.removeprefix("experimental.")
        if not _FILTER_METADATA.fullmatch(path):
            self.report(
                loaded,
                where,
                "key_argument",
                f"`{key}` is not of the form `experimental.envoy.filters.X[KEY]`",
            )
            return None
        return "experimental.envoy.filters", path


def _fits_any(domain: str, names: Iterable[str]) -> bool:
    matcher = StringMatcher.of((domain,))
    return any(matcher.matches(name) for name in names)


def item(loaded: Loaded, where: Field, number: int) -> Field:
    """Return the path of a value at `where`: in a list the number-th, else (a property) the value itself."""
    data = loaded.document.data
    for step in where:
        data = data[step]
    return (*where, number) if isinstance(data, list) else where


def place(where: Field) -> str:
    """Return a field path as it stands in decisions."""
    return format_field(where)


@dataclass(frozen=True, slots=True)
class Part:
    """What one document comes to by itself: a function of it and the mesh settings, and of nothing else.

    So it is remembered with the document, without the model that it was made from: 100,000 models take
    360 MB. Only kinds that are compiled together keep theirs (`Loaded`), and are not remembered. A document
    that cannot be read has problems and no product.
    """

    key: tuple[str, str, str]  # kind, namespace, name
    problems: tuple[Diagnostic, ...]
    product: Product | Loaded | None


def compile_policies(
    documents: Sequence[Document],
    mesh: MeshSettings,
    adapters: Mapping[str, AdapterFactory] = MappingProxyType({}),
) -> tuple[PolicySet | None, list[Diagnostic]]:
    """Return the compiled policies and all problems; no policies when one of the problems is an error.

    What follows from a document alone is remembered with it: documents that are kept are compiled once.
    `adapters` are the Casbin stores that a CasbinPolicy may name; its model and policy files are read here.
    """
    # Imported here: they need the `Compiler` above.
    from authz.policy import authentication, peers, rbac, security  # noqa: PLC0415
    from authz.policy.credentials import refuse_shared_issuers  # noqa: PLC0415
    from authz.policy.shaping import Shape  # noqa: PLC0415

    compiler = Compiler(mesh)
    products, all_readable = _load(compiler, documents)
    together = [one for one, _ in products if isinstance(one, Loaded)]
    resources = [(one.resource, one.document) for one in together]
    mixer, found = compile_mixer(resources, mesh.root_namespace, has_shared_store=mesh.has_shared_store)
    compiler.problems += found
    with_models = [(one, document) for one, document in resources if isinstance(one, CasbinPolicy)]
    sources = load_sources(with_models, adapters)
    casbin, found = compile_casbin(with_models, mesh.root_namespace, sources)
    compiler.problems += found
    for one in together:
        security.refuse_dry_run(compiler, one)
    roles = [one for one, _ in products if isinstance(one, rbac.Role)]
    grants = [(one, document) for one, document in products if isinstance(one, rbac.Grant)]
    if all_readable:  # a role that could not be read is not missing
        rbac.warn_of_missing_roles(compiler, roles, grants)
    peers.warn_of_rivals(
        compiler, [(one, document) for one, document in products if isinstance(one, PeerPolicy)]
    )
    targeted = [(one, document) for one, document in products if isinstance(one, TargetedAuthentication)]
    authentication.warn_of_equals(compiler, targeted)
    tokens = [one for one, _ in products if isinstance(one, TokenPolicy)]
    credentials = [(one, document) for one, document in products if isinstance(one, CredentialPolicy)]
    token_rules = [
        *(rule for one in tokens for rule in one.rules),
        *(origin.rule for one, _ in targeted for origin in one.policy.origins),
    ]
    refuse_shared_issuers(compiler, credentials, token_rules)
    shapes = [one for one, _ in products if isinstance(one, Shape)]
    policies = PolicySet(
        policies=(
            *rbac.bind(roles, (grant for grant, _ in grants)),
            *(one for one, _ in products if isinstance(one, Policy)),
        ),
        tokens=tuple(tokens),
        key_sources=tuple(
            dict.fromkeys(rule.keys for rule in token_rules if isinstance(rule.keys, KeySource))
        ),
        trust_domains=TrustDomains(frozenset(mesh.trust_domains), mesh.federated_trust_domains),
        peers=tuple(one for one, _ in products if isinstance(one, PeerPolicy)),
        authentication=tuple(sorted((one for one, _ in targeted), key=lambda one: one.policy.title)),
        credentials=tuple(sorted((one for one, _ in credentials), key=lambda one: one.title)),
        enforcement=rbac.compile_enforcement(compiler, together),
        limits=tuple(one for one, _ in products if isinstance(one, LimitPolicy)),
        shapes=tuple(sorted(shapes, key=lambda one: one.title)),
        mixer=mixer or NO_MIXER,
        casbin=casbin or CasbinPolicies(),
        sources=sources.content,
        files=sources.paths,
        path_normalization=mesh.path_normalization,
        namespace_path_normalization=dict(mesh.namespace_path_normalization),
        has_roles=bool(roles or grants)
        or any(one.resource.apiVersion.startswith("rbac.istio.io/") for one in together),
    )
    # One by one: freeing so much at one go would stop all other threads for longer than a call may wait.
    for pairs in (products, resources, with_models, grants, targeted, together, tokens, credentials):
        while pairs:
            pairs.pop()
    compiler.close()
    failed = any(problem.severity is Severity.ERROR for problem in compiler.problems)
    return (None if failed else policies), compiler.problems


def _load(
    compiler: Compiler, documents: Sequence[Document]
) -> tuple[list[tuple[Product | Loaded, Document]], bool]:
    """Return what each document comes to, and whether all of them could be read."""
    products: list[tuple[Product | Loaded, Document]] = []
    all_readable = True
    others: list[Diagnostic] = []  # may follow from what cannot be read, so they come after that
    seen: dict[tuple[str, str, str], Document] = {}
    remembered_by = (Part, compiler.mesh)
    for document in without_lists(documents):
        model = _model(document)
        if model in _SINGLE:
            part = document.derived(remembered_by, partial(_part, compiler, document, model))
        else:
            part = _part(compiler, document, model)
        if part.product is None:
            compiler.problems += part.problems
            all_readable = False
            continue
        kind, namespace, name = part.key
        if part.key in seen:
            first = seen[part.key]
            where = f"{first.file}:{first.position(()).line}"
            message = f"there are two {kind} {namespace}/{name}, the first at {where}"
            compiler.problems.append(document.error(("metadata", "name"), "duplicate_name", message))
            all_readable = False
            continue
        seen[part.key] = document
        others += part.problems
        products.append((part.product, document))
    compiler.problems += others
    while seen:  # one by one, as above
        seen.popitem()
    return products, all_readable


def _model(document: Document) -> type[Resource] | None:
    data = document.data
    if not isinstance(data, dict):
        return None
    version, kind = data.get("apiVersion"), data.get("kind")
    return KINDS.get((version, kind)) if isinstance(version, str) and isinstance(kind, str) else None


def _part(compiler: Compiler, document: Document, model: type[Resource] | None) -> Part:
    """Return what `document` comes to; of `compiler` only the settings and shared matchers are used."""
    if model is None:
        return Part(("", "", ""), (_unknown(document),), None)
    resource = validate(model, document)
    if isinstance(resource, list):
        return Part(("", "", ""), tuple(resource), None)
    loaded = Loaded(resource, document)
    key = (resource.kind, resource.metadata.namespace, resource.metadata.name)
    if model not in _SINGLE:
        return Part(key, (), loaded)
    alone = compiler.alone()
    product = _product(alone, loaded)
    return Part(key, tuple(alone.problems), product)


def _product(compiler: Compiler, loaded: Loaded) -> Product:
    from authz.policy import (  # noqa: PLC0415 - as above
        authentication,
        credentials,
        peers,
        rate_limits,
        rbac,
        security,
        shaping,
        tokens,
    )

    resource = loaded.resource
    if isinstance(resource, AuthorizationPolicy):
        return security.compile_authorization(compiler, loaded, resource)
    security.refuse_dry_run(compiler, loaded)
    match resource:
        case ServiceRole():
            return rbac.compile_role(compiler, loaded, resource)
        case ServiceRoleBinding():
            return rbac.compile_grant(compiler, loaded, resource)
        case AuthenticationPolicy() | MeshAuthenticationPolicy():
            return authentication.compile_authentication(compiler, loaded, resource)
        case PeerAuthentication():
            return peers.compile_peers(compiler, loaded, resource)
        case RequestAuthentication():
            return tokens.compile_tokens(compiler, loaded, resource)
        case CredentialAuthentication():
            return credentials.compile_credentials(compiler, loaded, resource)
        case RateLimitPolicy():
            return rate_limits.compile_rate_limits(compiler, loaded, resource)
        case _:
            (shape,) = shaping.compile_shapes(compiler, [loaded])
            return shape


def without_lists(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents with each `List` as its items."""
    for document in documents:
        data = document.data
        if isinstance(data, dict) and data.get("kind") == "List" and isinstance(data.get("items"), list):
            for index in range(len(data["items"])):
                yield document.part(("items", index))
        else:
            yield document


def _unknown(document: Document) -> Diagnostic:
    if not isinstance(document.data, dict):
        return document.error((), "dict_type", "expected a mapping with `kind`")
    version, kind = document.data.get("apiVersion"), document.data.get("kind")
    known = sorted({f"{name} ({group})" for group, name in KINDS})
    message = "`kind` is missing" if kind is None else f"kind `{kind}` of `{version}` is not known here"
    return document.error(("kind",), "unknown_kind", message, f"known: {', '.join(known)}")
