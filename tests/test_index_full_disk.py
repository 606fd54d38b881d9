"""Real limits: files that may not grow, and a disk with some pages left."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("index_full_disk.py")
NO_MOUNT = 77


@pytest.mark.parametrize("kind", ["limit", "disk"])
def test_a_change_that_finds_no_room_does_nothing_and_can_be_tried_again(
    tmp_path: Path, kind: str
) -> None:
    command = [sys.executable, str(SCRIPT), kind, str(tmp_path)]
    if kind == "disk":
        # A name space of its own: what is mounted there goes with the process.
        if not shutil.which("unshare"):
            pytest.skip("no unshare here")
        command = ["unshare", "--user", "--map-root-user", "--mount", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if kind == "disk" and (done.returncode == NO_MOUNT or "unshare failed" in done.stderr):
        pytest.skip("nothing can be mounted here")
    assert done.returncode == 0, done.stderr[-5000:]
    fewest, _ = map(int, done.stdout.split())
    assert fewest >= 1
