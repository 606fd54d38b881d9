"""What the workers of a server do: search, embed, rank. Equal ones are done in one call."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from e2rank.encoders import Encoding, Want, encode_documents
from e2rank.engine import Engine
from e2rank.hits import Hits
from e2rank.rerank.choose import choose
from e2rank.search import Ordered, order_texts

Side = Literal["query", "document"]
"""Which of the contract's two wordings a text is embedded with."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of some texts.

    Args:
        vectors: (n, d) float32 unit rows.
        tokens: that the model read.
        truncated: positions of the texts that lost tokens to the model's budget.
    """

    vectors: np.ndarray
    tokens: int
    truncated: tuple[int, ...]

    def __add__(self, more: "Embedded") -> "Embedded":
        start = len(self.vectors)
        return Embedded(
            vectors=np.concatenate([self.vectors, more.vectors]),
            tokens=self.tokens + more.tokens,
            truncated=(*self.truncated, *(start + place for place in more.truncated)),
        )


@dataclass(frozen=True)
class SearchWork:
    """Searches of one engine by the same options; an item is a list of queries, or of vectors.

    Args:
        engine: what is searched, as of its newest commit.
        options: keywords of `Engine.search_many` as JSON, so that equal ones compare equal.
    """

    engine: Engine
    options: str
    most: int = 32

    @classmethod
    def of(cls, engine: Engine, options: Mapping[str, Any]) -> "SearchWork":
        """With options that are JSON."""
        return cls(engine, json.dumps(options, sort_keys=True))

    def __call__(self, items: Sequence[Sequence[str | np.ndarray]]) -> list[list[Hits]]:
        queries = [query for item in items for query in item]
        found = iter(self.engine.search_many(queries, **json.loads(self.options)))
        return [[next(found) for _ in item] for item in items]


@dataclass(frozen=True)
class EmbedWork:
    """Vectors of texts; an item is a list of them, and its size their number."""

    engine: Engine
    side: Side
    most: int = 64

    def __call__(self, items: Sequence[Sequence[str]]) -> list[Embedded]:
        texts = [text for item in items for text in item]
        return _split(self._encode(texts), [len(item) for item in items])

    def _encode(self, texts: Sequence[str]) -> Encoding:
        encoder = self.engine.encoder
        if self.side == "query":
            return encoder.encode_queries(texts)
        wanted: list[Want] = ["dense"]
        return encode_documents(encoder, texts, wanted)


@dataclass(frozen=True)
class RankWork:
    """Plain texts ranked for a query, as `Engine.rank` does; an item is (query, documents)."""

    engine: Engine
    rerank: bool | str
    # One list is already a batch of texts.
    most: int = 1

    def __call__(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[Ordered]:
        encoder = self.engine.encoder
        reranker = choose(self.rerank, encoder)  # type: ignore[arg-type]
        return [order_texts(encoder, reranker, query, texts) for query, texts in items]


def _split(encoded: Encoding, sizes: Sequence[int]) -> list[Embedded]:
    """What was encoded together, a part for each number of texts."""
    costs, cut, parts, start = encoded.costs(), set(encoded.truncated), [], 0
    for size in sizes:
        places = range(start, start + size)
        parts.append(
            Embedded(
                vectors=encoded.vectors[start : start + size],
                tokens=sum(costs[place][1] for place in places),
                truncated=tuple(place - start for place in places if place in cut),
            )
        )
        start += size
    return parts
