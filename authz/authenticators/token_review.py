"""Kubernetes TokenReview (`authentication.k8s.io/v1`): the API server says whose token it is."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from authz.authenticators.base import UnusableAnswerError, numeric_date
from authz.authenticators.introspection import expect, parse_json, read_secret
from authz.authn.credentials import Answer
from authz.authn.places import is_compact_jws
from garrison.errors import DependencyError
from garrison.fetching import Fetcher, json_body

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
MAX_ANSWER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class ApiServer:
    """Where to ask, with which token of our own, and for which audiences a token must be."""

    url: str
    token_file: Path = field(repr=False)
    audiences: tuple[str, ...]


class TokenReview:
    """Asks the API server; blocking, for a thread. The question of a `CachingAuthenticator`."""

    def __init__(self, server: ApiServer, fetcher: Fetcher) -> None:
        self._server = server
        self._fetcher = fetcher

    def __call__(self, token: str) -> Answer:
        """Return what the API server says of a token.

        Raises:
            DependencyError: it said nothing that can be understood.

        """
        server = self._server
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": list(server.audiences)},
        }
        headers = {
            "accept": "application/json",
            # Read each time: the kubelet replaces it before it expires.
            "authorization": f"Bearer {read_secret(server.token_file)}",
        }
        answer = self._fetcher.post(server.url.rstrip("/") + PATH, json_body(review), headers=headers)
        if answer.status in {401, 403}:
            raise DependencyError(
                f"the API server answers {answer.status}: our own token may not create reviews"
            )
        return judge(parse_json(expect(answer, 200, 201)), server.audiences, expiry_of(token))


def judge(said: Mapping[str, Any], audiences: Sequence[str], expires: float = math.inf) -> Answer:
    """Return what a TokenReview comes to; `expires` is when the token does.

    Raises:
        UnusableAnswerError: it is none, or does not say who was authenticated.

    """
    status = said.get("status")
    if said.get("kind") != "TokenReview" or not isinstance(status, dict):
        raise UnusableAnswerError("the answer is no TokenReview with a status")
    authenticated = status.get("authenticated", False)
    if not isinstance(authenticated, bool):
        raise UnusableAnswerError("the answer does not say `authenticated`, true or false")
    if not authenticated:
        return Answer.refused("the API server does not know the token")
    # A server that knows nothing of audiences names none (Kubernetes, TokenReviewStatus).
    named = status.get("audiences")
    if not isinstance(named, list) or not set(audiences).intersection(map(str, named)):
        return Answer.refused("the token is for another audience")
    user = status.get("user")
    name = user.get("username") if isinstance(user, dict) else None
    if not isinstance(user, dict) or not isinstance(name, str) or not name:
        raise UnusableAnswerError("the answer does not say whose token it is")
    claims: dict[str, Any] = {"sub": name, "groups": _strings(user.get("groups"))}
    if isinstance(user.get("uid"), str):
        claims["uid"] = user["uid"]
    if isinstance(user.get("extra"), dict):
        claims["extra"] = {key: _strings(values) for key, values in user["extra"].items()}
    claims["aud"] = [one for one in named if isinstance(one, str) and one in audiences]
    return Answer.accepted(claims, expires=expires)


def _strings(values: object) -> list[str]:
    return [one for one in values if isinstance(one, str)] if isinstance(values, list) else []


def expiry_of(token: str) -> float:
    """Return when a token expires if it is a JWT that says so, else never.

    Only for how long an answer is remembered: that the token is good, the API server has said.
    """
    if not is_compact_jws(token):
        return math.inf
    payload = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return math.inf
    expires = numeric_date(claims.get("exp")) if isinstance(claims, dict) else None
    return math.inf if expires is None else expires
