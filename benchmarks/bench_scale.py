"""100,000 real texts: peak memory of a build, and how long the index takes to open.

Texts of several collections, repeated under new ids until there are enough, go through the
hashing encoder, so that what is measured is the index and not a model. Every size is built and
opened in a process of its own.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from harness import WORK, collection, rows, save

from e2rank import Document, Engine, read_corpus

NAMES = ("cranfield", "medquad", "squad-dev-passages", "scifact", "nfcorpus", "vaswani")
SIZES = (25_000, 50_000, 100_000)
FOLDER = WORK / "scale"


def texts() -> Iterator[Document]:
    """Every document of every collection, over and over, each time under a new id."""
    for number, name in enumerate(cycle(NAMES)):
        for document in read_corpus(collection(name)):
            yield Document(f"{number}-{document.id}", document.text, document.title)


def peak() -> float:
    """The most memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(size: int) -> dict[str, Any]:
    """Build one index; its process's peak memory before and after."""
    empty = FOLDER.with_name("scale-warm")
    Engine.build(islice(texts(), 100), empty, "hashing").close()
    shutil.rmtree(empty)
    before, began = peak(), time.perf_counter()
    characters = 0

    def counted() -> Iterator[Document]:
        nonlocal characters
        for document in islice(texts(), size):
            characters += len(document.body)
            yield document

    Engine.build(counted(), FOLDER, "hashing", overwrite=True).close()
    seconds = time.perf_counter() - began
    return {
        "documents": size,
        "text_mb": characters / 1e6,
        "vectors_mb": (FOLDER / "segments" / "000001" / "vectors.npy").stat().st_size / 1e6,
        "peak_before_mb": before,
        "peak_mb": peak(),
        "build_s": seconds,
    }


def opened() -> dict[str, Any]:
    """Seconds to open the index and to answer one query."""
    Engine("hashing")
    began = time.perf_counter()
    with Engine.open(FOLDER) as engine:
        seconds = time.perf_counter() - began
        engine.search("heat transfer in a boundary layer", rerank=False)
        return {"open_s": seconds, "first_answer_s": time.perf_counter() - began}


def child(*arguments: str) -> dict[str, Any]:
    """What this script prints when it is run with `arguments`."""
    words = [sys.executable, str(Path(__file__)), *arguments]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


def main() -> None:
    """Build and open every size; print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--build", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build or options.open:
        print(json.dumps(build(options.build) if options.build else opened()))
        return
    for name in NAMES:
        collection(name)
    results = []
    for size in SIZES:
        shutil.rmtree(FOLDER, ignore_errors=True)
        fields = child("--build", str(size))
        opens = [child("--open") for _ in range(5)]
        for name in ("open_s", "first_answer_s"):
            fields[name] = statistics.median(each[name] for each in opens)
        results.append(fields)
    shutil.rmtree(FOLDER)
    names = list(results[0])
    rows([names, *([f"{each[name]:.3f}" for name in names] for each in results)])
    save("scale", "memory of a build and time to open, hashing encoder, Flat", results)


if __name__ == "__main__":
    main()
