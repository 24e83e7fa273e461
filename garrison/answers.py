"""What servers that are asked with JSON or a form answer, and the secrets that they are asked with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from garrison.errors import DependencyError
from garrison.fetching import Answer as HttpAnswer
from garrison.keys.jwks import unique_names

_MAX_SECRET_BYTES = 64 * 1024


class UnusableAnswerError(DependencyError):
    """There was an answer, and it says nothing that can be understood.

    The breaker does not count it: a single credential may be the reason, and whoever sends it must not keep
    all others from being asked about.
    """


def read_secret(file: Path) -> str:
    """Return the one line in a file, as it is now.

    Raises:
        DependencyError: it cannot be read, or holds no line of text; the message has nothing of it.

    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise DependencyError(f"`{file}` cannot be read: {(error.strerror or str(error)).lower()}") from error
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or len(content) > _MAX_SECRET_BYTES:
        raise DependencyError(f"`{file}` does not hold one line of text")
    return text


def expect(answer: HttpAnswer, *statuses: int) -> HttpAnswer:
    """Return an answer with one of these statuses.

    Raises:
        UnusableAnswerError: the server did not take this one request (4xx).
        DependencyError: it does not work, or has too much to do.

    """
    if 400 <= answer.status < 500 and answer.status not in {408, 429}:
        raise UnusableAnswerError(f"the server answers {answer.status}")
    return answer.expect(*statuses)


def parse_json(answer: HttpAnswer) -> Mapping[str, Any]:
    """Return the JSON object in an HTTP answer.

    Raises:
        UnusableAnswerError: it is of another content type, no object, or has a name twice.

    """
    content_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnusableAnswerError("the answer is not `application/json`")
    try:
        found = json.loads(answer.body.decode(), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise UnusableAnswerError("the answer is not JSON") from error
    if not isinstance(found, dict):
        raise UnusableAnswerError("the answer is no JSON object")
    return found
