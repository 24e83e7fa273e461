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
TOP = {"garrison.process", "garrison.demo", "garrison.distribution", "garrison.cli"}
SERVING = {
    "authz.askers",
    "authz.bundles",
    "authz.pipeline",
    "authz.providers",
    "authz.response",
    "authz.service",
    "authz.authenticators",
    "authz.snapshot",
}
TOOLS = {"authz.lint", "authz.suites", "authz.tools", "authz.schema"}
FORBIDDEN = {
    "authz": {"ratelimit", "ca", *TOP},
    "ratelimit": {"authz", "ca", *TOP},
    "ca": {"authz", "ratelimit", *TOP},
    "garrison/transport": {"authz", "ratelimit", "ca", *TOP},
    "garrison/documents": {"authz", "ratelimit", "ca", "garrison.transport", *TOP},
    "garrison/telemetry": {"authz", "ratelimit", "ca", *TOP},
    "garrison/answers.py": {"authz", "ratelimit", "ca", "garrison.transport", *TOP},
    "garrison/certificate_paths.py": {"authz", "ratelimit", "ca", "garrison.transport", *TOP},
    "garrison/fetching.py": {"authz", "ratelimit", "ca", "garrison.transport", *TOP},
    "garrison/keys": {"authz", "ratelimit", "ca", "garrison.transport", *TOP},
    "garrison/private_files.py": {"authz", "ratelimit", "ca", "garrison.transport", *TOP},
    "garrison/redis_address.py": {"authz", "ratelimit", "ca", "garrison.transport", *TOP},
    "garrison/refreshing.py": {"authz", "ratelimit", "ca", "garrison.transport", *TOP},
    "garrison/run_folder.py": {"authz", "ratelimit", "ca", "garrison.transport", *TOP},
    "garrison/token_review.py": {"authz", "ratelimit", "ca", "garrison.transport", *TOP},
    "garrison/distribution": {"ratelimit", "ca", "garrison.process", "garrison.demo", "garrison.cli"},
    # Inside authz: what decides knows neither who asks it nor the tools, and Mixer and Casbin not each other.
    "authz/policy": SERVING | TOOLS,
    "authz/mixer": SERVING | TOOLS | {"authz.casbin_policy"},
    "authz/casbin_policy": SERVING | TOOLS | {"authz.mixer"},
    # Who knows credentials is asked, and knows nothing of what is decided.
    "authz/authenticators": (SERVING - {"authz.authenticators"}) | TOOLS | {"authz.policy"},
    "authz/authn": SERVING | TOOLS | {"authz.policy", "authz.mixer", "authz.casbin_policy"},
    "authz/lint": SERVING | {"authz.suites", "authz.tools"},
}
PURE = [
    "authz/askers.py",
    "authz/attributes.py",
    "authz/authn",
    "authz/casbin_policy",
    "authz/decision.py",
    "authz/destination.py",
    "authz/environment.py",
    "authz/kinds.py",
    "authz/lint",
    "authz/mixer",
    "authz/paths.py",
    "authz/patterns.py",
    "authz/pipeline.py",
    "authz/policy",
    "authz/rate_limits.py",
    "authz/response.py",
    "ca/agent/schedule.py",
    "ca/api/evidence.py",
    "ca/attestors",
    "ca/audit.py",
    "ca/budget.py",
    "ca/bundle.py",
    "ca/der.py",
    "ca/entitlement.py",
    "ca/federation.py",
    "ca/inspection.py",
    "ca/jwt_keys.py",
    "ca/jwt_svid.py",
    "ca/key_encryption.py",
    "ca/ledger.py",
    "ca/registration.py",
    "ca/renewal.py",
    "ca/rotation.py",
    "ca/signing.py",
    "ca/template.py",
    "garrison/certificate_paths.py",
    "garrison/distribution/announcement.py",
    "garrison/distribution/bundle.py",
    "garrison/identity.py",
    "garrison/limit_lint.py",
    "garrison/keys",
    "garrison/pauses.py",
    "garrison/urls.py",
    "ratelimit/algorithm.py",
    "ratelimit/bucket_ids.py",
    "ratelimit/charge.py",
    "ratelimit/counters.py",
    "ratelimit/descriptors.py",
    "ratelimit/patterns.py",
    "ratelimit/quota_shares.py",
    "ratelimit/quotas.py",
    "ratelimit/request.py",
    "ratelimit/response.py",
    "ratelimit/rlqs_messages.py",
    "ratelimit/store/leases.py",
    "ratelimit/store/refusals.py",
    "ratelimit/store/wire.py",
    "ratelimit/tree.py",
    "ratelimit/zones.py",
]
# Where pure packages meet the world: lists from URLs; the files and stores that a CasbinPolicy names.
EDGES = {
    "garrison/keys/cache.py",
    "garrison/keys/refresher.py",
    "authz/casbin_policy/sources.py",
    "authz/mixer/refresher.py",
}
IO_MODULES = {
    "asyncio",
    "grpc",
    "os",
    "random",
    "redis",
    "secrets",
    "socket",
    "ssl",
    "structlog",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "watchfiles",
}
IO_PARTS = {"http.client", "urllib.request"}  # of packages whose other parts are harmless


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
    """Decisions, limits and templates are functions of their arguments: no I/O, clock, chance or log."""
    for where in PURE:
        for file in files(where):
            if str(file.relative_to(ROOT)) not in EDGES:
                found = set(imports(file))
                assert not {name.partition(".")[0] for name in found} & IO_MODULES, file
                assert not found & IO_PARTS, file


def test_what_is_named_here_exists() -> None:
    """A folder or file that was renamed does not drop out of these tests unseen."""
    for where in (*FORBIDDEN, *PURE, *EDGES):
        assert files(where), where
        assert (ROOT / where).exists(), where


def test_our_packages_are_this_tree() -> None:
    """`authz` and `ratelimit` are also names on the package index; ours win."""
    for package in (authz, ca, garrison, ratelimit):
        assert Path(str(package.__file__)).is_relative_to(ROOT)
