"""Every byte of a small index flipped in turn, every file cut short: who notices.

Of documents.sqlite, which is mostly empty, a seeded sample of --lazy bytes is flipped.

`refused`: a plain open, or what is asked of it, ends in an error that says which file is damaged.
`served`: the byte is part of no answer. `differs`: a plain open gives other answers; this happens
only in files that may be larger than memory and are not read when they are opened. All of these
copies are named by `e2rank verify`, and refused by an open with verify=True. See
tests/index_flips.py.
"""

import argparse
import sys
import tempfile
from typing import Any

from harness import WORK, rows, save, tested

COLUMNS = ("bytes", "damaged", "refused", "served", "differs")


def main() -> None:
    """Run, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lazy", type=int, default=2000)
    asked = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        report: dict[str, dict[str, Any]] = tested(
            "index_flips.py", folder, str(sys.maxsize), str(asked.lazy)
        )
    total = {name: sum(each.get(name, 0) for each in report.values()) for name in COLUMNS}
    table = {**report, "all": total}
    cells = [[name, *(str(each.get(c, 0)) for c in COLUMNS)] for name, each in table.items()]
    rows([["file", *COLUMNS], *cells])
    save("flips", "damaged copies of each file of an index", {"files": report, "all": total})


if __name__ == "__main__":
    main()
