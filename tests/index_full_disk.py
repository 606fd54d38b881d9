"""Change an index where files may not grow, or the disk is nearly full; a process of its own.

    python tests/index_full_disk.py limit|disk FOLDER

Exits with 77 where no small disk can be mounted. Prints how many changes failed, and were whole
when they were tried again.
"""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from index_support import DIM, by_id, held, leftovers, one_line
from test_index_faults_changes import CHANGES, MODEL, OLD, opened_now, searches

from e2rank import Engine, IndexConfig
from e2rank.encoders.hashing import HashingEncoder
from e2rank.index import making

LIMITS = (0, 100, 1000, 4096, 8192, 16_384)
PAGES = range(0, 28, 5)
PAGE = 4096


@contextlib.contextmanager
def small_files(size: int, home: Path) -> Iterator[None]:
    """No file grows beyond `size` bytes; the system says so with an error, as Python asks it to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def full_disk(pages: int, home: Path) -> Iterator[None]:
    """So many pages are left on the disk that `home` is."""
    filler = home / "filler"
    disk = os.statvfs(home)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - pages * PAGE)
    try:
        yield
    finally:
        filler.unlink()


def start(folder: Path) -> None:
    """The index that every change begins with."""
    config = IndexConfig(factory="HNSW8", batch=16)
    with Engine.build(OLD[:40], folder, HashingEncoder(DIM), config) as engine:
        engine.add(OLD[40:])
        engine.delete(["3", "45"])


def struck(home: Path, change: str, limit: contextlib.AbstractContextManager[None]) -> int:
    """1 if the change failed; it did nothing then, and does all when there is room again."""
    steps, after = CHANGES[change]
    folder, new, todo = home / "index", after(), list(steps)
    shutil.copytree(home / "start", folder)
    met = list[OSError]()
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        with limit:
            try:
                while todo:
                    todo[0](engine)
                    del todo[0]
            except OSError as error:
                met.append(error)
        for error in met:
            assert error.errno in (errno.ENOSPC, errno.EFBIG, errno.EIO), error
            one_line(error)
        assert held(engine) == (MODEL if met else new)
        searches(engine, held(engine))
        opened_now(folder, (held(engine),))
        for step in todo:
            step(engine)
        assert held(engine) == new
        engine.add([{"id": "last", "text": "w1"}])
    opened_now(folder, (new | by_id([{"id": "last", "text": "w1", "metadata": {}}]),))
    assert leftovers(folder) == set()
    shutil.rmtree(folder)
    return len(met)


def main() -> None:
    """Every change under every limit."""
    kind, home = sys.argv[1], Path(sys.argv[2])
    if kind == "disk":
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(home)]
        if subprocess.run(mount, capture_output=True).returncode:
            sys.exit(77)
    making.SMALL = 16
    start(home / "start")
    hard = small_files if kind == "limit" else full_disk
    sizes = LIMITS if kind == "limit" else PAGES
    changes = [each for each in CHANGES if each != "repair"]
    failed = {each: sum(struck(home, each, hard(n, home)) for n in sizes) for each in changes}
    sys.stdout.write(f"{min(failed.values())} {sum(failed.values())}\n")


if __name__ == "__main__":
    main()
