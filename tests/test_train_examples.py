"""Training examples are read as they were written, or refused by file and line."""

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2rank.errors import CorpusError
from e2rank.train.examples import Example, read_examples, write_examples

OURS: dict[str, Any] = {"query": "wing lift", "documents": ["a", "b"], "labels": [0.5, 2]}
PUBLISHED: dict[str, Any] = {
    "query": "wing lift",
    "document": ["worst", "best", "middle"],
    "ranking": [2, 3, 1],
    "source": "nq",
}
WHOLE = Example(
    "wing lift é",
    ("a", "", "ü\nb"),
    (0.1, -3.0, 1 / 3),
    first_stage=(0.25, 0.5, 0.1),
    ids=("1", "2", "3"),
    source="wings",
)


def written(path: Path, *rows: dict[str, Any]) -> Path:
    """A file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_published_row_gets_the_label_n_minus_rank(tmp_path: Path) -> None:
    (example,) = read_examples(written(tmp_path / "rows.jsonl", PUBLISHED))
    assert example == Example(
        "wing lift", ("worst", "best", "middle"), (0.0, 2.0, 1.0), source="nq"
    )


def test_our_row_keeps_its_labels(tmp_path: Path) -> None:
    row = OURS | {"first_stage": [0.1, 0.2], "ids": ["x", "y"], "source": "mined"}
    (example,) = read_examples(written(tmp_path / "rows.jsonl", row))
    assert example == Example("wing lift", ("a", "b"), (0.5, 2.0), (0.1, 0.2), ("x", "y"), "mined")


def test_one_file_may_hold_all_forms_in_order(tmp_path: Path) -> None:
    reference = {"query": "third", "ids": ["y", "x"], "labels": [1, 0]}
    file = written(tmp_path / "rows.jsonl", PUBLISHED, OURS, reference)
    texts = {"x": "text of x", "y": "text of y"}
    examples = list(read_examples(file, texts.__getitem__))
    assert [each.query for each in examples] == ["wing lift", "wing lift", "third"]
    assert examples[2].documents == ("text of y", "text of x")
    assert examples[2].ids == ("y", "x")


@pytest.mark.parametrize("name", ["nq.jsonl", "nq.jsonl.gz"])
def test_a_row_without_a_source_is_from_the_file_it_is_in(tmp_path: Path, name: str) -> None:
    data = (json.dumps(OURS) + "\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [each.source for each in read_examples(tmp_path / name)] == ["nq"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_what_is_written_is_read_back_exactly(tmp_path: Path, name: str) -> None:
    bare = Example("plain", ("a",), (1.0,), source="s")
    assert write_examples([WHOLE, bare], tmp_path / name) == 2
    assert list(read_examples(tmp_path / name)) == [WHOLE, bare]


def test_examples_written_by_reference_come_back_with_their_texts(tmp_path: Path) -> None:
    write_examples([WHOLE], tmp_path / "out.jsonl", texts=False)
    assert "documents" not in (tmp_path / "out.jsonl").read_text()
    texts = dict(zip(WHOLE.ids, WHOLE.documents, strict=True))
    assert list(read_examples(tmp_path / "out.jsonl", texts.__getitem__)) == [WHOLE]


def test_an_example_without_ids_cannot_be_written_by_reference(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'plain' has no ids"):
        write_examples([Example("plain", ("a",), (1.0,))], tmp_path / "out.jsonl", texts=False)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_the_same_examples_give_the_same_bytes_whenever_they_are_written(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, now in (("one", 1e9), ("two", 1.5e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        (tmp_path / folder).mkdir()
        write_examples([WHOLE], tmp_path / folder / name)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_writing_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    write_examples([WHOLE], file)
    bare = Example("plain", ("a",), (1.0,))
    with pytest.raises(ValueError, match="no ids"):
        write_examples([WHOLE, bare], file, texts=False)
    assert list(read_examples(file)) == [WHOLE]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"documents": ["a"], "labels": [1]}, "no 'query'"),
        (OURS | {"query": " \t"}, "the query is blank"),
        (OURS | {"query": 7}, "'query' is of type int; expected a string"),
        (OURS | {"query": None}, "'query' is of type NoneType; expected a string"),
        ({"query": "q", "documents": ["a"]}, "no 'labels'"),
        ({"query": "q", "labels": [1]}, "neither 'documents' nor 'ids'"),
        (OURS | {"documents": []}, "there is no document"),
        (OURS | {"documents": "ab"}, "'documents' is of type str; expected a list"),
        (OURS | {"documents": ["a", None]}, "'documents' holds a NoneType"),
        (OURS | {"labels": [1]}, "1 labels for 2 documents"),
        (OURS | {"labels": [1, float("nan")]}, "labels hold a NaN"),
        (OURS | {"labels": [1, float("inf")]}, "labels hold a NaN or an infinity"),
        (OURS | {"labels": [1, 10**400]}, "int too large"),
        (OURS | {"labels": [1, 1e39]}, r"labels hold a number as large as 1e\+39; expected"),
        (OURS | {"labels": [-2e38, 2e38]}, r"labels hold a number as large as 2e\+38; expected"),
        (OURS | {"labels": [1, True]}, "'labels' holds a bool; expected numbers"),
        (OURS | {"labels": [1, "2"]}, "'labels' holds a str; expected numbers"),
        (OURS | {"first_stage": [1]}, "1 first_stage for 2 documents"),
        (OURS | {"first_stage": [1, float("nan")]}, "first_stage hold a NaN"),
        (OURS | {"ids": ["x"]}, "1 ids for 2 documents"),
        (OURS | {"ids": ["x", "x"]}, "ids hold a document twice"),
        (OURS | {"ids": ["x", 2]}, "'ids' holds a int"),
        (OURS | {"source": None}, "'source' is of type NoneType"),
        (OURS | {"first": [1, 2]}, "unknown key 'first'"),
        (OURS | {"ranking": [1, 2]}, "unknown key 'documents'"),
        ({"query": "q", "document": ["a"]}, "no 'ranking'"),
        ({"query": "q", "ranking": [1]}, "no 'document'"),
        (PUBLISHED | {"ranking": [1, 2]}, "'ranking' is no permutation of 1 to 3"),
        (PUBLISHED | {"ranking": [0, 1, 2]}, "'ranking' is no permutation of 1 to 3"),
        (PUBLISHED | {"ranking": [1, 1, 2]}, "'ranking' is no permutation of 1 to 3"),
        (PUBLISHED | {"ranking": [1, 2, 3.0]}, "'ranking' is no permutation of 1 to 3"),
        (PUBLISHED | {"ranking": [2, 3, True]}, "'ranking' is no permutation of 1 to 3"),
        (PUBLISHED | {"ranking": [2, 3, "1"]}, "'ranking' is no permutation of 1 to 3"),
        ({"query": "q", "ids": ["x"], "labels": [1]}, "pass read_examples a function"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    file = written(tmp_path / "rows.jsonl", OURS, row, OURS)
    examples = read_examples(file)
    assert next(examples).query == "wing lift"
    with pytest.raises(CorpusError, match=r"rows\.jsonl line 2: .*" + reason):
        next(examples)


def test_an_id_that_has_no_text_is_refused_by_file_and_line(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", {"query": "q", "ids": ["x", "gone"], "labels": [1, 0]})
    with pytest.raises(CorpusError, match=r"rows\.jsonl line 1: .*document id 'gone'"):
        list(read_examples(file, {"x": "text"}.__getitem__))


def test_a_line_that_is_not_json_is_refused_by_file_and_line(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", OURS)
    with file.open("a") as out:
        out.write('{"query": "cut sh')
    with pytest.raises(CorpusError, match=r"rows\.jsonl line 2 is not JSON"):
        list(read_examples(file))


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"gone\.jsonl does not exist"):
        list(read_examples(tmp_path / "gone.jsonl"))


def changed(**fields: Any) -> Callable[[], Example]:
    """Makes `WHOLE` with other fields."""
    names = ("query", "documents", "labels", "first_stage", "ids", "source")
    return lambda: Example(**{name: getattr(WHOLE, name) for name in names} | fields)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (changed(query=""), "blank"),
        (changed(documents=()), "no document"),
        (changed(labels=(1.0,)), "1 labels for 3"),
        (changed(first_stage=(1.0,)), "1 first_stage for 3"),
        (changed(ids=("1",)), "1 ids for 3"),
        (changed(labels=(1.0, float("nan"), 2.0)), "NaN"),
    ],
)
def test_an_example_made_in_code_is_checked_too(make: Callable[[], Example], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


def test_a_text_that_a_row_holds_twice_is_read_once_with_its_better_label(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = {"query": "q", "document": ["a", "b", "a", "c"], "ranking": [2, 3, 4, 1]}
    ours = {"query": "q", "documents": ["a", "b"], "labels": [1.0, 0.0]}
    named = {
        "query": "q",
        "ids": ["x", "y", "z"],
        "labels": [0.5, 0.25, 0.75],
        "first_stage": [9.0, 8.0, 7.0],
    }
    path = written(tmp_path / "some.jsonl", published, ours, named)
    first, second, third = read_examples(path, {"x": "one", "y": "two", "z": "one"}.__getitem__)
    assert (first.documents, first.labels) == (("b", "a", "c"), (3.0, 2.0, 1.0))
    assert (second.documents, second.labels) == (("a", "b"), (1.0, 0.0))
    assert (third.documents, third.ids) == (("two", "one"), ("y", "z"))
    assert (third.labels, third.first_stage) == ((0.25, 0.75), (8.0, 7.0))
    assert "some.jsonl: 2 rows hold a text twice" in caplog.text
