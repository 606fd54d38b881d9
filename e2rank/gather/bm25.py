"""BM25 over the documents' words: the first stage that needs no model."""

import logging
import re
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from e2rank.config import IndexConfig
from e2rank.errors import MissingExtra
from e2rank.gather.gathered import Gathered
from e2rank.index import Store
from e2rank.index.forks import Lock
from e2rank.index.manifest import Manifest

_log = logging.getLogger("e2rank")

# Han characters, kana and the marks among them; Thai, Lao, Burmese and Khmer letters and marks.
_HAN = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED = re.compile(f"[{_HAN}\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u103f\u1780-\u17d3]{{2,}}")

_JOINERS = "\u200c\u200d"
"""They stand within words of Persian and of Indian languages."""


class Bm25:
    """An inverted index with BM25 scores, in memory, by the package bm25s.

    `score(q, d) = sum over words t of q of idf(t) * tf / (tf + k1 * (1 - b + b * |d| / avg))` with
    `idf(t) = log(1 + (N - df + 0.5) / (df + 0.5))`: the variant that bm25s calls "lucene", by
    default with k1 = 1.5 and b = 0.75 as there. A word that stands twice in the query counts twice.
    Words are runs of two or more letters with their marks, digits or underscores in lower case,
    without the stop words that bm25s has of the language (33 of English), stemmed by PyStemmer's
    stemmer of it; letters are composed with their marks where Unicode can (NFC). Of Chinese and
    Japanese, which put no blanks between words, every two neighbouring characters are one, and a
    character that stands alone, as Lucene's analyzer of these has it; of Thai, Lao, Burmese and
    Khmer every two letters or marks.
    Scores are float32. An index says its own in `IndexConfig(bm25_language=, bm25_k1=, bm25_b=)`.

    Source: bm25s, arXiv 2407.03618.
    """

    def __init__(self, texts: Iterable[str], config: IndexConfig | None = None) -> None:
        """Index n texts, by the settings of an index or the defaults; they are read once.

        Raises:
            MissingExtra: if bm25s or PyStemmer is not installed.
        """
        library, config = _bm25s(), config or IndexConfig()
        self._language = config.bm25_language
        words = library.tokenize(map(_spaced, texts), **_wording(self._language))
        self._count = len(words.ids)
        self._model: Any = None
        # A vocabulary of no word has no length to divide by.
        if words.vocab:
            self._model = library.BM25(k1=config.bm25_k1, b=config.bm25_b, method="lucene")
            self._model.index(words, create_empty_token=False, show_progress=False)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """(q, n) float32 score of every text; 0 where it shares no word with the query."""
        found = np.zeros((len(queries), self._count), dtype=np.float32)
        if self._model is None or not len(queries):
            return found
        asked = _bm25s().tokenize(
            [_spaced(each) for each in queries], return_ids=False, **_wording(self._language)
        )
        for place, words in enumerate(asked):
            if known := self._model.get_tokens_ids(words):
                found[place] = self._model.get_scores_from_ids(known)
        return found


@dataclass(frozen=True, slots=True)
class Bm25Rows:
    """BM25 over the live documents of one commit, and the rows they stand in, ascending."""

    manifest: Manifest
    rows: np.ndarray
    bm25: Bm25


class Bm25Cache:
    """The BM25 index of the commit that was asked for last."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = Lock()
        self._made: Bm25Rows | None = None

    def of(self, store: Store) -> Bm25Rows:
        """That of a snapshot without a filter; made where it is not there yet, which is logged.

        Raises:
            MissingExtra: if bm25s or PyStemmer is not installed.
        """
        with self._lock:
            if self._made is None or self._made.manifest != store.manifest:
                self._made = None
                start = time.perf_counter()
                config = store.manifest.index_config
                made = Bm25((document.body for document in store), config)
                self._made = Bm25Rows(store.manifest, store.rows, made)
                took = time.perf_counter() - start
                _log.info("BM25 over %d documents took %.1f s to build", len(store), took)
            return self._made


@dataclass(frozen=True, slots=True)
class Bm25Gatherer:
    """BM25 of title and text.

    Counts of words are those of all live documents, whatever a filter leaves. They are read and
    counted at the first search of a commit, and kept in memory until the next.

    Args:
        store: the rows that may be found.
        whole: the same snapshot without a filter.
        cache: where the counts are kept.
    """

    store: Store
    whole: Store
    cache: Bm25Cache

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The best k rows of each query that share a word with it; equal scores in row order."""
        made = self.cache.of(self.whole)
        rows, width = self.store.rows, min(k, len(self.store))
        own = np.searchsorted(made.rows, rows)
        found = Gathered(
            scores=np.full((len(queries), width), -np.inf, dtype=np.float32),
            rows=np.full((len(queries), width), -1, dtype=np.int64),
            absent=0.0,
        )
        # One query at a time: the scores of all documents are held.
        for place, query in enumerate(queries):
            scores = made.bm25.scores([query])[0, own]
            best = _best(scores, k)
            found.scores[place, : len(best)] = scores[best]
            found.rows[place, : len(best)] = rows[best]
        return found


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k highest of (n,) scores above 0; equals in order of place."""
    places = np.flatnonzero(scores > 0)
    if k < len(places):
        last = np.partition(scores[places], len(places) - k)[len(places) - k]
        places = places[scores[places] >= last]
    return places[np.lexsort((places, -scores[places]))[:k]]


def _spaced(text: str) -> str:
    """The text with blanks about every two neighbouring characters of what is written without."""
    if text.isascii():
        return text
    return _UNSPACED.sub(_pairs, unicodedata.normalize("NFC", text))


def _pairs(run: re.Match[str]) -> str:
    return f" {' '.join(map(''.join, pairwise(run[0])))} "


@cache
def _word() -> str:
    """The pattern of a word: Python's own leaves out the marks that are written as part of one."""
    places = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
    marks = (chr(each) for each in places if unicodedata.category(chr(each)).startswith("M"))
    # First what nearly all words are, as the class of marks takes five times as long to look at.
    plain = r"\b\w\w+\b(?![^\x00-\x7f])"
    return rf"{plain}|\w[\w{''.join(marks)}{_JOINERS}]+|[{_HAN}]"


def _wording(language: str) -> dict[str, Any]:
    try:
        import Stemmer
    except ImportError as error:
        raise MissingExtra("Stemmer", extra="bm25") from error
    options = {"token_pattern": _word(), "show_progress": False}
    if not language:
        return {"stopwords": None, "stemmer": None} | options
    # Made anew each time, as a stemmer is not for several threads.
    stemmer = Stemmer.Stemmer(language)
    return {"stopwords": language, "stemmer": stemmer} | options


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtra("bm25s", extra="bm25") from error
    # On import it asks for debug messages, which would come out wherever the root logger shows all.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s
