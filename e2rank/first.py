"""The first stage of a search: candidates for each query, enough of them to show k things."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from e2rank.collapse import Things
from e2rank.encoders import Cost, Encoding, total
from e2rank.gather import FromEncoded, Gathered, Gatherer
from e2rank.gather.dense import DenseGatherer
from e2rank.gather.hybrid import HybridGatherer
from e2rank.pool import Pool

_DEEPER = 4
"""How many times as many candidates are gathered where there are too few things among them."""


@dataclass(frozen=True, slots=True)
class FirstStage:
    """A gatherer, and how much it is asked for.

    Args:
        gatherer: that finds rows.
        k: things to show.
        depth: candidates to find, at least k.
        things: what makes several documents one thing; None if each is one.
    """

    gatherer: Gatherer
    k: int
    depth: int
    things: Things | None

    def gather(self, asked: Sequence[str | np.ndarray]) -> list[Pool]:
        """The `depth` best candidates of each query.

        Where they are fewer than k things, and the gatherer can find more, the best document of
        each of the next things follows, with a score no higher than theirs. What is found first
        stays as it is, as fused scores depend on how many documents are fused. The engine's encoder
        does not read a query again for it.

        Args:
            asked: queries that are all texts, or all vectors.
        Raises:
            ValueError: if the gatherer gives what is no list of candidates, or a document cannot
                be collapsed.
        """
        wide = self.depth
        found = self._found(asked, wide)
        pools = _pools(found, len(asked))
        if (things := self.things) is None:
            return pools

        def lack(places: Iterable[int], k: int) -> list[int]:
            return [place for place in places if len(things.best(pools[place].rows, k)) < k]

        deepest = things.deepest(self.depth)
        lacking = lack((n for n, each in enumerate(pools) if len(each.rows) >= wide), self.k)
        k = min(self.k, things.most()) if lacking else self.k
        while wide < deepest and (lacking := lack(lacking, k)):
            wide = min(wide * _DEEPER, deepest)
            read = found.queries.only(lacking) if found.queries else None
            deeper = self._found([asked[n] for n in lacking], wide, read)
            more = dict(zip(lacking, _pools(deeper, len(lacking)), strict=True))
            for place, pool in more.items():
                pools[place] = self._followed(pools[place], pool, things)
            lacking = [n for n in lacking if len(more[n].rows) >= wide]
        return pools

    def _followed(self, pool: Pool, deeper: Pool, things: Things) -> Pool:
        """The pool, and behind it the best of each thing that only a deeper search found."""
        n, new = len(pool.rows), ~np.isin(deeper.rows, pool.rows)
        rows, scores = deeper.rows[new], deeper.first[new]
        firsts = things.best(np.concatenate([pool.rows, rows]), self.k)
        added = firsts[firsts >= n] - n
        first = np.minimum(scores[added], pool.first.min(initial=np.inf))
        first = np.concatenate([pool.first, first.astype(pool.first.dtype)])
        return replace(
            pool,
            rows=np.concatenate([pool.rows, rows[added]]),
            first=first,
            first_rank=np.arange(1, len(first) + 1),
            base=first,
            scores=first,
            spent=total([pool.spent, deeper.spent]),
        )

    def _found(
        self, asked: Sequence[str | np.ndarray], k: int, read: Encoding | None = None
    ) -> Gathered:
        """What the gatherer finds; `read` are the queries as they were encoded before."""
        gatherer = self.gatherer
        vectors = [each for each in asked if isinstance(each, np.ndarray)]
        texts = [each for each in asked if isinstance(each, str)]
        if vectors:
            return cast(DenseGatherer, gatherer).nearest(vectors, k)
        if isinstance(gatherer, HybridGatherer):
            return gatherer.gather(texts, k, read)
        if read is not None and isinstance(gatherer, FromEncoded):
            return gatherer.find(read, k)
        return gatherer.gather(texts, k)


def _pools(found: Gathered, n: int) -> list[Pool]:
    """What was gathered for n queries, a pool each.

    Raises:
        TypeError: if that is nothing that a gatherer gives.
        ValueError: if it cannot be.
    """
    if not isinstance(found, Gathered):
        raise TypeError(f"the gatherer gave {found!r:.60}; expected an e2rank.gather.Gathered")
    if len(found.rows) != n or found.rows.shape != found.scores.shape:
        raise ValueError(
            f"the gatherer gave scores of shape {found.scores.shape} and rows of shape "
            f"{found.rows.shape} for {n} queries; expected ({n}, m) of both"
        )
    none = [None] * n
    vectors = found.queries.vectors if found.queries else none
    tokens = (found.queries.token_vectors if found.queries else ()) or none
    each = zip(vectors, tokens, found.scores, found.rows, _costs(found), strict=True)
    pools = [Pool.gathered(*one, cosines=found.cosines) for one in each]
    for pool in pools:
        twice = len(np.unique(pool.rows)) < len(pool.rows)
        if twice or not np.isfinite(pool.first).all() or (np.diff(pool.first) > 0).any():
            raise ValueError(
                "the gatherer gave a row twice, a score that is not finite, or a list that is not "
                "sorted; expected the best first"
            )
    return pools


def _costs(found: Gathered) -> list[Cost]:
    """What gathering took for each query."""
    none = [(0, 0, 0)] * len(found.rows)
    read = found.queries.costs() if found.queries else none
    return [total(both) for both in zip(read, found.spent or none, strict=True)]
