"""Documents on disk: one SQLite table, row by row, read by row or by id."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from e2rank.documents import Document

_SCHEMA = (
    "CREATE TABLE documents "
    "(row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT, text TEXT, metadata TEXT)"
)
_COLUMNS = "id, text, title, metadata"


def write_table(path: Path, documents: Iterable[Document]) -> None:
    """Write a new table in one transaction, so the same documents give the same bytes."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        # Nothing to roll back to: a file whose writing was cut short is thrown away.
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("BEGIN")
        connection.execute(_SCHEMA)
        connection.executemany(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?)",
            (
                (row, each.id, each.title, each.text, json.dumps(dict(each.metadata)))
                for row, each in enumerate(documents)
            ),
        )
        connection.execute("COMMIT")
    finally:
        connection.close()


class Table:
    """A written table, read-only; several threads may read it."""

    def __init__(self, path: Path) -> None:
        """Open the table at `path`."""
        address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(address, uri=True, check_same_thread=False)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def documents(self, rows: Sequence[int] | np.ndarray) -> list[Document]:
        """Documents of these rows, in this order.

        Raises:
            IndexError: if there is no such row.
        """
        found: dict[int, Document] = {}
        wanted = [int(row) for row in rows]
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            sql = f"SELECT row, {_COLUMNS} FROM documents WHERE row IN ({marks})"
            with self._lock:
                for row, *fields in self._connection.execute(sql, part):
                    found[row] = _document(fields)
        missing = [row for row in wanted if row not in found]
        if missing:
            raise IndexError(f"the index has no row {missing[0]}")
        return [found[row] for row in wanted]

    def row_of(self, identifier: str) -> int | None:
        """The row of the document with this id, or None."""
        with self._lock:
            found = self._connection.execute(
                "SELECT row FROM documents WHERE id = ?", (identifier,)
            ).fetchone()
        return found[0] if found else None

    def __iter__(self) -> Iterator[Document]:
        """Every document in row order; a page at a time, so other threads can read meanwhile."""
        last = -1
        while True:
            sql = f"SELECT row, {_COLUMNS} FROM documents WHERE row > ? ORDER BY row LIMIT 500"
            with self._lock:
                page = self._connection.execute(sql, (last,)).fetchall()
            if not page:
                return
            for _, *fields in page:
                yield _document(fields)
            last = page[-1][0]


def _document(fields: Sequence[str]) -> Document:
    identifier, text, title, metadata = fields
    return Document(identifier, text, title, json.loads(metadata))
