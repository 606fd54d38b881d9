"""From a filter written as a mapping to its condition; everything it cannot mean is refused."""

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from e2rank.where.conditions import (
    And,
    Condition,
    Exists,
    Not,
    OneOf,
    Or,
    Ordered,
    Value,
    type_of,
    value_of,
)

MAX_DEPTH = 32
"""How deep `and`, `or` and `not` may nest."""
MAX_VALUES = 10_000
"""How many values an `in` may list."""
MAX_TESTS = 1_000
"""How many tests a filter may have."""
OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "in", "exists")
WORDS = ("and", "or", "not")


def parse_where(where: Mapping[str, Any]) -> Condition:
    """The condition that a filter states; equal filters give equal, hashable conditions.

    Args:
        where: a filter as `e2rank.where` describes it.
    Raises:
        ValueError: naming the place, for whatever is not a filter.

    >>> parse_where({"year": {">=": 2020}})
    Ordered(name='year', operator='>=', value=Value(kind='number', value=2020))
    """
    return _filter(where, "where", 0, iter(range(MAX_TESTS)))


def _filter(where: Any, place: str, depth: int, left: Iterator[int]) -> Condition:
    """The condition of a filter; `left` gives a number for every test that it may still have."""
    if not isinstance(where, Mapping):
        raise ValueError(
            f"{place} is {type_of(where)}; expected a mapping such as {{'year': {{'>=': 2020}}}}"
        )
    if not where:
        _count(place, left)  # it takes as long as a test
    parts = [_entry(key, value, place, depth, left) for key, value in where.items()]
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _entry(key: Any, value: Any, place: str, depth: int, left: Iterator[int]) -> Condition:
    if not isinstance(key, str):
        raise ValueError(f"{place} has a key that is {type_of(key)}; names of fields are strings")
    inner = f"{place}[{reprlib.repr(key)}]"
    if key not in WORDS:
        return _tests(key, value, inner, left)
    if depth == MAX_DEPTH:
        raise ValueError(f"{inner} is nested too deep; and, or, not may nest {MAX_DEPTH} deep")
    if key == "not":
        return Not(_filter(value, inner, depth + 1, left))
    if not isinstance(value, list | tuple):
        raise ValueError(f"{inner} is {type_of(value)}; expected a list of filters")
    if not value:
        _count(inner, left)
    parts = (_filter(part, f"{inner}[{i}]", depth + 1, left) for i, part in enumerate(value))
    return And(tuple(parts)) if key == "and" else Or(tuple(parts))


def _count(place: str, left: Iterator[int]) -> None:
    if next(left, None) is None:
        raise ValueError(
            f"{place} is a test too many; at most {MAX_TESTS:,} are taken; to match any of several "
            "values of a field write {'in': [...]}"
        )


def _tests(name: str, tests: Any, place: str, left: Iterator[int]) -> Condition:
    """The condition of one field: a value, or a mapping from operators to values."""
    _check_text(name, place)
    if isinstance(tests, list | tuple):
        raise ValueError(f"{place} is a list; to match any of several values write {{'in': [...]}}")
    if not isinstance(tests, Mapping):
        tests = {"=": tests}
    if not tests:
        raise ValueError(f"{place} is an empty mapping; expected a value or an operator")
    parts = [_test(name, sign, value, place, left) for sign, value in tests.items()]
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _test(name: str, sign: Any, value: Any, place: str, left: Iterator[int]) -> Condition:
    if sign not in OPERATORS:
        raise ValueError(
            f"{place} has the unknown operator {reprlib.repr(sign)}; expected one of "
            f"{' '.join(OPERATORS)} (a field inside an object is named with a dot: 'author.name')"
        )
    place = f"{place}[{sign!r}]"
    _count(place, left)
    match sign:
        case "exists":
            if not isinstance(value, bool):
                raise ValueError(f"{place} is {type_of(value)}; expected true or false")
            return Exists(name) if value else Not(Exists(name))
        case "in":
            return OneOf(name, _values(value, place))
        case "=":
            return OneOf(name, frozenset([_value(value, place)]))
        case "!=":
            return Not(OneOf(name, frozenset([_value(value, place)])))
    bound = _value(value, place)
    if bound.kind not in ("number", "string"):
        raise ValueError(f"{place} is {type_of(value)}; only numbers and strings have an order")
    return Ordered(name, sign, bound)


def _values(values: Any, place: str) -> frozenset[Value]:
    if not isinstance(values, list | tuple | set | frozenset | range):
        raise ValueError(f"{place} is {type_of(values)}; expected a list of values")
    if len(values) > MAX_VALUES:
        raise ValueError(f"{place} lists {len(values):,} values; at most {MAX_VALUES:,} are taken")
    return frozenset(_value(each, f"{place}[{i}]") for i, each in enumerate(values))


def _value(value: Any, place: str) -> Value:
    if isinstance(value, str):
        _check_text(value, place)
    return value_of(value, place)


def _check_text(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place} has half a surrogate pair, which no document can hold") from None
