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
    number = 0
    opened = gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")
    with opened as source:
        try:
            for number, line in enumerate(source, start=1):
                text = line.decode("utf-8")
                if text.strip():
                    yield number, text
        except EOFError:
            raise CorpusError(
                f"{file.name} ends early after line {number}: the file was cut short; fetch it again"
            ) from None
        except UnicodeDecodeError as error:
            raise CorpusError(f"{file.name} line {number} is not UTF-8: {error.reason}") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise CorpusError(f"{file.name} is damaged after line {number}: {error}") from None


def read_records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line of a JSONL file.

    Raises:
        CorpusError: naming the line that is not a JSON object.
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
        yield number, record


def _document(record: dict[str, Any], where: str) -> Document:
    fields = dict(record)
    identifier = fields.pop("_id" if "_id" in fields else "id", None)
    text, title = fields.pop("text", None), fields.pop("title", None)
    if not isinstance(identifier, str) or not identifier:
        raise CorpusError(f"{where} has the id {identifier!r}; expected a string that is not empty")
    if not isinstance(text, str):
        raise CorpusError(f"{where} has the text {text!r}; expected a string")
    if not isinstance(title, str | None):
        raise CorpusError(f"{where} has the title {title!r}; expected a string")
    metadata = fields.pop("metadata", None) or {}
    if not isinstance(metadata, dict):
        raise CorpusError(f"{where} has the metadata {metadata!r}; expected an object")
    return Document(identifier, text, title or "", {**metadata, **fields})
