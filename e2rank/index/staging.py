"""A build under way: a folder that grows batch by batch and survives being killed."""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from e2rank.documents import Document
from e2rank.durable import write_atomically
from e2rank.errors import CorpusError
from e2rank.index import codec
from e2rank.index.codec import Codebook
from e2rank.index.grown import HEADER, GrownArray, GrownFile
from e2rank.index.lines import line_of
from e2rank.index.manifest import EncoderInfo
from e2rank.index.postings import FORWARD
from e2rank.index.tokens import CODES, ROWS, floats_of

_RAW = {"float32": "<f4", "float16": "<f2"}
_TOKENS = {"int8": "|i1", "float16": "<f2", "pq": "|i1"}

ENDS = {"tokens": "token_ends", "sparse_terms": "sparse_ends", "sparse_weights": "sparse_ends"}
"""The arrays of which a document has any number of rows, and what says where each one's end."""


@dataclass(slots=True)
class Progress:
    """What is durable: documents (and how many were cut), bytes of each file, a hash, settings."""

    done: int
    truncated: int
    sizes: dict[str, int]
    documents: str
    settings: dict[str, Any]

    def to_json(self) -> bytes:
        """The record as it is written, with a key for each file."""
        counts = {"done": self.done, "truncated": self.truncated}
        rest = {"documents": self.documents, "settings": self.settings}
        return json.dumps(counts | self.sizes | rest).encode()


class Staging:
    """The folder of one build; `arrays` and documents are appended a batch at a time.

    `arrays` are the .npy files, by the name of what they hold: vectors and, where the encoder
    makes them, tokens and token_ends, and sparse_terms, sparse_weights and sparse_ends.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        encoder: EncoderInfo,
        book: Codebook | None = None,
    ) -> None:
        """Use `folder`, which may hold an earlier part of the same build.

        With a codebook, token vectors come as its codes; "pq" without one is coded at the end.
        """
        self.folder, self.encoder, self.book = folder, encoder, book
        raw = _RAW[settings["config"]["raw"]]
        self.arrays = {"vectors": GrownArray(folder / "vectors.npy", raw, (encoder.dim,))}
        if encoder.token_dim:
            kind, width = _TOKENS[settings["config"].get("tokens", "int8")], encoder.token_dim
            self.arrays["tokens"] = GrownArray(folder / ROWS, kind, (width,))
            if book is not None:
                self.arrays["tokens"] = GrownArray(folder / CODES, "|u1", (book.width,))
            self.arrays["token_ends"] = GrownArray(folder / "token_ends.npy", "<i8", ())
        if encoder.sparse_dim:
            for name, kind in FORWARD.items():
                self.arrays[name] = GrownArray(folder / f"{name}.npy", kind, ())
        self._spool = GrownFile(folder / "documents.jsonl")
        self._files: dict[str, GrownFile] = {**self.arrays, "spool": self._spool}
        self._settings = settings
        self._hash = xxhash.xxh3_64()
        self._ids = Ids()
        self.progress = self._load()
        self._cut_before = self.progress.truncated

    @property
    def spool(self) -> Path:
        """The documents so far, one JSON array a line."""
        return self._spool.path

    @property
    def record(self) -> Path:
        """How far each file goes."""
        return self.folder / "progress.json"

    @property
    def rows(self) -> dict[str, int]:
        """How many rows of each array are durable."""
        sizes = self.progress.sizes
        return {name: array.rows(sizes[name]) for name, array in self.arrays.items()}

    def close(self) -> None:
        """Let go of the private list of ids."""
        self._ids.close()

    def begin(self) -> None:
        """Make the folder, and cut off whatever was written after the last durable batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, file in self._files.items():
            file.cut(self.progress.sizes[name])

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
                f"the first {self.progress.done} documents, or vectors that they bring, are not "
                "those of the unfinished build: "
                "resume with the same corpus, or pass overwrite=True to start again"
            )

    def note(self, documents: Sequence[Document], start: int) -> None:
        """Take note of a new batch before it is encoded.

        Raises:
            CorpusError: if one repeats an id.
        """
        self._note(documents, start)

    def append(
        self, documents: Sequence[Document], arrays: Mapping[str, np.ndarray], truncated: int
    ) -> None:
        """Make a batch durable: every file first, then the record of how far they go.

        `arrays` are rows for each of the build's arrays, ends being counted from the first of
        these documents; `truncated` is how many documents this run has cut so far.
        """
        before = {ends: self.rows[name] for name, ends in ENDS.items() if name in arrays}
        whole = {**arrays, **{ends: arrays[ends] + count for ends, count in before.items()}}
        data = {
            name: rows.astype(self.arrays[name].kind, copy=False).tobytes()
            for name, rows in whole.items()
        }
        data["spool"] = "".join(line_of(each) for each in documents).encode()
        progress = Progress(
            self.progress.done + len(documents),
            self._cut_before + truncated,
            {name: file.append(data[name]) for name, file in self._files.items()},
            self._hash.hexdigest(),
            self._settings,
        )
        write_atomically(self.record, progress.to_json())
        self.progress = progress

    def code(self, book: Codebook) -> None:
        """Keep token vectors as codes from here on; those so far, in eight bits, are made codes."""
        if self.book is not None:
            return
        count, rows = self.rows["tokens"], self.arrays["tokens"]
        codes = GrownArray(self.folder / CODES, "|u1", (book.width,))
        codes.cut(size := codes.start)
        for start in range(0, count, codec.SAMPLE):
            shape = min(codec.SAMPLE, count - start), self.encoder.token_dim
            place = HEADER + start * self.encoder.token_dim
            part = np.memmap(rows.path, np.int8, "r", place, shape)
            size = codes.append(codec.encode(floats_of(part), book).tobytes())
        self.book, self.progress.sizes["tokens"] = book, size
        self.arrays["tokens"] = self._files["tokens"] = codes

    def finish_arrays(self) -> np.ndarray:
        """Write the header in front of each array; gives the vectors back, mapped."""
        for name, array in self.arrays.items():
            array.finish(self.progress.sizes[name])
        return np.load(self.arrays["vectors"].path, mmap_mode="r")

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
        lines = [line_of(each) for each in documents]
        self._ids.add([each.id for each in documents], start)
        for line, document in zip(lines, documents, strict=True):
            self._hash.update(line.encode())
            if document.vector is not None:
                self._hash.update(np.asarray(document.vector).tobytes())

    def _load(self) -> Progress:
        sizes = {name: file.start for name, file in self._files.items()}
        with contextlib.suppress(FileNotFoundError):
            fields = json.loads(self.record.read_bytes())
            # A file that the record does not know has nothing durable yet.
            sizes = {name: fields.get(name, size) for name, size in sizes.items()}
            rest = {name: fields[name] for name in ("done", "truncated", "documents", "settings")}
            return Progress(sizes=sizes, **rest)
        return Progress(0, 0, sizes, self._hash.hexdigest(), self._settings)


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Remove what a finished segment does not need: the record, the spool, rows that are coded."""
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


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
