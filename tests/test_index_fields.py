"""Filters by SQL: the table `fields` says what the definition says, whatever the metadata holds."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_where import NUMBERS, TEXTS, defined, documents, patient, wheres

from e2rank.index.columns import Columns
from e2rank.index.fields import combined, leaf_mask, matching_rows, write_fields
from e2rank.where import And, Exists, Not, Or, parse_where

SIGNS = ["=", "!=", "<", "<=", ">", ">="]


def table(
    records: Iterable[Mapping[str, Any]], path: Path | str = ":memory:"
) -> sqlite3.Connection:
    """A database of the fields of these documents."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    write_fields(connection, enumerate(records))
    connection.execute("COMMIT")
    return connection


def rows(connection: sqlite3.Connection, where: Mapping[str, Any], count: int) -> list[int]:
    mask = matching_rows(connection, parse_where(where), count, Columns())
    assert mask.shape == (count,)
    assert mask.dtype == bool
    return np.flatnonzero(mask).tolist()


@patient
@example([{}, {"": 1}], [{"": {"exists": False}}, {"": 1}])
@given(st.lists(documents, max_size=6), st.lists(wheres, min_size=1, max_size=3))
def test_sql_finds_the_rows_that_the_definition_names(
    records: list[dict[str, Any]], asked: list[dict[str, Any]]
) -> None:
    connection = table(records)
    for where in asked:
        expected = [row for row, each in enumerate(records) if defined(where, each)]
        assert rows(connection, where, len(records)) == expected


@pytest.mark.parametrize("singles", [NUMBERS, TEXTS], ids=["numbers", "texts"])
def test_every_pair_of_awkward_values_compares_as_defined(singles: list[Any]) -> None:
    records = [{"a": single} for single in [*singles, None, True, False, {}, [], *TEXTS[:3], 7]]
    connection = table(records)
    for sign in SIGNS:
        for single in singles:
            where = {"a": {sign: single}}
            expected = [row for row, each in enumerate(records) if defined(where, each)]
            assert rows(connection, where, len(records)) == expected, where


@given(
    st.lists(st.integers(-(2**53) - 2, 2**53 + 2) | st.floats(allow_nan=False, allow_infinity=False)
             | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=70), max_size=8),
    st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=80),
    st.sampled_from(SIGNS),
)  # fmt: skip
def test_a_range_from_memory_is_the_one_by_sql(values: list[Any], bound: Any, sign: str) -> None:
    connection = table([{"a": value} for value in values])
    condition = parse_where({"a": {sign: bound}})
    found = matching_rows(connection, condition, len(values), Columns())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Columns, "of", lambda *_: None)
        known = matching_rows(connection, condition, len(values), Columns())
    assert found.tolist() == known.tolist()


def test_a_fields_values_are_read_once_for_many_ranges() -> None:
    connection = table([{"a": number % 700, "day": f"2024-{number:04}"} for number in range(1400)])
    columns, read = Columns(), list[str]()
    connection.set_trace_callback(read.append)
    for number in range(60):
        for where in ({"a": {">=": number}}, {"day": {"<": f"2024-{number:04}"}}):
            mask = matching_rows(connection, parse_where(where), 1400, columns)
            assert mask.sum() == (2 * (700 - number) if "a" in where else number)
    assert sum("ORDER BY value" in each for each in read) == 2


def test_only_the_fields_asked_for_last_are_held() -> None:
    connection = table([{f"f{number}": number for number in range(12)}])
    columns = Columns()
    for number in range(12):
        assert columns.of(connection, f"f{number}", "number") is not None
    connection.close()
    assert columns.of(connection, "f11", "number") is not None
    with pytest.raises(sqlite3.ProgrammingError):
        columns.of(connection, "f0", "number")


def test_an_index_without_the_table_is_read_document_by_document() -> None:
    records = [{"a": 2**70}, {}, {"a": [1, "é"]}, {"a": {"b": None}}]
    old = sqlite3.connect(":memory:")
    old.execute("CREATE TABLE documents (row INTEGER PRIMARY KEY, metadata TEXT)")
    old.executemany("INSERT INTO documents VALUES (?, ?)", enumerate(map(json.dumps, records)))
    for where in ({"a": {">": 0}}, {"a": "é"}, {"not": {"a": 1}}, {"a.b": None}, {}):
        assert rows(old, where, 4) == rows(table(records), where, 4)


def test_a_long_list_of_values_finds_each_of_them() -> None:
    records = [{"n": number} for number in range(2000)]
    asked = [*range(500, 1999, 3), *map(str, range(9000))]
    expected = [number for number in range(2000) if number in set(asked)]
    assert rows(table(records), {"n": {"in": asked}}, 2000) == expected


HOSTILE = [
    "'; DROP TABLE fields; --",
    '"',
    '" OR 1=1 --',
    "%",
    "_",
    "*",
    "a\0b",
    "\0",
    "?",
    ":n",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_and_values_are_data_never_sql(text: str) -> None:
    connection = table([{text: text}, {"a": "b"}, {text: "a"}, {"a": text}])
    assert rows(connection, {text: text}, 4) == [0]
    assert rows(connection, {text: {"exists": True}}, 4) == [0, 2]
    assert rows(connection, {"a": {"in": [text]}}, 4) == [3]
    assert rows(connection, {text: {">=": text, "<=": text}}, 4) == [0]
    assert rows(connection, {}, 4) == [0, 1, 2, 3]


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    records = [{"b": [i % 7, 1, 1.0, True], "a": {"x": str(i), "y": 2**65 + i}} for i in range(900)]
    turned = [dict(reversed(each.items())) for each in records]
    for name, each in (("one", records), ("two", turned)):
        table(each, tmp_path / name).close()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_nothing_but_the_table_is_left_in_the_file(tmp_path: Path) -> None:
    connection = table([{"a": 1}], tmp_path / "t")
    assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("fields",)]
    assert connection.execute("SELECT name FROM sqlite_temp_schema").fetchall() == []


@pytest.mark.parametrize("records", [[], [{}], [{}, {}, {}]], ids=len)
def test_documents_without_metadata_are_found_by_what_they_lack(records: list[Any]) -> None:
    everything = list(range(len(records)))
    assert rows(table(records), {"a": 1}, len(records)) == []
    assert rows(table(records), {"a": {"!=": 1}}, len(records)) == everything


def test_metadata_that_json_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^a\.b is nan, which is no number"):
        table([{"a": {"b": [float("nan")]}}])


def test_masks_of_leaves_may_be_kept_as_they_are_never_written_to() -> None:
    connection = table([{"a": 1}, {"b": 1}, {}])
    kept = {Exists(name): leaf_mask(connection, Exists(name), 3, Columns()) for name in "ab"}
    for mask in kept.values():
        mask.flags.writeable = False
    a, b = kept
    condition = Or((And((a, b)), Not(Or((a, b))), And(()), Or(())))
    assert combined(condition, 3, kept.__getitem__).tolist() == [True, True, True]
    assert combined(And((Not(a), Not(b))), 3, kept.__getitem__).tolist() == [False, False, True]
    assert combined(Or((a, Not(b))), 3, kept.__getitem__).tolist() == [True, False, True]
