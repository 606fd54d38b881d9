"""One process changes an index and searches it; others read it all the while.

    python tests/index_concurrent.py SECONDS READERS FOLDER

Every commit holds a document that says its number, so a reader knows what else must be there.
Prints one line of JSON.
"""

import itertools
import json
import logging
import os
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from index_support import (
    DIM,
    FILTERS,
    WORDS,
    Model,
    agrees,
    applied,
    apply,
    by_id,
    document,
    held,
    leftovers,
    steps,
)

from e2rank import Engine, IndexConfig
from e2rank.encoders.hashing import HashingEncoder
from e2rank.index import making
from e2rank.index.verify import check

SEED = 7
CLOCK = "clock"


def numbered(number: int) -> list[dict[str, Any]]:
    """The document that says how many steps were taken."""
    return [{"id": CLOCK, "text": f"clock {number}", "metadata": {"steps": number}}]


def states() -> Any:
    """The dict after each step, from the first build on."""
    rnd = random.Random(SEED)
    model = by_id([*(document(each, rnd) for each in range(100)), *numbered(0)])
    yield [], model
    for number, step in enumerate(steps(SEED), 1):
        whole = [("add", numbered(number)), *step]
        model = applied(model, whole)
        yield whole, model


def change(folder: Path, until: float) -> dict[str, int]:
    """Take step after step, and search with the same engine in a thread."""
    stop, counts, errors = threading.Event(), Counter[str](), list[BaseException]()
    with Engine.open(folder, HashingEncoder(DIM)) as engine:

        def search() -> None:
            rnd = random.Random(0)
            try:
                while not stop.is_set():
                    for hit in engine.search(" ".join(rnd.choices(WORDS, k=3)), rerank=False):
                        own = engine.encoder.encode_documents([hit.text]).vectors[0]
                        asked = engine.encoder.encode_queries([hit.text]).vectors[0]
                        assert abs(float(own @ asked) - 1) < 1e-5
                    counts["searches beside the writer"] += 1
                    time.sleep(0.01)
            except BaseException as error:
                traceback.print_exc()
                errors.append(error)

        thread = threading.Thread(target=search)
        thread.start()
        for whole, model in itertools.islice(states(), 1, None):
            if time.time() > until or errors:
                break
            apply(engine, whole)
            counts["commits"] += 1
            counts[whole[-1][0]] += 1
            assert len(engine) == len(model)
        stop.set()
        thread.join()
        assert not errors
        counts["segments at the end"] = len(engine.store.segments)
    assert leftovers(folder) == set()
    return dict(counts)


def read(folder: Path, until: float, number: int) -> dict[str, int]:
    """Follow the commits, and compare each snapshot with what the steps make."""
    rnd, counts, coming = random.Random(number), Counter[str](), states()
    exact = True
    steps_taken, (_, model) = 0, next(coming)
    with Engine.open(folder, HashingEncoder(DIM), read_only=True) as engine:
        exact = engine.store.manifest.config["factory"] == "Flat"
        last = 0
        while time.time() < until:
            newer = engine.refresh()
            commit = engine.store.manifest.commit
            assert commit > last if newer else commit >= last, "commits go back"
            last = commit
            (row,) = engine.store.rows_of([CLOCK]).values()
            at = engine.store.documents([row])[0].metadata["steps"]
            while steps_taken < at:
                steps_taken, (_, model) = steps_taken + 1, next(coming)
            assert steps_taken == at, "steps go back"
            followed(engine, model, rnd, exact=exact)
            counts.update({"refreshes": 1, "newer": int(newer), "searches": 2})
    return dict(counts)


def followed(engine: Engine, model: Model, rnd: random.Random, *, exact: bool) -> None:
    """One snapshot is one commit, whole, while others are made."""
    assert len(engine) == len(model)
    for where in rnd.sample(FILTERS, 2):
        agrees(engine, model, " ".join(rnd.choices(WORDS, k=3)), where=where, exact=exact)
    if rnd.random() < 0.2:
        assert held(engine) == model
        check(engine.store)


def apart(work: Callable[[], dict[str, int]], report: Path) -> int:
    """Do it in a process of its own, which leaves its counts in a file."""
    if child := os.fork():
        return child
    try:
        report.write_text(json.dumps(work()), encoding="utf-8")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def main() -> None:
    """One index of each factory, half of the time for each."""
    seconds, readers, home = float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    logging.getLogger("e2rank").setLevel(logging.ERROR)
    making.SMALL = 60
    os.fsync = lambda handle: None  # the power stays on, and there are more commits
    total: Counter[str] = Counter()
    for factory in ("Flat", "HNSW8"):
        folder = home / factory
        _, model = next(states())
        config = IndexConfig(factory=factory, batch=64)
        Engine.build(model.values(), folder, HashingEncoder(DIM), config).close()
        until = time.time() + seconds / 2
        works = [lambda at=folder, end=until: change(at, end)]
        works += [
            lambda at=folder, end=until, n=number: read(at, end, n) for number in range(readers)
        ]
        children = [apart(each, home / f"{number}") for number, each in enumerate(works)]
        ended = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children]
        if any(ended):
            sys.exit(f"processes ended with {ended}")
        for number in range(len(works)):
            total.update(json.loads((home / f"{number}").read_text(encoding="utf-8")))
    sys.stdout.write(json.dumps({"seconds": seconds, "readers": readers, **total, "errors": 0}))


if __name__ == "__main__":
    main()
