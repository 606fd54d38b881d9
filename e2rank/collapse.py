"""Documents that stand for one thing, such as the passages of a text, shown once: by the best."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from e2rank.index import Store

_TOGETHER = 64
"""Documents that are read at a time to see what they stand for."""


def thing_of(metadata: Mapping[str, Any], identifier: str, field: str) -> str:
    """What a document stands for, as judgments name it: its value in a field, or its own id."""
    value = metadata.get(field)
    return identifier if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Collapse:
    """By a field of metadata: documents that hold one value there stand for one thing.

    A document without the field stands for itself.
    """

    field: str

    def __post_init__(self) -> None:
        """Refuse what is no name.

        Raises:
            ValueError: saying so.
        """
        if not isinstance(self.field, str) or not self.field:
            raise ValueError(f"collapse is {self.field!r}; expected the name of a metadata field")

    def best(self, store: Store, rows: np.ndarray, k: int) -> np.ndarray:
        """Which places of a ranking stay.

        Args:
            store: of the rows.
            rows: (n,) best first.
            k: how many to find.
        Returns:
            (m,) int64 ascending places, m <= k: the first of each thing.
        Raises:
            ValueError: for a document that holds a list or an object in the field.
        """
        return np.array(list(islice(self._firsts(store, rows), k)), dtype=np.int64)

    def _firsts(self, store: Store, rows: np.ndarray) -> Iterator[int]:
        seen: set[str] = set()
        for start in range(0, len(rows), _TOGETHER):
            for place, key in enumerate(self._keys(store, rows[start : start + _TOGETHER]), start):
                if key is None or key not in seen:
                    yield place
                if key is not None:
                    seen.add(key)

    def _keys(self, store: Store, rows: np.ndarray) -> Sequence[str | None]:
        """The value of each document as JSON, which tells 1 from "1" and from true."""
        keys = []
        for document in store.documents(rows):
            value = document.metadata.get(self.field)
            if isinstance(value, list | dict):
                raise ValueError(
                    f"document {document.id!r} has {value!r:.60} under {self.field!r}; to collapse "
                    "by it, it must be one value"
                )
            keys.append(None if value is None else json.dumps(value))
        return keys
