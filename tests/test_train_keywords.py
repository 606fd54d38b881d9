"""Queries of keywords: a document's own telling words, evenly over documents, none twice."""

import math
import re
from collections import Counter

import pytest

from e2rank import Document
from e2rank.train.keywords import keyword_queries

KINDS = ("wing", "plate", "jet", "nozzle", "panel", "shock", "cone", "layer", "wake", "blade")


def document(number: int) -> Document:
    """Words that two documents share, one that a tenth has, one that all have, and some of none."""
    own = [f"term{number // 2}{letter}" for letter in "abcdefghijklmnop"]
    rare = f"only{number} {KINDS[number % 10]} no 12345 ii"
    return Document(id=f"d{number}", text=f"Flow of {rare}. {' '.join(own)} {own[3]} {own[3]}.")


CORPUS = [document(number) for number in range(40)]
SEEDS = [0, 1, 7]


def telling(own: Document) -> list[str]:
    """The twelve words of highest tf * idf, by its definition."""
    texts = [set(re.findall(r"\w+", each.body.lower())) for each in CORPUS]
    weights = {}
    for word, often in Counter(re.findall(r"\w+", own.body.lower())).items():
        stands = sum(word in text for text in texts)
        if len(word) > 2 and re.search(r"[^\W\d]", word) and 1 < stands <= 8:
            weights[word] = often * math.log(41 / (1 + stands))
    return sorted(weights, key=lambda word: -weights[word])[:12]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_query_is_two_to_six_telling_words_of_its_document_in_their_order(seed: int) -> None:
    found = keyword_queries(CORPUS, most=100, seed=seed)
    assert len(found) == 100
    by_id = {each.id: each for each in CORPUS}
    for query in found:
        words, own = query.text.split(), by_id[query.id]
        assert query.kind == "keywords"
        assert 2 <= len(words) <= 6
        assert set(words) <= set(telling(own))
        places = [own.body.lower().index(word) for word in words]
        assert places == sorted(places)
        assert len(set(words)) == len(words)
    assert {len(query.text.split()) for query in found} == {2, 3, 4, 5, 6}


@pytest.mark.parametrize(("most", "least", "largest"), [(30, 0, 1), (40, 1, 1), (100, 2, 3)])
def test_every_document_gives_one_before_any_gives_two(most: int, least: int, largest: int) -> None:
    found = keyword_queries(CORPUS, most=most, seed=0)
    counts = Counter(query.id for query in found)
    assert len(found) == most == len({query.text for query in found})
    assert min(counts[each.id] for each in CORPUS) >= least
    assert max(counts.values()) <= largest


def test_frequent_words_are_drawn_more_often() -> None:
    counts = Counter(
        word[-1]
        for seed in range(20)
        for query in keyword_queries(CORPUS, most=40, seed=seed)
        for word in query.text.split()
        if word.startswith("term")
    )
    # The fourth word stands three times, the first once.
    assert counts["d"] > 1.5 * counts["a"]


def test_the_same_seed_gives_the_same_queries_and_another_does_not() -> None:
    one, again, other = (keyword_queries(CORPUS, most=20, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_fewer_come_where_the_documents_have_no_more() -> None:
    plain = [Document(id=str(n), text=f"alpha beta {n}") for n in range(3)]
    others = [Document(id=str(n), text=f"gamma{n} delta{n}") for n in range(3, 20)]
    found = keyword_queries([*plain, *others], most=50, seed=0)
    assert [(query.text, query.kind) for query in found] == [("alpha beta", "keywords")]


def test_impossible_numbers_are_refused() -> None:
    for most, seed in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match=rf"most is {most} and seed {seed}"):
            keyword_queries(CORPUS, most=most, seed=seed)
