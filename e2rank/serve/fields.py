"""The fields of a request, each read once and checked; what nobody reads is refused."""

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from e2rank.checks import check_texts
from e2rank.serve.refused import Refused

MOST_BYTES = 8 << 20
"""The largest body that is read, of texts; reading it takes the server for itself meanwhile."""

MOST_TEXTS = 2048
"""The most texts of one request, as OpenAI's endpoint of embeddings takes them."""

_LONGEST = 200
"""Characters of a name."""

_MOST = float(np.finfo(np.float32).max)

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

    def vector(self, name: str, dim: int) -> np.ndarray:
        """A list of so many numbers as float32, one at least not 0."""
        value = self._take(name)
        wanted = f"a list of {dim} numbers that float32 can hold, not all 0"
        if not isinstance(value, list) or len(value) != dim or not all(map(_is_number, value)):
            raise _wrong(name, value, wanted)
        vector = np.array(value, dtype=np.float32)
        if not vector.any():
            raise _wrong(name, value, wanted)
        return vector

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

    def name(self, name: str) -> str | None:
        """A short string; what it means is checked elsewhere."""
        return self._short(name, "")

    def name_or_off(self, name: str) -> str | Literal[False] | None:
        """A short string, or false."""
        if self._left.get(name) is False:
            del self._left[name]
            return False
        return self._short(name, ", or false")

    def _short(self, name: str, more: str) -> str | None:
        value = self._take(name, None)
        if value is not None and (not isinstance(value, str) or len(value) > _LONGEST):
            raise _wrong(name, value, f"a string of at most {_LONGEST} characters{more}")
        return value

    def strings(self, name: str, default: list[str]) -> list[str]:
        """A list of strings."""
        value = self._take(name, default)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise _wrong(name, value, "a list of strings")
        return value

    def filter(self, name: str) -> Mapping[str, Any] | str | None:
        """A filter of metadata: an object, or a string; what it means is checked elsewhere."""
        value = self._take(name, None)
        if value is not None and not isinstance(value, dict | str):
            raise _wrong(name, value, 'an object such as {"year": {">=": 2020}}, or a string')
        return value


def _text_of(value: Any) -> Any:
    """The text of a document as some clients send it, {"text": ...}, perhaps with its id."""
    known = isinstance(value, dict) and "text" in value and set(value) <= {"text", "id", "_id"}
    return value["text"] if known else value


def _texts(name: str, value: Any) -> list[str]:
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise _wrong(
            name,
            value,
            "texts: ids of tokens are of one model's vocabulary (LangChain's OpenAIEmbeddings send "
            "texts with check_embedding_ctx_length=False)",
        )
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
    # Compared, as a whole number may be too large for a float.
    return type(value) in (int, float) and abs(value) <= _MOST


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
