"""Token vectors on disk: one matrix a document, of any number of rows, each row made small.

`tokens.npy` holds the rows of all documents one after another, in eight or sixteen bits a number;
or `token_codes.npy` their codes, and `token_codebook.npy` what those stand for (see `codec`).
`token_ends.npy` says where each document ends.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from e2rank.config import IndexConfig
from e2rank.documents import Document, TokenVectors
from e2rank.errors import EncodingError
from e2rank.index import codec
from e2rank.index.codec import Codebook
from e2rank.index.files import damaged
from e2rank.index.manifest import EncoderInfo, Manifest
from e2rank.index.mapped import mapped
from e2rank.scores import unit

Kind = Literal["int8", "float16", "pq"]

ROWS, ENDS = "tokens.npy", "token_ends.npy"
CODES, CODEBOOK = "token_codes.npy", "token_codebook.npy"

STEPS = 127
"""A component of a unit row, -1 to 1, is kept in eight bits as a whole number of -127 to 127."""

_TYPES: dict[Kind, type[np.generic]] = {"int8": np.int8, "float16": np.float16, "pq": np.uint8}


def kind_of(names: Collection[str], config: IndexConfig) -> Kind:
    """How a segment with files of these names keeps its token vectors."""
    if config.tokens == "pq":
        return "pq" if CODES in names else "int8"
    return "float16" if config.tokens == "float16" else "int8"


def names_of(kind: Kind) -> list[str]:
    """The files of a segment whose token vectors are kept so."""
    return [CODES, CODEBOOK, ENDS] if kind == "pq" else [ROWS, ENDS]


def kinds_of(manifest: Manifest) -> list[Kind]:
    """How the segments of an index keep its token vectors, each kind once; none where it has none.

    With "pq", segments of few token vectors wait as int8.
    """
    config, infos = manifest.index_config, manifest.segments if manifest.encoder.token_dim else []
    files = ([Path(name).name for name in manifest.inside(info.folder)] for info in infos)
    return sorted({kind_of(names, config) for names in files})


def quantise(
    given: Sequence[np.ndarray],
    documents: Sequence[Document],
    encoder: EncoderInfo,
    kind: str = "int8",
) -> tuple[np.ndarray, np.ndarray]:
    """A batch's token vectors as they are stored; a row of zeros stays one.

    Args:
        given: a (t, p) array of each document, any length of rows; t may be 0.
        documents: whose they are, for the messages.
        encoder: who made them, and p.
        kind: "float16", or eight bits, in which "pq" waits until there is enough to learn from.
    Returns:
        (T, p) int8 or float16 rows of all documents, and (n,) int64 how many of them each has.
    Raises:
        EncodingError: if they are of other documents than these, not finite or of the wrong shape.
    """
    if len(given) != len(documents):
        raise EncodingError(
            f"{encoder.name} gave the token vectors of {len(given)} documents, "
            f"expected {len(documents)}"
        )
    pairs = zip(given, documents, strict=True)
    whole = [_quantise(rows, document, encoder, kind) for rows, document in pairs]
    lengths = np.array([len(rows) for rows in whole], dtype=np.int64)
    return np.concatenate(whole), lengths


def _quantise(given: np.ndarray, document: Document, encoder: EncoderInfo, kind: str) -> np.ndarray:
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
    if kind == "float16":
        return unit(rows).astype(np.float16)
    return np.rint(STEPS * unit(rows)).astype(np.int8)


class Tokens:
    """The token vectors of a segment, mapped.

    `ends` is (n,) int64, where each document's rows end; `codebook` says what codes stand for, and
    is None where rows are kept themselves.
    """

    def __init__(self, segment: Path, count: int, dim: int, kind: Kind = "int8") -> None:
        """Open the files of a segment of `count` documents, rows of length `dim`.

        Raises:
            IndexFormatError: if they are no such files, or do not fit each other.
        """
        self._folder, self._dim, self.kind = segment, dim, kind
        self.codebook = _codebook(segment / CODEBOOK, dim) if kind == "pq" else None
        self.path = segment / names_of(kind)[0]
        self._rows = mapped(self.path, _TYPES[kind], 2)
        self.ends = mapped(segment / ENDS, np.int64, 1)
        if len(self.ends) != count:
            raise damaged(segment / ENDS, f"it holds {len(self.ends)} documents, expected {count}")
        # Only the last end is looked at: reading all would cost more the larger the index.
        width = self.codebook.width if self.codebook else dim
        expected = (int(self.ends[-1]) if count else 0, width)
        if self._rows.shape != expected:
            holds = f"it holds {self._rows.shape}, expected {expected} by {ENDS}"
            raise damaged(self.path, holds)

    def in_order(self) -> bool:
        """Whether each document's rows end where they began, or after."""
        return bool((np.diff(self.ends, prepend=0) >= 0).all())

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, how many token vectors each document has.

        Raises:
            IndexFormatError: if the ends are out of order.
        """
        lengths = np.diff(self.ends, prepend=0)
        if (lengths < 0).any():
            raise damaged(self._folder / ENDS, "it holds ends that are out of order")
        return lengths

    def owners(self, numbers: np.ndarray) -> np.ndarray:
        """The documents of the token vectors with these numbers.

        Raises:
            IndexFormatError: if there is none for one of them.
        """
        rows = np.searchsorted(self.ends, numbers, side="right")
        if rows.max(initial=-1) >= len(self.ends):
            raise damaged(self._folder / ENDS, "it holds ends that are out of order")
        return rows

    def packed(
        self, rows: Sequence[int] | np.ndarray, book: Codebook | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows of these documents as they are stored, one document after another.

        With a codebook, as its codes: copied where that is what they are.

        Returns:
            (T, p) int8 or float16 rows or (T, w) uint8 codes, and (n + 1,) int64 offsets.
        Raises:
            IndexFormatError: if the ends of these rows are damaged.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        stops = self.ends[wanted]
        starts = np.where(wanted > 0, self.ends[wanted - 1], 0)
        if ((starts < 0) | (starts > stops) | (stops > len(self._rows))).any():
            raise damaged(self._folder / ENDS, "it holds ends that are out of order")
        spans = zip(starts.tolist(), stops.tolist(), strict=True)
        # The empty part makes no rows asked for no case of their own.
        parts = [self._rows[:0], *(self._rows[start:stop] for start, stop in spans)]
        offsets = np.zeros(len(wanted) + 1, dtype=np.int64)
        np.cumsum(stops - starts, out=offsets[1:])
        stored = np.concatenate(parts)
        if book is None or (self.codebook is not None and self.codebook.same(book)):
            return stored, offsets
        return codec.encode(self._floats(stored), book), offsets

    def vectors(self, rows: Sequence[int] | np.ndarray) -> TokenVectors:
        """The rows of these documents as MaxSim reads them: codes decoded, numbers as stored.

        Raises:
            IndexFormatError: if the ends or the codes of these rows are damaged.
        """
        stored, offsets = self.packed(rows)
        if self.codebook is not None:
            return TokenVectors(self._decoded(stored, self.codebook), offsets)
        return TokenVectors(stored, offsets, 1 / STEPS if self.kind == "int8" else 1.0)

    @property
    def shape(self) -> tuple[int, int]:
        """How many token vectors of all documents there are, and their length."""
        return len(self._rows), self._dim

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        """Token vectors by their own numbers, whosever they are, float32.

        Raises:
            IndexFormatError: if their codes are damaged.
        """
        return self._floats(self._rows[which])

    def _floats(self, stored: np.ndarray) -> np.ndarray:
        return floats_of(stored) if self.codebook is None else self._decoded(stored, self.codebook)

    def _decoded(self, codes: np.ndarray, book: Codebook) -> np.ndarray:
        try:
            return codec.decode(codes, book)
        except IndexError:
            raise damaged(self.path, "it holds a code of no centroid") from None


def joined(held: Sequence[tuple[np.ndarray, TokenVectors]], shape: tuple[int, int]) -> TokenVectors:
    """Token vectors of (n, p) documents, given in parts with the places of their documents.

    They stay as they are stored where all are stored alike.
    """
    if len(held) == 1:
        return held[0][1]
    parts: list[np.ndarray] = [np.zeros((0, shape[1]), dtype=np.float32)] * shape[0]
    alike = len({(each.rows.dtype, each.scale) for _, each in held}) == 1
    for places, each in held:
        rows = each.rows if alike else floats_of(each.rows)
        for number, place in enumerate(places.tolist()):
            parts[place] = rows[each.ends[number] : each.ends[number + 1]]
    if not parts:
        return TokenVectors(np.zeros((0, shape[1]), dtype=np.float32), np.zeros(1, dtype=np.int64))
    return TokenVectors(
        np.concatenate(parts), np.cumsum([0, *map(len, parts)]), held[0][1].scale if alike else 1.0
    )


def floats_of(stored: np.ndarray) -> np.ndarray:
    """The float32 rows that int8, float16 or float32 rows stand for."""
    if stored.dtype == np.int8:
        return np.divide(stored, np.float32(STEPS), dtype=np.float32)
    return stored.astype(np.float32, copy=False)


def _codebook(path: Path, dim: int) -> Codebook:
    array = mapped(path, np.float32, 2)
    try:
        book = Codebook.from_array(array)
    except ValueError as error:
        raise damaged(path, f"it holds no codebook ({error})") from error
    if array.shape[1] != dim:
        raise damaged(path, f"it holds rows of length {array.shape[1]}, expected {dim}")
    return book
