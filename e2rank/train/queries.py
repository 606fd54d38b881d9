"""Queries without labels: from an index's own documents, or from a log of what was asked."""

import gzip
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from e2rank.corpus import read_lines
from e2rank.documents import Document
from e2rank.errors import CorpusError

TITLE_WORDS = (3, 30)
SENTENCE_WORDS = (5, 40)
BOILERPLATE = 0.01
"""Share of the documents in which a sentence may stand and still be one document's own."""

WORD = re.compile(r"\w+")
_STOP = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*\s+|\s*\n\s*\n\s*")
_ABBREVIATION = re.compile(
    r"(?:\b[^\W\d_]|\b(?:e\.g|i\.e|al|approx|cf|ca|dr|eq|eqs|etc|fig|figs|inc|jr|ltd|mr|mrs|ms|no"
    r"|nos|pp|prof|ref|refs|resp|sect|sr|st|vol|vs))$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class PseudoQuery:
    """A text of a document that stands in for a query that document answers.

    Args:
        text: one line, not blank.
        id: the document's.
        kind: whether it is its title, one of its sentences, or some of its words.
    """

    text: str
    id: str
    kind: Literal["title", "sentence", "keywords"]


@dataclass(frozen=True, slots=True)
class QueryLog:
    """Queries that people asked.

    Args:
        queries: each once, in the order of the log.
        blank: lines that held none.
        repeated: lines that held one a second time.
    """

    queries: tuple[str, ...]
    blank: int
    repeated: int


def pseudo_queries(documents: Iterable[Document], *, most: int, seed: int) -> list[PseudoQuery]:
    """Titles and telling sentences of a corpus, evenly over its documents, none twice.

    A title of 3 to 30 words comes first, then the document's sentences of 5 to 40 words by
    salience: the summed idf of their distinct words over their number of words. Every document
    gives one before any gives two. Titles and sentences that stand in more than 1% of the
    documents (and in two at least) are boilerplate, as are those half of whose words, or more,
    have no letter. For languages that put spaces between words.

    The corpus is read once and may be larger than memory: 2 * `most` documents drawn from it, its
    vocabulary and a hash of each sentence are held.

    Args:
        documents: each once, in an order that is always the same.
        most: queries to make; fewer come where the documents drawn have no more.
        seed: fixes the documents drawn and their order.
    Raises:
        ValueError: if most < 1 or the seed is negative.
    """
    if most < 1 or seed < 0:
        raise ValueError(f"most is {most} and seed {seed}; expected most >= 1 and seed >= 0")
    corpus = _Corpus()
    sample = drawn(corpus.counting(documents), 2 * most, np.random.default_rng(seed))
    found: dict[str, PseudoQuery] = {}
    # Round by round: the first of every document, then the second of every document.
    for row in zip_longest(*map(corpus.queries, sample)):
        for query in filter(None, row):
            found.setdefault(_plain(query.text), query)
            if len(found) == most:
                return list(found.values())
    return list(found.values())


def without(text: str, sentence: str) -> str:
    """The text without a sentence or title of its own, wherever it stands.

    Removed before a teacher or an encoder sees the text, which would otherwise only have to match
    it word for word. Case and white space may differ, and the stop after it goes with it. "" if
    nothing else is left.

    >>> without("Wings stall. Why? Because they do.", "Why?")
    'Wings stall. Because they do.'

    Raises:
        ValueError: if the sentence is blank.
    """
    words = sentence.rstrip(" .!?\n\t").split() or sentence.split()
    if not words:
        raise ValueError("the sentence is blank; expected words to remove")
    # Not held to whole words: texts glue sentences together ("... by air.The wing ...").
    own = r"\s+".join(map(re.escape, words))
    pattern = re.compile(rf"\s*{own}(?:\s*[.!?]+)?\s*", re.IGNORECASE)
    shorter, before = text, ""
    # What is left on both sides of a removed one may make up another.
    while shorter != before:
        before, shorter = shorter, pattern.sub(" ", shorter)
    return text if shorter == text else shorter.strip()


def read_query_log(path: str | Path) -> QueryLog:
    """Queries of a text file, plain or .gz, one a line; white space around them is not theirs.

    Raises:
        CorpusError: if there is no such file, it holds no query, or it cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        raise CorpusError(f"{file} does not exist; expected a file with one query a line")
    queries = [line.strip() for _, line in read_lines(file)]
    if not queries:
        raise CorpusError(f"{file.name} holds no query; expected one a line")
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as source:
        lines = sum(1 for _ in source)
    once = tuple(dict.fromkeys(queries))
    return QueryLog(once, blank=lines - len(queries), repeated=len(queries) - len(once))


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, each on one line, never blank.

    One ends at a stop that a capital, a digit or a mark follows, unless an abbreviation or an
    initial stands before it; at a stop that stands alone between spaces; at an empty line. In a
    text without any capital, every stop counts.

    >>> list(sentences("It stalls, cf. Fig. 2. The wing by J. Smith does not! See there."))
    ['It stalls, cf. Fig. 2.', 'The wing by J. Smith does not!', 'See there.']
    """
    cased = text != text.lower()
    start = 0
    for stop in _STOP.finditer(text):
        if _ends(text, stop, cased):
            yield from _one_line(text[start : stop.end()])
            start = stop.end()
    yield from _one_line(text[start:])


def _ends(text: str, stop: re.Match[str], cased: bool) -> bool:
    if stop[0].isspace():
        return True
    before, after = text[max(0, stop.start() - 12) : stop.start()], text[stop.end() :][:1]
    if not before or before[-1].isspace():
        return True
    if cased and after.islower():
        return False
    return not (stop[0].startswith(".") and _ABBREVIATION.search(before))


def _one_line(text: str) -> Iterator[str]:
    """The text with single spaces and without a stop that stands alone, unless that is blank."""
    line = re.sub(r"\s+\.$", "", " ".join(text.split()))
    if WORD.search(line):
        yield line


@dataclass(slots=True)
class _Corpus:
    """How many documents there are, and in how many of them each word and sentence stands."""

    count: int = 0
    words: Counter[str] = field(default_factory=Counter)
    repeats: Counter[int] = field(default_factory=Counter)

    def counting(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self.count += 1
            self.words.update(set(WORD.findall(document.body.lower())))
            texts = [*_one_line(document.title), *sentences(document.text)]
            self.repeats.update({_hash(text) for text in texts})
            yield document

    def queries(self, document: Document) -> list[PseudoQuery]:
        """What the document has to give, best first."""
        titles = [each for each in _one_line(document.title) if self._fit(each, TITLE_WORDS)]
        own = [each for each in sentences(document.text) if self._fit(each, SENTENCE_WORDS)]
        own.sort(key=lambda each: -salience(each, self.words, self.count))
        return [
            *(PseudoQuery(each, document.id, "title") for each in titles),
            *(PseudoQuery(each, document.id, "sentence") for each in own),
        ]

    def _fit(self, text: str, bounds: tuple[int, int]) -> bool:
        words = WORD.findall(text)
        spelt = sum(any(map(str.isalpha, word)) for word in words)
        often = self.repeats[_hash(text)]
        return (
            bounds[0] <= len(words) <= bounds[1]
            and 2 * spelt > len(words)
            and (often < 2 or often <= BOILERPLATE * self.count)
        )


def salience(text: str, frequencies: Mapping[str, int], count: int) -> float:
    """Sum of idf(w) over the distinct words w of a text, divided by its number of words.

    idf(w) = log((1 + count) / (1 + frequencies[w])), 0 or more.

    Args:
        text: at least one word.
        frequencies: in how many documents each word (in lower case) stands.
        count: documents.
    """
    words = WORD.findall(text.lower())
    idf = [math.log((1 + count) / (1 + frequencies.get(word, 0))) for word in sorted(set(words))]
    return sum(idf) / len(words)


def drawn(documents: Iterable[Document], most: int, random: np.random.Generator) -> list[Document]:
    """At most `most` of the documents, each set of them as likely, in random order."""
    kept: list[Document] = []
    for number, document in enumerate(documents):
        # Reservoir sampling: document number n stays with the probability most / (n + 1).
        place = int(random.integers(number + 1))
        if len(kept) < most:
            kept.append(document)
        elif place < most:
            kept[place] = document
    return [kept[place] for place in random.permutation(len(kept)).tolist()]


def _plain(text: str) -> str:
    """What two texts share that differ in case and marks only."""
    return " ".join(WORD.findall(text.lower()))


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(_plain(text).encode())
