"""Rerankers against their formulas, and what they say they cost."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from e2rank.documents import Candidates, Document
from e2rank.encoders import Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.rerank.choose import choose
from e2rank.rerank.feedback import FeedbackReranker, rocchio
from e2rank.rerank.listwise import ListwiseReranker
from e2rank.rerank.plans import Full, Groups, Windows
from e2rank.scores import rank, unit

QUERY = "heat transfer in the boundary layer of a slender wing"


class Counting(HashingEncoder):
    """Hashed words, and a record of what was asked."""

    def __init__(self) -> None:
        super().__init__(64)
        self.prompts: list[list[str]] = []
        self.texts: list[str] = []

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        self.texts += texts
        return super().encode_documents(texts)

    def encode_prompts(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]]
    ) -> Encoding:
        self.prompts += [list(each) for each in documents]
        joined = [f"{q} {' '.join(d)}" for q, d in zip(queries, documents, strict=True)]
        return HashingEncoder.encode_documents(self, joined)


def pool_of(encoder: HashingEncoder, texts: Sequence[str], *, stored: bool = True) -> Candidates:
    """The texts as candidates of `QUERY`, in their order, with or without stored vectors."""
    vectors = HashingEncoder.encode_documents(encoder, texts).vectors
    query = HashingEncoder.encode_documents(encoder, [QUERY]).vectors[0]
    return Candidates(
        ids=[str(place) for place in range(len(texts))],
        texts=list(texts),
        scores=vectors @ query,
        vectors=vectors if stored else None,
        query=query if stored else None,
        fingerprint=encoder.fingerprint,
    )


@pytest.fixture
def texts(documents: list[Document]) -> list[str]:
    """Thirty real abstracts."""
    return [document.text for document in documents[:30]]


def test_listwise_scores_are_cosines_of_the_prompt_with_every_stored_vector(
    texts: list[str],
) -> None:
    encoder = HashingEncoder(64)
    pool = pool_of(encoder, texts)
    found = ListwiseReranker(encoder, Full(5)).score([QUERY], [pool])[0]
    prompt = encoder.encode_prompts([QUERY], [texts[:5]]).vectors[0]
    assert pool.vectors is not None
    wanted = [sum(a * b for a, b in zip(row, prompt, strict=True)) for row in pool.vectors]
    np.testing.assert_allclose(found.scores, wanted, atol=1e-6)
    np.testing.assert_array_equal(found.vector, prompt)


def test_one_prompt_shows_the_first_candidates_and_no_document_is_encoded_again(
    texts: list[str],
) -> None:
    encoder = Counting()
    found = ListwiseReranker(encoder, Full(5)).score([QUERY], [pool_of(encoder, texts)])[0]
    assert encoder.prompts == [texts[:5]]
    assert found.calls == 1
    assert encoder.texts == []


@pytest.mark.parametrize("plan", [Full(5), Windows(10, 5), Groups(10)])
def test_candidates_without_stored_vectors_are_encoded_and_counted(
    texts: list[str], plan: Full | Windows | Groups
) -> None:
    encoder = Counting()
    pool = pool_of(encoder, texts, stored=False)
    found = ListwiseReranker(encoder, plan).score([QUERY], [pool])[0]
    assert encoder.texts == texts
    assert found.calls == plan.calls(30) + 30


def test_vectors_of_another_model_are_not_used(texts: list[str]) -> None:
    encoder, other = Counting(), HashingEncoder(128)
    ListwiseReranker(encoder).score([QUERY], [pool_of(other, texts)])
    assert encoder.texts == texts


@pytest.mark.parametrize("plan", [Windows(10, 5), Groups(10), Groups(7, rounds=2, striped=False)])
def test_a_plan_makes_the_calls_it_announces_and_ranks_every_candidate(
    texts: list[str], plan: Windows | Groups
) -> None:
    encoder = Counting()
    found = ListwiseReranker(encoder, plan).score([QUERY], [pool_of(encoder, texts)])[0]
    assert len(encoder.prompts) == plan.calls(30) == found.calls
    assert len(np.unique(found.scores)) == 30


def test_windows_sort_each_window_by_its_own_prompt_from_the_end(texts: list[str]) -> None:
    encoder = HashingEncoder(64)
    vectors = encoder.encode_documents(texts).vectors
    order = list(range(30))
    for start, stop in ((20, 30), (15, 25), (10, 20), (5, 15), (0, 10)):
        window = order[start:stop]
        prompt = encoder.encode_prompts([QUERY], [[texts[place] for place in window]]).vectors[0]
        order[start:stop] = sorted(window, key=lambda place: -float(vectors[place] @ prompt))
    reranker = ListwiseReranker(encoder, Windows(10, 5))
    found = reranker.score([QUERY], [pool_of(encoder, texts)])[0]
    assert rank(found.scores).tolist() == order


def test_groups_reorder_the_whole_list_by_the_scores_of_all_prompts(texts: list[str]) -> None:
    encoder = HashingEncoder(64)
    vectors = encoder.encode_documents(texts).vectors
    order = list(range(30))
    for _ in range(2):
        scores = {}
        for members in (order[0::3], order[1::3], order[2::3]):
            shown = [texts[place] for place in members]
            prompt = encoder.encode_prompts([QUERY], [shown]).vectors[0]
            scores |= {place: float(vectors[place] @ prompt) for place in members}
        order = sorted(order, key=lambda place: -scores[place])
    reranker = ListwiseReranker(encoder, Groups(10, rounds=2))
    found = reranker.score([QUERY], [pool_of(encoder, texts)])[0]
    assert rank(found.scores).tolist() == order


def test_the_vector_of_groups_is_that_of_the_last_prompt_of_the_last_round(
    texts: list[str],
) -> None:
    encoder = Counting()
    plan = Groups(10, rounds=2)
    found = ListwiseReranker(encoder, plan).score([QUERY], [pool_of(encoder, texts)])[0]
    last = encoder.encode_prompts([QUERY], [encoder.prompts[-1]]).vectors[0]
    np.testing.assert_array_equal(found.vector, last)


def test_rocchio_is_the_weighted_mean_on_the_unit_sphere() -> None:
    query, documents = np.array([1.0, 0.0]), np.array([[0.0, 1.0], [0.6, 0.8]])
    mean = [(0.0 + 0.6) / 2, (1.0 + 0.8) / 2]
    moved = [0.75 * 1.0 + 0.25 * mean[0], 0.75 * 0.0 + 0.25 * mean[1]]
    length = (moved[0] ** 2 + moved[1] ** 2) ** 0.5
    np.testing.assert_allclose(
        rocchio(query, documents, 0.25), [moved[0] / length, moved[1] / length], rtol=1e-6
    )


def test_feedback_from_stored_vectors_costs_no_call(texts: list[str]) -> None:
    encoder = Counting()
    pool = pool_of(encoder, texts)
    found = FeedbackReranker(encoder, m=4, weight=0.5).score([QUERY], [pool])[0]
    assert (found.calls, found.tokens, encoder.texts) == (0, 0, [])
    assert pool.vectors is not None
    assert pool.query is not None
    moved = unit(0.5 * pool.query + 0.5 * pool.vectors[:4].mean(axis=0))
    np.testing.assert_allclose(found.scores, pool.vectors @ moved, atol=1e-6)


def test_feedback_without_stored_vectors_counts_what_it_reads(texts: list[str]) -> None:
    encoder = Counting()
    pool = pool_of(encoder, texts, stored=False)
    found = FeedbackReranker(encoder).score([QUERY], [pool])[0]
    assert found.calls == 1 + 30
    assert found.tokens > 0


class Prompting(HashingEncoder):
    """Hashed words that are counted, and a prompt of vectors: query plus mean of the shown."""

    def __init__(self) -> None:
        super().__init__(64)
        self.contract = replace(self.contract, prompt="vectors", list_sizes=(3,))
        self.asked: list[list[str]] = []

    def encode_queries(self, texts: Sequence[str]) -> Encoding:
        self.asked.append(list(texts))
        return super().encode_queries(texts)

    def encode_vector_prompts(
        self, queries: Sequence[str], asked: np.ndarray, vectors: Sequence[np.ndarray]
    ) -> Encoding:
        pairs = zip(asked, vectors, strict=True)
        return Encoding(np.stack([unit(each + shown.mean(axis=0)) for each, shown in pairs]))


@pytest.mark.parametrize("of", [FeedbackReranker, ListwiseReranker])
def test_queries_that_no_model_has_read_are_read_together_and_counted_each(
    of: type[FeedbackReranker | ListwiseReranker], texts: list[str]
) -> None:
    encoder = Prompting()
    queries = ["heat", "the slipstream of a wing", QUERY, "shock wave"]
    unread = replace(pool_of(encoder, texts), query=None)
    elsewhere = replace(unread, query=np.ones(64, dtype=np.float32), vectors=None, fingerprint="?")
    pools = [unread, elsewhere, pool_of(encoder, texts), unread]

    together = of(encoder).score(queries, pools)
    assert encoder.asked == [[queries[0], queries[1], queries[3]]]
    calls = 1 if of is ListwiseReranker else 0
    assert [found.calls for found in together] == [1 + calls, 31 + calls, calls, 1 + calls]
    for query, pool, found in zip(queries, pools, together, strict=True):
        alone = of(encoder).score([query], [pool])[0]
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)
        np.testing.assert_allclose(found.vector, alone.vector, atol=1e-6)
        assert found.calls == alone.calls


def test_feedback_of_weight_zero_is_the_cosine_order(texts: list[str]) -> None:
    encoder = HashingEncoder(64)
    pool = pool_of(encoder, texts)
    found = FeedbackReranker(encoder, weight=0.0).score([QUERY], [pool])[0]
    np.testing.assert_allclose(found.scores, pool.scores, atol=1e-6)


@pytest.mark.parametrize("options", [{"m": 0}, {"weight": 1.5}, {"weight": -0.1}])
def test_feedback_without_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected m >= 1"):
        FeedbackReranker(HashingEncoder(), **options)  # type: ignore[arg-type]


def test_every_name_gives_its_reranker() -> None:
    encoder = HashingEncoder()
    names = [getattr(choose(each, encoder), "name", None) for each in ("prf", "cosine", True)]
    assert names == ["prf", "cosine", "listwise"]
    assert choose(False, encoder) is None
    assert choose("none", encoder) is None
    plan = choose(Windows(), encoder)
    assert isinstance(plan, ListwiseReranker)
    assert plan.plan == Windows()


def test_what_is_no_reranker_is_refused_with_what_is() -> None:
    with pytest.raises(ValueError, match="rerank is 'bm25'; expected True, False, 'tokens'"):
        choose("bm25", HashingEncoder())  # type: ignore[arg-type]
