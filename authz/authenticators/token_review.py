"""Kubernetes TokenReview as an authenticator: what the API server says of a token, as claims."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from authz.authenticators.base import numeric_date
from authz.authn.credentials import Answer
from authz.authn.places import is_compact_jws
from garrison.fetching import Fetcher
from garrison.token_review import ApiServer, NotAuthenticated, ReviewedUser, ask, read_review


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
        return _answer(ask(self._server, self._fetcher, token), expiry_of(token))


def judge(said: Mapping[str, Any], audiences: Sequence[str], expires: float = math.inf) -> Answer:
    """Return what a TokenReview comes to; `expires` is when the token does.

    Raises:
        UnusableAnswerError: it is none, or does not say who was authenticated.

    """
    return _answer(read_review(said, audiences), expires)


def _answer(reviewed: ReviewedUser | NotAuthenticated, expires: float) -> Answer:
    if isinstance(reviewed, NotAuthenticated):
        return Answer.refused(reviewed.reason)
    claims: dict[str, Any] = {"sub": reviewed.name, "groups": list(reviewed.groups)}
    if reviewed.uid is not None:
        claims["uid"] = reviewed.uid
    if reviewed.extra is not None:
        claims["extra"] = {key: list(values) for key, values in reviewed.extra.items()}
    claims["aud"] = list(reviewed.audiences)
    return Answer.accepted(claims, expires=expires)


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
