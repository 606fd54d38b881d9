"""Kill a process at random moments while it changes an index, and look at what is left.

    python tests/index_crash.py ROUNDS FOLDER [--seed N] [--slow-disk]

A round forks a process that changes the index step after step, kills it with SIGKILL, and compares
the index with a dict: it must be that of the last finished step, or of the one under way. The next
round goes on from there. Prints one line of JSON; an assertion fails where a document is lost or
two states are mixed.
"""

import argparse
import json
import logging
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from index_support import DIM, Model, applied, apply, by_id, document, held, leftovers, steps, whole

from e2rank import Engine, IndexConfig
from e2rank.encoders.hashing import HashingEncoder
from e2rank.index import Manifest, dense, finish, making, writer
from e2rank.index.files import LOCK
from e2rank.index.staging import Staging

FACTORIES = ("Flat", "HNSW8")
STAGES = (
    "elsewhere",
    "begin",
    "staging",
    "table",
    "faiss",
    "after faiss",
    "manifest",
    "before cleaning",
    "cleaning",
)
AIMED = ("table", "faiss", "after faiss", "manifest", "before cleaning", "cleaning")


class Stage:
    """What a process is doing, in memory that outlives it."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 2)

    def set(self, name: str) -> None:
        self._byte[0] = STAGES.index(name)

    def get(self) -> str:
        return STAGES[self._byte[0]]

    def during(self, name: str, call: Callable[..., Any], after: str) -> Callable[..., Any]:
        """`call`, told when it begins and when it has ended."""

        def told(*arguments: Any, **options: Any) -> Any:
            self.set(name)
            result = call(*arguments, **options)
            self.set(after)
            return result

        return told


def watched(stage: Stage) -> list[Any]:
    """Patches that say which part of a change is under way."""
    save = stage.during("manifest", Manifest.save, "before cleaning")
    return [
        patch.object(Staging, "begin", stage.during("begin", Staging.begin, "staging")),
        patch.object(finish, "write_table", stage.during("table", finish.write_table, "staging")),
        patch.object(dense, "build", stage.during("faiss", dense.build, "after faiss")),
        patch.object(Manifest, "save", save),
        patch.object(writer, "clean", stage.during("cleaning", writer.clean, "elsewhere")),
    ]


def work(folder: Path, todo: list[Any], done: int, pipe: int, stage: Stage) -> None:
    """Take step after step from the index's state after `done` steps; ends only by being killed."""
    engine = Engine.open(folder, HashingEncoder(DIM))
    for number in range(done, len(todo)):
        os.write(pipe, b"begin %d\n" % number)
        apply(engine, todo[number])
        stage.set("elsewhere")
        os.write(pipe, b"end %d\n" % number)


def killed(
    folder: Path, todo: list[Any], done: int, rnd: random.Random, stage: Stage, longest: float
) -> tuple[int, str, str]:
    """One life and death. Gives the steps finished, the kind of step under way, and the stage."""
    read, write = os.pipe()
    stage.set("elsewhere")
    if (child := os.fork()) == 0:
        try:
            os.close(read)
            work(folder, todo, done, write, stage)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    os.close(write)
    heard = os.read(read, 100)
    wait(rnd, stage, longest)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the process ended before it was killed"
    while more := os.read(read, 65_536):
        heard += more
    os.close(read)
    lines = heard.decode().splitlines()
    finished = done + sum(line.startswith("end") for line in lines)
    under_way = lines[-1].startswith("begin")
    kind = todo[finished][0][0] if under_way and len(todo[finished]) == 1 else "several"
    return finished, kind if under_way else "none", stage.get()


def wait(rnd: random.Random, stage: Stage, longest: float) -> None:
    """Until the moment to kill: any, or one within a part of a change that takes no time."""
    if rnd.random() < 0.5:
        time.sleep(rnd.random() * longest)
        return
    aim, until = rnd.choice(AIMED), time.monotonic() + 5 * longest
    while stage.get() != aim and time.monotonic() < until:
        time.sleep(0.0001)
    time.sleep(rnd.random() * 0.004)


def run(rounds: int, home: Path, seed: int, longest: float) -> dict[str, Any]:
    """So many rounds, over indexes of each factory; `longest` seconds until a kill."""
    kills: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    undone = 0
    for factory in FACTORIES:
        rnd = random.Random(f"{factory} {seed}")
        folder, stage = home / factory, Stage()
        documents = [document(each, rnd) for each in range(60)]
        config = IndexConfig(factory=factory, batch=16)
        Engine.build(documents, folder, HashingEncoder(DIM), config).close()
        todo = list(islice(steps(seed), 50 * rounds))
        model, done = by_id(documents), 0
        for _ in range(rounds // len(FACTORIES)):
            before = done
            with_patches = watched(stage)
            for each in with_patches:
                each.start()
            done, kind, where = killed(folder, todo, done, rnd, stage, longest)
            for each in with_patches:
                each.stop()
            for number in range(before, done):
                model = applied(model, todo[number])
            model, took_place = checked(folder, model, todo[done], rnd, exact=factory == "Flat")
            kills[kind] += 1
            stages[where if kind != "none" else "between two changes"] += 1
            undone += kind != "none" and not took_place
            done += took_place
        finish_up(folder)
    return {
        "rounds": sum(kills.values()),
        "kills_during": dict(kills),
        "kills_at": dict(stages),
        "undone": undone,
        "losses": 0,
        "mixes": 0,
    }


def checked(
    folder: Path, model: Model, step: Any, rnd: random.Random, *, exact: bool
) -> tuple[Model, bool]:
    """The state that is there, and whether the step under way took place."""
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        found, after = held(engine), applied(model, step)
        took_place = found != model
        assert found in (model, after), f"{folder}: neither the last commit nor the next"
        whole(engine, found, rnd, exact=exact)
    return found, took_place


def finish_up(folder: Path) -> None:
    """After one more commit nothing is left of all the killed processes."""
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        engine.add([{"id": "last", "text": "w1"}])
    assert leftovers(folder) == set()
    assert not (folder / LOCK).exists()


def main() -> None:
    """Read arguments, run, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=float, default=0.1)
    parser.add_argument("--slow-disk", action="store_true")
    asked = parser.parse_args()
    logging.getLogger("e2rank").setLevel(logging.ERROR)
    # Approximate segments and merges, with few documents.
    making.SMALL = 30
    if not asked.slow_disk:
        os.fsync = lambda handle: None  # a killed process loses nothing that it has written
    with tempfile.TemporaryDirectory(dir=asked.folder) as home:
        sys.stdout.write(json.dumps(run(asked.rounds, Path(home), asked.seed, asked.longest)))


if __name__ == "__main__":
    main()
