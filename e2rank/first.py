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

_DEEPER, _DEEPEST = 4, 64
"""How many times as many candidates are gathered where there are too few things among them, and
how many times the depth at most."""


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
        each of the next things follows, with a score no higher than theirs. What is found first
        stays as it is, as fused scores depend on how many documents are fused.

        Args:
            asked: queries that are all texts, or all vectors.
        Raises:
            ValueError: if the gatherer gives what is no list of candidates, or a document cannot
                be collapsed.
        """
        pools, wide = self._found(asked, self.depth), self.depth
        if self.collapse is None:
            return pools
        lacking = [n for n, pool in enumerate(pools) if self._lacks(pool, len(pool.rows), wide)]
        while lacking and wide < _DEEPEST * self.depth:
            wide *= _DEEPER
            deeper = self._found([asked[place] for place in lacking], wide)
            found = dict(zip(lacking, deeper, strict=True))
            for place, pool in found.items():
                pools[place] = self._followed(pools[place], pool)
            lacking = [n for n in lacking if self._lacks(pools[n], len(found[n].rows), wide)]
        return pools

    def _lacks(self, pool: Pool, found: int, wide: int) -> bool:
        """Whether the gatherer may find more things than are among these candidates."""
        return found >= wide and len(self._firsts(pool.rows)) < self.k

    def _firsts(self, rows: np.ndarray) -> np.ndarray:
        """Places of the best candidate of each of k things."""
        return cast(Collapse, self.collapse).best(self.store, rows, self.k)

    def _followed(self, pool: Pool, deeper: Pool) -> Pool:
        """The pool, and behind it the best of each thing that only a deeper search found."""
        n, new = len(pool.rows), ~np.isin(deeper.rows, pool.rows)
        rows, scores = deeper.rows[new], deeper.first[new]
        firsts = self._firsts(np.concatenate([pool.rows, rows]))
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
