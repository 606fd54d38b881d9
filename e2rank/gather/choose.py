"""From what a caller writes (`gather="sparse"`, a `Hybrid`, an object) to a gatherer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from e2rank.encoders import Encoder
from e2rank.gather.bm25 import Bm25Cache, Bm25Gatherer
from e2rank.gather.dense import DenseGatherer
from e2rank.gather.gathered import Gatherer
from e2rank.gather.hybrid import Hybrid, HybridGatherer, Named
from e2rank.gather.multivector import MultivectorGatherer
from e2rank.gather.sparse import has_sparse, sparse_gatherer
from e2rank.index import Store

Gather = Named | Literal["hybrid"] | str | Hybrid | Gatherer
"""How to gather: by name, by several joined by "+", by a hybrid or a gatherer of one's own."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a first stage of an engine can search.

    Args:
        encoder: the engine's.
        store: the snapshot, with only the rows that may be found.
        whole: the same snapshot without a filter.
        bm25: where BM25 is kept between searches.
    """

    encoder: Encoder
    store: Store
    whole: Store
    bm25: Bm25Cache


def choose_gatherer(gather: Gather, sources: Sources) -> Gatherer:
    """The gatherer meant.

    Raises:
        ValueError: for anything else, for one that lacks its vectors, or for a gatherer of one's
            own where there is a filter.
    """
    if gather == "hybrid":
        gather = Hybrid()
    elif isinstance(gather, str) and "+" in gather:
        gather = Hybrid.of(gather)
    if isinstance(gather, Hybrid):
        parts = gather.parts or _usual_parts(sources)
        made = [choose_gatherer(part, sources) for part in parts]
        return HybridGatherer(sources.encoder, made, gather)
    if isinstance(gather, str) and gather in _NAMED:
        return _NAMED[gather](sources)
    if not isinstance(gather, Gatherer):
        raise ValueError(
            f"gather is {gather!r}; expected {', '.join(map(repr, _NAMED))}, 'hybrid', several "
            "joined as '2*dense+bm25', a Hybrid or an object with gather(queries, k)"
        )
    if sources.store is not sources.whole:
        raise ValueError(
            "where is given, and a gatherer of one's own knows nothing of it; filter inside the "
            "gatherer, or gather by name"
        )
    return gather


def _usual_parts(sources: Sources) -> tuple[Named, ...]:
    return ("dense", "sparse" if has_sparse(sources.encoder, sources.store) else "bm25")


_NAMED: dict[str, Callable[[Sources], Gatherer]] = {
    "dense": lambda given: DenseGatherer(given.encoder, given.store),
    "sparse": lambda given: sparse_gatherer(given.encoder, given.store),
    "multivector": lambda given: MultivectorGatherer(given.encoder, given.store),
    "bm25": lambda given: Bm25Gatherer(given.store, given.whole, given.bm25),
}
