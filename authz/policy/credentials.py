"""`CredentialAuthentication`: documents -> the rules that `authz.authn.credentials` goes by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from authz.authn.credentials import DEFAULT_PLACES, CredentialRules, Kind, Method
from authz.authn.jwt import JwtRule
from authz.authn.places import CookiePlace, HeaderPlace, ParameterPlace, Place
from authz.policy.compile import Compiler, Loaded
from authz.policy.documents.credentials import CredentialAuthentication, CredentialMethod
from authz.policy.rules import CredentialPolicy
from authz.policy.security import selector_of
from garrison.documents import Document, Field

# What a method without an authenticator is called in a default issuer; no authenticator has such a name.
CERTIFICATE_NAME, ANONYMOUS_NAME = "certificate", "anonymous"
RESERVED_NAMES = frozenset({CERTIFICATE_NAME, ANONYMOUS_NAME})

# Parts of the connection, what a cookie has a field of its own for, and what is read in another way.
_NO_CREDENTIALS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "cookie", "x-forwarded-client-cert"}
)
# RFC 6265, section 4.1.1: a token.
_COOKIE_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def compile_credentials(
    compiler: Compiler, loaded: Loaded, authentication: CredentialAuthentication
) -> CredentialPolicy:
    """Return the compiled CredentialAuthentication."""
    return _Credentials(compiler, loaded, authentication).compile()


class _Credentials:
    """Compiles one CredentialAuthentication."""

    def __init__(self, compiler: Compiler, loaded: Loaded, authentication: CredentialAuthentication) -> None:
        self._compiler = compiler
        self._loaded = loaded
        self._title = authentication.title
        self._spec = authentication.spec
        metadata = authentication.metadata
        self._namespace, self._name = metadata.namespace, metadata.name
        self._kinds = dict(compiler.mesh.authenticators)
        self._owners: dict[Place | None, int] = {}

    def compile(self) -> CredentialPolicy:
        methods: list[Method] = []
        anonymous = ""
        for index, method in enumerate(self._spec.methods):
            where: Field = ("spec", "methods", index)
            if not self._is_one(where, method):
                continue
            if method.anonymous is not None:
                anonymous = self._anonymous(where, method, anonymous)
            else:
                methods.append(self._method(where, method))
        selector = selector_of(self._compiler, self._loaded, self._spec, self._namespace)
        required = self._title if self._spec.required else ""
        return CredentialPolicy(self._title, selector, CredentialRules(tuple(methods), required, anonymous))

    def _is_one(self, where: Field, method: CredentialMethod) -> bool:
        one = (method.authenticator, method.forwardedClientCertificate, method.anonymous)
        if sum(choice is not None for choice in one) != 1:
            message = "exactly one of `authenticator`, `forwardedClientCertificate` and `anonymous` is needed"
            self._report(where, "exclusive", message)
            return False
        if method.authenticator is None:
            for name in ("fromHeaders", "fromParams", "fromCookies"):
                if getattr(method, name):
                    self._report((*where, name), "exclusive", f"only an `authenticator` has `{name}`")
        return True

    def _anonymous(self, where: Field, method: CredentialMethod, before: str) -> str:
        if self._spec.required:
            message = "`required` refuses callers without a credential, `anonymous` takes them"
            self._report((*where, "anonymous"), "exclusive", message)
        if before:
            self._report((*where, "anonymous"), "exclusive", "`anonymous` stands here twice")
        if method.forward:
            self._report((*where, "forward"), "exclusive", "`anonymous` has nothing to forward")
        return self._issuer(method, ANONYMOUS_NAME)

    def _method(self, where: Field, method: CredentialMethod) -> Method:
        if method.forwardedClientCertificate is not None:
            at = (*where, "forwardedClientCertificate", "trustedPeers")
            peers = method.forwardedClientCertificate.trustedPeers
            self._own((*where, "forwardedClientCertificate"), None)
            return Method(
                self._title,
                "",
                None,
                self._issuer(method, CERTIFICATE_NAME),
                (),
                method.forward,
                self._compiler.principals(self._loaded, at, peers, patterns=True),
            )
        name = method.authenticator or ""
        if name not in self._kinds:
            # As with providers of CUSTOM: policies may be there before the settings are.
            message = f"no authenticator `{name}` in the settings: credentials for it are refused"
            self._compiler.warn(
                self._loaded.document, (*where, "authenticator"), "unknown_authenticator", message
            )
        kind = Kind(self._kinds[name]) if name in self._kinds else None
        return Method(
            self._title,
            name,
            kind,
            self._issuer(method, name),
            self._places(where, method, kind),
            method.forward,
        )

    def _issuer(self, method: CredentialMethod, name: str) -> str:
        # With the method's name: what one authenticator calls `alice` need not be another one's `alice`.
        return method.issuer or f"{self._namespace}/{self._name}/{name}"

    def _places(self, where: Field, method: CredentialMethod, kind: Kind | None) -> tuple[Place, ...]:
        explicit: list[tuple[Field, Place]] = [
            (("fromHeaders", number, "name"), _header(one.name, one.prefix))
            for number, one in enumerate(method.fromHeaders)
        ]
        explicit += [
            (("fromParams", number), ParameterPlace(name)) for number, name in enumerate(method.fromParams)
        ]
        explicit += [
            (("fromCookies", number), CookiePlace(name)) for number, name in enumerate(method.fromCookies)
        ]
        for field, place in explicit:
            if isinstance(place, HeaderPlace) and place.name in _NO_CREDENTIALS:
                message = f"`{place.name}` is no place for a credential"
                self._report((*where, *field), "credential_place", message)
            if isinstance(place, CookiePlace) and not _COOKIE_NAME.fullmatch(place.name):
                message = f"`{place.name}` is no name of a cookie"
                self._report((*where, *field), "credential_place", message)
        places = tuple(place for _, place in explicit) or DEFAULT_PLACES[kind]
        if kind is not None or explicit:  # else it is not known where it would look
            for place in places:
                self._own(where, place)
        return places

    def _own(self, where: Field, place: Place | None) -> None:
        """Report a place that an earlier method has: a credential there would never get to this one."""
        if isinstance(place, HeaderPlace) and place.ignore_case:
            place = replace(place, prefix=place.prefix.lower())
        first = self._owners.setdefault(place, int(where[2]))
        if first != where[2]:
            message = f"methods[{first}] looks there, too, and what it finds is not passed on"
            self._report(where, "credential_place", message)

    def _report(self, where: Field, code: str, message: str) -> None:
        self._compiler.report(self._loaded, where, code, message)


def _header(name: str, prefix: str) -> HeaderPlace:
    # In `authorization` the prefix is a scheme, which has no case (RFC 9110, section 11.1).
    return HeaderPlace(name.lower(), prefix, ignore_case=name.lower() == "authorization")


def refuse_shared_issuers(
    compiler: Compiler,
    credentials: Sequence[tuple[CredentialPolicy, Document]],
    tokens: Iterable[JwtRule],
) -> None:
    """Report issuers that two sources of identities share: one name would be two different callers."""
    owners: dict[str, str] = {}
    for rule in tokens:
        owners.setdefault(rule.issuer, f"tokens of {rule.policy}")
    for policy, document in sorted(credentials, key=lambda one: one[0].title):
        rules = policy.rules
        issuers = [(method.issuer, method.authenticator or CERTIFICATE_NAME) for method in rules.methods]
        issuers += [(rules.anonymous, ANONYMOUS_NAME)] if rules.anonymous else []
        for issuer, name in issuers:
            source = f"authenticator {name}" if name not in RESERVED_NAMES else name
            owner = owners.setdefault(issuer, source)
            if owner != source:
                message = f"`{issuer}` is the issuer of {owner}, too: one name would be two callers"
                compiler.problems.append(document.error(("spec", "methods"), "shared_issuer", message))
