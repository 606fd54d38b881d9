"""Metadata on disk as an inverted table: the rows that hold each value, for filters."""

import json
import math
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from e2rank.index.columns import Columns
from e2rank.where import (
    And,
    Condition,
    Exists,
    Leaf,
    Not,
    OneOf,
    Or,
    Ordered,
    Value,
    holds,
    named_values,
)

# One entry a value, not one a row: a range is then few entries to read, and their rows go into a
# mask without a Python object each. Rows are little-endian unsigned 32-bit numbers.
FIELDS_SCHEMA = (
    "CREATE TABLE fields (name TEXT NOT NULL, value NOT NULL, rows BLOB NOT NULL, "
    "PRIMARY KEY (name, value)) WITHOUT ROWID"
)
_RANGE = {
    "<": "value >= ? AND value < ?",
    "<=": "value >= ? AND value <= ?",
    ">": "value > ? AND value < ?",
    ">=": "value >= ? AND value < ?",
}
_CHUNK = 500
"""Values of an `in` a query asks for."""

Stored = int | float | str | bytes
"""What a value is in SQLite, which sorts numbers before strings before bytes and never mixes them.

Numbers and strings are themselves. The rest is bytes: b"null", b"true", b"false", b"container",
and whole numbers that SQLite's 64 bits cannot hold: b"i", then bytes that sort as they do.
"""


def write_fields(
    connection: sqlite3.Connection, rows: Iterable[tuple[int, Mapping[str, Any]]]
) -> None:
    """Make the table of a new file, within the caller's transaction.

    The same documents give the same bytes. Memory holds one value's rows at a time, the rest is on
    disk.

    Args:
        connection: of a database that has no such table yet.
        rows: each row's number, from 0, and its metadata.
    Raises:
        ValueError: for metadata that JSON cannot hold.
    """
    connection.execute(FIELDS_SCHEMA)
    # Sorted by SQLite, which spills to disk; a sorted table is also written front to back.
    connection.execute("CREATE TEMP TABLE unsorted (name TEXT, value, row INTEGER)")
    connection.executemany("INSERT INTO unsorted VALUES (?, ?, ?)", _entries(rows))
    entries = connection.execute("SELECT name, value, row FROM unsorted ORDER BY name, value, row")
    connection.executemany("INSERT INTO fields VALUES (?, ?, ?)", _grouped(entries))
    connection.execute("DROP TABLE unsorted")


def _entries(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
) -> Iterator[tuple[str, Stored, int]]:
    for row, metadata in rows:
        if metadata:
            for name, value in named_values(metadata):
                yield name, _stored(value), row


def _grouped(
    entries: Iterable[tuple[str, Stored, int]],
) -> Iterator[tuple[str, Stored, bytes]]:
    rows = array("I")
    name: str = ""
    value: Stored = ""
    for each, other, row in entries:
        if rows and (other != value or each != name):
            yield name, value, np.asarray(rows, dtype="<u4").tobytes()
            rows = array("I")
        name, value = each, other
        rows.append(row)
    if rows:
        yield name, value, np.asarray(rows, dtype="<u4").tobytes()


def holds_field(connection: sqlite3.Connection, name: str) -> bool:
    """Whether any document has a field of this name; true of an older file, which does not say."""
    if not has_fields(connection):
        return True
    sql = "SELECT 1 FROM fields WHERE name = ? LIMIT 1"
    return connection.execute(sql, (name,)).fetchone() is not None


def matching_rows(
    connection: sqlite3.Connection, condition: Condition, count: int, columns: Columns
) -> np.ndarray:
    """Which documents meet a condition.

    Args:
        connection: of the documents' file; an older one without `fields` is read whole.
        condition: what `parse_where` gave.
        count: how many rows there are.
        columns: fields of this file that are held in memory, and more of them afterwards.
    Returns:
        (count,) bool.
    """
    if not has_fields(connection):
        return _read(connection, condition, count)
    return combined(condition, count, lambda leaf: leaf_mask(connection, leaf, count, columns))


def combined(condition: Condition, count: int, mask_of: Callable[[Leaf], np.ndarray]) -> np.ndarray:
    """The (count,) bool mask of a condition from those of its leaves.

    `mask_of` may give the same array again: none is written to, and a leaf's is returned itself.
    """
    match condition:
        case And(parts):
            masks = (combined(part, count, mask_of) for part in parts)
            return reduce(np.logical_and, masks, np.ones(count, dtype=bool))
        case Or(parts):
            masks = (combined(part, count, mask_of) for part in parts)
            return reduce(np.logical_or, masks, np.zeros(count, dtype=bool))
        case Not(part):
            return np.logical_not(combined(part, count, mask_of))
        case leaf:
            return mask_of(leaf)


def fields_fit(connection: sqlite3.Connection) -> bool:
    """Whether the table holds what the documents' metadata say, no more and no less."""
    if not has_fields(connection):
        return True
    fresh = sqlite3.connect("", isolation_level=None)  # spills to disk
    try:
        fresh.execute("BEGIN")
        write_fields(fresh, described(connection))
        every = "SELECT name, value, rows FROM fields ORDER BY name, value"
        pairs = zip_longest(fresh.execute(every), connection.execute(every))
        return all(one == other for one, other in pairs)
    finally:
        fresh.close()


def described(connection: sqlite3.Connection) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Row and metadata of every document that has any."""
    sql = "SELECT row, metadata FROM documents WHERE metadata <> '{}' ORDER BY row"
    for row, text in connection.execute(sql):
        yield row, metadata_of(text)


def metadata_of(text: str) -> dict[str, Any]:
    """The metadata of a document as its row holds them.

    Raises:
        TypeError, ValueError, RecursionError: if it holds something else.
    """
    metadata = json.loads(text)
    if not isinstance(metadata, dict):
        raise TypeError("a document's metadata is no mapping")
    return metadata


def leaf_mask(
    connection: sqlite3.Connection, leaf: Leaf, count: int, columns: Columns
) -> np.ndarray:
    """The (count,) bool mask of a single test, from the table `fields`."""
    mask = np.zeros(count, dtype=bool)
    queries = list(_queries(leaf))
    if isinstance(leaf, Ordered):
        # Of a value a row a range is as many entries: the first query reads them every time.
        column = columns.of(connection, leaf.name, leaf.value.kind)
        near = None if column is None else column.within(leaf.operator, leaf.value.value)
        if near is not None:
            mask[near] = True
            del queries[0]
    for where, bound in queries:
        found = connection.execute(f"SELECT rows FROM fields WHERE name = ? AND {where}", bound)
        mask[np.frombuffer(b"".join(rows for (rows,) in found), dtype="<u4")] = True
    return mask


def has_fields(connection: sqlite3.Connection) -> bool:
    """Whether the file has the table; those of older indexes have not."""
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'fields'"
    return connection.execute(sql).fetchone() is not None


def _read(connection: sqlite3.Connection, condition: Condition, count: int) -> np.ndarray:
    mask = np.zeros(count, dtype=bool)
    for row, metadata in connection.execute("SELECT row, metadata FROM documents"):
        mask[row] = holds(condition, metadata_of(metadata))
    return mask


def _queries(leaf: Leaf) -> Iterator[tuple[str, list[Any]]]:
    """SQL after `name = ? AND`, and what is bound: only constants of this file become SQL."""
    match leaf:
        case Exists(name):
            yield "TRUE", [name]
        case OneOf(name, values):
            stored = map(_stored, values)
            while part := list(islice(stored, _CHUNK)):
                yield f"value IN ({','.join('?' * len(part))})", [name, *part]
        case Ordered(name, sign, value):
            for low, high in _bounds(sign, value):
                yield _RANGE[sign], [name, low, high]


def _bounds(sign: str, value: Value) -> Iterator[tuple[Stored, Stored]]:
    """The stretches of the table where a value compares so, each from low to high."""
    bound, up = value.value, sign in (">", ">=")
    if value.kind == "string":
        yield (bound, b"") if up else ("", bound)
        return
    # Numbers of 64 bits lie between the others, so any bound beyond them is as good as another.
    near = bound if _is_near(bound) else 1e19 if bound > 0 else -1e19
    yield (near, "") if up else (-math.inf, near)
    # A fraction makes no difference to whole numbers so far away.
    far = _far(int(bound))
    yield (far, b"j") if up else (b"i", far)


def _stored(value: Value) -> Stored:
    match value.kind:
        case "string":
            return str(value.value)
        case "bool":
            return b"true" if value.value else b"false"
        case "number":
            number: int | float = value.value
            return number if _is_near(number) else _far(int(number))
    return value.kind.encode()


def _is_near(number: int | float) -> bool:
    return -(2**63) <= number < 2**63


def _far(number: int) -> bytes:
    """Bytes that sort as whole numbers do: how many bytes the number takes, then those."""
    size = (number.bit_length() + 7) // 8
    if number < 0:
        return b"i" + (2**31 - size).to_bytes(4) + (256**size + number).to_bytes(size)
    return b"i" + (2**31 + size).to_bytes(4) + number.to_bytes(size)
