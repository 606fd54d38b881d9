"""Token vectors on disk: one matrix a document, of any number of rows, stored in eight bits.

`tokens.npy` holds the rows of all documents one after another, `token_ends.npy` where each ends.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from e2rank.documents import Document
from e2rank.errors import EncodingError, IndexFormatError
from e2rank.index.manifest import EncoderInfo
from e2rank.scores import unit

STEPS = 127
"""A component of a unit row, -1 to 1, is kept as a whole number of -127 to 127."""


def quantise(
    given: Sequence[np.ndarray], documents: Sequence[Document], encoder: EncoderInfo
) -> tuple[np.ndarray, np.ndarray]:
    """A batch's token vectors as they are stored; a row of zeros stays one.

    Args:
        given: a (t, p) array of each document, any length of rows; t may be 0.
        documents: whose they are, for the messages.
        encoder: who made them, and p.
    Returns:
        (T, p) int8 rows of all documents, and (n,) int64 how many of them each has.
    Raises:
        EncodingError: if they are of other documents than these, not finite or of the wrong shape.
    """
    if len(given) != len(documents):
        raise EncodingError(
            f"{encoder.name} gave the token vectors of {len(given)} documents, "
            f"expected {len(documents)}"
        )
    pairs = zip(given, documents, strict=True)
    whole = [_quantise(rows, document, encoder) for rows, document in pairs]
    lengths = np.array([len(rows) for rows in whole], dtype=np.int64)
    return np.concatenate(whole), lengths


def _quantise(given: np.ndarray, document: Document, encoder: EncoderInfo) -> np.ndarray:
    rows = np.asarray(given, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != encoder.token_dim:
        raise EncodingError(
            f"{encoder.name} gave token vectors of shape {rows.shape} for document "
            f"{document.id!r}, expected (t, {encoder.token_dim}); nothing of its batch was written"
        )
    if not np.isfinite(rows).all():
        raise EncodingError(
            f"{encoder.name} gave a NaN or an infinity in a token vector of document "
            f"{document.id!r}; nothing of its batch was written"
        )
    return np.rint(STEPS * unit(rows)).astype(np.int8)


class Tokens:
    """The token vectors of an index, mapped."""

    def __init__(self, segment: Path, count: int, dim: int) -> None:
        """Open both files of a segment of `count` documents, rows of length `dim`.

        Raises:
            IndexFormatError: if they are no such files, or do not fit each other.
        """
        self._folder = segment
        self._rows = _mapped(segment / "tokens.npy", np.int8, 2)
        self._ends = _mapped(segment / "token_ends.npy", np.int64, 1)
        if len(self._ends) != count:
            raise _damaged(
                segment / "token_ends.npy", f"{len(self._ends)} documents, expected {count}"
            )
        # Only the last end is looked at: reading all would cost more the larger the index.
        expected = (int(self._ends[-1]) if count else 0, dim)
        if self._rows.shape != expected:
            raise _damaged(
                segment / "tokens.npy", f"{self._rows.shape}, expected {expected} by token_ends.npy"
            )

    def in_order(self) -> bool:
        """Whether each document's rows end where they began, or after."""
        return bool((np.diff(self._ends, prepend=0) >= 0).all())

    def packed(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Store.tokens_packed`, of rows that there are.

        Raises:
            IndexFormatError: if the ends of these rows are damaged.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        stops = self._ends[wanted]
        starts = np.where(wanted > 0, self._ends[wanted - 1], 0)
        if ((starts < 0) | (starts > stops) | (stops > len(self._rows))).any():
            raise _damaged(self._folder / "token_ends.npy", "ends that are out of order")
        spans = zip(starts.tolist(), stops.tolist(), strict=True)
        # The empty part makes no rows asked for no case of their own.
        parts = [self._rows[:0], *(self._rows[start:stop] for start, stop in spans)]
        offsets = np.zeros(len(wanted) + 1, dtype=np.int64)
        np.cumsum(stops - starts, out=offsets[1:])
        return np.concatenate(parts), offsets


def _mapped(path: Path, kind: type[np.generic], dimensions: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises what it likes
        reason = [*str(error).splitlines(), type(error).__name__][0]
        raise _damaged(path, f"no array ({reason})") from error
    if array.dtype != kind or array.ndim != dimensions:
        raise _damaged(
            path,
            f"{array.shape} {array.dtype}, expected {dimensions} dimensions of {kind.__name__}",
        )
    # A plain view of the map: slicing a memmap costs several times as much.
    return np.asarray(array)


def _damaged(path: Path, holds: str) -> IndexFormatError:
    return IndexFormatError(
        f"{path} is damaged: it holds {holds}; build the index again, or restore the file"
    )
