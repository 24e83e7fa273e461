"""OAuth 2.0 token introspection (RFC 7662): the authorization server says what an opaque token is worth."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from authz.authenticators.base import audiences_of, numeric_date
from authz.authn.credentials import Answer, Result
from garrison.answers import UnusableAnswerError, expect, parse_json, read_secret
from garrison.errors import DependencyError
from garrison.fetching import Fetcher, form_body

# Claims of one token; a server that sends more is not one of ours.
MAX_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, as whom, and what a token must be good for."""

    url: str
    client_id: str
    secret_file: Path = field(repr=False)
    token_type_hint: str = ""
    scopes: tuple[str, ...] = ()  # all of them
    audiences: frozenset[str] = frozenset()  # one of them; none: any token


class Introspection:
    """Asks the endpoint; blocking, for a thread. The question of a `CachingAuthenticator`."""

    def __init__(self, endpoint: Endpoint, fetcher: Fetcher, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since the epoch."""
        self._endpoint = endpoint
        self._fetcher = fetcher
        self._clock = clock

    def __call__(self, token: str) -> Answer:
        """Return what the endpoint says of a token.

        Raises:
            DependencyError: it said nothing that can be understood.

        """
        fields = {"token": token}
        if self._endpoint.token_type_hint:
            fields["token_type_hint"] = self._endpoint.token_type_hint
        headers = {"accept": "application/json", "authorization": self._authorization()}
        answer = self._fetcher.post(self._endpoint.url, form_body(fields), headers=headers)
        if answer.status in {401, 403}:
            raise DependencyError(
                f"the endpoint answers {answer.status}: it does not take our own credentials"
            )
        return judge(parse_json(expect(answer, 200)), self._endpoint, self._clock())

    def _authorization(self) -> str:
        """RFC 6749, section 2.3.1: both are form-encoded before they are joined."""
        secret = read_secret(self._endpoint.secret_file)
        pair = f"{quote_plus(self._endpoint.client_id)}:{quote_plus(secret)}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"


def judge(said: Mapping[str, Any], endpoint: Endpoint, now: float) -> Answer:
    """Return what an introspection response (RFC 7662, section 2.2) comes to at `now`.

    Raises:
        UnusableAnswerError: it does not say whether the token is active.

    """
    active = said.get("active")
    if not isinstance(active, bool):
        raise UnusableAnswerError("the answer does not say `active`, true or false")
    if not active:
        return Answer.refused("the token is not active")
    begins, expires = _time(said, "nbf", -math.inf), _time(said, "exp", math.inf)
    if begins is None or expires is None:
        return Answer.refused("`exp` or `nbf` of the token is not a time")
    if not begins <= now < expires:
        return Answer.refused("the token has expired, or is not valid yet")
    # RFC 9449, section 7.2; RFC 8705, section 3.2: good only with a proof, which nobody looks at here.
    if "cnf" in said or str(said.get("token_type", "")).lower() == "dpop":
        return Answer.refused("the token is bound to a key of its client, and no proof of it is looked at")
    if said.get("token_use") == "refresh_token" or said.get("typ") in {"Refresh", "Offline"}:
        return Answer.refused("it is a refresh token")
    if endpoint.audiences and endpoint.audiences.isdisjoint(audiences_of(said)):
        return Answer.refused("the token is for another audience")
    scope = said.get("scope")
    missing = sorted(set(endpoint.scopes) - set(scope.split(" ") if isinstance(scope, str) else ()))
    if missing:
        reason = f"the token has not the scope {missing[0]}"
        return Answer(Result.INSUFFICIENT, reason=reason, expires=expires)
    subject = said.get("sub")
    if not isinstance(subject, str) or not subject:
        # Not `client_id` in its place: a client could have the name of a user.
        return Answer.refused("the answer names no subject (`sub`)")
    claims = {name: value for name, value in said.items() if name != "active"}
    return Answer.accepted(claims, begins=begins, expires=expires)


def _time(said: Mapping[str, Any], name: str, default: float) -> float | None:
    """Return a time in seconds since the epoch, `default` when it is absent, None when it is none."""
    value = said.get(name)
    return default if value is None else numeric_date(value)
