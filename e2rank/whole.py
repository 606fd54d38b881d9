"""An index of passages by its documents: found by their ids, counted, and given back whole."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import xxhash

from e2rank.documents import Document
from e2rank.errors import IndexFormatError
from e2rank.index import Store
from e2rank.index.writer import Writer
from e2rank.scores import unit
from e2rank.where import And, Condition, Not, fields_of, read_where

OF = "passage_of"
"""The metadata field of a passage that holds its document's id."""

NUMBER = "passage_number"
"""The metadata field of a passage that holds its number in its document, from 0."""

START = "passage_start"
"""The metadata field of a passage that holds the character of its document's text it begins with,
counted from 0; below 0 where it begins in a title that was split with the text."""

_FIRST = read_where({NUMBER: 0})
_TOGETHER = 200


def passage_id(identifier: str, number: int) -> str:
    """The id of a document's passage, counted from 0."""
    return f"{identifier}#{number}"


def owner_of(identifier: str) -> str:
    """The id of the document of a passage with this id."""
    return identifier.rpartition("#")[0]


def number_of(identifier: str) -> int:
    """The number of a passage with this id; -1 if it is the id of none."""
    number = identifier.rpartition("#")[2]
    return int(number) if number.isdecimal() else -1


def is_split(store: Store) -> bool:
    """Whether the index holds passages, which it splits documents into."""
    return store.manifest.index_config.passages > 0


def passages_of(index: Store | Writer, identifier: str) -> list[str]:
    """The ids of a document's passages that an index holds, in their order."""
    return _own(index.starting(f"{identifier}#"), identifier)


def rows_of(store: Store, ids: Sequence[str]) -> dict[str, list[int]]:
    """The rows of those of these documents that the index holds: its passages', or its own."""
    if not is_split(store):
        return {each: [row] for each, row in store.rows_of(ids).items()}
    found: dict[str, list[int]] = {}
    for each in ids:
        rows = store.starting(f"{each}#")
        if own := _own(rows, each):
            found[each] = [rows[passage] for passage in own]
    return found


def count(store: Store) -> int:
    """Documents in the index."""
    return len(_firsts(store)) if is_split(store) else len(store)


def most_passages(store: Store) -> int:
    """How many rows the document with the most has."""
    if not is_split(store):
        return 1
    rows = store.rows
    parts = (store.ids(rows[start : start + _TOGETHER]) for start in range(0, len(rows), _TOGETHER))
    return 1 + max((number_of(each) for part in parts for each in part), default=0)


def every(store: Store) -> Iterator[Document]:
    """Every document, in the order of its first row, streamed."""
    if not is_split(store):
        yield from store
        return
    every_name = names(store)
    while together := list(islice(every_name, _TOGETHER)):
        yield from documents(store, rows_of(store, together).values())


def names(store: Store) -> Iterator[str]:
    """The id of every document, in the order of its first row, streamed."""
    rows = _firsts(store).rows if is_split(store) else store.rows
    for start in range(0, len(rows), _TOGETHER):
        ids = store.ids(rows[start : start + _TOGETHER])
        yield from map(owner_of, ids) if is_split(store) else ids


def documents(store: Store, rows: Collection[Sequence[int]]) -> Iterator[Document]:
    """The documents whose passages, or which themselves, have these rows, in this order.

    Raises:
        IndexFormatError: if passages are no text together.
    """
    parts = iter(store.documents([row for own in rows for row in own]))
    for own in rows:
        passages = list(islice(parts, len(own)))
        yield _joined(passages, store) if is_split(store) else passages[0]


def vectors(store: Store, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """The (n, d) float32 unit vectors of n documents: the means of their passages', or their own.

    Args:
        store: the index.
        rows: of each document.
    """
    found = store.vectors([row for own in rows for row in own])
    if not is_split(store) or not rows:
        return found
    parts = np.split(found, np.cumsum([len(own) for own in rows])[:-1])
    return unit(np.stack([part.mean(axis=0) for part in parts]))


def nearest_of(store: Store, query: np.ndarray, rows: Sequence[Sequence[int]]) -> list[int]:
    """Of each document's rows the one whose vector is nearest to that of the query.

    Args:
        store: the index.
        query: (d,) float32 unit vector.
        rows: of each of n documents, at least one each.
    Returns:
        n rows.
    """
    near = store.vectors([row for own in rows for row in own]) @ query
    stops = np.cumsum([len(own) for own in rows])
    parts = np.split(near, stops[:-1])
    return [own[int(part.argmax())] for own, part in zip(rows, parts, strict=True)]


def delete(writer: Writer, ids: Sequence[str], condition: Condition | None) -> int:
    """Delete documents, by id and by what their metadata are, with all their passages.

    Returns:
        How many there were.
    Raises:
        ValueError: as by `Writer.delete_where`, or if the condition is met by some passages of a
            document only.
    """
    if not writer.base.manifest.index_config.passages:
        matched = 0 if condition is None else writer.delete_where(condition)
        return matched + writer.delete(ids)
    matched = 0
    if condition is not None:
        if own := {NUMBER, START} & (fields_of(condition) | fields_of(Not(condition))):
            raise ValueError(
                f"{min(own)!r} differs within a document, and documents are deleted whole; nothing "
                "was deleted"
            )
        matched = writer.count_where(And((condition, _FIRST)))
        writer.delete_where(condition)
    found = [passages_of(writer, each) for each in dict.fromkeys(ids)]
    writer.delete(passage for own in found for passage in own)
    return matched + sum(map(bool, found))


def check(store: Store) -> None:
    """Prove that the passages of every document are there from the first on, without a gap.

    Raises:
        IndexFormatError: naming one that is not where it should be.
    """
    if not is_split(store):
        return
    rows = store.rows
    owners, numbers = np.empty(len(rows), dtype=np.uint64), np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), _TOGETHER):
        for place, passage in enumerate(store.ids(rows[start : start + _TOGETHER]), start):
            owners[place] = xxhash.xxh3_64_intdigest(owner_of(passage).encode())
            numbers[place] = number_of(passage)
    order = np.lexsort((numbers, owners))
    owners, numbers = owners[order], numbers[order]
    begins = np.r_[True, owners[1:] != owners[:-1]][: len(rows)]
    expected = np.where(begins, 0, np.r_[0, numbers[:-1] + 1][: len(rows)])
    if (wrong := np.flatnonzero(numbers != expected)).size:
        (passage,) = store.ids(rows[order[wrong[:1]]])
        raise _gap(store, passage)


def _gap(store: Store, passage: str) -> IndexFormatError:
    return IndexFormatError(
        f"{store.folder}: the passage before {passage!r} is missing: add its document again, or "
        "delete it"
    )


def of_passage(passage: Document) -> Document:
    """A passage under its document's id and metadata, without the blanks behind it."""
    metadata = {k: v for k, v in passage.metadata.items() if k not in (OF, NUMBER, START)}
    return Document(owner_of(passage.id), passage.text.rstrip(), passage.title, metadata)


def _own(there: Iterable[str], identifier: str) -> list[str]:
    """Those of some ids that are of a document's passages, in their order."""
    return sorted((each for each in there if owner_of(each) == identifier), key=number_of)


def _firsts(store: Store) -> Store:
    """A view of the index that holds the first passage of each document."""
    return store.where(_FIRST) if len(store) else store


def _joined(passages: Sequence[Document], store: Store) -> Document:
    before = -passages[0].metadata[START]
    texts, length = list[str](), -before
    for number, each in enumerate(passages):
        known = length - each.metadata[START]
        if known < 0 or number_of(each.id) != number:
            raise _gap(store, each.id)
        texts.append(each.text[known:])
        length += len(texts[-1])
    whole, text = of_passage(passages[0]), "".join(texts)
    # A title that was split with its text has a blank behind it.
    title = text[: before - 1] if before else whole.title
    return Document(whole.id, text[before:], title, whole.metadata)
