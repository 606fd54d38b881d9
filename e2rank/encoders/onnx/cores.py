"""How many cores this process may use, and how many threads it may ask for."""

import contextlib
import math
import os
from numbers import Integral
from pathlib import Path
from typing import Any

_GROUPS = Path("/sys/fs/cgroup")

# Threads that spin while they wait take the cores from those that work: thousands never end. What
# a configuration says for a larger machine is taken on a small one, too.
_THREADS = max(64, 4 * (os.cpu_count() or 1))


def checked_threads(threads: Any) -> int:
    """The number, if it is one and this machine would end with so many.

    Raises:
        ValueError: if not.
    """
    # True is a whole number to Python.
    whole = isinstance(threads, Integral) and not isinstance(threads, bool)
    if not whole or not 1 <= int(threads) <= _THREADS:
        raise ValueError(
            f"threads is {threads!r}; it must be a whole number from 1 to {_THREADS}: more would "
            "only wait for each other on this machine"
        )
    return int(threads)


def usable_cores(groups: Path = _GROUPS) -> int:
    """The least of the cores it may run on, its container's quota and OMP_NUM_THREADS.

    Args:
        groups: where the system's control groups are mounted.
    """
    # macOS does not say where a process may run.
    bound = hasattr(os, "sched_getaffinity")
    own = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    found = [own, _quota(groups)]
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
