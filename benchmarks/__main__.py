"""`python -m benchmarks`: measure Garrison, or any other ext_authz server, on this machine.

Exit code 0 when every required ratio holds, 1 when one does not, 2 when the run cannot be finished.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import (
    bench_ca,
    bench_check,
    bench_envoy,
    bench_failures,
    bench_load,
    bench_ratelimit,
    bench_rlqs,
    bench_roles,
    bench_target,
    bench_tokens,
    bench_workers,
)
from benchmarks.report import Section, as_json, failures, render
from benchmarks.run import running
from garrison.errors import GarrisonError
from garrison.transport.address import Address, Scheme

OK, RATIO_MISSED, FAILED = 0, 1, 2

_RESULTS = Path(__file__).parent / "results"
_CPU_INFO = Path("/proc/cpuinfo")
_TARGET_SECONDS = 10.0
# What `--quick` leaves out unless it is asked for by name.
_NOT_QUICK = {"ca", "log", "rlqs", "failures", "workers"}
BENCHMARKS = {
    "check": bench_check.transports,
    "log": bench_check.decision_log,
    "tokens": bench_tokens.tokens,
    "roles": bench_roles.roles,
    "load": bench_load.load,
    "envoy": bench_envoy.envoy,
    "ratelimit": bench_ratelimit.rate_limit,
    "failures": bench_failures.failures,
    "workers": bench_workers.workers,
    "rlqs": bench_rlqs.rlqs,
    "ca": bench_ca.ca,
}


def main(arguments: list[str] | None = None) -> int:
    """Run, print the table, write the JSON; return the exit code."""
    options = _options(arguments)
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"==> {time.monotonic() - begin:5.1f} s  {text}", file=sys.stderr, flush=True)

    try:
        if options.target is not None:
            say(f"loading {options.target}")
            seconds = _TARGET_SECONDS / 5 if options.quick else _TARGET_SECONDS
            sections = [bench_target.target(options.target, seconds)]
        else:
            with running(quick=options.quick, say=say) as run:
                left_out = _NOT_QUICK if options.quick else set()
                names = options.only or [name for name in BENCHMARKS if name not in left_out]
                sections = [BENCHMARKS[name](run) for name in names]
    except (GarrisonError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    machine = _machine()
    print(render(sections, machine))
    file = options.json or _RESULTS / ("target.json" if options.target else "latest.json")
    _write(file, sections, machine, quick=options.quick)
    missed = failures(sections)
    for requirement in missed:
        print(f"error: {requirement}", file=sys.stderr)
    return RATIO_MISSED if missed else OK


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Garrison on this machine, side by side in one run.",
        epilog="Exit codes: 0 every required ratio holds, 1 one does not, 2 the run cannot be finished.",
    )
    parser.add_argument(
        "--target", type=_address, metavar="HOST:PORT", help="load this ext_authz server instead"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where the figures go; by default benchmarks/results/latest.json, or target.json with --target",
    )
    parser.add_argument("--quick", action="store_true", help="under 45 seconds; rougher figures")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="run this one only (repeatable)")
    return parser.parse_args(arguments)


def _address(text: str) -> Address:
    """Return the address that `HOST:PORT`, `tcp://HOST:PORT` or `unix:///PATH` spells."""
    try:
        address = Address.parse(text if "://" in text else f"tcp://{text}")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if address.scheme is Scheme.TLS:
        raise argparse.ArgumentTypeError("the load client has no TLS")
    return address


def _machine() -> dict[str, str]:
    return {
        "machine": f"{_cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "software": f"Python {platform.python_version()}, garrison {version('garrison')}, "
        f"ngh2 {version('ngh2')}, grpcio {version('grpcio')}",
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _cpu_model() -> str:
    text = _CPU_INFO.read_text(encoding="utf-8", errors="replace") if _CPU_INFO.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def _write(file: Path, sections: list[Section], machine: Mapping[str, str], *, quick: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(as_json(sections, machine, quick=quick), indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {file}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
