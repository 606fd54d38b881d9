"""What is refused before anything is measured, which may take hours."""

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from e2rank.collapse import thing_of
from e2rank.documents import Document
from e2rank.engine import Engine
from e2rank.evaluate.collection import Collection
from e2rank.evaluate.rankings import Run
from e2rank.hits import check_columns
from e2rank.whole import rows_of

_COMPARED = 10
"""Documents whose texts are compared: of another collection all ten differ."""

_ALIKE = 0.5
"""Of the words of the shorter text, those that the other has too. Two abstracts that are not the
same have a quarter in common; one that was cut or put another way, nearly all."""


def check_pattern(pattern: str | None, runs: int) -> None:
    """Refuse one file for several runs, or a folder that is not there.

    Raises:
        ValueError: saying what to write instead.
    """
    if pattern is None:
        return
    if not Path(pattern).parent.is_dir():
        raise ValueError(f"--run-out {pattern}: there is no folder {Path(pattern).parent}")
    if runs > 1 and "{ranker}" not in pattern:
        raise ValueError(
            f"--run-out {pattern} is one file for {runs} rankers: put {{ranker}} into its name"
        )


def check_ids(pattern: str | None, queries: Iterable[str], documents: Iterable[str]) -> None:
    """Refuse to write runs of ids that cannot stand in one.

    Raises:
        ValueError: naming the first.
    """
    if pattern is None:
        return
    try:
        check_columns(queries)
        check_columns(documents)
    except ValueError as error:
        raise ValueError(f"--run-out {pattern}: {error}") from None


def check_indexed(
    engine: Engine, collection: Collection, collapse: str | None = None
) -> dict[str, int]:
    """Refuse an index that lacks most of what the collection judges, or has other texts for it.

    Args:
        engine: that is to be measured.
        collection: that judges.
        collapse: the metadata field with what is judged, whose documents have other texts; None
            for documents that are judged themselves.
    Returns:
        How many judged "documents" the index lacks, how many of them are "relevant" to a query,
        and how many are "judged" in all.
    Raises:
        ValueError: saying how much it lacks, or what differs.
        CorpusError: if the corpus is broken.
    """
    judged = {document for grades in collection.qrels.values() for document in grades}
    if collapse is None:
        found = set(rows_of(engine.store, list(judged)))
    else:
        found = {thing_of(each.metadata, each.id, collapse) for each in engine}
    absent = judged - found
    if 2 * len(absent) > len(judged):
        raise ValueError(
            f"the index lacks {len(absent)} of the {len(judged)} judged documents: it is of "
            f"another collection than {collection.name}"
        )
    if collapse is None:
        _check_texts(engine, collection, judged)
    relevant = {
        document
        for grades in collection.qrels.values()
        for document, grade in grades.items()
        if grade > 0
    }
    return {
        "documents": len(absent),
        "relevant": len(absent & relevant),
        "judged": len(judged),
    }


def check_listed(engine: Engine, collection: Collection, lists: Run) -> None:
    """Refuse lists of documents that the index lacks, or has other texts for.

    Raises:
        ValueError: naming the first.
        CorpusError: if the corpus is broken.
    """
    for query, ranking in lists.items():
        found = rows_of(engine.store, [document for document, _ in ranking])
        for document, _ in ranking:
            if document not in found:
                raise ValueError(f"the list of query {query!r} has {document!r}, which is nowhere")
    _check_texts(engine, collection, {each for ranking in lists.values() for each, _ in ranking})


def _check_texts(engine: Engine, collection: Collection, wanted: set[str]) -> None:
    """Compare a few documents of the corpus, the first that are wanted, with the index's.

    Ids that are numbers are those of any collection. Texts that were changed since are no reason
    to refuse, if only some were or most of their words stand.
    """
    if not any(
        (collection.folder / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz")
    ):
        return
    there = (each for each in collection.documents() if each.id in wanted and each.id in engine)
    compared = list(islice(there, _COMPARED))
    indexed = engine.get([each.id for each in compared])
    other = [one for one, two in zip(compared, indexed, strict=True) if not _alike(one, two)]
    if 2 * len(other) > len(compared):
        raise ValueError(
            f"the index has other texts than {collection.name} for {len(other)} of "
            f"{len(compared)} documents, such as {other[0].id!r}: it is of another collection"
        )


def _alike(one: Document, other: Document) -> bool:
    words, others = (set(re.findall(r"\w+", each.body.lower())) for each in (one, other))
    shorter = min(len(words), len(others))
    return len(words & others) >= _ALIKE * shorter if shorter else words == others
