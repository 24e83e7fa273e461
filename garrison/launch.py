"""`launch.py PID PROGRAM ARG…` starts a program that the kernel kills when its starter dies.

A program of its own, because code between fork and exec of a threaded process may deadlock. It imports
nothing of Garrison's, so that it starts in milliseconds (`python -I -S`).
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Ask for SIGKILL on the parent's death, then become the program."""
    starter, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - only Linux needs it

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != starter:  # it died before we asked
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - starting programs is what this does


if __name__ == "__main__":
    main()
