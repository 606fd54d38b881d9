"""A filter in one line of text, as a command line takes it."""

import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from e2rank.where.conditions import Condition
from e2rank.where.parse import MAX_DEPTH, MAX_TESTS, MAX_VALUES, WORDS, parse_where

_SIGNS = ("!=", "<=", ">=", "=", "<", ">")
_CONSTANTS = {"true": True, "false": False, "null": None}
_RESERVED = {*WORDS, "in", "exists", *_CONSTANTS}


def where_from_text(text: str) -> dict[str, Any]:
    """The filter that a line such as `year >= 2020 and not lang = "en"` states.

    A test is `field = value` (or `!=`, `<`, `<=`, `>`, `>=`), `field in [value, ...]` or
    `exists field`. `not` binds tighter than `and`, `and` tighter than `or`; parentheses group.
    Fields are bare words (letters, digits, `_`, `-`, `.`) or any text in quotes. Values are
    strings in double or single quotes with JSON's escapes, numbers, true, false and null.

    Returns:
        A mapping that `parse_where` takes.
    Raises:
        ValueError: with the position, counted from 1, for whatever is not such a line.

    >>> where_from_text("year >= 2020 and tags in ['a', 'b']")
    {'and': [{'year': {'>=': 2020}}, {'tags': {'in': ['a', 'b']}}]}
    """
    where = _Parser(text).whole()
    parse_where(where)  # nests deeper than the text where `and` stands in `or`
    return where


def read_where(where: Mapping[str, Any] | str) -> Condition:
    """The condition that a filter states, be it a mapping or a line of text.

    Raises:
        ValueError: naming the place, for whatever is not a filter.
    """
    return parse_where(where_from_text(where) if isinstance(where, str) else where)


class _Token(NamedTuple):
    """`kind` is "word", "string", "number", "sign" or "end"; `at` counts characters from 0."""

    kind: str
    value: Any
    at: int
    source: str

    def fail(self, expected: str, instead: str = "") -> NoReturn:
        found = reprlib.repr(self.source) if self.source else "the end"
        instead = instead or _instead(self.source)
        write = f"; write {instead}" if instead else ""
        _fail(self.at, f"expected {expected}, found {found}{write}")


class _Parser:
    """Recursive descent, one method a rule."""

    def __init__(self, text: str) -> None:
        self._rest = _tokens(text)
        self._depth = self._tests = 0
        self._next = next(self._rest)

    def whole(self) -> dict[str, Any]:
        where = self._either()
        if self._next.kind != "end":
            self._next.fail("'and', 'or' or the end")
        return where

    def _either(self) -> dict[str, Any]:
        parts = [self._both()]
        while self._took("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else {"or": parts}

    def _both(self) -> dict[str, Any]:
        parts = [self._single()]
        while self._took("and"):
            parts.append(self._single())
        return parts[0] if len(parts) == 1 else {"and": parts}

    def _single(self) -> dict[str, Any]:
        start = self._next
        if self._tests == MAX_TESTS:
            several = "to match any of several values of a field write: field in [...]"
            _fail(start.at, f"a test too many; at most {MAX_TESTS:,} are taken; {several}")
        if self._took("not"):
            self._deeper(start)
            where = {"not": self._single()}
        elif self._took("("):
            self._deeper(start)
            where = self._either()
            self._take(")", "'and', 'or' or ')'")
        elif self._took("exists"):
            self._tests += 1
            return {self._name(): {"exists": True}}
        else:
            return self._test()
        self._depth -= 1
        return where

    def _test(self) -> dict[str, Any]:
        self._tests += 1
        name = self._name()
        if self._took("in"):
            return {name: {"in": self._values()}}
        sign = self._next.source
        if self._next.kind != "sign" or sign not in _SIGNS:
            self._next.fail(f"one of {' '.join(_SIGNS)} in", _between(name, sign))
        self._advance()
        value = self._value()
        return {name: value if sign == "=" else {sign: value}}

    def _name(self) -> str:
        token = self._next
        if token.kind == "string" and token.value in WORDS:
            _fail(token.at, f"no field can be called {token.value!r} in a filter")
        if token.kind != "string" and (token.kind != "word" or token.value in _RESERVED):
            token.fail("a field's name, in quotes if it is no bare word")
        self._advance()
        return str(token.value)

    def _values(self) -> list[Any]:
        start = self._next
        self._take("[", "'[' and a list of values")
        if self._took("]"):
            return []
        values = [self._value()]
        while self._took(","):
            values.append(self._value())
        self._take("]", "',' or ']'")
        if len(values) > MAX_VALUES:
            _fail(start.at, f"a list of {len(values):,} values; at most {MAX_VALUES:,} are taken")
        return values

    def _value(self) -> Any:
        token = self._next
        if token.kind == "word" and token.value in _CONSTANTS:
            self._advance()
            return _CONSTANTS[token.value]
        if token.kind == "word":
            token.fail("a number, true, false, null or a string in quotes")
        if token.kind not in ("string", "number"):
            token.fail("a value", "= once" if token.source == "=" else "")
        self._advance()
        return token.value

    def _deeper(self, start: _Token) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            _fail(start.at, f"nested too deep; parentheses and 'not' may nest {MAX_DEPTH} deep")

    def _took(self, source: str) -> bool:
        """Whether the next token is this word or sign, which is then taken."""
        found = self._next.kind in ("word", "sign") and self._next.source == source
        if found:
            self._advance()
        return found

    def _take(self, source: str, expected: str) -> None:
        if not self._took(source):
            self._next.fail(expected)

    def _advance(self) -> None:
        self._next = next(self._rest)


def _instead(source: str) -> str:
    """The word that other languages spell so; "" if it is none."""
    word = {"none": "null"}.get(source.lower(), source.lower())
    return word if word in _RESERVED and word != source else ""


def _between(name: str, found: str) -> str:
    """What to write for a test that other languages have, from its first two words."""
    if found.lower() == "is":
        return "= null or != null"
    if found.lower() in ("not", "exists"):
        return f"{found.lower()!r} in front of the field"
    word = "" if _instead(found) else _instead(name)
    return f"{word} for {name!r}" if word else ""


def _fail(at: int, what: str) -> NoReturn:
    raise ValueError(f"filter, character {at + 1}: {what}")


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        if text[at] in "\"'":
            token = _string(text, at)
        elif _in_word(text[at]):
            token = _word(text, at)
        else:
            token = _sign(text, at)
        yield token
        at += len(token.source)
    yield _Token("end", None, len(text), "")


def _in_word(char: str) -> bool:
    return char.isalnum() or char in "_-.+"


def _word(text: str, at: int) -> _Token:
    """A number, or a bare word."""
    end = next((i for i in range(at, len(text)) if not _in_word(text[i])), len(text))
    source = text[at:end]
    if source[0] not in "-0123456789":
        return _Token("word", source, at, source)
    try:
        number = json.loads(source, parse_constant=float)
        finite = isinstance(number, int) or math.isfinite(number)
    except ValueError:
        return _Token("word", source, at, source)
    if not finite:
        _fail(at, f"{reprlib.repr(source)} is not a number that JSON can hold")
    return _Token("number", number, at, source)


def _sign(text: str, at: int) -> _Token:
    signs = (*_SIGNS, *"()[],")
    sign = next((each for each in signs if text.startswith(each, at)), None)
    if sign is None:
        _fail(at, f"{text[at]!r} means nothing here; put names and strings in quotes")
    return _Token("sign", sign, at, sign)


def _string(text: str, at: int) -> _Token:
    """A string in either kind of quotes, with JSON's escapes and both quotes escaped."""
    quote, end = text[at], at + 1
    inside = []
    while end < len(text) and text[end] != quote:
        part = text[end : end + 2] if text[end] == "\\" else text[end]
        inside.append({"\\'": "'", '"': '\\"'}.get(part, part))
        end += len(part)
    if end >= len(text):
        _fail(at, "the string that starts here has no end")
    source = text[at : end + 1]
    try:
        value = json.loads(f'"{"".join(inside)}"', strict=False)
        value.encode()
    except UnicodeEncodeError:
        _fail(at, "a string with half a surrogate pair, which no document can hold")
    except ValueError:
        _fail(at, f"{reprlib.repr(source)} has an escape that JSON does not know")
    return _Token("string", value, at, source)
