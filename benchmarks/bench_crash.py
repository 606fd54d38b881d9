"""200 processes killed at random moments while they change an index: what is lost or mixed.

Each round is one process, killed with SIGKILL while it adds, replaces, deletes, commits several
changes at once or compacts; see tests/index_crash.py. The disk is the real one.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from harness import ROOT, WORK, rows, save


def main() -> None:
    """Run, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    asked = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    script = ROOT / "tests" / "index_crash.py"
    options = [str(asked.rounds), str(WORK), "--slow-disk", "--longest", "0.6"]
    done = subprocess.run(
        [sys.executable, script, *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    report: dict[str, Any] = json.loads(done.stdout)
    rows([[name, str(value)] for name, value in report.items()])
    save("crash", "processes killed while they change an index", report)


if __name__ == "__main__":
    main()
