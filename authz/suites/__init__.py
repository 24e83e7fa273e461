"""Unit tests for policies: YAML suites of calls and what they should come to.

The format is in `docs/reference/policy-tests.md`. Read top to bottom:

`documents` (shape) -> `cases` (names resolved, matrices and tables spelled out) -> `run` -> `report`.
"""

from authz.suites.cases import Case, Expected, Suite, load_suites
from authz.suites.run import Coverage, Result, run_case

__all__ = ["Case", "Coverage", "Expected", "Result", "Suite", "load_suites", "run_case"]
