"""What is allowed in policies and probably not meant: everything `garrison lint` says beyond load errors.

Works on documents that compile, and on what they compile to: `places` leads from a compiled rule back to its
line, `implication` says which conditions follow from which, `values` looks at single patterns, `reach` at
rules, `relations` at documents among each other. Sound before complete: where it is not certain that
something has no effect, nothing is said. `docs/lint.md` explains every code.
"""

from __future__ import annotations

from collections.abc import Sequence

from authz.lint import reach, relations, values
from authz.lint.places import Findings, Places
from authz.policy.compile import MeshSettings
from authz.policy.rules import PolicySet
from garrison.documents import Diagnostic, Document


def lint_policies(documents: Sequence[Document], mesh: MeshSettings, policies: PolicySet) -> list[Diagnostic]:
    """Return warnings about `documents`, from which `policies` were compiled without an error."""
    places = Places(documents)
    findings = Findings(places)
    values.look(findings, policies, mesh)
    reach.look(findings, policies)
    relations.look(findings, places, policies)
    return findings.diagnostics


__all__ = ["lint_policies"]
