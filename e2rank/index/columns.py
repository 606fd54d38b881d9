"""Values of a field in order, in memory, so that the rows of a range are one stretch."""

import math
import sqlite3
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

# A field of a million numbers takes 20 MB.
_FIELDS = 8
"""Fields that are held, those asked for last."""

_LONGEST = 64
"""Bytes of a string that may be held: enough for any date."""

_STRETCH = {"number": (-math.inf, ""), "string": ("", b"")}
"""Where values of a kind lie among all of a field, as SQLite sorts them."""

Bound = int | float | str


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one kind that a field has, each once.

    Args:
        keys: (v,) ascending: int64, float64, or bytes of UTF-8.
        ends: (v + 1,) int64: the rows of value i are rows[ends[i] : ends[i + 1]].
        rows: uint32 rows, by value.
    """

    keys: np.ndarray
    ends: np.ndarray
    rows: np.ndarray

    def within(self, sign: str, bound: Bound) -> np.ndarray | None:
        """The rows of values that are `<`, `<=`, `>` or `>=` the bound, some perhaps twice.

        Returns:
            None where the bound cannot be compared exactly.
        """
        place = self._below(bound, or_equal=sign in ("<=", ">"))
        if place is None:
            return None
        end = self.ends[place]
        return self.rows[:end] if sign in ("<", "<=") else self.rows[end:]

    def _below(self, bound: Bound, *, or_equal: bool) -> int | None:
        """How many values are less than the bound, or not greater."""
        if isinstance(bound, str):
            raw, width = bound.encode(), self.keys.itemsize
            if b"\0" in raw:
                return None
            # Of what is as long as a value, none is both greater and less than the whole.
            return self._place(raw[:width], or_equal=or_equal or len(raw) > width)
        if not -(2**63) <= bound < 2**63:
            return len(self.keys) if bound > 0 else 0
        if self.keys.dtype == np.int64:
            whole = math.floor(bound) if or_equal else math.ceil(bound)
            return self._place(np.int64(whole), or_equal=or_equal) if whole < 2**63 else None
        return self._place(float(bound), or_equal=or_equal) if float(bound) == bound else None

    def _place(self, key: Any, *, or_equal: bool) -> int:
        return int(np.searchsorted(self.keys, key, "right" if or_equal else "left"))


class Columns:
    """The columns of a database that were asked for last; whoever reads it takes turns."""

    def __init__(self) -> None:
        """Hold none yet."""
        self._held: OrderedDict[tuple[str, str], Column | None] = OrderedDict()

    def of(self, connection: sqlite3.Connection, name: str, kind: str) -> Column | None:
        """The column of a field's numbers or strings.

        Args:
            connection: of the database with the table `fields`.
            name: of the field.
            kind: "number" or "string".
        Returns:
            None where numpy cannot hold and compare each of the values as it is.
        """
        key = (name, kind)
        if key not in self._held:
            self._held[key] = _read(connection, name, kind)
            if len(self._held) > _FIELDS:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]


def _read(connection: sqlite3.Connection, name: str, kind: str) -> Column | None:
    within, bounds = "FROM fields WHERE name = ? AND value >= ? AND value < ?", _STRETCH[kind]
    # Asked first, so that long texts are never in memory at once.
    sql = f"SELECT max(typeof(value) = 'real'), max(length(CAST(value AS BLOB))) {within}"
    fractions, longest = connection.execute(sql, [name, *bounds]).fetchone()
    texts = kind == "string"
    if texts and (longest or 0) > _LONGEST:
        return None
    keys: Any = [] if texts else array("d" if fractions else "q")
    plain: Any = str.encode if texts else float if fractions else int
    rows, counts = bytearray(), array("q", [0])
    sql = f"SELECT value, rows {within} ORDER BY value"
    for value, held in connection.execute(sql, [name, *bounds]):
        key = plain(value)
        # numpy takes zeros at the end of a string for none, and some whole numbers are no floats.
        if b"\0" in key if texts else key != value:
            return None
        keys.append(key)
        counts.append(len(held) // 4)
        rows += held
    held_as = f"S{longest or 1}" if texts else "<f8" if fractions else "<i8"
    ends = np.cumsum(np.frombuffer(counts, dtype=np.int64))
    return Column(np.array(keys, dtype=held_as), ends, np.frombuffer(rows, dtype="<u4"))
