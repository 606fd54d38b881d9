"""TREC's two files: judgments (qrels) and rankings (runs), plain or gzipped."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from e2rank.corpus import read_lines
from e2rank.errors import CorpusError

Qrels = dict[str, dict[str, int]]
Run = dict[str, list[tuple[str, float]]]


def read_qrels(path: str | Path) -> Qrels:
    """Judgments: query id to document id to grade.

    Reads TREC's four columns (`query 0 document grade`) and BEIR's three with a header line.

    Raises:
        CorpusError: naming the line that is neither.
    """
    file = Path(path)
    qrels: Qrels = {}
    for where, fields in _rows(file):
        if fields[:1] == ["query-id"]:
            continue
        if len(fields) not in (3, 4):
            raise CorpusError(f"{where} has {len(fields)} columns; qrels have 4, or BEIR's 3")
        query, document, grade = fields[0], fields[-2], fields[-1]
        qrels.setdefault(query, {})[document] = int(_number(grade, where))
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


def write_run(
    path: str | Path, run: Mapping[str, Sequence[tuple[str, float]]], tag: str = "e2rank"
) -> None:
    """Write rankings as `query Q0 document rank score tag`, scores in full precision."""
    with Path(path).open("w", encoding="utf-8") as file:
        for query, ranking in run.items():
            for place, (document, score) in enumerate(ranking, start=1):
                file.write(f"{query} Q0 {document} {place} {float(score)!r} {tag}\n")


def _rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    if not file.is_file():
        raise CorpusError(f"{file} does not exist; expected a TREC file")
    for number, line in read_lines(file):
        yield f"{file.name} line {number}", line.split()


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CorpusError(f"{where} has {text!r} where a number belongs") from None
