"""Late interaction: token vectors score candidates by MaxSim, in a search and without one."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_support import abstracts, assert_close
from hypothesis import given
from hypothesis import strategies as st
from test_adapter import CONTRACT, adapter, base, head_weights

from e2rank import Candidates, Document, Engine, Hits
from e2rank.documents import TokenVectors
from e2rank.encoders.hashing import HashingEncoder
from e2rank.encoders.run import Run
from e2rank.encoders.tokens import Tokens
from e2rank.encoders.torch import TorchEncoder
from e2rank.errors import IndexFormatError
from e2rank.rerank.choose import choose
from e2rank.rerank.late import TokenReranker
from e2rank.scores import fuse, maxsim, rank, unit

QUERY = "heat transfer in the boundary layer of a slender wing"
COUNT = 30


@functools.cache
def adapted(seed: int = 0, **changes: Any) -> TorchEncoder:
    """The tiny BERT with updates and the token head of this seed."""
    weights = adapter().weights | head_weights(seed)
    contract = dataclasses.replace(CONTRACT, **changes)
    return base().adapt(adapter(weights, contract=contract), name=f"head {seed}")


def shorter(documents: Sequence[Document]) -> list[Document]:
    """Documents of a few words, one of them empty."""
    short = [
        Document(each.id, each.text[: 40 + 7 * place])
        for place, each in enumerate(documents[: COUNT - 1])
    ]
    return [*short, Document("nothing", "")]


@pytest.fixture(scope="module")
def folder(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with the token vectors of the first head."""
    where = tmp_path_factory.mktemp("late") / "index"
    Engine.build(shorter(documents), where, adapted()).close()
    return where


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    """An engine over that index, made anew as tests change it."""
    with Engine.open(folder, adapted()) as opened:
        yield opened


@pytest.fixture(autouse=True)
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is the first to be warned."""
    monkeypatch.setattr("e2rank.rerank.late._warned", set())


def in_loops(query: Any, documents: Sequence[Any]) -> list[float]:
    """MaxSim as it is defined; a document without tokens gets minus the lengths of the query's."""
    scores = []
    for document in documents:
        total = 0.0
        for asked in query.tolist():
            length = sum(x * x for x in asked) ** 0.5
            dots = [
                sum(x * y for x, y in zip(asked, row, strict=True)) for row in document.tolist()
            ]
            total += max(dots, default=-length)
        scores.append(total)
    return scores


def scored_by_hand(encoder: TorchEncoder, query: str, texts: Sequence[str], steps: int) -> Any:
    """Blended scores, every text encoded alone and kept in `steps` steps; 0 keeps it exactly."""
    asked = encoder.encode_queries([query])
    read = [encoder.encode_documents([text]) for text in texts]
    rows = [each.token_vectors[0].astype(np.float64) for each in read]
    if steps:
        rows = [np.rint(steps * each) / steps for each in rows]
    late = in_loops(asked.token_vectors[0], rows)
    cosines = [float(each.vectors[0] @ asked.vectors[0]) for each in read]
    of_late, of_cosine = encoder.blend()
    sums = [of_late * m + of_cosine * c for m, c in zip(late, cosines, strict=True)]
    return np.array(sums) / (of_late + of_cosine)


def scores_of(hits: Hits) -> dict[str, float]:
    """Each id's score."""
    return {hit.id: hit.score for hit in hits}


def assert_scores(hits: Hits, expected: dict[str, float], most: float = 1e-3) -> None:
    """These documents with these scores, and in their order."""
    found = scores_of(hits)
    assert found.keys() == expected.keys()
    assert_close(np.array([found[each] for each in expected]), list(expected.values()), most)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1


def by_hand(engine: Engine, encoder: TorchEncoder, steps: int) -> dict[str, float]:
    """The score of every document of an index, for `QUERY`."""
    every = list(engine.store)
    scores = scored_by_hand(encoder, QUERY, [each.body for each in every], steps)
    return {each.id: score for each, score in zip(every, scores.tolist(), strict=True)}


def asked(monkeypatch: pytest.MonkeyPatch, encoder: TorchEncoder) -> list[str]:
    """The texts that an encoder is asked to read as documents from now on."""
    texts: list[str] = []
    encode = encoder.encode_documents

    def noted(given: Sequence[str]) -> Any:
        texts.extend(given)
        return encode(given)

    monkeypatch.setattr(encoder, "encode_documents", noted)
    return texts


lengths = st.lists(st.integers(0, 5), max_size=8)


@given(lengths, st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_maxsim_is_its_definition_in_loops(
    rows: list[int], asked: int, dim: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(asked, dim)).astype(np.float32)
    documents = [rng.normal(size=(count, dim)).astype(np.float32) for count in rows]
    packed = np.concatenate([np.zeros((0, dim), dtype=np.float32), *documents])
    ends = np.cumsum([0, *rows])
    found = maxsim(query, packed, ends)
    assert (found.shape, found.dtype) == ((len(rows),), np.float32)
    assert_close(found, in_loops(query, documents), 1e-4)
    order = rng.permutation(len(rows))
    shuffled = [np.zeros((0, dim), dtype=np.float32), *(documents[place] for place in order)]
    again = maxsim(query, np.concatenate(shuffled), np.cumsum([0, *(rows[i] for i in order)]))
    assert_close(again, found[order], 1e-5)


@pytest.mark.parametrize("rows", [[], [0], [0, 0, 0]])
def test_maxsim_of_no_token_at_all(rows: list[int]) -> None:
    query = np.array([[3.0, 4.0], [0.0, 2.0]], dtype=np.float32)
    found = maxsim(query, np.zeros((0, 2), dtype=np.float32), np.cumsum([0, *rows]))
    assert found.tolist() == [-7.0] * len(rows)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_document_without_tokens_never_outranks_another(empty: int) -> None:
    rng = np.random.default_rng(empty)
    query = rng.normal(size=(4, 3)).astype(np.float32)
    rows = unit(rng.normal(size=(5, 3)))
    counts = [2, 3]
    counts.insert(empty, 0)
    found = maxsim(query, rows, np.cumsum([0, *counts]))
    assert found.argmin() == empty
    opposite = maxsim(query[:1], -unit(query[:1]), np.array([0, 1, 1]))
    assert opposite[0] >= opposite[1] - 1e-6


def test_packed_token_vectors_keep_each_documents_rows() -> None:
    documents = [np.full((count, 2), count, dtype=np.float32) for count in (2, 0, 3)]
    packed = TokenVectors.of(documents)
    assert packed.ends.tolist() == [0, 2, 2, 5]
    for place, (start, stop) in enumerate(pairwise(packed.ends)):
        np.testing.assert_array_equal(packed.rows[start:stop], documents[place])


def test_token_vectors_of_a_text_do_not_depend_on_its_batch() -> None:
    texts = [text[: 20 + 60 * place] for place, text in enumerate(abstracts(6))]
    for encode in (adapted().encode_documents, adapted().encode_queries):
        together = encode(texts)
        assert len(together.token_vectors) == len(texts)
        for place, text in enumerate(texts):
            single = encode([text]).token_vectors[0]
            assert_close(together.token_vectors[place], single)
            assert (single.dtype, single.shape[1]) == (np.float32, 8)
        assert sum(len(rows) for rows in together.token_vectors) == together.tokens


def test_rows_of_documents_are_unit_and_those_of_a_query_share_one() -> None:
    for rows in adapted().encode_documents(["", *abstracts(3)]).token_vectors:
        assert_close(np.linalg.norm(rows, axis=1), 1.0)
    for rows in adapted().encode_queries(["wing", *abstracts(3)]).token_vectors:
        lengths = np.linalg.norm(rows, axis=1)
        assert_close(lengths.sum(), 1.0)
        assert lengths.min() > 0
        assert lengths.max() > 1.2 * lengths.min()


def test_nothing_to_encode_gives_no_token_vectors() -> None:
    assert adapted().encode_queries([]).token_vectors == ()
    assert adapted().encode_prompts([QUERY], [["wing"]]).token_vectors == ()


def test_out_of_memory_halves_the_batch_and_keeps_the_token_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts, whole, tried = abstracts(5), Run._read, list[int]()
    expected = adapted().encode_documents(texts).token_vectors

    def small(run: Run, given: Sequence[Tokens], *rest: Any) -> Any:
        tried.append(len(given))
        if len(given) > 2:
            raise torch.OutOfMemoryError("simulated")
        return whole(run, given, *rest)

    monkeypatch.setattr(Run, "_read", small)
    found = adapted().encode_documents(texts).token_vectors
    assert max(tried) > 2
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def candidates(encoder: TorchEncoder, texts: Sequence[str], **changes: Any) -> Candidates:
    """The texts as candidates of `QUERY`, as a search would hand them over."""
    query, read = encoder.encode_queries([QUERY]), encoder.encode_documents(texts)
    fields: dict[str, Any] = {
        "ids": [str(place) for place in range(len(texts))],
        "texts": texts,
        "scores": np.zeros(len(texts), dtype=np.float32),
        "vectors": read.vectors,
        "query": query.vectors[0],
        "fingerprint": encoder.fingerprint,
        "query_tokens": query.token_vectors[0],
        "tokens": lambda: TokenVectors.of(read.token_vectors),
        "token_fingerprint": encoder.token_fingerprint,
    }
    return Candidates(**fields | changes)


def test_a_score_is_the_mean_of_maxsim_and_cosine_weighed_by_the_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, texts = adapted(), abstracts(5)
    pool = candidates(encoder, texts)
    expected = scored_by_hand(encoder, QUERY, texts, 0)
    read = asked(monkeypatch, encoder)
    found = TokenReranker(encoder).score([QUERY], [pool])[0]
    assert_close(found.scores, expected, 1e-5)
    assert (found.calls, found.tokens, found.truncated, read) == (0, 0, 0, [])
    assert found.vector is None
    of_late, of_cosine = encoder.blend()
    assert of_late == pytest.approx(20.0)
    assert of_cosine == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("missing", "calls"),
    [
        ({"query": None}, 1),
        ({"query_tokens": None}, 1),
        ({"tokens": None}, 4),
        ({"vectors": None}, 4),
        ({"fingerprint": "other"}, 5),
        ({"token_fingerprint": "other"}, 5),
    ],
)
def test_what_is_missing_or_of_another_head_is_encoded_and_counted(
    missing: dict[str, Any], calls: int
) -> None:
    encoder, texts = adapted(), abstracts(4)
    whole = TokenReranker(encoder).score([QUERY], [candidates(encoder, texts)])[0]
    pool = candidates(encoder, texts, **missing)
    found = TokenReranker(encoder).score([QUERY], [pool])[0]
    assert_close(found.scores, whole.scores, 1e-5)
    assert found.calls == calls
    spent = encoder.encode_queries([QUERY]).tokens if calls != 4 else 0
    spent += encoder.encode_documents(texts).tokens if calls > 1 else 0
    assert found.tokens == spent


def test_a_head_never_scores_with_the_token_vectors_of_another() -> None:
    texts = abstracts(4)
    pool = candidates(adapted(1), texts)
    found = TokenReranker(adapted(0)).score([QUERY], [pool])[0]
    assert_close(found.scores, scored_by_hand(adapted(0), QUERY, texts, 0), 1e-5)


def test_the_order_of_candidates_changes_no_score() -> None:
    texts = list(abstracts(8))
    reranker = TokenReranker(adapted())
    first = reranker.score([QUERY], [candidates(adapted(), texts)])[0].scores
    back = reranker.score([QUERY], [candidates(adapted(), texts[::-1])])[0].scores
    assert_close(back[::-1], first, 1e-5)


def test_each_query_is_scored_on_its_own_candidates() -> None:
    pools = [candidates(adapted(), abstracts(4)), candidates(adapted(), abstracts(7)[4:])]
    reranker = TokenReranker(adapted())
    together = reranker.score([QUERY, QUERY], pools)
    assert [len(each.scores) for each in together] == [4, 3]
    for found, pool in zip(together, pools, strict=True):
        np.testing.assert_array_equal(found.scores, reranker.score([QUERY], [pool])[0].scores)


def test_an_encoder_without_token_vectors_is_refused_with_what_to_do(folder: Path) -> None:
    for encoder in (base(), HashingEncoder()):
        with pytest.raises(ValueError, match=r"gives no token vectors; use rerank='listwise' or"):
            choose("tokens", encoder)
    with Engine.open(folder, base()) as engine:
        with pytest.raises(ValueError, match="tiny gives no token vectors"):
            engine.search(QUERY, rerank="tokens")
        assert len(engine.search(QUERY)) == 10
    with pytest.raises(ValueError, match="hashing-256 gives no token vectors"):
        Engine("hashing").rank(QUERY, ["wing"], rerank="tokens")


def test_true_means_what_the_contract_says() -> None:
    assert isinstance(choose(True, adapted()), TokenReranker)
    listwise = choose(True, adapted(rerank="listwise"))
    assert listwise is not None
    assert listwise.name == "listwise"
    found = choose("tokens", adapted(fusion_weight=0.25))
    assert isinstance(found, TokenReranker)
    assert found.fusion_weight == 0.25


def test_the_index_holds_each_documents_token_vectors_as_they_are_alone(engine: Engine) -> None:
    info = engine.store.manifest.encoder
    assert (info.token_dim, info.tokens) == (8, adapted().token_fingerprint)
    stored = engine.store.tokens(range(COUNT))
    for document, rows in zip(engine.store, stored, strict=True):
        single = adapted().encode_documents([document.body]).token_vectors[0]
        assert_close(rows, single, 1 / 254 + 1e-5)


@pytest.mark.parametrize("rerank", ["tokens", True])
def test_a_search_is_brute_force_over_every_document(engine: Engine, rerank: Any) -> None:
    hits = engine.search(QUERY, COUNT, depth=COUNT, rerank=rerank)
    assert_scores(hits, by_hand(engine, adapted(), 127))
    assert scores_of(hits) != scores_of(engine.search(QUERY, COUNT, rerank=False))


def test_the_candidates_of_a_search_are_the_first_stages(engine: Engine) -> None:
    first = engine.search(QUERY, 8, rerank=False)
    bodies = [hit.text for hit in first]
    scores = scored_by_hand(adapted(), QUERY, bodies, 127)
    hits = engine.search(QUERY, 8, depth=8, rerank="tokens")
    assert_scores(hits, dict(zip([hit.id for hit in first], scores.tolist(), strict=True)))
    short = engine.search(QUERY, 3, depth=8, rerank="tokens")
    assert [hit.id for hit in short] == [hit.id for hit in hits][:3]
    assert {hit.id: hit.first_rank for hit in hits} == {hit.id: hit.rank for hit in first}


def test_a_rerank_calls_no_model_and_reads_only_the_hits(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows = engine.store, list[int]()
    documents = store.documents

    def noted(wanted: np.ndarray) -> list[Document]:
        rows.append(len(wanted))
        return documents(wanted)

    monkeypatch.setattr(store, "documents", noted)
    read = asked(monkeypatch, adapted())
    queries = [QUERY, "flutter of panels"]
    found = engine.search_many(queries, 4, depth=20, rerank="tokens")
    assert (rows, read) == ([4, 4], [])
    assert [hits.model_calls for hits in found] == [1, 1]
    spent = adapted().encode_queries(queries).tokens
    assert sum(hits.tokens for hits in found) == spent
    engine.search(QUERY, 4, depth=20, rerank="listwise")
    assert rows == [4, 4, 20, 4]


def test_many_queries_give_what_each_gives_alone(engine: Engine) -> None:
    queries = [QUERY, "flutter of panels", "shock waves"]
    for query, hits in zip(queries, engine.search_many(queries, 7, depth=12), strict=True):
        assert_scores(engine.search(query, 7, depth=12), scores_of(hits), 1e-4)


def test_the_contracts_weight_fuses_with_the_first_stage(folder: Path) -> None:
    encoder = adapted(fusion_weight=0.3)
    with Engine.open(folder, encoder) as engine:
        first = engine.search(QUERY, 12, rerank=False)
        late = scored_by_hand(encoder, QUERY, [hit.text for hit in first], 127)
        cosines = np.array([hit.score for hit in first])
        ids = [hit.id for hit in first]
        own = dict(zip(ids, fuse(late, cosines, 0.3).tolist(), strict=True))
        assert_scores(engine.search(QUERY, 12, depth=12, rerank="tokens"), own)
        told = dict(zip(ids, fuse(late, cosines, 0.8).tolist(), strict=True))
        assert_scores(engine.search(QUERY, 12, depth=12, rerank="tokens", fuse=0.8), told)


def test_late_interaction_has_no_vector_to_search_again_with_and_says_so(engine: Engine) -> None:
    with pytest.raises(ValueError, match="and the rerank 'tokens' has none; take"):
        engine.search(QUERY, 6, depth=6, rerank="tokens", feedback_rounds=1)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_given_list_is_scored_alike_in_any_order(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    expected = by_hand(engine, adapted(), 127)
    read = asked(monkeypatch, adapted())
    ids = [each.id for each in engine.store]
    for order in (ids, ids[::-1], np.random.default_rng(seed).permutation(ids).tolist()):
        listed = [(identifier, -float(place)) for place, identifier in enumerate(order)]
        hits = engine.rerank(QUERY, listed)
        assert_scores(hits, expected)
        assert (hits.model_calls, read) == (1, [])
        assert hits.tokens == adapted().encode_queries([QUERY]).tokens


def test_without_stored_token_vectors_texts_are_encoded_and_that_is_said_once(
    engine: Engine, documents: list[Document], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Engine.build(shorter(documents), tmp_path / "plain", base()).close()
    assert [each.split(":")[0] for each in caplog.messages] == [
        "1 of the documents read have neither title nor text"
    ]
    caplog.clear()
    stored = engine.search(QUERY, COUNT, depth=COUNT, rerank="tokens")
    assert caplog.messages == []
    with Engine.open(tmp_path / "plain", adapted()) as plain, caplog.at_level(logging.WARNING):
        hits = plain.search(QUERY, COUNT, depth=COUNT, rerank="tokens")
        assert hits.model_calls == 1 + COUNT
        assert_scores(hits, by_hand(plain, adapted(), 0))
        plain.search_many([QUERY, "panels"], 2, depth=2, rerank="tokens")
    (message,) = caplog.messages
    assert message.startswith("the index holds no token vectors of head 0: every rerank encodes")
    # Rounding to eight bits may swap what is this near, and nothing else.
    assert_scores(hits, scores_of(stored), 0.1)
    assert [hit.id for hit in hits][:3] == [hit.id for hit in stored][:3]


def test_the_token_vectors_of_another_heads_index_are_not_used(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine.open(folder, adapted(1)) as engine, caplog.at_level(logging.WARNING):
        hits = engine.search(QUERY, COUNT, depth=COUNT, rerank="tokens")
        expected = by_hand(engine, adapted(1), 0)
    assert_scores(hits, expected)
    assert hits.model_calls == 1 + COUNT
    assert [each.split(":")[0] for each in caplog.messages] == [
        "the index holds no token vectors of head 1"
    ]


def test_a_reranker_of_another_head_scores_with_its_own_token_vectors(engine: Engine) -> None:
    reranker = TokenReranker(adapted(1))
    hits = engine.search(QUERY, COUNT, depth=COUNT, rerank=reranker)
    assert_scores(hits, by_hand(engine, adapted(1), 0))
    assert hits.model_calls == 1 + 1 + COUNT


@pytest.mark.parametrize("rerank", ["tokens", True])
def test_plain_texts_are_ranked_without_an_index(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rerank: Any
) -> None:
    texts = [*(text[:150] for text in abstracts(7)), ""]
    expected = scored_by_hand(adapted(), QUERY, texts, 0)
    read = asked(monkeypatch, adapted())
    ranked = Engine(adapted()).rank(QUERY, texts, rerank=rerank)
    assert [each["corpus_id"] for each in ranked] == rank(expected).tolist()
    assert_close(np.array([each["score"] for each in ranked]), np.sort(expected)[::-1], 1e-4)
    assert read == texts
    assert caplog.messages == []
    back = Engine(adapted()).rank(QUERY, texts[::-1], rerank=rerank)
    assert [len(texts) - 1 - each["corpus_id"] for each in back] == rank(expected).tolist()


def test_token_vectors_that_cannot_be_read_leave_the_first_stages_order(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(rows: np.ndarray) -> Any:
        raise IndexFormatError("token_ends.npy is damaged")

    monkeypatch.setattr(engine.store, "token_vectors", damaged)
    hits = engine.search(QUERY, rerank="tokens")
    assert hits.rerank_error == "tokens failed: token_ends.npy is damaged"
    first = engine.search(QUERY, rerank=False)
    assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in first]


def test_a_head_that_gives_nan_leaves_the_first_stages_order(folder: Path) -> None:
    weights = head_weights() | {"tokens.weigh.bias": torch.tensor([torch.nan])}
    broken = base().adapt(adapter(weights))
    with Engine.open(folder, broken) as engine:
        hits = engine.search(QUERY, rerank="tokens")
        assert hits.rerank_error.startswith("tokens failed: tokens gave scores")
        first = engine.search(QUERY, rerank=False)
    assert [hit.id for hit in hits] == [hit.id for hit in first]
