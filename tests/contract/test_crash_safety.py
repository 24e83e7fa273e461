"""Kill -9 at any step of init, issue, rotate and revoke: the next start finds a whole CA, and no key is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import crash_walk

ROOT = Path(__file__).resolve().parents[2]
# How many steps there are at least: fewer mean that the walk no longer sees what is done.
STEPS = {
    "init": 50,
    "issue": 40,
    "revoke_certificate": 12,
    "prepare_root": 100,
    "prepare_intermediate": 100,
    "prepare_csr": 40,
    "prepare_answer": 80,
    "activate": 100,
    "retire": 45,
    "taint": 7,
    "revoke": 45,
}


@pytest.mark.parametrize("operation", sorted(crash_walk.OPERATIONS))
def test_every_step(operation: str, tmp_path: Path) -> None:
    """Whichever step was the last one: consistent, recorded, repeatable, and all keys are there."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "crash_walk.py"), operation, str(tmp_path)],
        capture_output=True,
        timeout=300,
        check=False,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert found["steps"] >= STEPS[operation]
