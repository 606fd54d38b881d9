"""Batches of similar length under a token budget, so that little work is spent on padding."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

T = TypeVar("T")

LONG_WORK = 64
"""Batches after which a terminal is shown a progress bar."""


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions grouped into batches, longest first, so too large a batch fails at once.

    Every batch costs (its longest length) * (its size) <= budget tokens, except that a text
    longer than the budget gets a batch of its own. Every position is in exactly one batch.

    >>> batches([3, 9, 4], budget=10)
    [[1], [2, 0]]
    """
    groups: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups


def with_progress(work: Sequence[T], what: str) -> Iterable[T]:
    """`work`, with a progress bar on stderr when it is long and stderr is a terminal."""
    if len(work) < LONG_WORK or not (console := Console(stderr=True)).is_terminal:
        return work
    return track(work, description=what, console=console, transient=True)


def pad(rows: Sequence[Sequence[int]], value: int, side: str) -> np.ndarray:
    """(n, longest) int64 of rows padded with `value` on `side`, "left" or "right".

    >>> pad([[5, 6], [7]], value=0, side="left").tolist()
    [[5, 6], [0, 7]]
    """
    width = max(len(row) for row in rows)
    out = np.full((len(rows), width), value, dtype=np.int64)
    for line, row in zip(out, rows, strict=True):
        # Read number by number a range takes ten times as long.
        known = np.arange(row.start, row.stop, row.step) if isinstance(row, range) else row
        line[_place(len(row), width, side)] = known
    return out


def filled(lengths: Sequence[int] | np.ndarray, side: str) -> np.ndarray:
    """(n, longest) int64: 1 where `pad` has a row's own numbers, 0 where it pads.

    >>> filled([2, 1], side="left").tolist()
    [[1, 1], [0, 1]]
    """
    own, width = np.asarray(lengths)[:, None], int(max(lengths))
    places = np.arange(width)
    return np.asarray(places >= width - own if side == "left" else places < own, dtype=np.int64)


def _place(length: int, width: int, side: str) -> slice:
    return slice(width - length, width) if side == "left" else slice(0, length)


def halves(group: Sequence[int]) -> Iterator[Sequence[int]]:
    """The first and the second half of a batch that did not fit into memory."""
    middle = len(group) // 2
    yield group[:middle]
    yield group[middle:]
