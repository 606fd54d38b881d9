"""Documents that an index is given again: what it holds of them is kept, not encoded anew."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e2rank.documents import Document
from e2rank.index import codec
from e2rank.index.batches import BatchEncoder
from e2rank.index.codec import Codebook
from e2rank.index.copies import Arrays, arranged, stored
from e2rank.index.lines import line_of
from e2rank.index.making import Part, book_of
from e2rank.index.staging import Staging
from e2rank.index.tokens import floats_of

# Bytes whose hash takes about as long as a model takes for a document.
_WORTH = 2**26


# More than float16 rounds away, less than another text's vector differs by.
_EQUAL = 1e-3


class _Held(NamedTuple):
    """A document of the index: the number of its segment, its row there, and what it says.

    `vectors` tells whether its vectors are those of the document that is given, too.
    """

    number: int
    row: int
    document: Document
    vectors: bool


class Again:
    """What the segments of an index hold of the documents of one `add`.

    `same` counts the documents that are there as they are given; `replaced` are the (count,) bool
    masks of the rows of each segment whose documents are written anew.
    """

    def __init__(self, parts: Sequence[Part], book: Codebook | None) -> None:
        """Look for documents in these segments.

        Args:
            parts: the segments, with what is deleted.
            book: what token vectors can be made codes of here; codes of another are not copied.
        """
        self._parts, self._book = parts, book
        self._copied = [0] * len(parts)
        self._exact: dict[int, bool] = {}
        self.replaced = [np.zeros(part.info.count, dtype=bool) for part in parts]
        self.same = 0

    @property
    def taken(self) -> int:
        """Documents whose rows were copied."""
        return sum(self._copied)

    @property
    def truncated(self) -> int:
        """How many of these were cut when they came, as far as their segments tell: the share."""
        infos = [part.info for part in self._parts]
        return sum(
            round(count * min(info.truncated / info.count, 1))
            for count, info in zip(self._copied, infos, strict=True)
            if count
        )

    def batch(
        self, documents: Sequence[Document], encoder: BatchEncoder, staging: Staging, kind: str
    ) -> tuple[list[Document], Arrays]:
        """Those of the documents that are to be written, in order, and what to append for them.

        A document that is there as it is given stays where it is. One that is there with the same
        text gets a copy of its rows; the others are encoded.

        Args:
            documents: no id twice.
            encoder: made the index.
            staging: what they will be appended to; once codes are copied, it keeps codes.
            kind: as for `BatchEncoder.batch`.
        """
        held = self._held(documents)
        written = [
            each
            for each in documents
            if (there := held.get(each.id)) is None
            or not there.vectors
            or line_of(there.document) != line_of(each)
        ]
        self.same += len(documents) - len(written)
        sources: dict[int | None, list[int]] = {}
        for place, document in enumerate(written):
            source = self._source(held.get(document.id), len(written))
            sources.setdefault(source, []).append(place)
        if self._book and any(self._coded(number) for number in sources):
            staging.code(self._book)
        parts = list[tuple[list[int], Arrays]]()
        for number, places in sources.items():
            own = [written[place] for place in places]
            if number is None:
                parts.append((places, _encoded(own, encoder, staging.book, kind)))
                continue
            rows = np.array([held[each.id].row for each in own])
            parts.append((places, stored(self._parts[number].segment, rows, staging.book)))
            self._copied[number] += len(rows)
        return written, arranged(parts)

    def _held(self, documents: Sequence[Document]) -> dict[str, _Held]:
        """What is there under the ids of these."""
        given, found = {each.id: each for each in documents}, dict[str, _Held]()
        for number, part in enumerate(self._parts):
            table, vectors = part.segment.table, part.segment.vectors
            rows = {
                name: row for name, row in table.rows_of(list(given)).items() if part.alive[row]
            }
            there = table.documents(list(rows.values()))
            for (name, row), document in zip(rows.items(), there, strict=True):
                same = _same_vectors(given[name], document, vectors[row])
                found[name] = _Held(number, row, document, same)
        return found

    def _source(self, held: _Held | None, together: int) -> int | None:
        """The segment that the rows of a document are copied from, or None to encode it."""
        if held is None:
            return None
        self.replaced[held.number][held.row] = True
        return held.number if held.vectors and self._copies(held.number, together) else None

    def _coded(self, number: int | None) -> bool:
        return number is not None and book_of(self._parts[number].segment) is not None

    def _copies(self, number: int, together: int) -> bool:
        """Whether a copy of a segment's rows is what was written, bit by bit.

        To find out, its files are read once: not where that takes longer than to encode the few
        documents that come together.
        """
        segment = self._parts[number].segment
        if number not in self._exact:
            if segment.row_bytes > _WORTH * together:
                return False
            book = book_of(segment)
            readable = book is None or (self._book is not None and book.same(self._book))
            self._exact[number] = readable and segment.intact
        return self._exact[number]


def _same_vectors(given: Document, there: Document, row: np.ndarray) -> bool:
    """Whether a document has the text of one that is there, and brings no other vector.

    One that brings another may be there to mend it.
    """
    if given.body != there.body or given.vector is None:
        return given.body == there.body
    stored, brought = row.astype(np.float32), np.asarray(given.vector)
    # A NaN is another, too.
    return brought.shape == stored.shape and bool(np.abs(brought - stored).max() <= _EQUAL)


def _encoded(
    documents: Sequence[Document], encoder: BatchEncoder, book: Codebook | None, kind: str
) -> Arrays:
    """What the encoder gives, its token vectors as codes if of a codebook."""
    arrays = encoder.batch(documents, kind)
    if book is not None:
        arrays["tokens"] = codec.encode(floats_of(arrays["tokens"]), book)
    return arrays
