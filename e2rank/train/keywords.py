"""Queries of a few keywords, without labels: how people type, and no sentence is written."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from e2rank.documents import Document
from e2rank.train.queries import WORD, PseudoQuery, drawn

WORDS = (2, 6)
"""Least and most words of a query."""

TELLING = 12
"""Words of a document that its queries are drawn from."""

COMMON = 0.2
"""Share of the documents from which on a word tells nothing."""

_ROUNDS = 4


def keyword_queries(documents: Iterable[Document], *, most: int, seed: int) -> list[PseudoQuery]:
    """A few of a document's telling words, evenly over the documents, none twice.

    A document's telling words are the twelve of highest tf(w) * idf(w), among those of three
    letters or more that stand in another document too and in at most a fifth of all. A query is 2
    to 6 of them, drawn without replacement in proportion to that, in the order in which they first
    stand. Every document gives one before any gives two, and none gives more than four.

    Args:
        documents: each once, in an order that is always the same; read once.
        most: queries to make; fewer come where the documents have no more.
        seed: fixes what is drawn.
    Raises:
        ValueError: if most < 1 or the seed is negative.
    """
    if most < 1 or seed < 0:
        raise ValueError(f"most is {most} and seed {seed}; expected most >= 1 and seed >= 0")
    random = np.random.default_rng(seed)
    stands, count = Counter[str](), 0

    def counting() -> Iterator[Document]:
        nonlocal count
        for document in documents:
            count += 1
            stands.update(set(_words(document)))
            yield document

    sample = drawn(counting(), 2 * most, random)
    idf = {
        word: math.log((1 + count) / (1 + often))
        for word, often in stands.items()
        if 1 < often <= COMMON * count
    }
    found: dict[str, PseudoQuery] = {}
    for _ in range(_ROUNDS):
        for document in sample:
            text = _draw(_words(document), idf, random)
            if text and text not in found:
                found[text] = PseudoQuery(text, document.id, "keywords")
                if len(found) == most:
                    return list(found.values())
    return list(found.values())


def _words(document: Document) -> list[str]:
    return [word for word in WORD.findall(document.body.lower()) if _spelt(word)]


def _spelt(word: str) -> bool:
    return len(word) > 2 and any(map(str.isalpha, word))


def _draw(words: list[str], idf: dict[str, float], random: np.random.Generator) -> str:
    """A query from the words of a document, in their order; "" if it has too few that tell."""
    often = Counter(word for word in words if word in idf)
    telling = sorted(often, key=lambda word: -often[word] * idf[word])[:TELLING]
    if len(telling) < WORDS[0]:
        return ""
    weights = np.array([often[word] * idf[word] for word in telling])
    size = min(int(random.integers(WORDS[0], WORDS[1] + 1)), len(telling))
    picked = random.choice(len(telling), size=size, replace=False, p=weights / weights.sum())
    return " ".join(sorted((telling[place] for place in picked), key=words.index))
