"""Documents on disk: one SQLite table, row by row, read by row or by id."""

import contextlib
import errno
import json
import reprlib
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from e2rank.documents import Document
from e2rank.errors import IndexFormatError
from e2rank.index.columns import Columns
from e2rank.index.fields import (
    FIELDS_SCHEMA,
    described,
    fields_fit,
    holds_field,
    matching_rows,
    metadata_of,
    write_fields,
)
from e2rank.index.files import damaged
from e2rank.index.forks import Lock
from e2rank.where import Condition

T = TypeVar("T")

_SCHEMA = (
    "CREATE TABLE documents "
    "(row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT, text TEXT, metadata TEXT)"
)
# What SQLite says of it, and of the index that UNIQUE makes. Older files have no table of fields.
_DOCUMENTS = {
    ("table", "documents", "documents", _SCHEMA),
    ("index", "sqlite_autoindex_documents_1", "documents", None),
}
_HELD = (_DOCUMENTS, _DOCUMENTS | {("table", "fields", "fields", FIELDS_SCHEMA)})
_COLUMNS = "id, text, title, metadata"
_MOST = 10
"""Tables and others of a file that are looked at: more than any has that is whole."""
_DAMAGE = (
    sqlite3.Error,
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)

# What SQLite holds inside itself would be held in a fork for ever. Where no thread is in it, a fork
# can read on: nothing of an immutable file is locked, and it is read by offsets.
_OPENING = Lock(awaited=True)


def write_table(path: Path, documents: Iterable[Document]) -> None:
    """Write a new table in one transaction, so the same documents give the same bytes.

    Raises:
        OSError: if the disk is full.
    """
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
        write_fields(connection, described(connection))
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        code = errno.ENOSPC if "disk is full" in str(error) else errno.EIO
        raise OSError(code, str(error), str(path)) from error
    finally:
        connection.close()


class Table:
    """A written table, read-only; several threads may read it."""

    def __init__(self, path: Path, count: int) -> None:
        """Open the table of `count` rows at `path`.

        It is closed at the latest when nobody holds it any more. What a query meets of a damaged
        file is said by every method.

        Raises:
            IndexFormatError: if there is none, or it holds other tables than those that are
                written: a view is a program, which may never end.
        """
        self._path, self._count = path, count
        address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        try:
            with _OPENING:
                self._connection = sqlite3.connect(address, uri=True, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise damaged(self._path, error) from error
        self._lock = Lock(awaited=True)
        self._columns = Columns()
        self.close = weakref.finalize(self, _close, self._connection, self._lock)
        # A read-only connection loses nothing at exit, where another thread may hold the lock.
        self.close.atexit = False
        try:
            with self._reading() as connection:
                _check_schema(connection)
        except IndexFormatError:
            self.close()
            raise

    def matching(self, condition: Condition) -> np.ndarray:
        """The (count,) bool mask of the rows whose metadata meet a condition."""
        with self._reading() as connection:
            return matching_rows(connection, condition, self._count, self._columns)

    def holds_field(self, name: str) -> bool:
        """Whether the metadata of any row have a field of this name."""
        with self._reading() as connection:
            return holds_field(connection, name)

    def filters_fit(self) -> bool:
        """Whether filters read what the documents' metadata say."""
        with self._reading() as connection:
            return fields_fit(connection)

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The rows of those of these ids that the table has."""
        found: dict[str, int] = {}
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            marks = ",".join("?" * len(part))
            sql = f"SELECT id, row FROM documents WHERE id IN ({marks})"
            with self._reading() as connection:
                found |= connection.execute(sql, part).fetchall()
                self._check(found.values())
        return found

    def starting(self, prefix: str) -> dict[str, int]:
        """The rows of all ids that start with a text, which ends with an ASCII character."""
        beyond = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        with self._reading() as connection:
            sql = "SELECT id, row FROM documents WHERE id >= ? AND id < ?"
            found = dict(connection.execute(sql, (prefix, beyond)).fetchall())
            self._check(found.values())
        return found

    def _check(self, rows: Iterable[int]) -> None:
        if strange := [row for row in rows if not 0 <= row < self._count]:
            raise LookupError(f"it holds a row {strange[0]} of {self._count}")

    def ids(self) -> Iterator[tuple[int, str]]:
        """Every row and its id, in row order; a page at a time."""
        last = -1
        while True:
            sql = "SELECT row, id FROM documents WHERE row > ? ORDER BY row LIMIT 5000"
            with self._reading() as connection:
                page = connection.execute(sql, (last,)).fetchall()
            if not page:
                return
            yield from page
            last = page[-1][0]

    def names(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of these rows, in this order."""
        return self._read("id", rows, _name)

    def documents(self, rows: Sequence[int] | np.ndarray) -> list[Document]:
        """Documents of these rows, in this order."""
        return self._read(_COLUMNS, rows, _document)

    def _read(
        self, columns: str, rows: Sequence[int] | np.ndarray, made: Callable[[Sequence[str]], T]
    ) -> list[T]:
        """What is made of the columns of these rows, in this order."""
        found: dict[int, T] = {}
        wanted = [int(row) for row in rows]
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            sql = f"SELECT row, {columns} FROM documents WHERE row IN ({marks})"
            with self._reading() as connection:
                for row, *fields in connection.execute(sql, part):
                    found[row] = made(fields)
        if missing := [row for row in wanted if row not in found]:
            raise damaged(self._path, f"it has no row {missing[0]}")
        return [found[row] for row in wanted]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with self._lock:
            if not self.close.alive:
                raise ValueError(f"{self._path.parents[2]} was closed: open it again")
            try:
                yield self._connection
            except (sqlite3.ProgrammingError, UnicodeEncodeError):
                raise  # of what is asked for
            except _DAMAGE as error:
                raise damaged(self._path, error) from error


def _check_schema(connection: sqlite3.Connection) -> None:
    """Refuse a file with any other table, index, view or trigger than is written.

    Raises:
        ValueError: naming the first.
        sqlite3.Error: if it is no database.
    """
    connection.execute("PRAGMA trusted_schema=OFF")
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
    held = set(found.fetchmany(_MOST))
    if held in _HELD:
        return
    if strange := sorted(held - _HELD[-1], key=repr):
        kind, name, *_ = strange[0]
        raise ValueError(f"its {kind} {reprlib.repr(name)} is not one that e2rank writes")
    raise ValueError("it has no table of documents")


def _close(connection: sqlite3.Connection, lock: Lock) -> None:
    """Close a connection once nobody reads by it: SQLite would read what is freed."""
    with lock:
        connection.close()


def _name(fields: Sequence[str]) -> str:
    (name,) = fields
    if not isinstance(name, str):
        raise TypeError("an id is no text")
    return name


def _document(fields: Sequence[str]) -> Document:
    if not all(isinstance(each, str) for each in fields):
        raise TypeError("a document is no text")
    identifier, text, title, metadata = fields
    return Document(identifier, text, title, metadata_of(metadata))
