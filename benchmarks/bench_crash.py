"""200 processes killed at random moments while they change an index: what is lost or mixed.

Each round is one process, killed with SIGKILL while it adds, replaces, deletes, commits several
changes at once or compacts; see tests/index_crash.py. The disk is the real one.
"""

import argparse
from typing import Any

from harness import WORK, rows, save, tested


def main() -> None:
    """Run, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    asked = parser.parse_args()
    options = [str(asked.rounds), str(WORK), "--slow-disk", "--longest", "0.6"]
    report: dict[str, Any] = tested("index_crash.py", *options)
    rows([[name, str(value)] for name, value in report.items()])
    save("crash", "processes killed while they change an index", report)


if __name__ == "__main__":
    main()
