"""Damage an index in every way a disk can, and see who notices.

    python tests/index_flips.py FOLDER [MOST LAZY]

Flips the bytes of every file of a small index in turn, of larger files a sample of MOST, or of LAZY
where an open does not read them all; cuts every file short and lets it run on. `damage` must name
the file each time. Prints one line of JSON: for each file how many copies an open refuses, serves
with the right answers, or serves with others. A process of its own, as what reads a damaged file
may end it.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from index_support import EveryEncoder, built, files_in

from e2rank import Engine, IndexConfig
from e2rank.errors import IndexFormatError
from e2rank.index import Manifest, Store, Writer, making
from e2rank.index.manifest import NAME
from e2rank.index.verify import check, damage
from e2rank.where import parse_where

LAZY = (
    *("vectors.npy", "documents.sqlite", "tokens.npy", "token_ends.npy"),
    *("sparse_terms.npy", "sparse_weights.npy", "sparse_ends.npy"),
    *("postings_rows.npy", "postings_weights.npy", "postings_ends.npy"),
)
"""Files that an open does not read whole, as they may be larger than memory. What is damaged in
one of them is found by `damage` and by opening with verify=True; a plain open may serve it."""

TEXT = "late w1 w2 w5"
QUERY = EveryEncoder().encode_queries([TEXT]).vectors
SPARSE = EveryEncoder().sparse_queries([TEXT])
FILTERS = [parse_where({"n": {">": 0}}), parse_where({"n": {"!=": 1}})]


def make(folder: Path) -> None:
    """Two segments, one approximate, with deletions, vectors of every kind and an own adapter."""
    small, making.SMALL = making.SMALL, 4
    try:
        texts = [
            {"id": str(n), "text": f"w{n % 7} w{n % 5}", "metadata": {"n": n % 3}}
            for n in range(24)
        ]
        config = IndexConfig(factory="HNSW8", batch=16)
        built(texts, folder, EveryEncoder(), config)
        with Engine.open(folder, EveryEncoder()) as engine:
            engine.add({"id": f"late{n}", "text": f"late w{n}"} for n in range(5))
            engine.delete(["3", "late1"])
            with Writer(engine.store) as writing:
                writing.put_adapter(_adapter)
                writing.commit()
    finally:
        making.SMALL = small


def _adapter(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter.json").write_text('{"name": "small"}\n', encoding="utf-8")
    (folder / "weights.bin").write_bytes(bytes(range(200)))


def answers(store: Store) -> Any:
    """All that an open index can be asked for."""
    rows = store.rows
    scores, found = store.search(QUERY, 40)
    filtered = [store.where(condition).search(QUERY, 40) for condition in FILTERS]
    return [
        scores.tolist(),
        found.tolist(),
        [[each.tolist() for each in pair] for pair in filtered],
        [(d.id, d.text, dict(d.metadata)) for d in store.documents(rows)],
        store.rows_of(["1", "late2", "3"]),
        store.vectors(rows).tolist(),
        [each.tolist() for each in store.tokens(rows)],
        [each.tolist() for each in store.search_sparse(SPARSE, 40)],
        [store.sparse(rows).terms.tolist(), store.sparse(rows).weights.tolist()],
    ]


def flips(data: bytes, places: Iterable[int], rnd: random.Random) -> Iterator[bytes]:
    """Copies with one byte that differs; of half of them in one bit only."""
    for place in places:
        bits = 1 << rnd.randrange(8) if rnd.random() < 0.5 else rnd.randrange(1, 256)
        yield data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def cuts(data: bytes) -> Iterator[bytes]:
    """Copies that are cut short, and some with bytes after the end."""
    lengths = {0, len(data) - 1, *range(4096, len(data), 4096)}
    yield from (data[:length] for length in sorted(lengths))
    yield from (data + more for more in (b"\0", b"\n", b"x" * 4096))


def seen(folder: Path, name: str, damaged: bytes, right: Any) -> str:
    """Put a damaged file in its place for a moment: "refused", "served" or "differs"."""
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(damaged)
    try:
        _named(folder, name)
        return _served(folder, name, right)
    finally:
        path.write_bytes(whole)


def _named(folder: Path, name: str) -> None:
    """`damage` and an open that verifies notice every damaged file."""
    if name == NAME:
        for read in (Manifest.load, damage, Store.open):
            _refuses(lambda: read(folder))  # noqa: B023 - called at once
    else:
        assert list(damage(folder)) == [name]
        _refuses(lambda: Store.open(folder, verify=True))


def _refuses(call: Any) -> None:
    try:
        call()
    except IndexFormatError as error:
        message = str(error)
    else:
        raise AssertionError("it was opened")
    if "\n" in message or ("damaged" not in message and "manifest" not in message):
        raise AssertionError(f"unclear: {message}")


def _served(folder: Path, name: str, right: Any) -> str:
    try:
        with Store.open(folder) as store:
            same = answers(store) == right
            check(store)
    except IndexFormatError as error:
        return "refused" if "\n" not in str(error) else str(error)
    assert same or name.endswith(LAZY), f"{name} is served, and its answers are wrong"
    return "served" if same else "differs"


def every_flip(folder: Path, eager: int, lazy: int) -> dict[str, dict[str, int]]:
    """What happens for every byte, or for so many of a file that an open reads whole, or not."""
    make(folder)
    with Store.open(folder) as store:
        right = answers(store)
    found = {}
    for name in sorted(files_in(folder)):
        print(name, file=sys.stderr)  # noqa: T201 - the last is the one that ended the process
        data, rnd = (folder / name).read_bytes(), random.Random(name)
        most = lazy if name.endswith(LAZY) else eager
        places = rnd.sample(range(len(data)), min(most, len(data)))
        copies = [*flips(data, places, rnd), *cuts(data)]
        counts = Counter(seen(folder, name, each, right) for each in copies)
        found[name] = {"bytes": len(data), "damaged": len(copies), **counts}
    return found


if __name__ == "__main__":
    most = [int(each) for each in sys.argv[2:]] or [sys.maxsize] * 2
    sys.stdout.write(json.dumps(every_flip(Path(sys.argv[1]) / "index", *most)))
