"""A teacher is asked each pair once, whatever happens in between."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2rank.documents import Candidates
from e2rank.errors import EncodingError
from e2rank.rerank import Reranker, Scored
from e2rank.train.teacher import CachedTeacher, ask

QUERIES = ["wing", "heat", "flow"]
TEXTS = [["a wing", "a plate"], ["heat"], ["flow past", "a wing", "a plate"]]


def pool(texts: Sequence[str]) -> Candidates:
    """The texts as candidates without vectors."""
    ids = [f"id of {text}" for text in texts]
    return Candidates(ids=ids, texts=texts, scores=np.arange(len(texts), dtype=np.float32))


POOLS = [pool(texts) for texts in TEXTS]


def value(query: str, text: str) -> float:
    """The score of a pair; not one that float32 holds exactly."""
    return (len(query) * 31 + sum(map(ord, text))) / 7


def values(query: str, texts: Sequence[str]) -> list[float]:
    """The scores of a list as float32 holds them."""
    return [float(np.float32(value(query, text))) for text in texts]


class Asked:
    """A function of pairs that remembers what it was asked, and fails at a planted text."""

    def __init__(self, failing: str = "") -> None:
        self.pairs: list[tuple[str, str]] = []
        self.failing = failing

    def __call__(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        if any(text == self.failing for _, text in pairs):
            raise RuntimeError("the teacher broke")
        self.pairs += pairs
        return np.array([value(*pair) for pair in pairs])


class AskedReranker:
    """The same as a reranker, which counts one call a text, ten tokens each."""

    name = "asked"

    def __init__(self) -> None:
        self.lists: list[tuple[str, list[str]]] = []

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """One answer a query."""
        self.lists += [
            (query, list(each.texts)) for query, each in zip(queries, pools, strict=True)
        ]
        return [
            Scored(
                np.array([value(query, text) for text in each.texts], dtype=np.float32),
                vector=np.ones(2, dtype=np.float32),
                calls=len(each),
                tokens=10 * len(each),
                truncated=1,
            )
            for query, each in zip(queries, pools, strict=True)
        ]


ALL = [(query, text) for query, texts in zip(QUERIES, TEXTS, strict=True) for text in texts]
WANTED = [values(query, texts) for query, texts in zip(QUERIES, TEXTS, strict=True)]


def scores(answers: Sequence[Scored]) -> list[list[float]]:
    """The scores of each answer."""
    return [answer.scores.tolist() for answer in answers]


@pytest.mark.parametrize("kind", [Asked, AskedReranker])
def test_scores_are_the_teachers_as_float32(tmp_path: Path, kind: type[Any]) -> None:
    with CachedTeacher(kind(), tmp_path / "cache", "t") as teacher:
        first, again = teacher.score(QUERIES, POOLS), teacher.score(QUERIES, POOLS)
    assert scores(first) == scores(again) == WANTED
    assert {answer.scores.dtype for answer in [*first, *again]} == {np.dtype(np.float32)}


def test_a_pair_is_asked_once_and_both_kinds_are_counted(tmp_path: Path) -> None:
    asked = Asked()
    with CachedTeacher(asked, tmp_path / "cache", "t") as teacher:
        teacher.score(QUERIES[:2], POOLS[:2])
        assert (teacher.asked, teacher.cached) == (3, 0)
        teacher.score(QUERIES, POOLS)
        assert (teacher.asked, teacher.cached) == (6, 3)
    assert sorted(asked.pairs) == sorted(ALL)


def test_a_pair_that_comes_twice_at_once_is_asked_once(tmp_path: Path) -> None:
    asked = Asked()
    with CachedTeacher(asked, tmp_path / "cache", "t") as teacher:
        found = teacher.score(["q", "q"], [pool(["a", "b", "a"]), pool(["b"])])
        assert (teacher.asked, teacher.cached) == (2, 2)
    assert sorted(asked.pairs) == [("q", "a"), ("q", "b")]
    assert scores(found) == [values("q", ["a", "b", "a"]), values("q", ["b"])]


def test_a_restart_asks_only_what_is_missing(tmp_path: Path) -> None:
    with CachedTeacher(Asked(), tmp_path / "cache", "t") as teacher:
        teacher.score(QUERIES[:2], POOLS[:2])
    asked = Asked()
    with CachedTeacher(asked, tmp_path / "cache", "t") as teacher:
        assert scores(teacher.score(QUERIES, POOLS)) == WANTED
    assert asked.pairs == ALL[3:]


def test_what_was_scored_before_a_failure_is_kept(tmp_path: Path) -> None:
    broken = Asked(failing="flow past")
    with CachedTeacher(broken, tmp_path / "cache", "t", lists=1) as teacher:
        with pytest.raises(RuntimeError, match="the teacher broke"):
            teacher.score(QUERIES, POOLS)
        # The same object can go on once the teacher is well again.
        broken.failing = ""
        assert scores(teacher.score(QUERIES, POOLS)) == WANTED
    assert broken.pairs == ALL


def test_what_was_scored_before_a_kill_is_kept(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train_teacher import POOLS, QUERIES, Asked
from e2rank.train.teacher import CachedTeacher
def dying(pairs):
    if pairs[0][0] == "flow":
        os.kill(os.getpid(), signal.SIGKILL)
    return Asked()(pairs)
CachedTeacher(dying, {str(tmp_path / "cache")!r}, "t", lists=1).score(QUERIES, POOLS)
"""
    died = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    asked = Asked()
    with CachedTeacher(asked, tmp_path / "cache", "t") as teacher:
        assert scores(teacher.score(QUERIES, POOLS)) == WANTED
    assert asked.pairs == ALL[3:]


def test_a_batch_is_as_many_lists_as_asked_for(tmp_path: Path) -> None:
    sizes: list[int] = []

    def teacher(pairs: list[tuple[str, str]]) -> np.ndarray:
        sizes.append(len(pairs))
        return np.zeros(len(pairs))

    with CachedTeacher(teacher, tmp_path / "cache", "t", lists=2) as cached:
        cached.score(QUERIES, POOLS)
    assert sizes == [3, 3]


def test_a_reranker_is_handed_whole_lists_of_what_is_missing(tmp_path: Path) -> None:
    reranker = AskedReranker()
    with CachedTeacher(reranker, tmp_path / "cache", "t") as teacher:
        teacher.score(["flow"], [pool(["a wing"])])
        (answer,) = teacher.score(["flow"], [POOLS[2]])
        (known,) = teacher.score(["flow"], [POOLS[2]])
    assert reranker.lists == [("flow", ["a wing"]), ("flow", ["flow past", "a plate"])]
    assert (answer.calls, answer.tokens, answer.truncated) == (2, 20, 1)
    assert (known.calls, known.tokens, known.truncated) == (0, 0, 0)
    # The vector would be of the missing texts only.
    assert answer.vector is None


def test_vectors_go_to_the_reranker_with_their_texts(tmp_path: Path) -> None:
    seen: list[Candidates] = []

    class Looking(AskedReranker):
        def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
            seen.extend(pools)
            return super().score(queries, pools)

    vectors = np.eye(3, dtype=np.float32)
    whole = Candidates(["x", "y", "z"], ["a", "b", "c"], np.arange(3.0), vectors, fingerprint="f")
    with CachedTeacher(Looking(), tmp_path / "cache", "t") as teacher:
        teacher.score(["q"], [pool(["b"])])
        teacher.score(["q"], [whole])
    assert (seen[1].ids, seen[1].texts, seen[1].fingerprint) == (["x", "z"], ["a", "c"], "f")
    assert seen[1].scores.tolist() == [0.0, 2.0]
    np.testing.assert_array_equal(seen[1].vectors, vectors[[0, 2]])


def test_teachers_of_other_names_share_a_file_and_no_scores(tmp_path: Path) -> None:
    with CachedTeacher(lambda pairs: [1.0] * len(pairs), tmp_path / "cache", "one") as one:
        one.score(QUERIES, POOLS)
        with CachedTeacher(lambda pairs: [2.0] * len(pairs), tmp_path / "cache", "two") as two:
            assert scores(two.score(QUERIES, POOLS)) == [[2.0] * 2, [2.0], [2.0] * 3]
            assert two.asked == 6
        assert scores(one.score(QUERIES, POOLS)) == [[1.0] * 2, [1.0], [1.0] * 3]


def test_where_query_and_text_meet_matters(tmp_path: Path) -> None:
    asked = Asked()
    with CachedTeacher(asked, tmp_path / "cache", "t") as teacher:
        teacher.score(["ab", "a"], [pool(["c"]), pool(["bc"])])
    assert asked.pairs == [("ab", "c"), ("a", "bc")]


def test_a_cached_teacher_is_a_reranker(tmp_path: Path) -> None:
    with CachedTeacher(Asked(), tmp_path / "cache", "my teacher") as teacher:
        assert isinstance(teacher, Reranker)
        assert teacher.name == "my teacher"


def test_empty_lists_get_empty_answers_and_reach_no_teacher(tmp_path: Path) -> None:
    reranker = AskedReranker()
    with CachedTeacher(reranker, tmp_path / "cache", "t") as teacher:
        found = teacher.score(["q", "wing"], [pool([]), POOLS[0]])
    assert scores(found) == [[], WANTED[0]]
    assert reranker.lists == [("wing", TEXTS[0])]
    assert teacher.score([], []) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([1.0, float("nan")], "NaN"),
        ([1.0, float("inf")], "infinity"),
        ([1.0], r"shape \(1,\) for 2 pairs"),
        ([[1.0], [2.0]], r"shape \(2, 1\) for 2 pairs"),
    ],
)
def test_an_answer_that_is_no_score_is_refused_and_not_kept(
    tmp_path: Path, answer: Any, reason: str
) -> None:
    wrong = CachedTeacher(lambda pairs: answer, tmp_path / "cache", "t")
    with wrong, pytest.raises(EncodingError, match=reason):
        wrong.score(QUERIES[:1], POOLS[:1])
    asked = Asked()
    with CachedTeacher(asked, tmp_path / "cache", "t") as teacher:
        teacher.score(QUERIES[:1], POOLS[:1])
    assert asked.pairs == ALL[:2]


def test_a_reranker_that_gives_too_few_scores_is_refused() -> None:
    class Short(AskedReranker):
        def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
            return [Scored(np.zeros(1, dtype=np.float32)) for _ in queries]

    with pytest.raises(EncodingError, match=r"shape \(1,\).*for the 2 documents of 'wing'"):
        ask(Short(), QUERIES, POOLS)


def test_queries_without_a_pool_are_refused(tmp_path: Path) -> None:
    teacher = CachedTeacher(Asked(), tmp_path / "cache", "t")
    with teacher, pytest.raises(ValueError, match="3 queries for 2 pools"):
        teacher.score(QUERIES, POOLS[:2])
    with pytest.raises(ValueError, match="3 queries for 2 pools"):
        ask(Asked(), QUERIES, POOLS[:2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) * 9 // 10],
        lambda data: data[:20_000] + bytes(8192) + data[28_192:],
    ],
)
def test_a_file_cut_short_or_overwritten_is_refused_by_name(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "cache"
    with CachedTeacher(Asked(), file, "t") as teacher:
        teacher.score(["q"], [pool([str(number) for number in range(2000)])])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"{file} is damaged .* remove it"):
        CachedTeacher(Asked(), file, "t")


def test_files_of_another_kind_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no database, and longer than the header of one is " * 20)
    other = tmp_path / "other"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE documents (id TEXT)")
    connection.close()
    for file in (text, other):
        before = file.read_bytes()
        with pytest.raises(ValueError, match=f"{file} is damaged or no cache of a teacher"):
            CachedTeacher(Asked(), file, "t")
        assert file.read_bytes() == before


@pytest.mark.parametrize(("name", "lists"), [("", 1), (" ", 1), ("t", 0)])
def test_a_teacher_without_a_name_or_a_batch_is_refused(
    tmp_path: Path, name: str, lists: int
) -> None:
    with pytest.raises(ValueError, match="expected a name and at least 1"):
        CachedTeacher(Asked(), tmp_path / "cache", name, lists=lists)


def test_a_cache_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone is not a folder"):
        CachedTeacher(Asked(), tmp_path / "gone" / "cache", "t")
