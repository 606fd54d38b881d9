"""Ways to do a thing that take turns, and processes that do it among them."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from encode_peer import OTHERS, PEERS
from harness import ROOT

T = TypeVar("T")
FIRST = "what is a boundary layer"

# Threads of a call before may spin a while, waiting for more work.
SETTLED_S = 0.01


def in_turns(
    calls: Mapping[str, Callable[[T], float]], items: Sequence[T]
) -> dict[str, list[float]]:
    """What every call gives for each item: all take one before the next comes, first in turn."""
    names = list(calls)
    found: dict[str, list[float]] = {name: [] for name in names}
    for place, item in enumerate(items):
        turn = place % len(names)
        for name in names[turn:] + names[:turn]:
            time.sleep(SETTLED_S)
            found[name].append(calls[name](item))
    return found


class Worker:
    """A process that encodes, or searches, in one way; `with` ends it."""

    def __init__(self, name: str, log: Path, script: str = "encode_peer.py") -> None:
        """Start it and wait for the answer to its first query.

        Args:
            name: of the way.
            log: file that what it writes on stderr is added to.
            script: which knows the way.
        """
        self.name, self.log, self.peak_mb = name, log, 0.0
        self.vectors = np.zeros((0, 0))
        """(n, dim) float64 of the first texts of its last call, at most `SHOWN`."""
        python = PEERS if name in OTHERS else sys.executable
        words: list[str | Path] = [python, ROOT / "benchmarks" / script, name]
        begun = time.perf_counter()
        with log.open("a", encoding="utf-8") as errors:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                words, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=errors, text=True
            )
        self.seconds([FIRST])
        self.started_s = time.perf_counter() - begun

    def __enter__(self) -> Self:
        """The worker itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGCONT)
        self._process.communicate()

    def seconds(self, texts: Sequence[str]) -> float:
        """What its way takes with these texts, measured there."""
        to, answers = self._process.stdin, self._process.stdout
        if to is None or answers is None:
            raise RuntimeError(f"{self.name} was started without pipes")
        self._process.send_signal(signal.SIGCONT)
        to.write(json.dumps(list(texts)) + "\n")
        to.flush()
        if not (line := answers.readline()):
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}; see {self.log}")
        # Its idle threads may spin for long, in the way of whoever comes next.
        self._process.send_signal(signal.SIGSTOP)
        seconds, self.peak_mb, vectors = json.loads(line)
        self.vectors = np.array(vectors, dtype=np.float64)
        return float(seconds)
