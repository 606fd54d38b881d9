"""Sparse vectors of documents from the states that a transformer's graph gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from e2rank.encoders.batching import filled, pad
from e2rank.encoders.onnx.sessions import Sessions
from e2rank.encoders.tokens import Tokens
from e2rank.errors import EncodingError

Row = tuple[np.ndarray, np.ndarray]


class SparseGraph:
    """The graph of a `SparseHead`, and what it is fed with."""

    def __init__(self, sessions: Sessions, padding: str, special: frozenset[int]) -> None:
        """Feed `sessions`.

        Args:
            sessions: of the graph.
            padding: side on which the states are padded, "left" or "right".
            special: ids that are no terms.
        """
        self.sessions, self._padding, self._special = sessions, padding, special
        self._window = int(sessions.takes["windows"][2])

    def rows(self, texts: Sequence[Tokens], states: Any, *, beside: bool) -> list[Row]:
        """The terms (int32, ascending) and weights (float32, above 0) of each text.

        Args:
            texts: n texts.
            states: (n, t, width) float32, padded; perhaps left on a GPU.
            beside: whether other calls run at the same time, a thread each.
        Raises:
            EncodingError: for a NaN or an infinity.
        """
        ids = pad([each.ids for each in texts], 0, self._padding)
        n, t = ids.shape
        own = filled([len(each.ids) for each in texts], self._padding).astype(bool)
        counted = own & ~np.isin(ids, list(self._special))
        places = [np.flatnonzero(row) + number * t for number, row in enumerate(counted)]
        feed = {
            "states": states,
            "input_ids": ids,
            "counted": counted.astype(np.float32),
            "windows": _windows(places, self._window),
        }
        weights, terms = self.sessions.run(["weights", "terms"], feed, beside=beside)
        if not np.isfinite(weights).all():
            raise EncodingError("the sparse head gave a NaN or an infinity; export it again")
        # A text without a term has no window either: what it was given is another's.
        weights[[not len(each) for each in places]] = 0.0
        return [_sorted(terms[row], weights[row]) for row in range(n)]


def _windows(places: Sequence[np.ndarray], size: int) -> np.ndarray:
    """(n, w, size) int64 places of the tokens of each window.

    The last token fills up a text's last window, and the last window a text of fewer windows.
    """
    most = max(1, *(-(-len(each) // size) for each in places))
    out = np.zeros((len(places), most, size), dtype=np.int64)
    for windows, each in zip(out, places, strict=True):
        if len(each):
            own = np.append(each, np.repeat(each[-1], -len(each) % size)).reshape(-1, size)
            windows[: len(own)] = own
            windows[len(own) :] = own[-1]
    return out


def _sorted(terms: np.ndarray, weights: np.ndarray) -> Row:
    terms, weights = terms[weights > 0], weights[weights > 0]
    order = np.argsort(terms)
    return terms[order].astype(np.int32), weights[order]
