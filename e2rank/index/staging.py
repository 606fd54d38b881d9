"""A build under way: a folder that grows batch by batch and survives being killed."""

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from e2rank.documents import Document
from e2rank.errors import CorpusError
from e2rank.index.files import write_atomically

HEADER = 128
"""Bytes kept free for the .npy header in front of the vectors, whose number is known last."""


@dataclass(slots=True)
class Progress:
    """What is durable: documents (and how many were cut), bytes of both files, a hash, settings."""

    done: int
    truncated: int
    vectors: int
    spool: int
    documents: str
    settings: dict[str, Any]


class Staging:
    """The folder of one build; vectors and documents are appended a batch at a time."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Use `folder`, which may hold an earlier part of the same build."""
        self.folder = folder
        self._settings = settings
        self._hash = xxhash.xxh3_64()
        self._ids = Ids()
        self.progress = self._load()
        self._cut_before = self.progress.truncated

    @property
    def vectors(self) -> Path:
        """The .npy file, its header blank until `finish_vectors`."""
        return self.folder / "vectors.npy"

    @property
    def spool(self) -> Path:
        """The documents so far, one JSON array a line."""
        return self.folder / "documents.jsonl"

    @property
    def record(self) -> Path:
        """How far both files go."""
        return self.folder / "progress.json"

    def close(self) -> None:
        """Let go of the private list of ids."""
        self._ids.close()

    def begin(self) -> None:
        """Make the folder, and cut off whatever was written after the last durable batch.

        Raises:
            CorpusError: if less is there than was durable.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, size in (
            (self.vectors, self.progress.vectors),
            (self.spool, self.progress.spool),
        ):
            with path.open("ab") as file:
                if self.progress.done and file.tell() < size:
                    raise CorpusError(
                        f"{path} has lost bytes since its build was cut short: pass "
                        "overwrite=True to start again"
                    )
                file.truncate(size)

    def skip(self, documents: Sequence[Document], start: int) -> None:
        """Take note of documents that an earlier run finished."""
        self._note(documents, start)

    def check_skipped(self) -> None:
        """Compare the documents given now with those of the earlier run.

        Raises:
            CorpusError: if they differ.
        """
        if self._hash.hexdigest() != self.progress.documents:
            raise CorpusError(
                f"the first {self.progress.done} documents are not those of the unfinished build: "
                "resume with the same corpus, or pass overwrite=True to start again"
            )

    def note(self, documents: Sequence[Document], start: int) -> None:
        """Take note of a new batch before it is encoded.

        Raises:
            CorpusError: if one repeats an id.
        """
        self._note(documents, start)

    def append(self, documents: Sequence[Document], vectors: np.ndarray, truncated: int) -> None:
        """Make a batch durable: both files first, then the record of how far they go.

        `truncated` is how many documents this run has cut so far.
        """
        lines = "".join(_line(each) for each in documents).encode()
        vectors_size = _append(self.vectors, vectors.tobytes())
        spool_size = _append(self.spool, lines)
        done = self.progress.done + len(documents)
        progress = Progress(
            done,
            self._cut_before + truncated,
            vectors_size,
            spool_size,
            self._hash.hexdigest(),
            self._settings,
        )
        state = {name: getattr(progress, name) for name in Progress.__slots__}
        write_atomically(self.record, json.dumps(state).encode())
        self.progress = progress

    def finish_vectors(self, dim: int) -> np.ndarray:
        """Write the header in front of the vectors; gives them back, mapped."""
        shape = f"({self.progress.done}, {dim})"
        fields = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
        header = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little")
        with self.vectors.open("rb+") as file:
            file.write(header + fields.ljust(HEADER - 11).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return np.load(self.vectors, mmap_mode="r")

    def read_spool(self) -> Iterator[Document]:
        """Every document, in order."""
        with self.spool.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                identifier, title, text, metadata = json.loads(line)
                yield Document(identifier, text, title, metadata)

    def remove(self) -> None:
        """Throw the build away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self, documents: Sequence[Document], start: int) -> None:
        lines = [_line(each) for each in documents]
        self._ids.add([each.id for each in documents], start)
        for line in lines:
            self._hash.update(line.encode())

    def _load(self) -> Progress:
        with contextlib.suppress(FileNotFoundError):
            return Progress(**json.loads(self.record.read_bytes()))
        return Progress(0, 0, HEADER, 0, self._hash.hexdigest(), self._settings)


class Ids:
    """Every id so far, in a private database that spills to disk, so memory stays bounded."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, row INT) WITHOUT ROWID")

    def add(self, ids: Sequence[str], start: int) -> None:
        """Add ids of the rows from `start` on.

        Raises:
            CorpusError: if one was there before, naming both rows.
        """
        self._connection.execute("BEGIN")
        for row, identifier in enumerate(ids, start):
            try:
                self._connection.execute("INSERT INTO ids VALUES (?, ?)", (identifier, row))
            except sqlite3.IntegrityError:
                sql = "SELECT row FROM ids WHERE id = ?"
                earlier = self._connection.execute(sql, (identifier,)).fetchone()[0]
                raise CorpusError(
                    f"document {row} repeats the id {identifier!r} of document {earlier}; "
                    "ids must be unique"
                ) from None
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Throw the database away."""
        self._connection.close()


def _line(document: Document) -> str:
    metadata = document.metadata
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise CorpusError(
            f"document {document.id!r} has metadata JSON cannot hold: expected a mapping with "
            "strings for keys"
        )
    fields = [document.id, document.title, document.text, dict(metadata)]
    try:
        line = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        line.encode()
    except UnicodeEncodeError:
        raise CorpusError(
            f"document {document.id!r} has half a surrogate pair, which no file can hold"
        ) from None
    except (TypeError, ValueError) as error:
        raise CorpusError(
            f"document {document.id!r} has metadata JSON cannot hold: {error}"
        ) from None
    return line + "\n"


def _append(path: Path, data: bytes) -> int:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
