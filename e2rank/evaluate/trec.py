"""TREC's two files: judgments (qrels) and rankings (runs), plain or gzipped."""

import gzip
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from e2rank.corpus import read_lines
from e2rank.errors import CorpusError
from e2rank.evaluate.rankings import Ranking, Run, run_of
from e2rank.hits import check_columns

Qrels = dict[str, dict[str, int]]

_GRADES = ("score", "rel", "relevance", "grade", "label", "judgment")


def read_qrels(path: str | Path) -> Qrels:
    """Judgments: query id to document id to grade.

    Reads TREC's four columns (`query 0 document grade`) and BEIR's three, with or without a header
    line, whose last name tells it: `score`, `rel`, `relevance`, `grade`, `label` or `judgment`.

    Raises:
        CorpusError: naming the line that is neither, has a grade that is no whole number, or
            grades a document a second time.
    """
    file = Path(path)
    qrels: Qrels = {}
    for number, (where, fields) in enumerate(_rows(file)):
        if fields[0] == "query-id" or (not number and fields[-1].lower() in _GRADES):
            continue
        if len(fields) not in (3, 4):
            raise CorpusError(f"{where} has {len(fields)} columns; qrels have 4, or BEIR's 3")
        if not number and _header(fields):
            raise CorpusError(
                f"{where} has {fields[-1]!r} where a number belongs; the last name of a header is "
                f"one of {', '.join(_GRADES)}"
            )
        query, document, grade = fields[0], fields[-2], fields[-1]
        judged = qrels.setdefault(query, {})
        if document in judged:
            raise CorpusError(f"{where} judges document {document!r} of query {query!r} again")
        judged[document] = _grade(grade, where)
    if not qrels:
        raise CorpusError(f"{file.name} holds no judgment")
    return qrels


def read_run(path: str | Path) -> Run:
    """Rankings: query id to (document id, score), best first; equal scores in rank order.

    Raises:
        CorpusError: naming the line without six columns, or that repeats a document.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for where, fields in _rows(Path(path)):
        if len(fields) != 6:
            raise CorpusError(f"{where} has {len(fields)} columns; a run has 6")
        query, _, document, place, score, _ = fields
        entries = found.setdefault(query, {})
        if document in entries:
            raise CorpusError(f"{where} repeats document {document!r} of query {query!r}")
        entries[document] = (_number(score, where), _number(place, where))
    return {
        query: [
            (document, score)
            for document, (score, _) in sorted(
                entries.items(), key=lambda entry: (-entry[1][0], entry[1][1])
            )
        ]
        for query, entries in found.items()
    }


def write_run(path: str | Path, run: Mapping[str, Ranking], tag: str = "e2rank") -> None:
    """Write rankings as `query Q0 document rank score tag`, scores in full precision.

    Args:
        path: gzipped if it ends in .gz.
        run: query id to a ranking: (document id, score) pairs, best first, a mapping of id to
            score, or the `Hits` of a search; equal scores are written as they are.
        tag: names the run, in the last column.
    Raises:
        ValueError: if a name has white space, which separates the columns, a query's ranking is
            none, has a NaN or a document twice, or a score is higher than the one before it, since
            reading sorts by score.
    """
    # Checked before the file is opened, so that a refusal leaves no half of a run behind.
    rankings = run_of(run)
    for query, ranking in rankings.items():
        check_columns([query, tag, *(document for document, _ in ranking)])
        _check_once(query, [document for document, _ in ranking])
        _check_order(query, [score for _, score in ranking])
    file = Path(path)
    with (
        gzip.open(file, "wt", encoding="utf-8")
        if file.suffix == ".gz"
        else file.open("w", encoding="utf-8") as out
    ):
        for query, ranking in rankings.items():
            for place, (document, score) in enumerate(ranking, start=1):
                out.write(f"{query} Q0 {document} {place} {score!r} {tag}\n")


def _check_once(query: str, documents: Sequence[str]) -> None:
    seen: set[str] = set()
    for document in documents:
        if document in seen:
            raise ValueError(f"the ranking of query {query!r} holds document {document!r} twice")
        seen.add(document)


def _check_order(query: str, scores: Sequence[float]) -> None:
    for place, (before, score) in enumerate(pairwise([math.inf, *scores]), start=1):
        if score > before:
            raise ValueError(f"the ranking of query {query!r} is not best first at rank {place}")


def _rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    if not file.is_file():
        raise CorpusError(f"{file} does not exist; expected a TREC file")
    for number, text in read_lines(file):
        # A byte order mark, which editors write, would be part of the first query's id.
        line = text.removeprefix("\ufeff") if number == 1 else text
        # BEIR's columns are cut at tabs, so that an id may hold a space.
        columns = line.rstrip("\r\n").split("\t")
        if line.strip():
            yield f"{file.name} line {number}", columns if len(columns) == 3 else line.split()


def _header(fields: Sequence[str]) -> bool:
    """Whether they look like names of columns: letters, and no digit anywhere."""
    return all(re.fullmatch(r"[^\W\d][^\d]*", each) for each in fields)


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise CorpusError(f"{where} has {text!r} where a number belongs")
    return number


def _grade(text: str, where: str) -> int:
    number = _number(text, where)
    if not number.is_integer():
        raise CorpusError(f"{where} has the grade {text!r}; expected a whole number")
    return int(number)
