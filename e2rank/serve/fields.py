"""The fields of a request, each read once and checked; what nobody reads is refused."""

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from e2rank.checks import check_texts
from e2rank.serve.refused import Refused

MOST_BYTES = 32 << 20
"""The largest body that is read."""

MOST_TEXTS = 2048
"""The most texts of one request, as OpenAI's endpoint of embeddings takes them."""

_ABSENT = object()


class Fields:
    """The body of a request: a JSON object.

    Every method takes one field out; `end` refuses what is left, so that a misspelt option is not
    passed over. All raise `Refused` with status 400.
    """

    def __init__(self, body: bytes) -> None:
        """Read JSON."""
        try:
            read = json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is no JSON: {error}") from None
        if not isinstance(read, dict):
            raise Refused(400, "the body is no JSON object")
        self._left: dict[str, Any] = read

    def __contains__(self, name: str) -> bool:
        return self._left.get(name) is not None

    def _take(self, name: str, default: Any = _ABSENT) -> Any:
        """A field; null is as if it were not there."""
        value = self._left.pop(name, None)
        if value is None:
            value = default
        if value is _ABSENT:
            raise Refused(400, f"{name!r} is missing")
        return value

    def end(self) -> None:
        """Refuse the fields that nobody read."""
        if left := [name for name, value in self._left.items() if value is not None]:
            raise Refused(400, f"{left[0]!r} is not known here")

    def passed_over(self, *names: str) -> None:
        """Take fields that change nothing here, whatever they hold."""
        for name in names:
            self._left.pop(name, None)

    def query(self, name: str) -> str:
        """A string that is not blank."""
        value = self._take(name)
        if not isinstance(value, str) or not value.strip():
            raise _wrong(name, value, "a text that is not blank")
        return value

    def texts(self, name: str) -> list[str]:
        """One string, or a list of them."""
        value = self._take(name)
        return _texts(name, [value] if isinstance(value, str) else value)

    def documents(self, name: str) -> list[str]:
        """A list of strings, or of objects with a "text"."""
        value = self._take(name)
        if isinstance(value, list):
            value = [_text_of(each) for each in value]
        return _texts(name, value)

    def vector(self, name: str) -> np.ndarray:
        """A list of numbers as float32."""
        value = self._take(name)
        if not isinstance(value, list) or not value or not all(map(_is_number, value)):
            raise _wrong(name, value, "a list of numbers")
        # What is beyond float32 becomes an infinity, which the engine refuses.
        with np.errstate(over="ignore"):
            return np.array(value, dtype=np.float32)

    def whole(self, name: str, default: Any, *, least: int, most: int) -> Any:
        """A whole number within bounds."""
        value = self._take(name, default)
        if value is not default and (type(value) is not int or not least <= value <= most):
            raise _wrong(name, value, f"a whole number from {least} to {most:,}")
        return value

    def share(self, name: str, default: Any) -> Any:
        """A number from 0 to 1."""
        value = self._take(name, default)
        if value is not default and (not _is_number(value) or not 0 <= value <= 1):
            raise _wrong(name, value, "a number from 0 to 1")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
        return value

    def one_of(self, name: str, choices: Sequence[Any], default: Any = _ABSENT) -> Any:
        """One of some strings, or of true and false."""
        value = self._take(name, default)
        if value is not default and not any(_equal(value, each) for each in choices):
            raise _wrong(name, value, "one of " + ", ".join(map(json.dumps, choices)))
        return value

    def string(self, name: str, default: Any) -> Any:
        """A string; what it means is checked elsewhere."""
        value = self._take(name, default)
        if value is not default and not isinstance(value, str):
            raise _wrong(name, value, "a string")
        return value

    def filter(self, name: str) -> Mapping[str, Any] | str | None:
        """A filter of metadata: an object, or a string; what it means is checked elsewhere."""
        value = self._take(name, None)
        if value is not None and not isinstance(value, dict | str):
            raise _wrong(name, value, 'an object such as {"year": {">=": 2020}}, or a string')
        return value


def _text_of(value: Any) -> Any:
    """The text of a document as some clients send it, {"text": ...}."""
    return value["text"] if isinstance(value, dict) and set(value) == {"text"} else value


def _texts(name: str, value: Any) -> list[str]:
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        raise _wrong(name, value, "texts: ids of tokens are of one model's own vocabulary")
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _wrong(name, value, "a list of texts")
    if len(value) > MOST_TEXTS:
        raise Refused(413, f"{name!r} has {len(value):,} texts; expected at most {MOST_TEXTS:,}")
    try:
        check_texts(value, name)
    except ValueError as error:
        raise Refused(400, str(error)) from None
    return value


def _wrong(name: str, value: Any, expected: str) -> Refused:
    return Refused(400, f"{name!r} is {reprlib.repr(value)}; expected {expected}")


def _equal(value: Any, choice: Any) -> bool:
    """Equal and of one type: 1 is not true."""
    return type(value) is type(choice) and value == choice


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
