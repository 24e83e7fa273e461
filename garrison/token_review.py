"""Kubernetes TokenReview (`authentication.k8s.io/v1`): the API server says whose token it is. Blocking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from garrison.answers import UnusableAnswerError, expect, parse_json, read_secret
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


@dataclass(frozen=True, slots=True)
class ReviewedUser:
    """Whose token it is; `audiences` are those of ours that it is for."""

    name: str
    uid: str | None
    groups: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]] | None
    audiences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NotAuthenticated:
    """The token is no good; `reason` says why, without anything of it."""

    reason: str


def ask(server: ApiServer, fetcher: Fetcher, token: str) -> ReviewedUser | NotAuthenticated:
    """Return what the API server says of a token.

    Raises:
        DependencyError: it said nothing that can be understood.

    """
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
    answer = fetcher.post(server.url.rstrip("/") + PATH, json_body(review), headers=headers)
    if answer.status in {401, 403}:
        raise DependencyError(f"the API server answers {answer.status}: our own token may not create reviews")
    return read_review(parse_json(expect(answer, 200, 201)), server.audiences)


def read_review(said: Mapping[str, Any], audiences: Sequence[str]) -> ReviewedUser | NotAuthenticated:
    """Return what a TokenReview says, for one of `audiences`.

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
        return NotAuthenticated("the API server does not know the token")
    # A server that knows nothing of audiences names none (Kubernetes, TokenReviewStatus).
    named = status.get("audiences")
    if not isinstance(named, list) or not set(audiences).intersection(map(str, named)):
        return NotAuthenticated("the token is for another audience")
    user = status.get("user")
    name = user.get("username") if isinstance(user, dict) else None
    if not isinstance(user, dict) or not isinstance(name, str) or not name:
        raise UnusableAnswerError("the answer does not say whose token it is")
    extra = user.get("extra")
    return ReviewedUser(
        name,
        user["uid"] if isinstance(user.get("uid"), str) else None,
        _strings(user.get("groups")),
        {key: _strings(values) for key, values in extra.items()} if isinstance(extra, dict) else None,
        tuple(one for one in named if isinstance(one, str) and one in audiences),
    )


def _strings(values: object) -> tuple[str, ...]:
    return tuple(one for one in values if isinstance(one, str)) if isinstance(values, list) else ()
