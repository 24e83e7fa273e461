"""Results as text, JSON and JUnit XML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from authz.suites.run import Coverage, Result
from authz.tools.requests import decision_json, explanation_text

# XML 1.0, section 2.2: what it cannot hold, even escaped.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text_report(results: Sequence[Result], *, verbose: bool) -> Iterable[str]:
    """Yield lines: failures with the whole explanation, with `verbose` the cases that passed, too."""
    for result in results:
        if result.passed and not verbose:
            continue
        yield f"{'PASS' if result.passed else 'FAIL'} {result.case.title} ({result.case.where})"
        yield from (f"  {failure}" for failure in result.failures)
        yield from (f"  note: {remark}" for remark in result.remarks)
        yield from (f"  | {line}" for line in explanation_text(result.explanation).splitlines())
    failed = sum(1 for result in results if not result.passed)
    yield f"{len(results) - failed} passed, {failed} failed"


def coverage_report(coverage: Coverage) -> Iterable[str]:
    """Yield the rules that no case made match, and how many did."""
    for (file, title, rule), line in coverage.missed:
        yield f"{file}:{line}: {title} rule {rule} is matched by no case"
    # Rounded down: 100 means all.
    tenths = coverage.covered * 1000 // coverage.total if coverage.total else 1000
    yield f"coverage: {coverage.covered} of {coverage.total} rules, {tenths // 10}.{tenths % 10} %"


def json_report(results: Sequence[Result], coverage: Coverage | None) -> dict[str, Any]:
    """Return everything as JSON data."""
    report: dict[str, Any] = {
        "passed": sum(1 for result in results if result.passed),
        "failed": sum(1 for result in results if not result.passed),
        "cases": [
            {
                "suite": result.case.suite,
                "name": result.case.name,
                "where": result.case.where,
                "passed": result.passed,
                "failures": list(result.failures),
                "notes": list(result.remarks),
                **decision_json(result.explanation.decision),
            }
            for result in results
        ],
    }
    if coverage is not None:
        report["coverage"] = {
            "rules": coverage.total,
            "covered": coverage.covered,
            "missed": [
                {"file": file, "line": line, "policy": title, "rule": rule}
                for (file, title, rule), line in coverage.missed
            ],
        }
    return report


def junit_report(results: Sequence[Result]) -> bytes:
    """Return JUnit XML with a `testsuite` for each suite."""
    root = ET.Element("testsuites", name="garrison test")
    suites: dict[str, list[Result]] = {}
    for result in results:
        suites.setdefault(result.case.suite, []).append(result)
    for name, members in suites.items():
        failed = sum(1 for result in members if not result.passed)
        suite = ET.SubElement(
            root, "testsuite", name=_xml(name), tests=str(len(members)), failures=str(failed), errors="0"
        )
        for result in members:
            case = ET.SubElement(suite, "testcase", name=_xml(result.case.name), classname=_xml(name))
            if not result.passed:
                failure = ET.SubElement(case, "failure", message=_xml("; ".join(result.failures)))
                failure.text = _xml(f"{result.case.where}\n{explanation_text(result.explanation)}")
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
