"""Failures, sorted by who must act on them.

A denial is a value (`authz.decision`, `ratelimit.limiter`), never an exception. What is raised here is a
failure, and everything raised that is not one of these is a bug: it is logged with its stack and answered
with a denial or `INTERNAL`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from garrison.documents import Diagnostic


class GarrisonError(Exception):
    """Base of every failure that Garrison foresees."""


class ConfigError(GarrisonError):
    """What an operator wrote cannot be used; `diagnostics` names every problem with its position."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__("\n".join(str(diagnostic) for diagnostic in diagnostics))
        self.diagnostics = tuple(diagnostics)


class RequestError(GarrisonError):
    """What a caller sent cannot be answered: malformed, too large, or not of the expected kind."""


class DependencyError(GarrisonError):
    """A store, key source or upstream that Garrison needs did not answer."""


class IssuanceError(GarrisonError):
    """The CA's own rules refuse to issue what was asked for."""
