"""The direction of imports: domains do not know each other, pure modules do no I/O."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import authz
import ca
import garrison
import ratelimit

ROOT = Path(__file__).resolve().parents[2]

# Who may import whom, by first name; `garrison.process` and the CLI sit on top and may import all.
FORBIDDEN = {
    "authz": {"ratelimit", "ca", "garrison.process", "garrison.demo"},
    "ratelimit": {"authz", "ca", "garrison.process", "garrison.demo"},
    "ca": {"authz", "ratelimit", "garrison.process", "garrison.demo"},
    "garrison/transport": {"authz", "ratelimit", "ca", "garrison.process", "garrison.demo"},
    "garrison/documents": {"authz", "ratelimit", "ca", "garrison.process", "garrison.transport"},
    "garrison/telemetry": {"authz", "ratelimit", "ca", "garrison.process"},
}
PURE = [
    "authz/policy",
    "authz/authn",
    "authz/decision.py",
    "authz/destination.py",
    "authz/paths.py",
    "ratelimit/algorithm.py",
    "ratelimit/descriptors.py",
    "ca/template.py",
    "garrison/identity.py",
]
IO_MODULES = {"grpc", "asyncio", "socket", "time", "os", "subprocess", "threading"}


def files(where: str) -> list[Path]:
    """Return the Python files of a folder, or the file itself."""
    path = ROOT / where
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def imports(file: Path) -> Iterator[str]:
    """Yield the full names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def test_domains_do_not_import_each_other() -> None:
    """authz, ratelimit, ca and the shared leaves point one way."""
    for where, forbidden in FORBIDDEN.items():
        for file in files(where):
            for name in imports(file):
                assert not any(name == one or name.startswith(f"{one}.") for one in forbidden), (file, name)


def test_pure_modules_do_no_io() -> None:
    """Decisions, limits and templates are functions of their arguments."""
    for where in PURE:
        for file in files(where):
            assert not {name.partition(".")[0] for name in imports(file)} & IO_MODULES, file


def test_our_packages_are_this_tree() -> None:
    """`authz` and `ratelimit` are also names on the package index; ours win."""
    for package in (authz, ca, garrison, ratelimit):
        assert Path(str(package.__file__)).is_relative_to(ROOT)
