"""How many cores this process may use."""

import contextlib
import math
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def usable_cores(groups: Path = _GROUPS) -> int:
    """The least of the cores it may run on, its container's quota and OMP_NUM_THREADS.

    Args:
        groups: where the system's control groups are mounted.
    """
    found = [len(os.sched_getaffinity(0)), _quota(groups)]
    asked = os.environ.get("OMP_NUM_THREADS", "").strip()
    if asked.isascii() and asked.isdigit() and int(asked):
        found.append(int(asked))
    return math.ceil(min(found))


def _quota(groups: Path) -> float:
    """Cores' worth of time that a container may use; infinity if there is no limit, or none said.

    A quota of 1.5 cores is two threads' work, a little of it held back.
    """
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = _said(groups)
        if quota > 0:
            return quota / period
    return math.inf


def _said(groups: Path) -> tuple[int, int]:
    """Microseconds a period may have, and those of a period; the second version's file first."""
    if (file := groups / "cpu.max").is_file():
        quota, period = file.read_text(encoding="ascii").split()
        return int(quota), int(period)
    folder = groups / "cpu"
    quota, period = (
        (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
    )
    return int(quota), int(period)
