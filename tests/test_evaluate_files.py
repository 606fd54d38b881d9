"""Collections, judgments and runs on disk: what is read, and how a broken line is named."""

import gzip
import json
from pathlib import Path

import pytest

from e2rank.errors import CorpusError
from e2rank.evaluate import load_beir, read_qrels, read_run, write_run
from e2rank.evaluate.rankings import Ranking, Run
from e2rank.hits import Hit, Hits

QUERIES = ["b", "a", "c"]


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A folder with three queries; the split `test` judges two, `dev` one, `all.v2` three."""
    lines = [json.dumps({"_id": query, "text": f"text of {query}"}) for query in QUERIES]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "x"}\n', encoding="utf-8")
    folder = tmp_path / "qrels"
    folder.mkdir()
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "test.tsv").write_text(f"{header}a\td1\t1\nb\td1\t2\nb\td2\t0\n", encoding="utf-8")
    (folder / "dev.tsv.gz").write_bytes(gzip.compress(f"{header}c\td1\t1\n".encode()))
    (folder / "all.v2.trec").write_text("a 0 d1 1\nb 0 d1 1\nc 0 d1 -1\n", encoding="utf-8")
    return tmp_path


def test_a_collection_holds_the_judged_queries_in_file_order(beir: Path) -> None:
    collection = load_beir(beir)
    assert list(collection.queries.items()) == [("b", "text of b"), ("a", "text of a")]
    assert collection.qrels == {"a": {"d1": 1}, "b": {"d1": 2, "d2": 0}}
    assert (collection.name, collection.split) == (beir.name, "test")
    assert [document.id for document in collection.documents()] == ["d1"]


def test_splits_are_found_under_every_suffix(beir: Path) -> None:
    assert load_beir(beir, "dev").qrels == {"c": {"d1": 1}}
    assert load_beir(beir, "all.v2").qrels["c"] == {"d1": -1}
    (beir / "qrels" / "dl19.txt").write_text("a 0 d1 3\n", encoding="utf-8")
    assert load_beir(beir, "dl19").qrels == {"a": {"d1": 3}}


def test_a_missing_split_lists_those_there_are(beir: Path) -> None:
    (beir / "qrels" / "notes.md").write_text("no split\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"no split 'train'; its splits are: all\.v2, dev, test$"):
        load_beir(beir, "train")


def test_judgments_may_come_from_another_file(beir: Path) -> None:
    other = beir / "mine.txt"
    other.write_text("c 0 d1 3\n", encoding="utf-8")
    collection = load_beir(beir, qrels=other)
    assert list(collection.queries) == ["c"]
    assert collection.qrels == {"c": {"d1": 3}}


def test_a_judged_query_without_a_text_is_an_error(beir: Path) -> None:
    (beir / "qrels" / "odd.tsv").write_text("a\td1\t1\nz\td1\t1\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"queries\.jsonl has no query 'z', which odd judges"):
        load_beir(beir, "odd")


def test_broken_queries_are_named(beir: Path) -> None:
    file = beir / "queries.jsonl"
    good = file.read_text(encoding="utf-8")
    file.write_text(good + '{"_id": "a", "text": "again"}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"^queries\.jsonl line 4 repeats the query id 'a'"):
        load_beir(beir)
    file.write_text(good + '{"_id": 4, "text": "x"}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"^queries\.jsonl line 4 lacks an _id"):
        load_beir(beir)


def test_a_collection_needs_a_folder_with_queries(beir: Path) -> None:
    with pytest.raises(CorpusError, match="is not a folder"):
        load_beir(beir / "corpus.jsonl")
    (beir / "queries.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"holds neither queries\.jsonl nor queries\.jsonl\.gz"):
        load_beir(beir)


def test_the_first_queries_keep_only_their_judgments(beir: Path) -> None:
    collection = load_beir(beir)
    first = collection.first(1)
    assert list(first.queries) == list(first.qrels) == ["b"]
    assert collection.first(None) is collection
    with pytest.raises(ValueError, match="limit is 0"):
        collection.first(0)


@pytest.mark.parametrize("name", ["out.trec", "out.trec.gz"])
def test_a_run_reads_back_as_it_was_written(tmp_path: Path, name: str) -> None:
    run: Run = {
        "q2": [("z", 0.1 + 0.2), ("a", 0.3), ("m", 0.3), ("b", 0.3), ("c", -1e-17)],
        "q1": [("a", 1e300), ("b", 12.0)],
    }
    write_run(tmp_path / name, run, tag="mine")
    back = read_run(tmp_path / name)
    assert back == run
    assert list(back) == ["q2", "q1"]


def test_a_run_is_written_in_trecs_six_columns(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"q": [("d", 0.1 + 0.2), ("e", 0.3)]}, tag="mine")
    assert (tmp_path / "run").read_bytes() == (
        b"q Q0 d 1 0.30000000000000004 mine\nq Q0 e 2 0.3 mine\n"
    )


PAIRS = [("d", 0.5), ("e", 0.25)]
FOUND = tuple(Hit(name, n, score, "", "", {}, score, n) for n, (name, score) in enumerate(PAIRS, 1))


@pytest.mark.parametrize(
    "ranking", [PAIRS, dict(PAIRS[::-1]), Hits(query="x", hits=FOUND), FOUND[:2]], ids=type
)
def test_a_run_is_written_of_rankings_in_every_shape_that_is_measured(
    tmp_path: Path, ranking: Ranking
) -> None:
    write_run(tmp_path / "run", {"q": ranking})
    assert read_run(tmp_path / "run") == {"q": PAIRS}


def test_a_run_out_of_order_is_read_best_first_and_ties_by_rank(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("q Q0 a 9 1.5 t\nq Q0 b 10 1.5 t\nq Q0 c 2 1.5 t\nq Q0 d 7 2 t\n")
    assert read_run(file) == {"q": [("d", 2.0), ("c", 1.5), ("a", 1.5), ("b", 1.5)]}


@pytest.mark.parametrize(
    ("ranking", "tag", "message"),
    [
        ([("a b", 1.0)], "t", "'a b' cannot be a column"),
        ([("", 1.0)], "t", "'' cannot be a column"),
        ([("a", 1.0)], "my tag", "'my tag' cannot be a column"),
        ([("a", 2.0), ("b", 1.0), ("a", 1.0)], "t", "query 'q' holds document 'a' twice"),
        ([("a", 1.0), ("b", 2.0)], "t", "query 'q' is not best first at rank 2"),
        ([("a", 1.0), ("b", float("nan"))], "t", "query 'q' has a NaN score"),
        ([("a", 1.0), 5], "t", "query 'q' cannot be read"),
        ({"a b": 1.0}, "t", "'a b' cannot be a column"),
    ],
)
def test_a_run_that_would_not_read_back_is_refused_before_the_file_exists(
    tmp_path: Path, ranking: Ranking, tag: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "run", {"fine": [("a", 1.0)], "q": ranking}, tag=tag)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 b 2 1.0", "line 2 has 5 columns; a run has 6"),
        ("q Q0 b 2 high t", "line 2 has 'high' where a number belongs"),
        ("q Q0 b 2 nan t", "line 2 has 'nan' where a number belongs"),
        ("q Q0 b second 1.0 t", "line 2 has 'second' where a number belongs"),
        ("q Q0 a 2 1.0 t", "line 2 repeats document 'a' of query 'q'"),
    ],
)
def test_a_broken_line_of_a_run_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "my.run"
    file.write_text(f"q Q0 a 1 2.0 t\n{line}\n", encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        read_run(file)
    assert str(caught.value) == f"my.run {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q d", "line 2 has 2 columns"),
        ("q 0 b good", "line 2 has 'good' where a number belongs"),
        ("q 0 b nan", "line 2 has 'nan' where a number belongs"),
        ("q 0 b 0.5", "line 2 has the grade '0.5'; expected a whole number"),
        ("q 0 a 0", "line 2 judges document 'a' of query 'q' again"),
    ],
)
def test_a_broken_judgment_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "my.qrels"
    file.write_text(f"q 0 a 1\n{line}\n", encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        read_qrels(file)
    assert str(caught.value).startswith(f"my.qrels {message}")


def test_beirs_columns_are_cut_at_tabs_only(tmp_path: Path) -> None:
    file = tmp_path / "test.tsv"
    file.write_bytes(b"query-id\tcorpus-id\tscore\r\nq 1\td 1\t2\r\n")
    assert read_qrels(file) == {"q 1": {"d 1": 2}}


def test_files_without_a_judgment_or_missing_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "test.tsv"
    file.write_text("query-id\tcorpus-id\tscore\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"test\.tsv holds no judgment"):
        read_qrels(file)
    with pytest.raises(CorpusError, match=r"absent\.run does not exist"):
        read_run(tmp_path / "absent.run")


@pytest.mark.parametrize("name", ["file", "file.gz"])
@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n", "\n"])
def test_a_byte_order_mark_is_no_part_of_the_first_query(
    tmp_path: Path, name: str, header: str
) -> None:
    def write(text: str) -> Path:
        data = text.encode("utf-8-sig")
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    assert read_qrels(write(f"{header}q\td\t1\n")) == {"q": {"d": 1}}
    assert read_run(write("q Q0 d 1 2.0 t\n")) == {"q": [("d", 2.0)]}


def test_a_byte_order_mark_before_json_is_named(beir: Path) -> None:
    file = beir / "queries.jsonl"
    file.write_bytes(file.read_text(encoding="utf-8").encode("utf-8-sig"))
    with pytest.raises(CorpusError, match=r"^queries\.jsonl line 1 is not JSON: .*BOM"):
        load_beir(beir)


@pytest.mark.parametrize(
    "header",
    [
        "query_id corpus_id score",
        "qid docid rel",
        "query-id\tcorpus-id\tscore",
        "Query ID\tDocument ID\tRelevance",
        "topic iteration docno judgment",
        "qid 0 docid Label",
    ],
)
def test_the_usual_headers_of_judgments_are_no_judgment(tmp_path: Path, header: str) -> None:
    file = tmp_path / "test.tsv"
    file.write_text(f"\n{header}\nq\td\t1\nq 0 e 2\n", encoding="utf-8")
    assert read_qrels(file) == {"q": {"d": 1, "e": 2}}
    file.write_text(f"q\td\t1\n{header.replace('query-id', 'query')}\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"line 2 has .* where a number belongs"):
        read_qrels(file)


def test_a_header_that_is_not_known_is_refused_as_one(tmp_path: Path) -> None:
    file = tmp_path / "test.tsv"
    file.write_text("question\tpassage\tgold\nq\td\t1\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"line 1 has 'gold' .* header is one of score, rel, rel"):
        read_qrels(file)
    file.write_text("q1\td1\tgood\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"line 1 has 'good' where a number belongs$"):
        read_qrels(file)
