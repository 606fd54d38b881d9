"""The Cranfield collection the demo uses is whole and scored as its README says."""

import json
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks" / "data" / "cranfield"


def rows(name: str) -> list[dict[str, str]]:
    """Read a JSON Lines file of the collection."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def judgments() -> list[tuple[str, str, int]]:
    """Read the judgments, less their header line."""
    lines = (FOLDER / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [(query, doc, int(score)) for query, doc, score in map(str.split, lines)]


def test_documents_are_numbered_one_to_1400() -> None:
    assert [row["_id"] for row in rows("corpus.jsonl")] == [str(n) for n in range(1, 1401)]


def test_queries_are_numbered_one_to_225_and_none_is_empty() -> None:
    queries = rows("queries.jsonl")
    assert [row["_id"] for row in queries] == [str(n) for n in range(1, 226)]
    assert all(row["text"].strip() for row in queries)


def test_exactly_two_documents_are_empty() -> None:
    empty = [row["_id"] for row in rows("corpus.jsonl") if not (row["title"] + row["text"]).strip()]
    assert empty == ["471", "995"]


def test_every_judged_query_and_document_exists() -> None:
    judged = judgments()
    assert {query for query, _, _ in judged} == {row["_id"] for row in rows("queries.jsonl")}
    assert {doc for _, doc, _ in judged} <= {row["_id"] for row in rows("corpus.jsonl")}


def test_scores_are_the_original_codes_turned_round() -> None:
    lines = (FOLDER / "cranqrel.original.txt").read_text(encoding="utf-8").splitlines()
    original = [(query, doc, int(code)) for query, doc, code in map(str.split, lines)]
    turned = [(query, doc, 4 if code == -1 else 5 - code) for query, doc, code in original]
    assert judgments() == turned
    assert Counter(score for _, _, score in turned) == {4: 353, 3: 387, 2: 734, 1: 363}
