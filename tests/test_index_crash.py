"""A process that is killed while it changes an index loses nothing and mixes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

CRASH = Path(__file__).with_name("index_crash.py")


def test_a_killed_writer_leaves_one_commit_or_the_next(tmp_path: Path) -> None:
    # A process of its own: it forks, and has no threads that a fork would leave behind.
    done = subprocess.run(
        [sys.executable, str(CRASH), "16", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-5000:]
    report = json.loads(done.stdout)
    assert (report["rounds"], report["losses"], report["mixes"]) == (16, 0, 0)
    # Most of them meet a change, and not all the same part of one.
    inside = {name: n for name, n in report["kills_at"].items() if name != "between two changes"}
    assert sum(inside.values()) >= 8
    assert len(inside) >= 3
    assert "Traceback" not in done.stderr
