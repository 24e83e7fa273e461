"""A token issuer in a process of its own, told what to do on its standard input.

with IssuerProcess(folder) as issuer:
issuer.issuer, issuer.ca               # as `TokenIssuer` has them
issuer.token({"sub": "a"})             # by the current key
issuer.do("add_key"), issuer.do("rotate"), issuer.do("down"), issuer.do("up")
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from support.issuer import TokenIssuer
from support.serving import PATIENCE_SECONDS

_TESTS = Path(__file__).resolve().parents[1]


class IssuerProcess:
    """Talks to the process, a line of JSON each way."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        paths = os.pathsep.join([str(_TESTS), str(_TESTS.parent)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.issuer_process", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def __enter__(self) -> Self:
        begun = self._answer()
        self.issuer, self.ca = str(begun["issuer"]), Path(begun["ca"])
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_SECONDS)
        self._process.stdout.close()

    def do(self, what: str) -> None:
        """Make another key, or be there or not."""
        self._ask({"do": what})

    def token(self, claims: dict[str, Any] | None = None) -> str:
        """Return a token by the current key."""
        return str(self._ask({"do": "token", "claims": claims or {}})["token"])

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


def main() -> None:
    """Be an issuer until standard input ends."""
    with TokenIssuer(Path(sys.argv[1])) as issuer:
        _say({"issuer": issuer.issuer, "ca": str(issuer.ca)})
        for line in sys.stdin:
            question = json.loads(line)
            answer: dict[str, Any] = {}
            match question["do"]:
                case "add_key":
                    issuer.add_key()
                case "rotate":
                    issuer.rotate()
                case "down" | "up" as state:
                    issuer.is_up = state == "up"
                case "token":
                    answer["token"] = issuer.token(question["claims"])
            _say(answer)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
