"""Training examples: a query, its documents and what each of them is worth, in JSONL files."""

import gzip
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from e2rank.corpus import read_corpus, read_records
from e2rank.errors import CorpusError

_log = logging.getLogger("e2rank")

_PUBLISHED = frozenset({"query", "document", "ranking", "source"})
_OURS = frozenset({"query", "documents", "labels", "first_stage", "ids", "source"})

_MOST = 1.7e38
"""Of a number: losses calculate in float32, where the difference of two must be finite too."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled list of n documents.

    Args:
        query: not blank.
        documents: n texts, at least one; a text may be empty.
        labels: n numbers of at most 1.7e38, higher is better; they compare within this list only.
        first_stage: n finite scores of the first stage, higher is better; () where unknown.
        ids: n document ids, no two alike; () where unknown.
        source: the data set this is from.
    """

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    first_stage: tuple[float, ...] = ()
    ids: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what no loss could use.

        Raises:
            ValueError: saying what is wrong and what was expected.
        """
        n = len(self.documents)
        if not self.query.strip():
            raise ValueError("the query is blank; expected a text")
        if not n:
            raise ValueError("there is no document; expected at least one")
        for name, values in (
            ("labels", self.labels),
            ("first_stage", self.first_stage or self.labels),
            ("ids", self.ids or self.documents),
        ):
            if len(values) != n:
                raise ValueError(f"{len(values)} {name} for {n} documents; expected one each")
        _check_finite("labels", self.labels)
        _check_finite("first_stage", self.first_stage)
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("ids hold a document twice; expected each once")

    def __len__(self) -> int:
        return len(self.documents)


def read_examples(path: str | Path, text: Callable[[str], str] | None = None) -> Iterator[Example]:
    """Examples of a .jsonl or .jsonl.gz file, streamed; a row is in one of three forms.

    - E2Rank's published one: `{"query", "document": [text], "ranking": [1-based ids, best
      first], "source"?}`; the label of the document at rank r of n is n - r.
    - ours: `{"query", "documents": [text], "labels": [number], "first_stage"?: [number],
      "ids"?: [id], "source"?}`, labels higher for better.
    - ours by reference: the same without "documents", but with "ids".

    No row is ever skipped. A row without a source is from a data set named as the file is. A text
    that a row holds twice is read once, with the better of its labels; a line of the log says how
    many rows had one.

    Args:
        path: the file.
        text: gives the text of a document id, and raises a LookupError for one it does not know;
            only rows by reference need it.
    Raises:
        CorpusError: naming the file and the line (from 1) of the first row that is no example,
            and why.
    """
    file = Path(path)
    if not file.is_file():
        raise CorpusError(f"{file} does not exist; expected a .jsonl or a .jsonl.gz of examples")
    stem = file.name.removesuffix(".gz").removesuffix(".jsonl")
    repeated = 0
    for number, row in read_records(file):
        try:
            read = _example({"source": stem} | row, text)
        except (ValueError, OverflowError) as error:
            raise CorpusError(f"{file.name} line {number}: {error}") from None
        once = _each_once(read)
        repeated += once is not read
        yield once
    if repeated:
        _log.warning(
            "%s: %d rows hold a text twice; each is read once, with its better label",
            file.name,
            repeated,
        )


def read_lists(data: Sequence[str], corpora: Sequence[str]) -> list[Example]:
    """Every example of some files, with texts from the corpora where they are named by id.

    Args:
        data: files that `read_examples` reads.
        corpora: what `read_corpus` reads.
    Raises:
        CorpusError: if two documents of the corpora have one id.
    """
    texts: dict[str, str] = {}
    for name in corpora:
        for document in read_corpus(Path(name)):
            if document.id in texts:
                raise CorpusError(
                    f"{name} repeats the id {document.id!r}; ids must be unique over all corpora"
                )
            texts[document.id] = document.body
    return [each for name in data for each in read_examples(name, texts.__getitem__)]


def write_examples(examples: Iterable[Example], path: str | Path, *, texts: bool = True) -> int:
    """Write examples in our form, gzipped if the name ends in .gz; the file is whole or not there.

    Args:
        examples: read once and never held together.
        path: the file to make or to replace.
        texts: False writes rows by reference, without the texts.
    Returns:
        How many were written.
    Raises:
        ValueError: if an example without ids is to be written by reference.
    """
    file = Path(path)
    part = file.with_name(file.name + ".part")
    written = 0
    with part.open("wb") as raw:
        # No name and no time inside, so that the same examples give the same bytes.
        packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if file.suffix == ".gz" else None
        out: IO[bytes] | gzip.GzipFile = packed or raw
        for example in examples:
            row = _row(example, texts)
            out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            written += 1
        if packed is not None:
            packed.close()
        raw.flush()
        os.fsync(raw.fileno())
    part.replace(file)
    return written


def _check_finite(name: str, numbers: Sequence[float]) -> None:
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} hold a NaN or an infinity; expected finite numbers")
    if (largest := max(map(abs, numbers), default=0.0)) > _MOST:
        raise ValueError(f"{name} hold a number as large as {largest}; expected at most {_MOST}")


def _row(example: Example, texts: bool) -> dict[str, Any]:
    if not texts and not example.ids:
        raise ValueError(
            f"the example of {example.query!r} has no ids; write it with its texts instead"
        )
    row: dict[str, Any] = {"query": example.query, "labels": example.labels}
    if texts:
        row["documents"] = example.documents
    for name in ("first_stage", "ids"):
        if values := getattr(example, name):
            row[name] = values
    return row | {"source": example.source}


def _example(row: Mapping[str, Any], text: Callable[[str], str] | None) -> Example:
    published = "document" in row or "ranking" in row
    known = _PUBLISHED if published else _OURS
    if unknown := sorted(row.keys() - known):
        raise ValueError(f"unknown key {unknown[0]!r}; a row of this form has {sorted(known)}")
    query, source = _string(row, "query"), _string(row, "source")
    if published:
        documents = _strings(row, "document")
        return Example(query, documents, _from_ranking(row, len(documents)), source=source)
    ids = _strings(row, "ids") if "ids" in row else ()
    return Example(
        query=query,
        documents=_strings(row, "documents") if "documents" in row else _looked_up(ids, text),
        labels=_numbers(row, "labels"),
        first_stage=_numbers(row, "first_stage") if "first_stage" in row else (),
        ids=ids,
        source=source,
    )


def _each_once(example: Example) -> Example:
    """Each text once: with two labels it would be pushed down by what pulls it up."""
    if len(set(example.documents)) == len(example):
        return example
    best: dict[str, int] = {}
    for place, text in enumerate(example.documents):
        if text not in best or example.labels[place] > example.labels[best[text]]:
            best[text] = place
    kept = sorted(best.values())

    def of(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[place] for place in kept) if values else ()

    return Example(
        example.query,
        of(example.documents),
        of(example.labels),
        of(example.first_stage),
        of(example.ids),
        example.source,
    )


def _looked_up(ids: tuple[str, ...], text: Callable[[str], str] | None) -> tuple[str, ...]:
    if not ids:
        raise ValueError("neither 'documents' nor 'ids'; expected texts, or ids to look them up by")
    if text is None:
        raise ValueError("only ids, no 'documents'; pass read_examples a function from id to text")
    texts = []
    for each in ids:
        try:
            texts.append(text(each))
        except LookupError:
            raise ValueError(f"no text is known for the document id {each!r}") from None
    return tuple(texts)


def _from_ranking(row: Mapping[str, Any], n: int) -> tuple[float, ...]:
    ranking = _list(row, "ranking")
    whole = all(type(number) is int for number in ranking)
    if not whole or sorted(ranking) != list(range(1, n + 1)):
        raise ValueError(
            f"'ranking' is no permutation of 1 to {n}; expected the number of each document, "
            "best first"
        )
    labels = [0.0] * n
    for rank, number in enumerate(ranking, start=1):
        labels[number - 1] = float(n - rank)
    return tuple(labels)


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    if name not in row:
        raise ValueError(f"no {name!r}; expected a list")
    if not isinstance(row[name], list):
        raise ValueError(f"{name!r} is of type {type(row[name]).__name__}; expected a list")
    return row[name]


def _string(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise ValueError(f"no {name!r}; expected a string")
    if not isinstance(row[name], str):
        raise ValueError(f"{name!r} is of type {type(row[name]).__name__}; expected a string")
    return row[name]


def _strings(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = _list(row, name)
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{name!r} holds a {type(value).__name__}; expected strings only")
    return tuple(values)


def _numbers(row: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = _list(row, name)
    for value in values:
        # JSON's true is a number to Python.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name!r} holds a {type(value).__name__}; expected numbers only")
    return tuple(map(float, values))
