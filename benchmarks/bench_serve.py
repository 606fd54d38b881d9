"""Searches over HTTP, reranked: `e2rank serve` beside handlers that are written by hand.

Each way is a process of its own over the same index; the callers, threads of one more process,
each send the next query when they have the answer to the last. Ways take turns, several rounds of
each, and an idle way takes no core. Callers and servers share the machine's cores.
"""

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bundles import BUNDLES, ensure_bundle
from harness import ROOT, WORK, collection, index_of, rows, save

from e2rank import Engine
from e2rank.evaluate import load_beir

COLLECTION = "scifact"
CALLERS = (1, 4, 16, 64)
ROUNDS, QUERIES = 7, 192
WAYS = ("e2rank serve", "threads", "locked")


@contextmanager
def serving(way: str, index: Path, bundle: list[str | Path]) -> Iterator[tuple[str, int]]:
    """A server, where it is, once it has answered."""
    if way == "e2rank serve":
        options = ["--encoder", *bundle] if bundle else []
        words = ["-m", "e2rank", "serve", index, "--port", "0", *options]
    else:
        words = [ROOT / "benchmarks" / "serve_peer.py", way, index, *bundle]
    with subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _address(process)
        finally:
            process.terminate()


def _address(process: "subprocess.Popen[str]") -> tuple[str, int]:
    said = []
    for line in process.stderr or ():
        said.append(line)
        if where := re.search(r"http://([\d.]+):(\d+)", line):
            return where[1], int(where[2])
    raise RuntimeError("".join(said))


class Callers:
    """So many at a time, until all queries are answered."""

    def __init__(self, address: tuple[str, int], n: int, queries: Sequence[str]) -> None:
        self._address, self._left = address, iter(list(enumerate(queries)))
        self._lock = threading.Lock()
        self.seconds = [0.0] * len(queries)
        self.found: list[list[str]] = [[] for _ in queries]
        threads = [threading.Thread(target=self._call) for _ in range(n)]
        begun = time.perf_counter()
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.rate = len(queries) / (time.perf_counter() - begun)

    def _call(self) -> None:
        connection = http.client.HTTPConnection(*self._address)
        while True:
            with self._lock:
                place, query = next(self._left, (-1, ""))
            if place < 0:
                break
            begun = time.perf_counter()
            connection.request("POST", "/search", json.dumps({"query": query}))
            answer = json.loads(connection.getresponse().read())
            self.seconds[place] = time.perf_counter() - begun
            self.found[place] = [hit["id"] for hit in answer["hits"]]
        connection.close()


def measured(
    addresses: Mapping[str, tuple[str, int]], queries: Sequence[str], expected: list[list[str]]
) -> list[dict[str, Any]]:
    """For each number of callers what each way does, its median of the rounds."""
    found = []
    for n in CALLERS:
        rounds: dict[str, list[Callers]] = {way: [] for way in addresses}
        for turn in range(ROUNDS):
            ways = list(addresses)
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                rounds[way].append(Callers(addresses[way], n, queries))
        for way, calls in rounds.items():
            ms = 1000 * np.array([each.seconds for each in calls])
            same = [each.found[n] == ids for each in calls for n, ids in enumerate(expected)]
            ratios = [a.rate / b.rate for a, b in zip(calls, rounds["threads"], strict=True)]
            found.append(
                {
                    "callers": n,
                    "way": way,
                    "queries/s": float(np.median([each.rate for each in calls])),
                    "against threads": float(np.median(ratios)),
                    "p50 ms": float(np.median(ms)),
                    "p95 ms": float(np.quantile(ms, 0.95)),
                    "hits as the engine's": float(np.mean(same)),
                }
            )
    return found


def main() -> None:
    """Measure, print, save."""
    index = index_of(COLLECTION)
    queries = list(load_beir(collection(COLLECTION), split="test").queries.values())[:QUERIES]
    int8 = BUNDLES / "minilm-int8"
    ensure_bundle("minilm", "int8", int8)
    results: dict[str, Any] = {"collection": COLLECTION, "rounds": ROUNDS, "queries": QUERIES}
    bundles: dict[str, list[str | Path]] = {"torch": [], "int8": [int8]}
    WORK.mkdir(exist_ok=True)
    for name, bundle in bundles.items():
        with Engine.open(index, *bundle) as engine:
            expected = [[hit.id for hit in engine.search(query)] for query in queries]
        with ExitStack() as stack:
            addresses = {way: stack.enter_context(serving(way, index, bundle)) for way in WAYS}
            for address in addresses.values():
                Callers(address, 2, queries[:32])
            results[name] = measured(addresses, queries, expected)
        print(name)
        keys = list(results[name][0])
        table = [
            [f"{v:.3g}" if isinstance(v, float) else str(v) for v in each.values()]
            for each in results[name]
        ]
        rows([keys, *table])
    save("serve", "searches over HTTP, reranked, by so many callers at a time", results)


if __name__ == "__main__":
    main()
