"""Documents that stand for one thing, such as the passages of a text, shown once: by the best."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from e2rank.index import Store
from e2rank.whole import count, is_split, owner_of

_TOGETHER = 64
"""Documents that are read at a time to see what they stand for."""

_DEEPEST = 64
"""How many times the depth is looked through at most for values of a field."""


def thing_of(metadata: Mapping[str, Any], identifier: str, field: str) -> str:
    """What a document stands for, as judgments name it: its value in a field, or its own id."""
    value = metadata.get(field)
    return identifier if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Collapse:
    """By a field of metadata: documents that hold one value there stand for one thing.

    A document without the field stands for itself. Without a name of a field it is passages that
    stand for the document that they are of.
    """

    field: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no name.

        Raises:
            ValueError: saying so.
        """
        if self.field is not None and (not isinstance(self.field, str) or not self.field):
            raise ValueError(
                f"collapse is {self.field!r}; expected the name of a metadata field, None, or "
                "False for every passage"
            )


@dataclass(frozen=True, slots=True)
class Things:
    """What the rows of a snapshot stand for; each is read once."""

    store: Store
    collapse: Collapse
    _known: dict[int, str] = field(default_factory=dict)

    def most(self) -> int:
        """How many things there can be among the rows of the snapshot."""
        known = self.collapse.field is None and not self.store.filtered
        return count(self.store) if known else len(self.store)

    def deepest(self, depth: int) -> int:
        """How many rows are looked through at most to find enough things, `depth` being usual.

        All, to find documents; of a field they may hold few values, and are read for each.
        """
        return _DEEPEST * depth if self.collapse.field else max(depth, len(self.store))

    def of(self, rows: np.ndarray) -> list[str]:
        """A name for what each of (n,) rows stands for.

        Raises:
            ValueError: for a document that holds a list or an object in the field.
        """
        if new := [row for row in rows.tolist() if row not in self._known]:
            self._known.update(zip(new, self._read(new), strict=True))
        return [self._known[row] for row in rows.tolist()]

    def best(self, rows: np.ndarray, k: int) -> np.ndarray:
        """Which places of a ranking stay.

        Args:
            rows: (n,) best first.
            k: how many to find.
        Returns:
            (m,) int64 ascending places, m <= k: the first of each thing.
        """
        seen: dict[str, int] = {}
        for start in range(0, len(rows), _TOGETHER):
            for place, key in enumerate(self.of(rows[start : start + _TOGETHER]), start):
                seen.setdefault(key, place)
                if len(seen) == k:
                    return np.array(list(seen.values()), dtype=np.int64)
        return np.array(list(seen.values()), dtype=np.int64)

    def ranks(self, rows: np.ndarray, wanted: Sequence[str]) -> list[int]:
        """The ranks, from 1, of some things in a ranking of (n,) rows; 0 for one that is not there.

        No more rows are read than tell them.
        """
        found, missing = dict[str, int](), set(wanted)
        for start in range(0, len(rows), _TOGETHER):
            if not missing:
                break
            for name in self.of(rows[start : start + _TOGETHER]):
                found.setdefault(name, len(found) + 1)
            missing -= found.keys()
        return [found.get(name, 0) for name in wanted]

    def _read(self, rows: list[int]) -> list[str]:
        if self.collapse.field is None:
            return [owner_of(each) for each in self.store.ids(rows)]
        keys, split = [], is_split(self.store)
        for row, document in zip(rows, self.store.documents(rows), strict=True):
            value = document.metadata.get(self.collapse.field)
            if isinstance(value, list | dict):
                raise ValueError(
                    f"document {document.id!r} has {value!r:.60} under {self.collapse.field!r}; to "
                    "collapse by it, it must be one value"
                )
            # As JSON, which tells 1 from "1" and from true.
            own = f"document {owner_of(document.id)}" if split else f"row {row}"
            keys.append(own if value is None else json.dumps(value))
        return keys
