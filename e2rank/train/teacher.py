"""Teachers: whatever scores a query and a text, asked once and remembered on disk."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from e2rank.documents import Candidates
from e2rank.errors import EncodingError
from e2rank.rerank import Reranker, Scored

Teacher = Reranker | Callable[[list[tuple[str, str]]], Any]
"""A reranker, or a function from n (query, text) pairs to n numbers, higher for better."""

_FORMAT = 1
_TOGETHER = 500


def ask(teacher: Teacher, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
    """What a teacher of either kind says to each query's pool; pools may be empty.

    A reranker is handed the pools whole; a function gets the pairs of all of them in one list.

    Raises:
        EncodingError: if an answer is not one finite number a document.
        ValueError: if `queries` and `pools` differ in length.
    """
    full = [place for place, pool in enumerate(pools) if len(pool)]
    answers = [Scored(np.zeros(0, dtype=np.float32)) for _ in pools]
    if len(queries) != len(pools):
        raise ValueError(f"{len(queries)} queries for {len(pools)} pools; expected one each")
    if not full:
        return answers
    some, theirs = [queries[place] for place in full], [pools[place] for place in full]
    given = (
        teacher.score(some, theirs)
        if isinstance(teacher, Reranker)
        else _called(teacher, some, theirs)
    )
    for place, answer in zip(full, given, strict=True):
        scores = np.asarray(answer.scores, dtype=np.float32)
        if scores.shape != (len(pools[place]),) or not np.isfinite(scores).all():
            raise EncodingError(
                f"the teacher gave scores of shape {scores.shape}, or a NaN or an infinity, for "
                f"the {len(pools[place])} documents of {queries[place]!r}"
            )
        answers[place] = replace(answer, scores=scores)
    return answers


class CachedTeacher:
    """A teacher that is never asked the same twice; a reranker itself.

    Scores are kept in one SQLite file under a hash of the teacher's name, the query and the text,
    so several teachers may share a file. They are durable after each batch of lists: a run that
    was killed asks only what is missing when it is started again. Only for teachers that score
    each text by itself: the score of a listwise one hangs on the other texts of the list.

    Attributes:
        asked: pairs that the teacher was asked since this object was made.
        cached: pairs that it did not have to be asked.
    """

    def __init__(self, teacher: Teacher, path: str | Path, name: str, *, lists: int = 16) -> None:
        """Open or make the cache.

        Args:
            teacher: a reranker or a function of pairs.
            path: the SQLite file.
            name: tells this teacher from every other, its weights and settings included.
            lists: lists handed over at a time; those not finished are lost when the run dies.
        Raises:
            ValueError: if the name is blank, `lists` < 1, or the file is no such cache or
                damaged.
        """
        if not name.strip() or lists < 1:
            raise ValueError(f"name is {name!r} and lists {lists}; expected a name and at least 1")
        self.name, self._teacher, self._lists = name, teacher, lists
        self.asked = self.cached = 0
        self._connection = _opened(Path(path))

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """One answer a query; its calls, tokens and truncations are those it took just now.

        Raises:
            EncodingError: if the teacher's answer is not one finite number a document.
            ValueError: if `queries` and `pools` differ in length.
        """
        if len(queries) != len(pools):
            raise ValueError(f"{len(queries)} queries for {len(pools)} pools; expected one each")
        answers: list[Scored] = []
        for start in range(0, len(pools), self._lists):
            part = slice(start, start + self._lists)
            answers += self._batch(queries[part], pools[part])
        return answers

    def _batch(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        keys = [
            [_key(self.name, query, text) for text in pool.texts]
            for query, pool in zip(queries, pools, strict=True)
        ]
        known = self._known(key for each in keys for key in each)
        places = list(_missing(keys, known))
        asked = [_only(pool, each) for pool, each in zip(pools, places, strict=True)]
        answers = ask(self._teacher, queries, asked)
        new = {
            keys[number][place]: float(score)
            for number, (each, answer) in enumerate(zip(places, answers, strict=True))
            for place, score in zip(each, answer.scores, strict=True)
        }
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", new.items())
        known |= new
        self.asked += len(new)
        self.cached += sum(map(len, keys)) - len(new)
        return [
            replace(answer, scores=np.array([known[key] for key in each], np.float32), vector=None)
            for answer, each in zip(answers, keys, strict=True)
        ]

    def _known(self, keys: Iterable[bytes]) -> dict[bytes, float]:
        wanted = list(keys)
        known: dict[bytes, float] = {}
        for start in range(0, len(wanted), _TOGETHER):
            part = wanted[start : start + _TOGETHER]
            marks = ",".join("?" * len(part))
            sql = f"SELECT key, score FROM scores WHERE key IN ({marks})"
            known.update(self._connection.execute(sql, part))
        return known


def _called(
    teacher: Callable[[list[tuple[str, str]]], Any],
    queries: Sequence[str],
    pools: Sequence[Candidates],
) -> list[Scored]:
    pairs = [
        (query, text) for query, pool in zip(queries, pools, strict=True) for text in pool.texts
    ]
    scores = np.asarray(teacher(pairs), dtype=np.float32)
    if scores.shape != (len(pairs),):
        raise EncodingError(
            f"the teacher gave scores of shape {scores.shape} for {len(pairs)} pairs; expected "
            "one number a pair"
        )
    stops = np.cumsum([len(pool) for pool in pools])
    return [Scored(each, calls=len(each)) for each in np.split(scores, stops[:-1])]


def _opened(path: Path) -> sqlite3.Connection:
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder; make it before the teacher's cache")
    connection = sqlite3.connect(path)
    try:
        # Waits for each commit to reach the disk, and says at once if the file is cut short.
        connection.execute("PRAGMA synchronous=FULL")
        (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        if state != "ok" or (tables and (tables, version) != (["scores"], _FORMAT)):
            raise sqlite3.DatabaseError(
                state.splitlines()[-1] if state != "ok" else f"it holds {tables}"
            )
        with connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS scores "
                "(key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID"
            )
            connection.execute(f"PRAGMA user_version={_FORMAT}")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ValueError(
            f"{path} is damaged or no cache of a teacher ({error}): restore it, or remove it and "
            "have the teacher asked again"
        ) from error
    return connection


def _key(name: str, query: str, text: str) -> bytes:
    # JSON tells ("a", "bc") from ("ab", "c").
    return hashlib.blake2b(json.dumps([name, query, text]).encode(), digest_size=16).digest()


def _missing(keys: Sequence[Sequence[bytes]], known: dict[bytes, float]) -> Iterator[list[int]]:
    """For each list the places of its keys that are not known; a key that comes twice, once."""
    seen = set(known)
    for each in keys:
        places = []
        for place, key in enumerate(each):
            if key not in seen:
                seen.add(key)
                places.append(place)
        yield places


def _only(pool: Candidates, places: Sequence[int]) -> Candidates:
    return replace(
        pool,
        ids=[pool.ids[place] for place in places],
        texts=[pool.texts[place] for place in places],
        scores=pool.scores[np.array(places, dtype=np.int64)],
        vectors=None if pool.vectors is None else pool.vectors[np.array(places, dtype=np.int64)],
    )
