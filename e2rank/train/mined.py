"""What mining gives: examples, and what was counted on the way."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from e2rank.train.examples import Example

_log = logging.getLogger("e2rank")


@dataclass(slots=True)
class Mined(Iterator[Example]):
    """The examples, made as they are asked for, and what was counted on the way.

    Queries and examples are counted one by one, the rest ahead of them by a batch of queries; all
    of it is logged at the end.

    Attributes:
        queries: queries searched.
        examples: examples given.
        empty: queries that gave none, as they had no document to rank against another.
        negatives: documents labelled as not relevant.
        false_negatives: candidates dropped because they score like a positive.
        added: positives that the search had missed and that joined its candidates.
        left_out: positives that a list had no room for.
        stream: the examples to come.
    """

    queries: int = 0
    examples: int = 0
    empty: int = 0
    negatives: int = 0
    false_negatives: int = 0
    added: int = 0
    left_out: int = 0
    stream: Iterator[Example] = field(default_factory=lambda: iter(()), repr=False)

    def __next__(self) -> Example:
        return next(self.stream)

    def report(self) -> None:
        """Log what was counted."""
        _log.info(
            "mined %d examples from %d queries: %d negatives, %d likely false negatives dropped, "
            "%d positives added that the search missed, %d left out, %d queries without a list",
            self.examples,
            self.queries,
            self.negatives,
            self.false_negatives,
            self.added,
            self.left_out,
            self.empty,
        )
