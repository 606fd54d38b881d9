"""Reading a corpus from disk: BEIR folders and JSONL files, plain or gzipped, line by line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e2rank.documents import Document
from e2rank.errors import CorpusError


def read_corpus(path: str | Path) -> Iterator[Document]:
    """Documents of a corpus, streamed.

    A line is `{"_id" or "id", "text", "title"?, "metadata"?}`; any other key is kept in the
    metadata.

    Args:
        path: a BEIR folder (with corpus.jsonl or corpus.jsonl.gz), a .jsonl or a .jsonl.gz file.
    Raises:
        CorpusError: naming the file and the line (from 1) that cannot be read, and why.
    """
    file = find_file(Path(path), "corpus.jsonl")
    for number, record in read_records(file):
        yield _document(record, f"{file.name} line {number}")


def find_file(path: Path, name: str) -> Path:
    """`path` itself if it is a file, else the file `name` or `name`.gz in that folder.

    Raises:
        CorpusError: if there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CorpusError(f"{path} does not exist; expected a BEIR folder, a .jsonl or a .jsonl.gz")
    for candidate in (path / name, path / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise CorpusError(f"{path} holds neither {name} nor {name}.gz: is it a BEIR folder?")


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank, of a plain or .gz file.

    Raises:
        CorpusError: if the file is no gzip file, is cut short, damaged, or not UTF-8.
    """
    if file.suffix == ".gz":
        _check_gzip(file)
    number = 0
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as source:
        try:
            for number, line in enumerate(source, start=1):
                text = line.decode("utf-8")
                if text.strip():
                    yield number, text
        except EOFError:
            raise CorpusError(
                f"{file.name} ends early after line {number}: the file is cut short"
            ) from None
        except UnicodeDecodeError as error:
            raise CorpusError(f"{file.name} line {number} is not UTF-8: {error.reason}") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise CorpusError(f"{file.name} is damaged after line {number}: {error}") from None


def read_records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line of a JSONL file.

    Raises:
        CorpusError: naming the line that is not a JSON object, or whose text cannot be written
            as UTF-8.
    """
    for number, line in read_lines(file):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{file.name} line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise CorpusError(
                f"{file.name} line {number} is a JSON {type(record).__name__}; expected an object"
            )
        if "\\u" in line:
            _check_escapes(record, f"{file.name} line {number}")
        yield number, record


def _check_gzip(file: Path) -> None:
    with file.open("rb") as source:
        start = source.read(2)
    if not start:
        # Python reads no bytes as a gzip file of nothing; a real one is never empty.
        raise CorpusError(f"{file.name} is empty: the file is cut short")
    if not b"\x1f\x8b".startswith(start):
        raise CorpusError(f"{file.name} is not a gzip file: drop .gz from its name or compress it")


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
    return Document(identifier, text, title, _metadata(fields, where))


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
