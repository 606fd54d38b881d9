"""BM25 against its formula in loops, and how long its index lives."""

import builtins
import logging
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import Stemmer
from bm25s.stopwords import STOPWORDS_EN, STOPWORDS_GERMAN
from hypothesis import given, settings
from hypothesis import strategies as st

from e2rank import Document, Engine, IndexConfig, MissingExtra
from e2rank.config import LANGUAGES
from e2rank.gather.bm25 import Bm25, _word

WORDS = ["wing", "wings", "winged", "heat", "Heating", "the", "of", "flow", "x", "2nd", "a_b"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), max_size=8)


STOP_WORDS = {"english": STOPWORDS_EN, "german": STOPWORDS_GERMAN, "": ()}


def stems(text: str, language: str = "english") -> list[str]:
    """The words of a text as BM25 counts them."""
    words = [word.strip(".,") for word in text.lower().split()]
    kept = [word for word in words if len(word) > 1 and word not in STOP_WORDS[language]]
    return Stemmer.Stemmer(language).stemWords(kept) if language else kept


def by_formula(
    texts: list[str],
    query: str,
    config: IndexConfig = IndexConfig(),  # noqa: B008 - frozen
) -> list[float]:
    """Lucene's variant, by default with k1 = 1.5, b = 0.75."""
    language, k1, b = config.bm25_language, config.bm25_k1, config.bm25_b
    every = [stems(text, language) for text in texts]
    average = sum(map(len, every)) / max(len(every), 1)
    scores = []
    for words in every:
        score = 0.0
        for word in stems(query, language):
            holding = sum(word in other for other in every)
            if word in words:
                idf = math.log(1 + (len(every) - holding + 0.5) / (holding + 0.5))
                length = k1 * (1 - b + b * len(words) / average)
                score += idf * words.count(word) / (words.count(word) + length)
        scores.append(score)
    return scores


@settings(max_examples=60)
@given(TEXTS, st.lists(st.sampled_from([*WORDS, "zebra"]), max_size=5).map(" ".join))
def test_scores_are_the_formula(texts: list[str], query: str) -> None:
    found = Bm25(texts).scores([query, ""])
    assert (found.shape, found.dtype) == ((2, len(texts)), np.float32)
    np.testing.assert_allclose(found[0], by_formula(texts, query), rtol=1e-5, atol=1e-6)
    assert not found[1].any()


@pytest.mark.parametrize(
    "config",
    [
        IndexConfig(bm25_language="german"),
        IndexConfig(bm25_language="", bm25_k1=1.2, bm25_b=0.3),
        IndexConfig(bm25_k1=0.9, bm25_b=0.0),
        IndexConfig(bm25_k1=0, bm25_b=1),
    ],
)
@settings(max_examples=20)
@given(TEXTS, st.lists(st.sampled_from([*WORDS, "Häuser"]), max_size=5).map(" ".join))
def test_scores_of_any_setting_are_the_formula(
    config: IndexConfig, texts: list[str], query: str
) -> None:
    texts = [*texts, "das Haus und die Häuser", "the houses"]
    found = Bm25(texts, config).scores([query])[0]
    np.testing.assert_allclose(found, by_formula(texts, query, config), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("language", ["english", "german"])
def test_an_index_keeps_the_language_of_its_words_through_changes_and_under_a_filter(
    tmp_path: Path, language: str
) -> None:
    config = IndexConfig(bm25_language=language, bm25_k1=1.2, bm25_b=0.4)
    texts = ["das alte haus", "die häuser am see", "und ein garten", "ein haus ein haus"]
    records = [
        Document(str(place), text, metadata={"odd": place % 2}) for place, text in enumerate(texts)
    ]
    where = tmp_path / "index"
    Engine.build(records[:3], where, "hashing", config).close()
    with Engine.open(where) as engine:
        assert engine.store.manifest.index_config == config
        search(engine)
        engine.add(records[3:])
        engine.delete(["2"])
        engine.compact()
        left = [0, 1, 3]
        scores = by_formula([texts[place] for place in left], "das haus", config)
        best = {str(place): score for place, score in zip(left, scores, strict=True) if score}
        assert ("1" in best) == (language == "german")
        assert dict(search(engine, "das haus")) == pytest.approx(best, rel=1e-5)
        hits = engine.search("das haus", gather="bm25", rerank=False, where={"odd": 1})
        odd = {name: score for name, score in best.items() if name in "13"}
        assert {hit.id: hit.score for hit in hits} == pytest.approx(odd, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"bm25_language": "klingon"},
            "bm25_language is 'klingon'; it must be 'english', 'danish'",
        ),
        ({"bm25_k1": -1}, "bm25_k1 is -1; it must be a number, at least 0"),
        ({"bm25_k1": float("nan")}, "bm25_k1 is nan"),
        ({"bm25_k1": "1"}, "bm25_k1 is '1'"),
        ({"bm25_b": 1.5}, "bm25_b is 1.5; it must be a number, 0 to 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IndexConfig(**fields)


@pytest.mark.parametrize("language", [each for each in LANGUAGES if each])
def test_every_language_has_its_stop_words_and_its_stemmer(language: str) -> None:
    config = IndexConfig(bm25_language=language)
    assert Bm25(["wing wing"], config).scores(["wing"])[0, 0] > 0


@pytest.fixture
def engine(documents: list[Document], tmp_path: Path) -> Iterator[Engine]:
    """Thirty abstracts, one of them twice, and an empty document."""
    twin = Document("twin", documents[2].text, documents[2].title)
    with Engine.build(
        [*documents[:30], twin, Document("empty", "")], tmp_path / "i", "hashing"
    ) as e:
        yield e


def search(
    engine: Engine, query: str = "heat of the wings", k: int = 50
) -> list[tuple[str, float]]:
    """Ids and scores by BM25 alone."""
    hits = engine.search(query, k, gather="bm25", rerank=False)
    return [(hit.id, hit.score) for hit in hits]


def expected(engine: Engine, query: str) -> list[tuple[str, float]]:
    """Those with a score, best first, equals in row order."""
    documents = list(engine.store)
    scores = Bm25(each.body for each in documents).scores([query])[0].tolist()
    order = sorted(range(len(documents)), key=lambda row: (-scores[row], row))
    return [(documents[row].id, scores[row]) for row in order if scores[row] > 0]


def test_hits_are_titles_and_texts_with_a_score_equals_in_row_order(engine: Engine) -> None:
    found = search(engine)
    assert found == expected(engine, "heat of the wings")
    assert "empty" not in dict(found)
    assert search(engine, k=3) == found[:3]
    twins = [place for place, (name, _) in enumerate(found) if name in ("3", "twin")]
    assert not twins or (twins == [twins[0], twins[0] + 1] and found[twins[0]][0] == "3")
    title = engine.store.documents([4])[0].title
    assert "5" in dict(search(engine, title))


def test_a_change_is_searched_after_its_commit_and_counted_anew(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def built() -> int:
        return sum("took" in record.getMessage() for record in caplog.records)

    caplog.set_level(logging.INFO, "e2rank")
    before = search(engine)
    search(engine, "flow")
    assert built() == 1
    assert "BM25 over 32 documents took" in caplog.text
    engine.delete([before[0][0]])
    engine.add([{"id": "new", "text": "heat heat wings"}])
    after = search(engine)
    assert after == expected(engine, "heat of the wings")
    assert after[0][0] == "new"
    assert before[0][0] not in dict(after)
    assert built() == 2
    with Engine.open(engine.store.folder) as other:
        other.delete(["new"])
    assert search(engine) == after
    engine.refresh()
    assert "new" not in dict(search(engine))
    assert built() == 3


def test_threads_that_search_at_once_wait_for_one_index(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "e2rank")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: search(engine), range(8)))
    assert found == [expected(engine, "heat of the wings")] * 8
    assert len(caplog.records) == 1


def test_the_index_of_words_stays_in_memory(engine: Engine) -> None:
    def files() -> list[tuple[Path, int]]:
        every = engine.store.folder.rglob("*")
        return sorted((path, path.stat().st_mtime_ns) for path in every)

    before = files()
    assert search(engine)
    assert files() == before


def test_documents_of_no_word_are_searched_without_a_hit(tmp_path: Path) -> None:
    texts = [Document("1", "of the"), Document("2", ""), Document("3", "...")]
    with Engine.build(texts, tmp_path / "index", "hashing") as engine:
        assert search(engine, "heat of the wings") == []
        engine.delete(["1", "2", "3"])
        assert search(engine, "heat of the wings") == []


def test_nothing_is_printed_and_no_message_of_another_package_logged(
    engine: Engine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    search(engine)
    search(engine, "of the")
    assert {record.name for record in caplog.records} == {"e2rank"}
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("bm25s").level == logging.WARNING


@pytest.mark.parametrize("missing", ["bm25s", "Stemmer"])
def test_without_the_packages_it_says_what_to_install(
    engine: Engine, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == missing:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=rf"{missing} is not installed.*'e2rank\[bm25\]'"):
        search(engine)


def test_words_are_found_where_none_stand_between_blanks(tmp_path: Path) -> None:
    texts = ["東京は日本の首都です。", "京都は古い都です。", "Tokyo (東京) in Japan", "カタカナ語"]
    documents = [Document(str(n), text) for n, text in enumerate(texts)]
    with Engine.build(documents, tmp_path / "i", "hashing") as engine:
        found = {
            query: {hit.id for hit in engine.search(query, gather="bm25", rerank=False)}
            for query in ("東京", "東京 tokyo", "日本の首都", "都です", "カタカナ", "京", "大阪")
        }
    assert found == {
        "東京": {"0", "2"},
        "東京 tokyo": {"0", "2"},
        "日本の首都": {"0"},
        "都です": {"0", "1"},
        "カタカナ": {"3"},
        "京": set(),
        "大阪": set(),
    }


def test_pairs_of_characters_are_counted_as_words_are() -> None:
    spaced = ["東京 京は は日 日本", "日本 本の の首 首都"]
    whole = ["東京は日本", "日本の首都"]
    for query in ("東京", "日本の首"):
        expected = Bm25(spaced).scores([{"東京": "東京", "日本の首": "日本 本の の首"}[query]])
        np.testing.assert_array_equal(Bm25(whole).scores([query]), expected)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("हिन्दी भाषा भारत में बोली जाती है", "हिन्दी"),
        ("தமிழ் மொழி", "மொழி"),
        ("ภาษาไทยเป็นภาษาราชการ", "ภาษาไทย"),
        ("می‌خواهم کتاب بخوانم", "می‌خواهم"),
        ("ein Cafe\u0301 in Zu\u0308rich", "Café Zürich"),
        ("ein Café in Zürich", "Cafe\u0301 Zu\u0308rich"),
        ("a 猫 there", "猫"),
    ],
)
def test_words_are_whole_with_their_marks_in_any_script(text: str, asked: str) -> None:
    bm25 = Bm25([text, "ein Cafein रत வே การ می"], IndexConfig(bm25_language=""))
    (found,) = bm25.scores([asked])
    assert found[0] > found[1]


def test_one_mark_more_is_another_word_and_no_mark_is_a_word() -> None:
    bm25 = Bm25(["किताब पढ़ो", "हिन्दी"], IndexConfig(bm25_language=""))
    asked = ["किताबें", "ताब", "कि", "दी", "ी"]
    np.testing.assert_array_equal(bm25.scores(asked), np.zeros((5, 2)))


@given(st.text(st.characters(codec="ascii") | st.sampled_from("éßжя…—“ſ²")))
def test_of_texts_without_marks_words_are_those_of_bm25s(text: str) -> None:
    lowered = text.lower()
    assert re.findall(_word(), lowered) == re.findall(r"(?u)\b\w\w+\b", lowered)
