"""Several first stages, fused into one list a query."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, cast

import numpy as np

from e2rank.checks import check_count
from e2rank.encoders import Encoder, Encoding, total
from e2rank.fusion import (
    Found,
    check_k,
    check_weights,
    reciprocal_ranks,
    standard_scores,
)
from e2rank.gather.gathered import FromEncoded, Gathered, Gatherer, Scoring
from e2rank.scores import rank

Named = Literal["dense", "sparse", "multivector", "bm25"]
PARTS: tuple[Named, ...] = ("dense", "sparse", "multivector", "bm25")
SCORING: tuple[Named, ...] = ("dense",)
"""Those that can score rows which another one found."""

Method = Literal["rrf", "zscore"]


@dataclass(frozen=True, slots=True)
class Hybrid:
    """A hybrid of one's own: which first stages, and how their lists are fused.

    Args:
        parts: names or gatherers, at least two; None for "dense" and "sparse" where encoder and
            index have sparse vectors, else "dense" and "bm25".
        method: "zscore", by standardised scores (`fusion.standard_scores`); "rrf", by reciprocal
            ranks (`fusion.reciprocal_ranks`).
        k: of reciprocal ranks.
        depth: documents that each part gathers at least, however few are asked for: what is fused
            then does not depend on how many hits are shown.
        weights: one a part; all 1 if None.
        within: only the first part searches the index, and the others score the rows that it
            found: "dense", or objects that are `Scoring`. What is fused are z-scores over these
            rows, or ranks among them. `Hybrid(("sparse", "dense"), within=True)` so costs hardly
            more than "sparse" where the query is encoded anyway, for MaxSim or a rerank.
    """

    parts: Sequence[Named | Gatherer] | None = None
    method: Method = "zscore"
    k: int = 60
    depth: int = 100
    weights: Sequence[float] | None = None
    within: bool = False

    def __post_init__(self) -> None:
        """Refuse a hybrid of fewer than two, or one that cannot be fused.

        Raises:
            ValueError: naming the setting and what it must be.
        """
        if self.method not in ("rrf", "zscore"):
            raise ValueError(f"method is {self.method!r}; expected 'rrf' or 'zscore'")
        check_k(self.k)
        check_count("the depth of a hybrid", self.depth)
        if self.parts is not None:
            self._check_parts(self.parts)
        if self.within:
            self._check_within(self.parts)
        check_weights(self.weights, 2 if self.parts is None else len(self.parts))

    @classmethod
    def of(cls, text: str) -> Self:
        """A hybrid by z-scores as it is written: names joined by "+", weights before them.

        >>> made = Hybrid.of("2*dense+bm25")
        >>> made.parts, made.weights
        (('dense', 'bm25'), (2.0, 1.0))

        Raises:
            ValueError: for a part that is none, or a weight that is no number.
        """
        pairs = [each.rpartition("*")[::2] for each in text.replace(" ", "").split("+")]
        try:
            weights = tuple(float(weight or 1) for weight, _ in pairs)
        except ValueError:
            raise ValueError(
                f"{text!r} has a weight that is no number; write a hybrid as 'dense+bm25' or "
                "'2*dense+bm25'"
            ) from None
        return cls(cast(tuple[Named, ...], tuple(name for _, name in pairs)), weights=weights)

    @staticmethod
    def _check_parts(parts: Sequence[Named | Gatherer]) -> None:
        # A set's order is not the caller's, and a generator is read only once.
        if not isinstance(parts, Sequence):
            raise ValueError(f"parts is {parts!r}; expected a tuple, such as ('dense', 'bm25')")
        if isinstance(parts, str) or len(parts) < 2:
            raise ValueError(f"parts is {parts!r}; a hybrid has at least two, such as 'dense'")
        for part in parts:
            if part not in PARTS and not isinstance(part, Gatherer):
                raise ValueError(
                    f"{part!r} is no part of a hybrid; expected {', '.join(map(repr, PARTS))} or "
                    "an object with gather(queries, k)"
                )

    @staticmethod
    def _check_within(parts: Sequence[Named | Gatherer] | None) -> None:
        if parts is None:
            raise ValueError("within is set without parts; name the one that searches, then others")
        for part in parts[1:]:
            if part not in SCORING and not isinstance(part, Scoring):
                raise ValueError(
                    f"{part!r} cannot score what {parts[0]!r} finds; within expects 'dense' or an "
                    "object with gather(queries, k) and score(encoded, rows) after the first part"
                )

    def fused(self, lists: Sequence[Found], absent: Sequence[float | None] | None = None) -> Found:
        """One list of the parts' lists; `absent` as in `standard_scores`."""
        if self.method == "zscore":
            return standard_scores(lists, self.weights, absent)
        return reciprocal_ranks([rows for _, rows in lists], self.k, self.weights)

    def fused_within(self, found: Found, others: Sequence[np.ndarray]) -> Found:
        """The first part's list in a new order.

        Args:
            found: its (n,) scores and rows.
            others: the (n,) scores that each other part gives these rows, in their order; they
                count as float32.
        Raises:
            ValueError: if a part gives not one score a row, or one that is no finite number.
        """
        rows, lists = found[1], [found]
        for given in others:
            scores = np.asarray(given, dtype=np.float32)
            if scores.shape != rows.shape:
                raise ValueError(
                    f"a part of a hybrid gave {len(rows)} rows scores of shape {scores.shape}; "
                    "expected one a row"
                )
            if not np.isfinite(scores).all():
                raise ValueError("a part of a hybrid gave a score that is a NaN or an infinity")
            order = rank(scores)
            lists.append((scores[order], rows[order]))
        return self.fused(lists)


@dataclass(frozen=True, slots=True)
class HybridGatherer:
    """The parts of a hybrid, made; k of their fused rows are kept."""

    encoder: Encoder
    parts: Sequence[Gatherer]
    hybrid: Hybrid

    def gather(self, queries: Sequence[str], k: int, encoded: Encoding | None = None) -> Gathered:
        """The best k rows of each query, by fused scores; the encoder reads them once at most.

        Args:
            queries: texts.
            k: rows to find.
            encoded: what the encoder made of them before; None lets it read them where a part asks.
        """
        wide = max(k, self.hybrid.depth)
        how = self._within if self.hybrid.within else self._all
        return how(queries, k, wide, encoded)

    def _within(
        self, queries: Sequence[str], k: int, wide: int, encoded: Encoding | None
    ) -> Gathered:
        """What the first part finds, scored by the others too."""
        first, *others = self.parts
        if encoded is not None and isinstance(first, FromEncoded):
            found = first.find(encoded, wide)
        else:
            found = _counted(first.gather(queries, wide), encoded)
        encoded = encoded or found.queries or self.encoder.encode_queries(queries)
        lists = [_members(found, place) for place in range(len(queries))]
        rows = [own for _, own in lists]
        scored = [cast(Scoring, part).score(encoded, rows) for part in others]
        for part, given in zip(others, scored, strict=True):
            if len(given) != len(rows):
                raise ValueError(
                    f"{part!r} scored the rows of {len(given)} queries; expected {len(rows)}"
                )
        each = zip(lists, zip(*scored, strict=True), strict=True)
        fused = [self.hybrid.fused_within(*both) for both in each]
        return replace(_padded(fused, k, encoded), spent=found.spent)

    def _all(self, queries: Sequence[str], k: int, wide: int, encoded: Encoding | None) -> Gathered:
        """What all parts find."""
        found: dict[int, Gathered] = {}
        # Those that start from encoded queries come last: another may have had them encoded.
        order = sorted(range(len(self.parts)), key=lambda n: isinstance(self.parts[n], FromEncoded))
        for number in order:
            part = self.parts[number]
            if isinstance(part, FromEncoded):
                encoded = self.encoder.encode_queries(queries) if encoded is None else encoded
                found[number] = part.find(encoded, wide)
            else:
                found[number] = _counted(part.gather(queries, wide), encoded)
                encoded = found[number].queries if encoded is None else encoded
        each = [found[number] for number in range(len(self.parts))]
        lists = [[_members(part, place) for part in each] for place in range(len(queries))]
        absent = [
            [
                part.absent if len(own[1]) < wide else None
                for part, own in zip(each, some, strict=True)
            ]
            for some in lists
        ]
        fused = [self.hybrid.fused(*both) for both in zip(lists, absent, strict=True)]
        # Of each query, what all parts took.
        spent = zip(*(part.spent for part in each if part.spent), strict=True)
        return replace(_padded(fused, k, encoded), spent=[total(costs) for costs in spent])


def _counted(found: Gathered, encoded: Encoding | None) -> Gathered:
    """What a part found; its own reading of the queries is counted where they had been read."""
    if encoded is None or found.queries is None:
        return found
    none = [(0, 0, 0)] * len(found.rows)
    both = zip(found.spent or none, found.queries.costs(), strict=True)
    return replace(found, spent=[total(costs) for costs in both])


def _members(found: Gathered, place: int) -> Found:
    """One query's list without the places that are left empty."""
    there = found.rows[place] >= 0
    return found.scores[place][there], found.rows[place][there]


def _padded(lists: Sequence[Found], k: int, encoded: Encoding | None) -> Gathered:
    width = min(k, max((len(rows) for _, rows in lists), default=0))
    scores = np.full((len(lists), width), -np.inf, dtype=np.float32)
    rows = np.full((len(lists), width), -1, dtype=np.int64)
    for place, (own_scores, own_rows) in enumerate(lists):
        scores[place, : len(own_rows)] = own_scores[:width]
        rows[place, : len(own_rows)] = own_rows[:width]
    return Gathered(scores, rows, encoded)
