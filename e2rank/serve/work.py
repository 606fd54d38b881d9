"""What the workers of a server do: search, embed, rank. Equal ones are done in one call."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Literal, get_args

import numpy as np

from e2rank.encoders import Encoding, Want, encode_documents
from e2rank.engine import Engine
from e2rank.hits import Hits
from e2rank.passages import split_texts
from e2rank.ranking import Ordered, best_of, order_texts, read_texts
from e2rank.rerank.choose import choose

Side = Literal["query", "document"]
"""Which of the contract's two wordings a text is embedded with."""

SIDES: tuple[Side, ...] = get_args(Side)


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
        vectors: whether the items are vectors, which fewer stages can do with.
    """

    engine: Engine
    options: str
    vectors: bool
    most: int = 32

    @classmethod
    def of(cls, engine: Engine, options: Mapping[str, Any], *, vectors: bool) -> "SearchWork":
        """With options that are JSON, for texts or for vectors."""
        return cls(engine, json.dumps(options, sort_keys=True), vectors)

    def __call__(self, items: Sequence[Sequence[str | np.ndarray]]) -> list[list[Hits]]:
        queries = [query for item in items for query in item]
        found = self.engine.search_many(queries, **json.loads(self.options))
        return [found[start:stop] for start, stop in _spans(items)]


@dataclass(frozen=True)
class EmbedWork:
    """Vectors of texts; an item is a list of them, and its size their number."""

    engine: Engine
    side: Side
    most: int = 64

    def __call__(self, items: Sequence[Sequence[str]]) -> list[Embedded]:
        texts = [text for item in items for text in item]
        read = self._encode(texts)
        costs, cut = read.costs(), set(read.truncated)
        return [
            Embedded(
                vectors=read.vectors[start:stop],
                tokens=sum(tokens for _, tokens, _ in costs[start:stop]),
                truncated=tuple(place - start for place in range(start, stop) if place in cut),
            )
            for start, stop in _spans(items)
        ]

    def _encode(self, texts: Sequence[str]) -> Encoding:
        encoder = self.engine.encoder
        if self.side == "query":
            return encoder.encode_queries(texts)
        wanted: list[Want] = ["dense"]
        return encode_documents(encoder, texts, wanted)


@dataclass(frozen=True)
class SplitWork:
    """Plain texts as passages for `RankWork`, as `split_texts` has them; an item is a list of them.

    It stops after so many passages: the caller can tell that there are too many.
    """

    engine: Engine
    stop: int
    most: int = 1

    def __call__(self, items: Sequence[Sequence[str]]) -> list[list[tuple[int, str]]]:
        encoder, tokens = self.engine.encoder, self.engine.passages
        return [list(islice(split_texts(item, encoder, tokens), self.stop)) for item in items]


@dataclass(frozen=True)
class ReadWork:
    """Passages read for `RankWork`; an item is a list of them, and its size their number."""

    engine: Engine
    # An encoding is not taken apart, so each list is one call.
    most: int = 1

    def __call__(self, items: Sequence[Sequence[str]]) -> list[Encoding]:
        return [read_texts(self.engine.encoder, item) for item in items]


@dataclass(frozen=True, slots=True)
class Ranking:
    """A query, passages that were read for it, and the places of the texts that they are of."""

    query: str
    passages: Sequence[str]
    places: Sequence[int]
    read: Encoding


@dataclass(frozen=True)
class RankWork:
    """Plain texts ranked for a query, as `Engine.rank(fuse=1.0)` does; an item is a `Ranking`."""

    engine: Engine
    rerank: bool | str
    most: int = 1

    def __call__(self, items: Sequence[Ranking]) -> list[Ordered]:
        encoder = self.engine.encoder
        reranker = choose(self.rerank, encoder)  # type: ignore[arg-type]
        return [
            best_of(
                order_texts(encoder, reranker, each.query, each.passages, 1.0, each.read),
                each.places,
            )
            for each in items
        ]


def joined(parts: Sequence[Encoding]) -> Encoding:
    """What was read in parts as if it had been read at once; at least one part."""
    starts = np.cumsum([0, *(len(part.vectors) for part in parts)])
    return Encoding(
        vectors=np.concatenate([part.vectors for part in parts]),
        tokens=sum(part.tokens for part in parts),
        truncated=tuple(
            int(start) + place
            for start, part in zip(starts, parts, strict=False)
            for place in part.truncated
        ),
        token_vectors=tuple(each for part in parts for each in part.token_vectors),
    )


def _spans(items: Sequence[Sequence[Any]]) -> list[tuple[int, int]]:
    """Where each list begins and ends in all of them, one after another."""
    ends = np.cumsum([0, *map(len, items)]).tolist()
    return list(pairwise(ends))
