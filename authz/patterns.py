"""Regular expressions that users write: RE2, linear in the text, with bounds on both sides.

Only operators write patterns; nothing that comes with a call ever becomes one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import re2

# RE2 is linear, but its factor is the size of the program: 16 KiB of text on 2,000 instructions take a
# tenth of a second at worst, when the automaton does not fit its memory and RE2 falls back to simulation.
MAX_PATTERN_LENGTH = 4_096
MAX_PROGRAM_SIZE = 2_000
MAX_SUBJECT_BYTES = 16_384


class PatternError(ValueError):
    """A pattern that cannot be used, or a text that cannot be searched; the message says why."""


class Pattern:
    """A compiled pattern; equal texts are equal patterns."""

    __slots__ = ("_compiled", "text")

    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN_LENGTH:
            raise PatternError(f"a pattern has at most {MAX_PATTERN_LENGTH} characters")
        try:
            compiled = re2.compile(text, _options())
        except (re2.error, UnicodeError) as error:
            detail = error.args[0] if error.args else ""
            reason = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
            raise PatternError(f"`{text[:80]}` is not an RE2 pattern: {reason}") from error
        if compiled.programsize > MAX_PROGRAM_SIZE:
            raise PatternError(f"`{text[:80]}` is too complex: repetitions multiply its size")
        self.text = text
        self._compiled: Any = compiled

    def found_in(self, text: str) -> bool:
        """Return whether the pattern matches anywhere in `text`.

        Raises:
            PatternError: `text` is too long or not valid Unicode.

        """
        try:
            subject = text.encode()
        except UnicodeEncodeError:
            raise PatternError("the text is not valid UTF-8") from None
        if len(subject) > MAX_SUBJECT_BYTES:
            raise PatternError(f"the text has more than {MAX_SUBJECT_BYTES} bytes")
        return self._compiled.search(subject) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


@cache
def _options() -> Any:
    options = re2.Options()
    options.never_capture = True
    options.log_errors = False
    return options
