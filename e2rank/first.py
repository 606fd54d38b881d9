"""The first stage of a search: candidates for each query, enough of them to show k things."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from e2rank.collapse import Collapse
from e2rank.encoders import Cost, total
from e2rank.gather import Gathered, Gatherer
from e2rank.gather.dense import DenseGatherer
from e2rank.index import Store
from e2rank.pool import Pool

_DEEPER = 4
"""How many times as many candidates are gathered where there are too few things among them."""


@dataclass(frozen=True, slots=True)
class FirstStage:
    """A gatherer, and how much it is asked for.

    Args:
        gatherer: that finds rows.
        store: of these rows.
        k: things to show.
        depth: candidates to find, at least k.
        collapse: what makes several documents one thing; None if each is one.
    """

    gatherer: Gatherer
    store: Store
    k: int
    depth: int
    collapse: Collapse | None

    def gather(self, asked: Sequence[str | np.ndarray]) -> list[Pool]:
        """The `depth` best candidates of each query.

        Where they are fewer than k things, and the gatherer can find more, the best document of
        each of the next things follows.

        Args:
            asked: queries that are all texts, or all vectors.
        Raises:
            ValueError: if the gatherer gives what is no list of candidates, or a document cannot
                be collapsed.
        """
        pools, wide = self._found(asked, self.depth), self.depth
        if self.collapse is None:
            return pools
        places = list(range(len(pools)))
        while places := [place for place in places if self._lacks(pools[place], wide)]:
            wide *= _DEEPER
            deeper = self._found([asked[place] for place in places], wide)
            for place, pool in zip(places, deeper, strict=True):
                pools[place] = replace(pool, spent=total([pools[place].spent, pool.spent]))
        return [self._trimmed(pool) for pool in pools]

    def _lacks(self, pool: Pool, wide: int) -> bool:
        """Whether the index may hold more things than are among these candidates."""
        return len(pool.rows) >= wide and len(self._things(pool)) < self.k

    def _things(self, pool: Pool) -> np.ndarray:
        """Places of the best candidate of each of k things."""
        return cast(Collapse, self.collapse).best(self.store, pool.rows, self.k)

    def _trimmed(self, pool: Pool) -> Pool:
        if len(pool.rows) <= self.depth:
            return pool
        things = self._things(pool)
        return pool.only(np.concatenate([np.arange(self.depth), things[things >= self.depth]]))

    def _found(self, asked: Sequence[str | np.ndarray], k: int) -> list[Pool]:
        vectors = [each for each in asked if isinstance(each, np.ndarray)]
        texts = [each for each in asked if isinstance(each, str)]
        if vectors:
            found = cast(DenseGatherer, self.gatherer).nearest(vectors, k)
        else:
            found = self.gatherer.gather(texts, k)
        return _pools(found, len(asked))


def _pools(found: Gathered, n: int) -> list[Pool]:
    """What was gathered for n queries, a pool each.

    Raises:
        ValueError: if that is not what a gatherer gives.
    """
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
