"""One process changes an index for a minute, eight others read it: errors and torn reads.

Every snapshot a reader takes up is compared with what the changes up to its commit must have made;
see tests/index_concurrent.py.
"""

import argparse
import tempfile
from typing import Any

from harness import WORK, rows, save, tested


def main() -> None:
    """Run, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--readers", type=int, default=8)
    asked = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        report: dict[str, Any] = tested(
            "index_concurrent.py", str(asked.seconds), str(asked.readers), folder
        )
    rows([[name, str(value)] for name, value in report.items()])
    save("concurrent", "one process changes an index, others read it", report)


if __name__ == "__main__":
    main()
