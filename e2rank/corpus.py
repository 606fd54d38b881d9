"""Reading a corpus from disk: BEIR folders and JSONL files, plain or gzipped, line by line."""

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.documents import Document, as_documents
from e2rank.errors import CorpusError

_STDIN = Path("/dev/stdin")
_GZIP = b"\x1f\x8b"

LONGEST = 256 << 20
"""Bytes of a line that is read: a small .gz file may hold one that no memory can."""


def read_corpus(path: str | Path, vectors: str | Path | None = None) -> Iterator[Document]:
    """Documents of a corpus, streamed.

    A line is `{"_id" or "id", "text", "title"?, "metadata"?, "vector"?}`; any other key is kept in
    the metadata.

    Args:
        path: a BEIR folder (with corpus.jsonl or corpus.jsonl.gz), a .jsonl or a .jsonl.gz file; a
            pipe or a device that gives such lines, plain or gzipped, and is read once; "-" for
            standard input.
        vectors: an .npy or .npz file of what the encoder gave for them elsewhere, see
            `with_vectors`.
    Raises:
        CorpusError: naming the file and the line (from 1) that cannot be read, and why.
    """
    documents = _read(path)
    return documents if vectors is None else with_vectors(documents, vectors)


def _read(path: str | Path) -> Iterator[Document]:
    file = find_file(_STDIN if str(path) == "-" else Path(path), "corpus.jsonl")
    name = _called(file)
    for number, record in read_records(file):
        yield _document(record, f"{name} line {number}")


def with_vectors(
    documents: Iterable[Document | Mapping[str, Any]], file: str | Path
) -> Iterator[Document]:
    """Documents with vectors that their encoder made elsewhere: see `Document.vector`.

    Args:
        documents: n documents, or mappings as for `Engine.build`.
        file: an .npy file of (n, d) floats, a row a document in the same order, which is mapped; or
            an .npz file of such "vectors" and their "ids", (n,) strings, in any order, which is
            read into memory.
    Raises:
        CorpusError: if the file is none of these, or there are more or fewer documents than rows;
            naming the first document, or id of the file, that has no counterpart.
    """
    if Path(file).suffix == ".npz":
        yield from _with_own(documents, file)
        return
    try:
        rows = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # numpy raises what it likes of a strange header
        raise CorpusError(f"{file} is no .npy file of vectors: {error}") from None
    _check_rows(rows, file)
    count = 0
    for document in as_documents(documents):
        if count < len(rows):
            yield replace(document, vector=rows[count])
        count += 1
    if count != len(rows):
        raise CorpusError(f"{file} holds {len(rows)} vectors, and the corpus {count} documents")


def _with_own(
    documents: Iterable[Document | Mapping[str, Any]], file: str | Path
) -> Iterator[Document]:
    """Documents with the vectors that an .npz file has under their ids."""
    places, rows = _rows_by_id(file)
    for document in as_documents(documents):
        place = places.pop(document.id, None)
        if place is None:
            raise CorpusError(
                f"{file} holds no vector of {document.id!r}, or the corpus has it twice"
            )
        yield replace(document, vector=rows[place])
    if places:
        raise CorpusError(f"{file} holds a vector of {next(iter(places))!r}, which is no document")


def _rows_by_id(file: str | Path) -> tuple[dict[str, int], np.ndarray]:
    """The place of each id of an .npz file, and its rows."""
    try:
        with zipfile.ZipFile(file) as archive:
            ids, rows = (_array(archive, name) for name in ("ids", "vectors"))
    except Exception as error:  # what zipfile, zlib and numpy raise of damage has no common base
        raise CorpusError(f"{file} is no .npz file of 'ids' and 'vectors': {error}") from error
    _check_rows(rows, file)
    if ids.shape != rows.shape[:1] or ids.dtype.kind != "U":
        raise CorpusError(
            f"{file} holds ids of {ids.dtype} and shape {ids.shape}; expected {len(rows)} strings: "
            "np.array(ids, dtype=str)"
        )
    places: dict[str, int] = {}
    for place, name in enumerate(ids.tolist()):
        if places.setdefault(name, place) != place:
            raise CorpusError(f"{file} holds two vectors of {name!r}")
    return places, rows


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # Not np.load, whose errors speak of pickle, which is never read.
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _check_rows(rows: np.ndarray, file: str | Path) -> None:
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise CorpusError(
            f"{file} holds {rows.dtype} of shape {rows.shape}; expected floats of shape "
            "(documents, dimension)"
        )


def find_file(path: Path, name: str) -> Path:
    """`path` itself if it can be read, else the file `name` or `name`.gz in that folder.

    Raises:
        CorpusError: if there is none.
    """
    if path.is_file() or path.is_fifo() or path.is_char_device():
        return path
    if not path.is_dir():
        raise CorpusError(f"{path} does not exist; expected a BEIR folder, a .jsonl or a .jsonl.gz")
    for candidate in (path / name, path / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise CorpusError(f"{path} holds neither {name} nor {name}.gz: is it a BEIR folder?")


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank, of a plain or gzipped file.

    Raises:
        CorpusError: if a .gz file is none, or the file is cut short, damaged, or not UTF-8, or a
            line of it is longer than `LONGEST`.
    """
    name, number = _called(file), 0
    with file.open("rb") as raw, gzip.open(raw) if _is_gzip(file, raw) else raw as source:
        try:
            lines = iter(lambda: source.readline(LONGEST + 1), b"")
            for number, line in enumerate(lines, start=1):
                if len(line) > LONGEST:
                    raise CorpusError(
                        f"{name} line {number} is longer than {LONGEST:,} bytes; expected a "
                        "document or query a line"
                    )
                text = line.decode("utf-8")
                if text.strip():
                    yield number, text
        except EOFError:
            raise CorpusError(
                f"{name} ends early after line {number}: the file is cut short"
            ) from None
        except UnicodeDecodeError as error:
            raise CorpusError(f"{name} line {number} is not UTF-8: {error.reason}") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise CorpusError(f"{name} is damaged after line {number}: {error}") from None


def read_records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line of a JSONL file.

    Raises:
        CorpusError: naming the line that is not a JSON object, or whose text cannot be written
            as UTF-8.
    """
    name = _called(file)
    for number, line in read_lines(file):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{name} line {number} is not JSON: {error}") from None
        except RecursionError:
            raise CorpusError(f"{name} line {number} is JSON that is nested too deep") from None
        if not isinstance(record, dict):
            raise CorpusError(
                f"{name} line {number} is a JSON {type(record).__name__}; expected an object"
            )
        if "\\u" in line:
            _check_escapes(record, f"{name} line {number}")
        yield number, record


def _called(file: Path) -> str:
    """What a message calls a file: its name, or all of a path such as /dev/fd/63."""
    return file.name if file.is_file() else str(file)


def _is_gzip(file: Path, source: BufferedReader) -> bool:
    """Whether what is about to be read is gzipped: so a file's name says, and a stream's start."""
    start = source.peek(2)[:2]
    if file.suffix != ".gz":
        # What standard input is redirected from is a file, but has another name.
        return start == _GZIP and (not file.is_file() or file.is_relative_to("/dev"))
    if not start:
        # Python reads no bytes as a gzip file of nothing; a real one is never empty.
        raise CorpusError(f"{file.name} is empty: the file is cut short")
    if not _GZIP.startswith(start):
        raise CorpusError(f"{file.name} is not a gzip file: drop .gz from its name or compress it")
    return True


def _check_escapes(record: dict[str, Any], where: str) -> None:
    r"""Half a surrogate pair (`\ud83d` alone) is valid JSON that no file or model can take."""
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise CorpusError(
            f"{where} has half a surrogate pair: it is cut inside a \\u escape"
        ) from None


def _document(record: dict[str, Any], where: str) -> Document:
    fields = dict(record)
    key = "_id" if "_id" in fields else "id"
    for name in (key, "text"):
        if name not in fields:
            raise CorpusError(f"{where} has no {name!r}; expected '_id' (or 'id') and 'text'")
    identifier, text = _string(fields, key, where), _string(fields, "text", where)
    if not identifier:
        raise CorpusError(f"{where} has an empty id")
    # BEIR writes a missing title or metadata as null here and there.
    title = _string(fields, "title", where) if fields.get("title") is not None else ""
    fields.pop("title", None)
    vector = fields.pop("vector", None)
    return Document(identifier, text, title, _metadata(fields, where), vector)


def _string(fields: dict[str, Any], name: str, where: str) -> str:
    value = fields.pop(name)
    if not isinstance(value, str):
        raise CorpusError(f"{where} has {name!r} of type {type(value).__name__}; expected a string")
    return value


def _metadata(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The metadata and every field that is left; neither may hide the other."""
    metadata = fields.pop("metadata", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict):
        kind = type(metadata).__name__
        raise CorpusError(f"{where} has 'metadata' of type {kind}; expected an object")
    twice = sorted(metadata.keys() & fields.keys())
    if twice:
        raise CorpusError(f"{where} has {twice[0]!r} both inside and outside its metadata")
    return {**metadata, **fields}
