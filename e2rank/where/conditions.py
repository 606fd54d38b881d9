"""A condition on metadata: a tree to keep and compare, and what it means for one document."""

import math
import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Any, NamedTuple, TypeAlias

import numpy as np


class Value(NamedTuple):
    """A value as tests compare it. With its kind, so that `True` does not equal 1.

    Args:
        kind: "string", "number", "bool", "null", or "container" for an object or an empty list,
            which exist but equal nothing.
        value: the str, int, float or bool; None for the other kinds.
    """

    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class OneOf:
    """The field holds one of these values."""

    name: str
    values: frozenset[Value]


@dataclass(frozen=True, slots=True)
class Ordered:
    """The field holds a value of the same kind that is `<`, `<=`, `>` or `>=` this one."""

    name: str
    operator: str
    value: Value


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there, whatever it holds."""

    name: str


@dataclass(frozen=True, slots=True)
class And:
    """Every part holds; without parts, always."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some part holds; without parts, never."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: "Condition"


Leaf: TypeAlias = OneOf | Ordered | Exists
Condition: TypeAlias = And | Or | Not | Leaf

_CONTAINER = Value("container", None)
_SINGLE = (str, int, float)  # asked first, as to ask for a Mapping is slow
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def holds(condition: Condition, metadata: Mapping[str, Any]) -> bool:
    """Whether a document with this metadata, as JSON gives it, meets the condition.

    Raises:
        ValueError: for a value that JSON cannot hold.

    >>> holds(Ordered("year", ">=", Value("number", 2020)), {"year": [1999, 2021]})
    True
    """
    found: dict[str, set[Value]] = {}
    for name, value in named_values(metadata):
        found.setdefault(name, set()).add(value)
    return _holds(condition, found)


def _holds(condition: Condition, found: Mapping[str, Collection[Value]]) -> bool:
    match condition:
        case And(parts):
            return all(_holds(part, found) for part in parts)
        case Or(parts):
            return any(_holds(part, found) for part in parts)
        case Not(part):
            return not _holds(part, found)
        case Exists(name):
            return name in found
        case OneOf(name, values):
            return not values.isdisjoint(found.get(name, ()))
        case Ordered(name, sign, value):
            compare, kind = _COMPARE[sign], value.kind
            return any(
                each.kind == kind and compare(each.value, value.value)
                for each in found.get(name, ())
            )


def size_of(condition: Condition) -> int:
    """How many tests a condition has, and values they list.

    >>> size_of(Not(OneOf("lang", frozenset([Value("string", "en"), Value("string", "de")]))))
    3
    """
    match condition:
        case And(parts) | Or(parts):
            return sum(map(size_of, parts))
        case Not(part):
            return size_of(part)
        case OneOf(_, values):
            return 1 + len(values)
    return 1


def fields_of(condition: Condition) -> set[str]:
    """The fields that have to hold some value for a condition to be met.

    Those of `Not(condition)` are the ones that must not hold some value. Whether a field is there
    at all (`exists`) is no question of its value.

    >>> where = And((Ordered("year", ">", Value("number", 1)), Not(OneOf("lang", frozenset()))))
    >>> fields_of(where), fields_of(Not(where))
    ({'year'}, {'lang'})
    """
    return _tested(condition, wanted=True)


def _tested(condition: Condition, *, wanted: bool) -> set[str]:
    match condition:
        case And(parts) | Or(parts):
            return {name for part in parts for name in _tested(part, wanted=wanted)}
        case Not(part):
            return _tested(part, wanted=not wanted)
        case OneOf(name) | Ordered(name) if wanted:
            return {name}
    return set()


def named_values(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    """Every field of a document by its dotted name, a value at a time, in no certain order.

    Raises:
        ValueError: for a value that JSON cannot hold.

    >>> sorted(named_values({"tags": ["a", "b"], "author": {"age": 7}}))  # doctest: +ELLIPSIS
    [('author', Value(kind='container', value=None)), ('author.age', Value(kind='number', ...
    """
    # A stack, as JSON may be nested deeper than Python's calls.
    stack: list[tuple[str, Any]] = list(metadata.items())
    while stack:
        name, value = stack.pop()
        if isinstance(value, list | tuple):
            stack += [(name, element) for element in value]
            if not value:
                yield name, _CONTAINER
        elif not isinstance(value, _SINGLE) and isinstance(value, Mapping):
            stack += [(f"{name}.{key}", inner) for key, inner in value.items()]
            yield name, _CONTAINER
        else:
            yield name, value_of(value, name)


def value_of(value: Any, place: str) -> Value:
    """A single value with its kind; `place` is what a message calls it.

    Raises:
        ValueError: if it is neither a string, a finite number, a boolean nor None.
    """
    match value:
        case str():
            return Value("string", value)
        case bool():
            return Value("bool", value)
        case int():
            return Value("number", value)
        case float() if math.isfinite(value):
            return Value("number", value)
        case float():
            raise ValueError(f"{place} is {value}, which is no number that JSON can hold")
        case None:
            return Value("null", None)
    if (plain := from_numpy(value)) is not value:
        return value_of(plain, place)
    hint = " (of a date, its isoformat())" if isinstance(value, date | time) else ""
    hint = " (of an array, its tolist())" if isinstance(value, np.ndarray) else hint
    raise ValueError(
        f"{place} is {type_of(value)}; expected a string, a number, a boolean or null{hint}"
    )


def from_numpy(value: Any) -> Any:
    """One of numpy's numbers or booleans as Python's own; anything else as it is."""
    if isinstance(value, np.floating):
        return float(value)
    # A time span counts as a whole number there.
    if isinstance(value, np.bool_ | np.integer) and not isinstance(value, np.timedelta64):
        return value.item()
    return value


def type_of(value: Any) -> str:
    """What a message calls the type of a value."""
    kind = type(value).__name__
    return "null" if value is None else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
