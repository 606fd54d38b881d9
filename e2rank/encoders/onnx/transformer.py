"""The graph of a transformer, fed with batches of token sequences."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from e2rank.encoders.batching import batches, filled, pad
from e2rank.encoders.onnx.sessions import Sessions
from e2rank.encoders.onnx.sparse import SparseGraph
from e2rank.encoders.tokens import Tokens

# A batch of this size keeps a CPU's kernels busy and stays in its cache.
_CPU_TOKENS = 256
_GPU_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class Soft:
    """What prompts of vectors show.

    Args:
        asked: (n, dim) float32 vectors of the queries.
        shown: for each query, the (m, dim) float32 vectors of its documents.
    """

    asked: np.ndarray
    shown: Sequence[np.ndarray]


class Graph:
    """A graph that reads token sequences, and how batches of them are made for this machine."""

    def __init__(self, sessions: Sessions, padding: str) -> None:
        """Feed `sessions`, padding shorter sequences on "left" or "right"."""
        self._sessions, self._padding = sessions, padding
        self.takes, self.gives = sessions.takes, sessions.gives

    def groups(self, texts: Sequence[Tokens]) -> list[list[int]]:
        """Positions of texts by batch, longest first; those of a CPU are each of one length."""
        lengths = [len(each.ids) for each in texts]
        if not self._sessions.on_cpu:
            return batches(lengths, _GPU_TOKENS)
        alike: dict[int, list[int]] = {}
        for place, length in enumerate(lengths):
            alike.setdefault(length, []).append(place)
        made = []
        for length in sorted(alike, reverse=True):
            size = max(1, _CPU_TOKENS // max(length, 1))
            places = alike[length]
            made += [places[start : start + size] for start in range(0, len(places), size)]
        return made

    def run(
        self,
        names: Sequence[str],
        many: Sequence[Sequence[Tokens]],
        soft: Sequence[Soft | None],
        sparse: SparseGraph | None = None,
    ) -> Generator[list[Any], None, None]:
        """The arrays of these names for each batch, several read at a time if there are many.

        With `sparse` the last name is that of its states: in place of this large array stand the
        terms and weights of each text.
        """
        threads, pairs = self._sessions.threads, list(zip(many, soft, strict=True))
        # A call of few batches, such as a query, gives each of them all threads.
        beside = len(many) >= 2 * threads and self._sessions.bulk is not None

        def one(batch: tuple[Sequence[Tokens], Soft | None]) -> list[Any]:
            texts, shown = batch
            feed = self._feed(names, texts, shown)
            keep = names[-1] if sparse is not None else ""
            made: list[Any] = self._sessions.run(names, feed, beside=beside, keep=keep)
            if sparse is not None:
                made[-1] = sparse.rows(texts, made[-1], beside=beside)
            return made

        if not beside:
            yield from map(one, pairs)
            return
        if sparse is not None:
            # Started here, not by several threads at once.
            _ = sparse.sessions.bulk
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(one, pairs)

    def _feed(
        self, names: Sequence[str], texts: Sequence[Tokens], soft: Soft | None
    ) -> dict[str, np.ndarray]:
        side = self._padding
        lengths = np.array([len(each.ids) for each in texts], dtype=np.int64)
        width = int(lengths.max())
        starts = width - lengths if side == "left" else np.zeros_like(lengths)
        feed = {
            "input_ids": pad([each.ids for each in texts], 0, side),
            "attention_mask": filled(lengths, side),
            "position_ids": pad([each.positions for each in texts], 0, side),
            "starts": starts,
            "stops": starts + np.array([each.pooled for each in texts], dtype=np.int64),
            "heads": np.array(any(name != "vectors" for name in names)),
        }
        takes = self._sessions.takes
        if "shown" in takes:
            feed |= _soft_feed(texts, starts, soft, takes["asked"][1])
        return {name: each for name, each in feed.items() if name in takes}


def _soft_feed(
    texts: Sequence[Tokens], starts: np.ndarray, soft: Soft | None, dim: int
) -> dict[str, np.ndarray]:
    """Where soft tokens go, and the vectors they are made of; none at all for plain texts."""
    counts = [len(each.soft) for each in texts]
    columns = [
        start + place for start, each in zip(starts, texts, strict=True) for place in each.soft
    ]
    none = np.zeros((0, dim), dtype=np.float32)
    shown = [none, *(soft.shown if soft else ())]
    asked = soft.asked if soft else np.ones((len(texts), dim), dtype=np.float32)
    return {
        "shown": np.concatenate(shown).astype(np.float32),
        "rows": np.repeat(np.arange(len(texts), dtype=np.int64), counts),
        "columns": np.array(columns, dtype=np.int64),
        "asked": np.asarray(asked, dtype=np.float32),
    }
