"""Filters over documents' metadata: a small language with one meaning.

A filter is a mapping, and several keys mean that all of them must hold:

    {"year": {">=": 2020, "<": 2024}, "lang": "en"}
    {"or": [{"tags": {"in": ["a", "b"]}}, {"not": {"author.name": "Kim"}}]}

**Fields.** A field inside an object is named with a dot: `author.name`. A key that holds a dot
itself has the same name as the nested one, and either is found. A list stands for its elements,
lists in lists and objects in lists too, and a test holds if any element passes it. Each test looks
on its own: `{"n": {">": 1, "<": 5}}` holds for `{"n": [0, 9]}`.

**Tests.** A plain value means `=`.

- `=`: the field holds this value.
- `!=`: `=` does not hold; so also where the field is missing.
- `<`, `<=`, `>`, `>=`: the field holds a number that compares so with this number, or a string that
  compares so with this string. Booleans and null have no order and are refused.
- `in`: the field holds one of the values of this list; none if the list is empty.
- `exists`: the field is there, whatever it holds, `null`, `{}` and `[]` too; `false`: it is not.

**Values.** Strings, numbers, booleans and null are apart: `"2020"` is not 2020, `true` is not 1,
and `"abc" >= 2020` is false. `= null` holds where null is stored, not where the field is missing.
Numbers compare exactly, whole or not and of any size: 1 is 1.0, but 2 ** 53 + 1 is not the float
2.0 ** 53. Strings compare by code point, case and accents count, so ISO dates are in order.

**And, or, not.** `{"and": [...]}` and `{"or": [...]}` take filters, `{"not": {...}}` takes one. An
empty filter and an empty `and` hold everywhere, an empty `or` nowhere. No field can be called
`and`, `or` or `not`.

**Limits.** A filter has at most 1,000 tests, which nest at most 32 deep; an `in` lists at most
10,000 values.

`where_from_text` reads the same from one line of text.
"""

from e2rank.where.conditions import (
    And,
    Condition,
    Exists,
    Leaf,
    Not,
    OneOf,
    Or,
    Ordered,
    Value,
    fields_of,
    from_numpy,
    holds,
    named_values,
    size_of,
)
from e2rank.where.parse import parse_where
from e2rank.where.text import read_where, where_from_text

__all__ = [
    "And",
    "Condition",
    "Exists",
    "Leaf",
    "Not",
    "OneOf",
    "Or",
    "Ordered",
    "Value",
    "fields_of",
    "from_numpy",
    "holds",
    "named_values",
    "parse_where",
    "read_where",
    "size_of",
    "where_from_text",
]
