"""Sessions of onnxruntime: started as asked or not at all, and fed with batches."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.encoders.batching import batches, pad
from e2rank.encoders.onnx.bundle import BundleError
from e2rank.encoders.tokens import Tokens
from e2rank.errors import MissingExtra

CPU = "CPUExecutionProvider"

# A batch of this size keeps a CPU's kernels busy and stays in its cache.
_CPU_TOKENS = 512
_GPU_TOKENS = 65_536

# A second session reads batches beside each other, where its weights are cheap to hold twice.
_TWICE = 500_000_000

# Two additions and a normalisation take a ninth of the time of the one node made of them.
_SLOWER_ON_CPU = ["SkipLayerNormFusion"]


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
    """One graph of a bundle, and how it is run on this machine."""

    def __init__(self, path: Path, *, provider: str, threads: int | None, padding: str) -> None:
        """Start it.

        Args:
            path: the graph.
            provider: onnxruntime's name of what runs it.
            threads: of a CPU; None takes one for each core this process may use.
            padding: "left" or "right".
        Raises:
            ValueError: if onnxruntime here does not have the provider.
            BundleError: if onnxruntime does not read the graph.
            MissingExtra: if onnxruntime is not installed.
        """
        self._path, self._provider, self._padding = path, provider, padding
        self._threads = threads or len(os.sched_getaffinity(0))
        self._on_cpu = provider == CPU
        self._one = self._session(self._threads)
        self._takes = {each.name for each in self._one.get_inputs()}
        self.gives = tuple(each.name for each in self._one.get_outputs())

    def groups(self, texts: Sequence[Tokens]) -> list[list[int]]:
        """Positions of texts by batch, longest first; those of a CPU are each of one length."""
        lengths = [len(each.ids) for each in texts]
        if not self._on_cpu:
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
        self, names: Sequence[str], many: Sequence[Sequence[Tokens]], soft: Sequence[Soft | None]
    ) -> list[list[np.ndarray]]:
        """The arrays of these names for each batch, several batches at a time if there are many."""
        feeds = [self._feed(texts, each) for texts, each in zip(many, soft, strict=True)]
        # A call of few batches, such as a query, gives each of them all threads.
        bulk = self._bulk if len(feeds) >= 2 * self._threads else None
        if bulk is None:
            return [self._run(self._one, names, feed) for feed in feeds]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(lambda feed: self._run(bulk, names, feed), feeds))

    @cached_property
    def _bulk(self) -> Any:
        """A session of one thread for several callers at once; None where one session will do."""
        files = [self._path, self._path.with_name(f"{self._path.name}.data")]
        size = sum(each.stat().st_size for each in files if each.exists())
        if not self._on_cpu or self._threads == 1 or size > _TWICE:
            return None
        return self._session(1)

    def _run(
        self, session: Any, names: Sequence[str], feed: dict[str, np.ndarray]
    ) -> list[np.ndarray]:
        return [np.asarray(each) for each in session.run(list(names), feed)]

    def _session(self, threads: int) -> Any:
        runtime = _onnxruntime(self._provider)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if self._on_cpu:
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        try:
            session = runtime.InferenceSession(
                str(self._path),
                options,
                providers=[self._provider],
                disabled_optimizers=_SLOWER_ON_CPU if self._on_cpu else [],
            )
        except Exception as error:
            # The library's errors have no common class of their own.
            raise BundleError(
                f"onnxruntime {runtime.__version__} cannot start {self._path}: "
                f"{' '.join(str(error).split())}"
            ) from error
        if (found := session.get_providers()[0]) != self._provider:
            raise ValueError(
                f"{self._provider} did not start and onnxruntime fell back to {found}; check its "
                "drivers, or pass provider='CPUExecutionProvider'"
            )
        return session

    def _feed(self, texts: Sequence[Tokens], soft: Soft | None) -> dict[str, np.ndarray]:
        side = self._padding
        lengths = np.array([len(each.ids) for each in texts], dtype=np.int64)
        width = int(lengths.max())
        starts = width - lengths if side == "left" else np.zeros_like(lengths)
        feed = {
            "input_ids": pad([each.ids for each in texts], 0, side),
            "attention_mask": pad([[1] * length for length in lengths], 0, side),
            "position_ids": pad([list(each.positions) for each in texts], 0, side),
            "starts": starts,
            "stops": starts + np.array([each.pooled for each in texts], dtype=np.int64),
        }
        if "shown" in self._takes:
            feed |= _soft_feed(texts, starts, soft, self._dim())
        return {name: each for name, each in feed.items() if name in self._takes}

    def _dim(self) -> int:
        return next(each.shape[1] for each in self._one.get_inputs() if each.name == "asked")


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


def _onnxruntime(provider: str) -> Any:
    """The library, which must have the provider."""
    try:
        import onnxruntime
    except ImportError:
        extra = "cpu" if provider == CPU else "gpu"
        raise MissingExtra("onnxruntime", extra=extra) from None
    found = onnxruntime.get_available_providers()
    if provider not in found:
        raise ValueError(
            f"onnxruntime {onnxruntime.__version__} here has no {provider}, it has "
            f"{', '.join(found)}; for CUDA, uninstall onnxruntime and install 'e2rank[gpu]': the "
            "packages onnxruntime and onnxruntime-gpu overwrite each other"
        )
    return onnxruntime
