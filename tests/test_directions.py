"""Directions of terms: against their definition in loops, and what cannot be one is refused."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders_support import BERT, QWEN, assert_close, made
from test_adapter import adapter, base

from e2rank import Engine
from e2rank.encoders.adapter import Adapter
from e2rank.encoders.directions import Directions, terms_of
from e2rank.encoders.torch import TorchEncoder
from e2rank.errors import AdapterError
from e2rank.train import directions as module
from e2rank.train.directions import term_directions

WORDS = ["wing", "lift", "drag", "flutter", "panel", "heat", "shock", "layer", "flow", "gas"]
RIDGE = 0.05


@pytest.fixture(scope="module")
def encoder() -> TorchEncoder:
    return made()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, encoder: TorchEncoder) -> Engine:
    """Documents of five words and some of none, with holes where some were deleted."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=n % 7)) for n in range(60)]
    documents = [{"id": str(n), "text": text} for n, text in enumerate(texts)]
    found = Engine.build(documents, tmp_path_factory.mktemp("directions") / "index", encoder)
    found.delete([str(n) for n in range(5, 60, 11)])
    return found


def by_definition(engine: Engine, term: int) -> list[float]:
    """idf * unit((S + ridge * mean eigenvalue * I)^-1 (mean with - mean of all)), by loops."""
    store, words = engine.store, engine.encoder.words  # type: ignore[attr-defined]
    vectors = store.vectors(store.rows).astype(np.float64)
    holds = [term in words.terms([each.body])[0] for each in store]
    n, dim = vectors.shape
    mean = [sum(vectors[:, i]) / n for i in range(dim)]
    scatter = np.zeros((dim, dim))
    for row, i, j in itertools.product(range(n), range(dim), range(dim)):
        scatter[i, j] += (vectors[row, i] - mean[i]) * (vectors[row, j] - mean[j])
    level = sum(np.linalg.eigvalsh(scatter)) / dim
    own = [row for row, held in zip(vectors, holds, strict=True) if held]
    apart = [sum(row[i] for row in own) / len(own) - mean[i] for i in range(dim)]
    solved = np.linalg.inv(scatter + RIDGE * level * np.eye(dim)) @ np.array(apart)
    idf = math.log(1 + (n - len(own) + 0.5) / (len(own) + 0.5))
    return (idf * solved / math.sqrt(sum(solved**2))).tolist()


@pytest.mark.parametrize(("together", "chunk"), [(500, 4096), (7, 3)])
def test_directions_are_those_of_the_definition(
    engine: Engine,
    encoder: TorchEncoder,
    together: int,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TOGETHER", together)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    found = term_directions(engine.store, encoder.words, ridge=RIDGE, pull=0.8)
    ids = {id_ for each in engine.store for id_ in encoder.words.terms([each.body])[0]}
    assert found.terms.tolist() == sorted(ids - encoder.words.special())
    for place in range(0, len(found.terms), 5):
        # The table is kept in half precision.
        assert_close(found.rows[place], by_definition(engine, int(found.terms[place])), 2e-3)


def test_a_term_of_every_document_has_no_direction(encoder: TorchEncoder, tmp_path: Path) -> None:
    documents = [{"id": word, "text": f"the {word}"} for word in WORDS]
    with Engine.build(documents, tmp_path / "index", encoder) as engine:
        found = term_directions(engine.store, encoder.words, ridge=RIDGE, pull=0.8)
    (the,) = encoder.words.terms(["the"])[0]
    norms = np.linalg.norm(found.rows.astype(np.float32), axis=1)
    everywhere = found.terms == the
    assert not norms[everywhere].any()
    assert norms[~everywhere].min() > 1
    read = encoder.encode_queries(["the"]).vectors
    assert_close(found.moved(encoder.words, ["the"], read), read)


def test_a_first_word_is_the_term_that_it_is_within_a_text() -> None:
    words = made(QWEN).words
    first, within = terms_of(words, ["panels flutter", "flutter panels"])
    assert set(first) == set(within)
    assert set(words.terms(["panels flutter"])[0]) != set(words.terms(["flutter panels"])[0])


@pytest.mark.parametrize("texts", [["", " "], ["wing", "wing"]])
def test_documents_that_are_alike_or_empty_give_directions_of_numbers(
    encoder: TorchEncoder, tmp_path: Path, texts: list[str]
) -> None:
    documents = [{"id": str(n), "text": text} for n, text in enumerate(texts)]
    with Engine.build(documents, tmp_path / "index", encoder) as engine:
        found = term_directions(engine.store, encoder.words, ridge=RIDGE, pull=0.8)
        vectors = encoder.encode_queries(["wing"]).vectors
    assert np.isfinite(found.rows).all()
    assert np.isfinite(found.moved(encoder.words, ["wing"], vectors)).all()


def test_a_query_moves_by_the_sum_of_its_tokens_directions(encoder: TorchEncoder) -> None:
    ids = [encoder.words.terms([word])[0] for word in WORDS[:6]]
    terms = np.unique(np.concatenate(ids)).astype(np.int32)
    rng = np.random.default_rng(1)
    table = Directions(terms, rng.normal(size=(len(terms), 32)).astype(np.float16), 0.7)
    texts = ["wing lift", "wing wing lift flow", "flow gas", "", "panel"]
    vectors = encoder.encode_queries(texts).vectors
    found = table.moved(encoder.words, texts, vectors)
    for place, text in enumerate(texts):
        total = np.zeros(32)
        for id_ in encoder.words.terms([text])[0]:
            for term, row in zip(terms, table.rows, strict=True):
                total += row if term == id_ else 0
        norm = math.sqrt(sum(total**2))
        moved = vectors[place] + (0.7 * total / norm if norm else 0)
        assert_close(found[place], moved / math.sqrt(sum(moved**2)))
    # A query of no term of the table, and one of nothing, stay where they are.
    assert_close(found[3], vectors[3])


def stored(terms: list[int], dim: int = 32) -> dict[str, torch.Tensor]:
    """Weights of directions as an adapter holds them."""
    rows = torch.randn(len(terms), dim, generator=torch.Generator().manual_seed(0))
    return {
        "query.terms": torch.tensor(terms, dtype=torch.int32),
        "query.directions": rows.half(),
        "query.pull": torch.tensor(0.8),
    }


def test_an_adapter_with_directions_comes_back_from_disk(tmp_path: Path) -> None:
    weights = stored([4, 9, 11, 20])
    made_of = adapter(weights, contract=BERT)
    made_of.save(tmp_path / "a")
    back = base().adapt(Adapter.load(tmp_path / "a"))
    table = made_of.directions()
    assert table is not None
    texts = ["wing lift", "heat"]
    plain = base().encode_queries(texts)
    assert_close(
        back.encode_queries(texts).vectors, table.moved(base().words, texts, plain.vectors)
    )
    np.testing.assert_array_equal(
        back.encode_documents(texts).vectors, base().encode_documents(texts).vectors
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {**stored([4, 9]), "query.terms": torch.tensor([9, 4], dtype=torch.int32)},
        {**stored([4, 9]), "query.terms": torch.tensor([4, 4], dtype=torch.int32)},
        {**stored([4, 9]), "query.terms": torch.tensor([4, 9, 11], dtype=torch.int32)},
        stored([4, 9], dim=16),
        {k: v for k, v in stored([4, 9]).items() if k != "query.pull"},
        {k: v for k, v in stored([4, 9]).items() if k != "query.terms"},
    ],
    ids=["falling", "twice", "more terms", "another dim", "no pull", "no terms"],
)
def test_directions_that_are_not_whole_are_refused(wrong: dict[str, torch.Tensor]) -> None:
    with pytest.raises(AdapterError, match="directions of terms"):
        base().adapt(adapter(wrong, contract=BERT))
