"""A judged collection in BEIR's layout: corpus, queries and the qrels of one split."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from e2rank.corpus import find_file, read_corpus, read_records
from e2rank.documents import Document
from e2rank.errors import CorpusError
from e2rank.evaluate.trec import Qrels, read_qrels

_SUFFIXES = (".tsv", ".tsv.gz", ".trec", ".qrels")


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


def load_beir(folder: str | Path, split: str = "test") -> Collection:
    """Queries and judgments of one split of a BEIR folder; plain or .gz.

    Raises:
        CorpusError: if a file is missing or broken, or a judged query has no text.
    """
    path = Path(folder)
    file = find_file(path, "queries.jsonl")
    qrels = read_qrels(_qrels_file(path, split))
    texts = {}
    for number, record in read_records(file):
        identifier, text = record.get("_id", record.get("id")), record.get("text")
        if not isinstance(identifier, str) or not isinstance(text, str):
            raise CorpusError(f"{file.name} line {number} lacks an _id or a text that is a string")
        texts[identifier] = text
    unknown = qrels.keys() - texts.keys()
    if unknown:
        raise CorpusError(f"{file.name} has no query {sorted(unknown)[0]!r}, which {split} judges")
    return Collection(
        name=path.resolve().name,
        split=split,
        folder=path,
        queries={query: text for query, text in texts.items() if query in qrels},
        qrels=qrels,
    )


def _qrels_file(folder: Path, split: str) -> Path:
    for suffix in _SUFFIXES:
        if (file := folder / "qrels" / f"{split}{suffix}").is_file():
            return file
    names = sorted(path.name.split(".")[0] for path in (folder / "qrels").glob("*.*"))
    raise CorpusError(f"{folder} has no split {split!r}; there is {', '.join(names) or 'none'}")
