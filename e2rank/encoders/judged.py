"""What one encoder in the place of another does to rankings, as a report keeps it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from e2rank.encoders import Encoder


@dataclass(frozen=True, slots=True)
class Change:
    """A measure with the other encoder.

    Args:
        after: the mean over queries.
        change: from that before.
        p_value: of a paired test.
    """

    after: float
    change: float
    p_value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Rankings of a judged collection, by an encoder and by another in its place.

    Args:
        collection: its name.
        split: whose judgments were taken.
        count: judged queries.
        measure: such as "nDCG@10".
        before: the mean over queries, by the first encoder alone.
        queries: with queries by the other, as where an index opens with another encoder of its
            fingerprint.
        whole: with queries and documents by the other.
    """

    collection: str
    split: str
    count: int
    measure: str
    before: float
    queries: Change
    whole: Change

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """From what `dataclasses.asdict` gives."""
        changes = {name: Change(**fields[name]) for name in ("queries", "whole")}
        return cls(**{**fields, **changes})

    def in_words(self) -> str:
        """One line."""
        return (
            f"{self.measure} on {self.count} queries of {self.collection} {self.before:.4f} by the "
            f"model, {self.queries.after:.4f} with the export's queries (p "
            f"{self.queries.p_value:.2g}), {self.whole.after:.4f} with all its vectors (p "
            f"{self.whole.p_value:.2g})"
        )


Judge = Callable[[Encoder, Encoder], Judged]
"""From an encoder, and another in its place."""
