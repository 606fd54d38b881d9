"""First stage. A gatherer finds rows for queries: by vectors, by words, or by several of them."""

from e2rank.gather.dense import DenseGatherer
from e2rank.gather.gathered import FromEncoded, Gathered, Gatherer, GivenList, Scoring
from e2rank.gather.hybrid import Hybrid

__all__ = ["DenseGatherer", "FromEncoded", "Gathered", "Gatherer", "GivenList", "Hybrid", "Scoring"]
