"""What a search costs beside its model and the scan of all rows: both are timed inside it."""

import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from harness import collection, index_of, save

from e2rank import Engine
from e2rank.encoders import Encoder, Encoding
from e2rank.evaluate import load_beir
from e2rank.index.exact import nearest

ROUNDS = 5


class Clock:
    """Adds up the seconds spent in the calls that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed."""

        def wrapped(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return wrapped


class Timed:
    """An encoder whose work is timed."""

    def __init__(self, encoder: Encoder, clock: Clock) -> None:
        self.name, self.fingerprint = encoder.name, encoder.fingerprint
        self.contract = encoder.contract
        self._encoder, self._clock = encoder, clock

    def encode_queries(self, texts: Sequence[str]) -> Encoding:
        encoded: Encoding = self._clock.timed(self._encoder.encode_queries)(texts)
        return encoded

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        return self._encoder.encode_documents(texts)

    def encode_prompts(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]]
    ) -> Encoding:
        return self._encoder.encode_prompts(queries, documents)


def measured(
    engine: Engine, queries: Sequence[str], clocks: dict[str, Clock]
) -> dict[str, list[float]]:
    """Milliseconds of every search, of what the clocks time in it, and of the rest."""
    parts: dict[str, list[float]] = {name: [] for name in ("total", *clocks, "overhead")}
    for query in queries:
        for clock in clocks.values():
            clock.seconds = 0.0
        began = time.perf_counter()
        engine.search(query, rerank=False)
        total = time.perf_counter() - began
        inside = {name: clock.seconds for name, clock in clocks.items()}
        for name, seconds in (inside | {"total": total}).items():
            parts[name].append(1000 * seconds)
        parts["overhead"].append(1000 * (total - sum(inside.values())))
    return parts


def main() -> None:
    """300 queries over SciFact's 5,183 abstracts, five times, after a warm-up."""
    clocks = {"encode": Clock(), "scan": Clock()}
    queries = list(load_beir(collection("scifact")).queries.values())
    opened = Engine.open(index_of("scifact"))
    engine = Engine(Timed(opened.encoder, clocks["encode"]), opened.store)
    with patch("e2rank.index.segment.nearest", clocks["scan"].timed(nearest)):
        measured(engine, queries[:20], clocks)
        parts = measured(engine, queries * ROUNDS, clocks)
    results: dict[str, Any] = {"documents": len(engine), "searches": len(parts["total"]), "k": 10}
    for name, values in parts.items():
        results[f"{name}_ms"] = {f"p{at}": float(np.percentile(values, at)) for at in (50, 95)}
        print(f"{name:9} p50 {np.median(values):.3f} ms")
    save("overhead", "milliseconds of search(rerank=False), and of its parts", results)


if __name__ == "__main__":
    main()
