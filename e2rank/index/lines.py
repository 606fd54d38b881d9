"""A document as one line of JSON, in which equal lines are equal documents."""

import json
from collections.abc import Mapping
from typing import Any

from e2rank.documents import Document
from e2rank.errors import CorpusError
from e2rank.where import from_numpy, named_values

_DEEPEST = 100
"""Levels of metadata: Python's own JSON fails somewhere near 1,000, wherever it is called."""


def _check_metadata(document: Document) -> None:
    """Refuse what JSON would change without a word, or could not read again."""
    level: list[Any] = [document.metadata]
    for _ in range(_DEEPEST):
        for each in level:
            if isinstance(each, Mapping) and not all(isinstance(key, str) for key in each):
                raise CorpusError(
                    f"document {document.id!r} has metadata JSON cannot hold: expected strings for "
                    "keys"
                )
        inside = [each.values() if isinstance(each, Mapping) else each for each in level]
        level = [one for each in inside for one in each if isinstance(one, Mapping | list | tuple)]
        if not level:
            return
    raise CorpusError(
        f"document {document.id!r} has metadata nested more than {_DEEPEST} levels deep"
    )


def line_of(document: Document) -> str:
    """A document as it is kept, one JSON array: equal lines are equal documents.

    Python calls 1 and True equal, filters do not.

    Raises:
        CorpusError: for metadata or text that cannot be kept.
    """
    if not isinstance(document.metadata, Mapping):
        raise CorpusError(
            f"document {document.id!r} has metadata JSON cannot hold: expected a mapping with "
            "strings for keys"
        )
    _check_metadata(document)
    fields = [document.id, document.title, document.text, dict(document.metadata)]
    try:
        line = json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_plain)
        line.encode()
    except UnicodeEncodeError:
        raise CorpusError(
            f"document {document.id!r} has half a surrogate pair, which no file can hold"
        ) from None
    except (TypeError, ValueError) as error:
        why = _fault(document.metadata) or error
        raise CorpusError(
            f"document {document.id!r} has metadata JSON cannot hold: {why}"
        ) from None
    return line + "\n"


def _plain(value: Any) -> Any:
    """What JSON can hold for a value that it does not know."""
    plain = dict(value) if isinstance(value, Mapping) else from_numpy(value)
    if plain is value:
        raise TypeError(f"it holds a value of type {type(value).__name__}")
    return plain


def _fault(metadata: Mapping[str, Any]) -> ValueError | None:
    """The error that names the field of a value JSON cannot hold, if there is such a value."""
    try:
        for _ in named_values(metadata):
            pass
    except ValueError as error:
        return error
    return None
