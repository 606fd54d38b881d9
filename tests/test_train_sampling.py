"""Batches of an epoch: every list once, of one source, within bounds, the same every time."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from e2rank.train.examples import Example
from e2rank.train.sampling import Epoch, Sampling, estimated_tokens, shortened


def listed(name: str, n: int, source: str = "s") -> Example:
    """A list whose documents, labels, first-stage scores and ids can be told apart."""
    return Example(
        query=name,
        documents=tuple(f"{name} text {place}" for place in range(n)),
        labels=tuple(float((7 * place) % n) for place in range(n)),
        first_stage=tuple(float((3 * place) % n) for place in range(n)),
        ids=tuple(f"{name}-{place}" for place in range(n)),
        source=source,
    )


MIXED = [listed(f"a{i}", 30, "a") for i in range(23)] + [listed(f"b{i}", 11, "b") for i in range(9)]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"lists": 4, "list_sizes": (5,)},
    {"lists": 5, "token_budget": 300},
    {"shuffle": False, "token_budget": 1},
]


def names(epoch: Epoch) -> list[str]:
    """The queries of an epoch in order."""
    return [example.query for batch in epoch for example in batch.examples]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_example_is_in_exactly_one_batch(settings: dict[str, Any]) -> None:
    found = names(Epoch(MIXED, Sampling(**settings)))
    assert sorted(found) == sorted(example.query for example in MIXED)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_batch_is_of_one_source(settings: dict[str, Any]) -> None:
    batches = list(Epoch(MIXED, Sampling(**settings)))
    assert {batch.source for batch in batches} == {"a", "b"}
    for batch in batches:
        assert {example.source for example in batch.examples} == {batch.source}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("n", [0, 1, 3, 7])
def test_an_interrupted_run_goes_on_as_a_fresh_one(settings: dict[str, Any], n: int) -> None:
    fresh = list(Epoch(MIXED, Sampling(**settings), epoch=2))
    epoch = Epoch(MIXED, Sampling(**settings), epoch=2)
    assert list(epoch.skip(n)) == fresh[n:]
    # Neither does an iteration that was left early change the next.
    next(iter(epoch))
    assert list(epoch.skip(n)) == fresh[n:]


def test_nothing_is_left_after_the_last_batch() -> None:
    epoch = Epoch(MIXED, Sampling())
    assert list(epoch.skip(len(list(epoch)))) == []
    assert list(epoch.skip(10_000)) == []


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(names(Epoch(MIXED, Sampling(seed=seed), epoch)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_a_batch_has_the_most_lists_except_the_last_of_a_source() -> None:
    batches = list(Epoch(MIXED, Sampling(lists=4)))
    by_source = {
        source: [len(batch.examples) for batch in batches if batch.source == source]
        for source in "ab"
    }
    assert by_source == {"a": [4, 4, 4, 4, 4, 3], "b": [4, 4, 1]}


def test_sources_come_in_proportion_to_what_is_left() -> None:
    examples = [listed(f"a{i}", 5, "a") for i in range(60)]
    examples += [listed(f"b{i}", 5, "b") for i in range(20)]
    firsts: Counter[str] = Counter()
    lasts: Counter[str] = Counter()
    for seed in range(300):
        batches = list(Epoch(examples, Sampling(lists=1, seed=seed)))
        firsts[batches[0].source] += 1
        lasts[batches[-1].source] += 1
    # Expected 225 of 300; four standard deviations are 30.
    assert abs(firsts["a"] - 225) < 30
    assert abs(lasts["a"] - 225) < 30


def test_every_list_size_is_met_and_none_is_passed() -> None:
    examples = [listed(f"a{i}", 30) for i in range(400)]
    batches = list(Epoch(examples, Sampling(lists=2, list_sizes=range(5, 21))))
    assert {batch.size for batch in batches} == set(range(5, 21))
    for batch in batches:
        assert {len(example) for example in batch.examples} == {batch.size}


def test_shorter_lists_keep_all_their_documents() -> None:
    lengths = {f"q{n}": n for n in (1, 3, 9, 10)}
    examples = [listed(name, n) for name, n in lengths.items()]
    (batch,) = Epoch(examples, Sampling(list_sizes=(10,)))
    assert {example.query: len(example) for example in batch.examples} == lengths


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_belongs_to_a_document_stays_with_it(settings: dict[str, Any]) -> None:
    whole = {example.query: example for example in MIXED}
    for batch in Epoch(MIXED, Sampling(**settings)):
        for example in batch.examples:
            full = whole[example.query]
            places = [full.ids.index(each) for each in example.ids]
            assert len(set(places)) == len(places)
            for field in ("documents", "labels", "first_stage"):
                assert getattr(example, field) == tuple(
                    getattr(full, field)[place] for place in places
                )


def test_a_shuffled_list_is_a_permutation_and_not_always_the_same() -> None:
    example = listed("q", 8)
    orders = {shortened(example, 8, np.random.default_rng(seed)).ids for seed in range(50)}
    assert {tuple(sorted(order)) for order in orders} == {example.ids}
    assert len(orders) > 45


def test_every_document_comes_first_as_often_when_shuffled() -> None:
    example = listed("q", 5)
    random = np.random.default_rng(0)
    firsts = Counter(shortened(example, 5, random).ids[0] for _ in range(1000))
    # Expected 200 each; four standard deviations are 51.
    assert all(abs(firsts[each] - 200) < 51 for each in example.ids)


def test_unshuffled_lists_come_in_first_stage_order() -> None:
    for batch in Epoch(MIXED, Sampling(shuffle=False)):
        for example in batch.examples:
            assert list(example.first_stage) == sorted(example.first_stage, reverse=True)


def test_unshuffled_lists_without_first_stage_scores_keep_their_order() -> None:
    example = Example("q", tuple("abcdefgh"), tuple(float(x) for x in range(8)))
    kept = shortened(example, 4, np.random.default_rng(0), shuffle=False)
    assert list(kept.documents) == sorted(kept.documents)
    assert kept.first_stage == ()
    assert kept.ids == ()


def test_the_best_labelled_document_is_always_kept() -> None:
    example = listed("q", 30)
    for seed, size in itertools.product(range(30), (1, 2, 5, 29)):
        kept = shortened(example, size, np.random.default_rng(seed))
        assert len(kept) == size
        assert max(kept.labels) == 29.0


def test_kept_documents_span_the_labels() -> None:
    example = listed("q", 31)
    for seed in range(30):
        kept = sorted(shortened(example, 6, np.random.default_rng(seed)).labels, reverse=True)
        # Labels are 30 (kept), then five runs of six: 29..24, 23..18, ...
        runs = [int((29 - label) // 6) for label in kept[1:]]
        assert runs == [0, 1, 2, 3, 4]


def kept_counts(labels: tuple[float, ...], times: int) -> list[int]:
    """How often each document is among the five kept."""
    example = Example("q", tuple(map(str, range(len(labels)))), labels)
    random = np.random.default_rng(0)
    counts = Counter(
        document for _ in range(times) for document in shortened(example, 5, random).documents
    )
    return [counts[str(place)] for place in range(len(labels))]


def test_every_document_but_the_best_has_the_same_chance_to_be_kept() -> None:
    # Expected 600 * 4 / 20 = 120 each; five standard deviations are 49.
    for others in (tuple(map(float, range(20))), (0.0,) * 20):
        best, *rest = kept_counts((20.0, *others), 600)
        assert best == 600
        assert all(abs(count - 120) < 49 for count in rest)


def test_none_of_several_best_documents_is_favoured() -> None:
    # Expected 600 * 5 / 20 = 150 each; five standard deviations are 53.
    assert all(abs(count - 150) < 53 for count in kept_counts((1.0,) * 20, 600))


@pytest.mark.parametrize("budget", [60, 150, 400])
def test_no_batch_is_over_its_token_budget_with_padding(budget: int) -> None:
    sizes = np.random.default_rng(0).integers(2, 40, size=50).tolist()
    examples = [listed(f"q{place}", n) for place, n in enumerate(sizes)]
    settings = Sampling(lists=6, list_sizes=range(5, 21), token_budget=budget)
    alone = 0
    for batch in Epoch(examples, settings, lengths=words):
        costs = [
            words(example.query) + sum(map(words, example.documents)) for example in batch.examples
        ]
        alone += len(costs) == 1
        assert len(costs) == 1 or len(costs) * max(costs) <= budget
    assert alone < len(examples)


def words(text: str) -> int:
    """Tokens of a text, counted by words."""
    return len(text.split())


def test_a_batch_under_budget_takes_as_many_lists_as_fit() -> None:
    # Each list has 1 + 3 * 5 words, and 50 // 16 is 3.
    examples = [listed(f"q{place}", 5) for place in range(9)]
    settings = Sampling(lists=8, list_sizes=(5,), token_budget=50)
    assert [len(batch.examples) for batch in Epoch(examples, settings, lengths=words)] == [3, 3, 3]


def test_lengths_are_not_asked_without_a_budget() -> None:
    def refuse(text: str) -> int:
        raise AssertionError(text)

    assert names(Epoch(MIXED, Sampling(), lengths=refuse))


def test_estimated_tokens_grow_with_the_text_and_are_never_none() -> None:
    assert estimated_tokens("") == 1
    assert estimated_tokens("x" * 400) == 101


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Sampling(lists=0), "lists is 0"),
        (lambda: Sampling(list_sizes=()), r"list_sizes is \(\)"),
        (lambda: Sampling(list_sizes=(1, 5)), r"list_sizes is \(1, 5\)"),
        (lambda: Sampling(token_budget=0), "token_budget is 0"),
        (lambda: Sampling(seed=-1), "seed is -1"),
        (lambda: Epoch([], Sampling()), "no example"),
        (lambda: Epoch(MIXED, Sampling(), epoch=-1), "epoch is -1"),
        (lambda: Epoch(MIXED, Sampling()).skip(-1), "cannot skip -1"),
    ],
)
def test_settings_that_make_no_epoch_are_refused(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()
