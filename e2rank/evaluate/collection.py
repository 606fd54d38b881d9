"""A judged collection in BEIR's layout: corpus, queries and the qrels of one split."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from e2rank.corpus import find_file, read_corpus, read_records
from e2rank.documents import Document
from e2rank.errors import CorpusError
from e2rank.evaluate.trec import Qrels, read_qrels

_KINDS = (".tsv", ".trec", ".qrels", ".txt")
_SUFFIXES = tuple(kind + packed for kind in _KINDS for packed in ("", ".gz"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """Queries with judgments, and where their documents are.

    Args:
        name: the folder's.
        split: whose judgments these are.
        folder: the BEIR folder.
        queries: id to text of the judged queries, in the order of the file.
        qrels: query id to document id to grade.
    """

    name: str
    split: str
    folder: Path
    queries: dict[str, str]
    qrels: Qrels

    def documents(self) -> Iterator[Document]:
        """The corpus, streamed."""
        return read_corpus(self.folder)

    def first(self, limit: int | None) -> "Collection":
        """The collection with its first `limit` queries only; None keeps all.

        Raises:
            ValueError: if limit < 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise ValueError(f"limit is {limit}; it must be at least 1")
        queries = dict(list(self.queries.items())[:limit])
        return Collection(
            name=self.name,
            split=self.split,
            folder=self.folder,
            queries=queries,
            qrels={query: self.qrels[query] for query in queries},
        )


def load_beir(
    folder: str | Path, split: str = "test", qrels: str | Path | None = None
) -> Collection:
    """Queries and judgments of one split of a BEIR folder; plain or .gz.

    Args:
        folder: with corpus, queries and qrels/.
        split: names the qrels file: qrels/<split>.tsv, .trec, .qrels or .txt.
        qrels: a qrels file to read instead; `split` then only names it in the report.
    Raises:
        CorpusError: if a file is missing or broken, or a judged query has no text.
    """
    path = Path(folder)
    judgments = read_qrels(qrels if qrels is not None else _qrels_file(path, split))
    file = find_file(path, "queries.jsonl")
    texts = _texts(file)
    unknown = judgments.keys() - texts.keys()
    if unknown:
        raise CorpusError(f"{file.name} has no query {sorted(unknown)[0]!r}, which {split} judges")
    blank = [query for query in judgments if not texts[query].strip()]
    if blank:
        raise CorpusError(f"{file.name} has no text for the query {blank[0]!r}")
    return Collection(
        name=path.resolve().name,
        split=split,
        folder=path,
        queries={query: text for query, text in texts.items() if query in judgments},
        qrels=judgments,
    )


def _texts(file: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, record in read_records(file):
        identifier, text = record.get("_id", record.get("id")), record.get("text")
        if not isinstance(identifier, str) or not isinstance(text, str):
            raise CorpusError(f"{file.name} line {number} lacks an _id or a text that is a string")
        if identifier in texts:
            raise CorpusError(f"{file.name} line {number} repeats the query id {identifier!r}")
        texts[identifier] = text
    return texts


def _qrels_file(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise CorpusError(f"{folder} is not a folder; expected one with queries.jsonl and qrels/")
    for suffix in _SUFFIXES:
        if (file := folder / "qrels" / f"{split}{suffix}").is_file():
            return file
    names = sorted(
        {
            path.name.removesuffix(suffix)
            for suffix in _SUFFIXES
            for path in (folder / "qrels").glob(f"*{suffix}")
        }
    )
    raise CorpusError(
        f"{folder} has no split {split!r}; its splits are: {', '.join(names) or 'none'}"
    )
