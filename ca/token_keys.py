"""Keys in a token that never leave it: PKCS#11 (extra `pkcs11`), named by URI (RFC 7512).

Such a key stands in for one of the library's, which builds certificates with whatever can sign.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

PREFIX = "pkcs11:"
MAX_URI_BYTES = 2048
_MODULE = "module-path"
# What finds a key; everything else in a URI is refused, since not to look at it could find another key.
_PATH = {"token", "object", "id", "serial", "type"}
_LEAVES_NOT = "the key is in a token and cannot leave it"
_opened: dict[str, TokenEcKey | TokenRsaKey] = {}


class WrongPinError(ValueError):
    """The token does not take the PIN."""


def is_token_uri(content: bytes) -> bool:
    """Tell whether the content of a key file is the URI of a key in a token."""
    return content.startswith(PREFIX.encode())


def parse_uri(text: str) -> Mapping[str, bytes]:
    """Return the attributes of a PKCS#11 URI; a PIN does not belong into it.

    Raises:
        ValueError: it is malformed, has an attribute that is not understood, or lacks a needed one.

    """
    if not text.startswith(PREFIX) or len(text) > MAX_URI_BYTES or not re.fullmatch(r"[!-~]+", text):
        raise ValueError("it is not a PKCS#11 URI (`pkcs11:token=…;object=…?module-path=…`)")
    path, _, query = text.removeprefix(PREFIX).partition("?")
    found: dict[str, bytes] = {}
    for known, parts in ((_PATH, path.split(";")), ({_MODULE}, query.split("&"))):
        for part in filter(None, parts):
            name, equals, value = part.partition("=")
            if name not in known or not equals or not value or name in found:
                raise ValueError(f"attribute `{name}` of the PKCS#11 URI is unknown, empty or there twice")
            found[name] = unquote_to_bytes(value)
    if found.get("type", b"private") != b"private":
        raise ValueError("the PKCS#11 URI must be of a private key")
    if "token" not in found or _MODULE not in found or not {"object", "id"} & set(found):
        raise ValueError("the PKCS#11 URI needs `token`, `object` or `id`, and `module-path`")
    return found


def open_token_key(uri: str, pin: Callable[[], bytes]) -> TokenEcKey | TokenRsaKey:
    """Return the one private key that `uri` names; opened once in a process.

    Raises:
        WrongPinError: the token refuses the PIN.
        ValueError: the extra is not installed, or there is no such token, no such key, or more than one.

    """
    uri = uri.strip()
    if uri not in _opened:
        _opened[uri] = _open(parse_uri(uri), uri, pin)
    return _opened[uri]


def _open(wanted: Mapping[str, bytes], uri: str, pin: Callable[[], bytes]) -> TokenEcKey | TokenRsaKey:
    try:
        pkcs11: Any = importlib.import_module("pkcs11")
        ecs: Any = importlib.import_module("pkcs11.util.ec")
        rsas: Any = importlib.import_module("pkcs11.util.rsa")
    except ImportError as error:
        raise ValueError("keys in tokens need the extra `pkcs11`: pip install 'garrison[pkcs11]'") from error
    try:
        session = _log_in(pkcs11, wanted, pin)
        named: dict[Any, Any] = {}
        if "object" in wanted:
            named[pkcs11.Attribute.LABEL] = wanted["object"].decode()
        if "id" in wanted:
            named[pkcs11.Attribute.ID] = wanted["id"]
        private = list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY, **named}))
        public = list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY, **named}))
        if len(private) != 1 or len(public) != 1:
            found = f"{len(private)} private and {len(public)} public"
            raise ValueError(f"the PKCS#11 URI must name one private and one public key, it names {found}")
        encode = {pkcs11.KeyType.EC: ecs.encode_ec_public_key, pkcs11.KeyType.RSA: rsas.encode_rsa_public_key}
        if private[0].key_type not in encode:
            raise ValueError("keys in tokens are EC or RSA")
        der = encode[private[0].key_type](public[0])
    except (pkcs11.PKCS11Error, UnicodeDecodeError) as error:
        reason = re.sub(r"(?<!^)([A-Z])", r" \1", type(error).__name__).lower()
        raise ValueError(f"the token cannot be used: {reason}") from error
    if private[0].key_type == pkcs11.KeyType.EC:
        key = serialization.load_der_public_key(der)
        assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - encoded as one
        mechanism = pkcs11.Mechanism.ECDSA
        return TokenEcKey(uri, key, lambda digest: bytes(private[0].sign(digest, mechanism=mechanism)))
    numbers = serialization.load_der_public_key(der)
    assert isinstance(numbers, rsa.RSAPublicKey)  # noqa: S101 - encoded as one
    rsa_mechanism = pkcs11.Mechanism.SHA256_RSA_PKCS
    return TokenRsaKey(uri, numbers, lambda data: bytes(private[0].sign(data, mechanism=rsa_mechanism)))


def _log_in(pkcs11: Any, wanted: Mapping[str, bytes], pin: Callable[[], bytes]) -> Any:
    serial = {"token_serial": wanted["serial"]} if "serial" in wanted else {}
    token = pkcs11.lib(wanted[_MODULE].decode()).get_token(token_label=wanted["token"].decode(), **serial)
    try:
        return token.open(user_pin=pin().decode())
    except pkcs11.UserAlreadyLoggedIn:
        # Being logged in is a state of the process.
        return token.open()
    except (pkcs11.PinIncorrect, pkcs11.PinLenRange, pkcs11.PinInvalid) as error:
        raise WrongPinError("the token does not take this PIN") from error


class TokenEcKey(ec.EllipticCurvePrivateKey):
    """An EC key in a token; `sign_digest` returns r and s, each as long as the other (PKCS#11, ECDSA)."""

    def __init__(
        self, uri: str, public_key: ec.EllipticCurvePublicKey, sign_digest: Callable[[bytes], bytes]
    ) -> None:
        self.uri = uri
        self._public_key = public_key
        self._sign_digest = sign_digest

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public key, which the token told once."""
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve."""
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        """The size of the curve in bits."""
        return self._public_key.key_size

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Return the signature of `data`, hashed here and signed in the token."""
        algorithm = signature_algorithm.algorithm
        assert isinstance(algorithm, hashes.HashAlgorithm)  # noqa: S101 - we sign with no other
        digest = hashes.Hash(algorithm)
        digest.update(data)
        raw = self._sign_digest(digest.finalize())
        half = len(raw) // 2
        return utils.encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))

    def exchange(self, *_: object) -> NoReturn:
        """Refuse: a CA signs."""
        raise ValueError(_LEAVES_NOT)

    def private_numbers(self) -> NoReturn:
        """Refuse."""
        raise ValueError(_LEAVES_NOT)

    def private_bytes(self, *_: object) -> NoReturn:
        """Refuse."""
        raise ValueError(_LEAVES_NOT)

    def __copy__(self) -> TokenEcKey:
        return self

    def __deepcopy__(self, memo: object) -> TokenEcKey:
        return self


class TokenRsaKey(rsa.RSAPrivateKey):
    """An RSA key in a token; `sign_data` signs by PKCS#1 v1.5 with SHA-256."""

    def __init__(self, uri: str, public_key: rsa.RSAPublicKey, sign_data: Callable[[bytes], bytes]) -> None:
        self.uri = uri
        self._public_key = public_key
        self._sign_data = sign_data

    def public_key(self) -> rsa.RSAPublicKey:
        """Return the public key, which the token told once."""
        return self._public_key

    @property
    def key_size(self) -> int:
        """The size of the modulus in bits."""
        return self._public_key.key_size

    def sign(self, data: Any, padding: Any, algorithm: Any) -> bytes:
        """Return the signature of `data`."""
        if not isinstance(padding, _PKCS1) or not isinstance(algorithm, hashes.SHA256):
            raise ValueError("keys in tokens sign by PKCS#1 v1.5 with SHA-256")  # noqa: TRY004 - not a matter of types
        return self._sign_data(bytes(data))

    def decrypt(self, *_: object) -> NoReturn:
        """Refuse: a CA signs."""
        raise ValueError(_LEAVES_NOT)

    def private_numbers(self) -> NoReturn:
        """Refuse."""
        raise ValueError(_LEAVES_NOT)

    def private_bytes(self, *_: object) -> NoReturn:
        """Refuse."""
        raise ValueError(_LEAVES_NOT)

    def __copy__(self) -> TokenRsaKey:
        return self

    def __deepcopy__(self, memo: object) -> TokenRsaKey:
        return self


_PKCS1 = padding.PKCS1v15
