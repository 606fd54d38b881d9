"""Sparse heads: the formula in loops, queries without a model, all vectors from one pass."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_support import BERT, QWEN, abstracts, assert_close, made
from train_support import bert_base

from e2rank.contract import Contract
from e2rank.documents import SparseVectors
from e2rank.encoders import Encoding, Want
from e2rank.encoders.adapter import Adapter
from e2rank.encoders.heads import TokenHead
from e2rank.encoders.presets import MINILM, load_encoder
from e2rank.encoders.run import Run
from e2rank.encoders.soft import word_embeddings
from e2rank.encoders.sparse import WINDOW, SparseHead
from e2rank.encoders.tokens import Tokens
from e2rank.encoders.torch import TorchEncoder
from e2rank.encoders.tower import Tower
from e2rank.errors import AdapterError, EncodingError

TERMS = {"bidirectional": 30522, "decoder": 720}
EVERY = 40_000
CONTRACT = dataclasses.replace(BERT, sparse_dim=30522, sparse_terms=EVERY)
BOTH = dataclasses.replace(CONTRACT, token_dim=8, rerank="tokens")
# Of no token, of one, of a window to the last token, of one token more, of a word many times.
TEXTS = [
    "",
    "wing",
    "the wing and the jet and the wake",
    "the wing and the jet and the wake again",
    "heat " * 19,
    "a wing [SEP] \N{SNOWMAN} [MASK] of a jet",
    *(text[: 90 * place] for place, text in enumerate(abstracts(6), start=1)),
]


@functools.cache
def plain(family: str = "bidirectional") -> TorchEncoder:
    """The tiny model that the heads here are for."""
    return made(BERT if family == "bidirectional" else QWEN)


def weights(family: str = "bidirectional") -> dict[str, torch.Tensor]:
    """A sparse head of random weights on two layers of 32, under its names in an adapter."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        head = SparseHead(word_embeddings(plain(family).tower), 64)
        for name, each in head.named_parameters():
            each.data += {"gain": 0.3, "bias": 1.0}.get(name, 0.5) * torch.randn_like(each)
    return {f"sparse.{name}": each for name, each in head.state_dict().items()}


def token_weights() -> dict[str, torch.Tensor]:
    """A token head on the same states."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        head = TokenHead(64, 8)
    return {f"tokens.{name}": each for name, each in head.state_dict().items()}


def adapter(contract: Contract = CONTRACT, **changes: Any) -> Adapter:
    """An adapter of the tiny model, with the heads that its contract names."""
    fields: dict[str, Any] = {
        "base": plain(contract.family).fingerprint,
        "base_name": "tiny",
        "contract": contract,
        "weights": weights(contract.family) | (token_weights() if contract.token_dim else {}),
        "about": {},
    }
    return Adapter(**fields | changes)


def adapted(contract: Contract = CONTRACT, **changes: Any) -> TorchEncoder:
    """The tiny model with that adapter."""
    return plain(contract.family).adapt(adapter(contract, **changes))


def head_of(encoder: TorchEncoder) -> SparseHead:
    """Its sparse head."""
    assert encoder.adapter is not None
    head = encoder.adapter.sparse_head(encoder.tower)
    assert head is not None
    return head


def sparse_of(encoding: Encoding) -> SparseVectors:
    """The sparse vectors of an encoding that has some."""
    assert encoding.sparse is not None
    return encoding.sparse


def whole(vectors: SparseVectors, terms: int = 30522) -> np.ndarray:
    """(n, terms), 0 where a text lacks a term."""
    rows = np.zeros((len(vectors), terms), dtype=np.float32)
    for place, row in enumerate(rows):
        own, values = vectors.row(place)
        row[own] = values
    return rows


def by_formula(encoder: TorchEncoder, text: str) -> np.ndarray:
    """(terms,) weights of a text read alone, in double precision, by the docstring of the head."""
    given = {
        name.removeprefix("sparse."): each.double().numpy()
        for name, each in weights(encoder.contract.family).items()
    }
    words = word_embeddings(encoder.tower).double().numpy()
    words = words / np.mean([math.sqrt(sum(row * row)) for row in words])
    (tokens,) = encoder.words.documents([text])
    with torch.inference_mode():
        (states,) = encoder.tower([tokens], 2).states
    own = [
        (id_, row)
        for id_, row in zip(tokens.ids, states.double().numpy(), strict=True)
        if id_ not in encoder.words.special()
    ]
    inside = np.zeros(len(words))
    best = np.full(len(words), -np.inf)
    for start in range(0, len(own), WINDOW):
        window = [row for _, row in own[start : start + WINDOW]]
        while len(window) < WINDOW:
            window.append(window[-1])
        mean = sum(window) / WINDOW
        line = given["transform.weight"] @ mean + given["transform.bias"]
        bent = np.array([x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in line])
        level = (bent - bent.mean()) / math.sqrt(bent.var() + 1e-5)
        best = np.maximum(best, words @ (level * given["norm.weight"] + given["norm.bias"]))
    if own:
        inside += np.maximum(best + given["bias"], 0.0)
    for id_, row in own:
        score = float(given["own.weight"][0] @ row + given["own.bias"][0])
        inside[id_] += given["gain"] * math.log(1 + math.exp(score))
    found: np.ndarray = np.log(1 + inside)
    found[list(encoder.words.special())] = 0.0
    return found


@pytest.mark.parametrize("base", [BERT, QWEN], ids=["right", "left"])
def test_the_weight_of_every_term_is_that_of_the_formula(base: Contract) -> None:
    terms = TERMS[base.family]
    encoder = adapted(dataclasses.replace(base, sparse_dim=terms, sparse_terms=EVERY))
    found = whole(sparse_of(encoder.encode_documents(TEXTS)), terms)
    expected = np.stack([by_formula(encoder, text) for text in TEXTS])
    assert_close(found, expected, 1e-4)
    # Words that stand there, words that do not, and words that a text is not about.
    assert 0.01 < (expected > 0).mean() < 0.9


@pytest.mark.parametrize("most", [1, 7, 300])
def test_a_document_keeps_its_terms_of_largest_weight_and_shows_them_ascending(most: int) -> None:
    every = whole(sparse_of(adapted().encode_documents(TEXTS)))
    encoder = adapted(dataclasses.replace(CONTRACT, sparse_terms=most))
    found = sparse_of(encoder.encode_documents(TEXTS))
    assert (found.terms.dtype, found.weights.dtype) == (np.int32, np.float32)
    for place, row in enumerate(every):
        terms, values = found.row(place)
        best = sorted(range(len(row)), key=lambda term, row=row: -row[term])[:most]
        assert terms.tolist() == sorted(term for term in best if row[term] > 0)
        assert_close(values, row[terms])


def test_special_tokens_are_never_terms_not_even_where_a_text_spells_them() -> None:
    encoder = adapted()
    spelled = "[CLS] wing [SEP] [MASK] \N{SNOWMAN} [PAD]"
    assert set(encoder.words.documents([spelled])[0].ids) >= encoder.words.special()
    found = sparse_of(encoder.encode_documents([spelled, *TEXTS]))
    assert not encoder.words.special() & set(found.terms.tolist())
    queries = encoder.sparse_queries([spelled, "\N{SNOWMAN}"])
    assert [queries.row(place)[0].tolist() for place in (0, 1)] == [ids(encoder, "wing"), []]


def test_a_document_without_tokens_has_an_empty_vector_alone_and_beside_others() -> None:
    encoder = adapted()
    for texts in ([""], ["", "[SEP]"], ["wing", "", "jet"]):
        found = sparse_of(encoder.encode_documents(texts))
        lengths = [len(found.row(place)[0]) for place in range(len(texts))]
        assert [length > 0 for length in lengths] == [text in ("wing", "jet") for text in texts]
    assert len(sparse_of(encoder.encode_documents([]))) == 0


def test_a_word_that_stands_more_often_weighs_more() -> None:
    encoder = adapted()
    found = whole(sparse_of(encoder.encode_documents(["jet heat", "jet jet jet heat"])))
    (jet,) = ids(encoder, "jet")
    assert found[1, jet] > found[0, jet] > 0


@pytest.mark.parametrize("columns", [[3], [30521, 0, 2300, 412], list(range(0, 30522, 7))])
def test_the_votes_for_chosen_terms_are_those_among_all(columns: list[int]) -> None:
    encoder = adapted()
    head, tokens = head_of(encoder), encoder.words.documents(TEXTS)
    columns = columns + sorted({id_ for each in tokens for id_ in each.ids} - set(columns))
    given = [torch.tensor(each.ids) for each in tokens]
    with torch.inference_mode():
        states = encoder.tower(tokens, 2).states
        every = head.votes(states, given)
        found = head.votes(states, given, torch.tensor(columns))
    assert every.shape == (len(TEXTS), 30522)
    assert_close(found.numpy(), every[:, columns].numpy())


def ids(encoder: TorchEncoder, text: str) -> list[int]:
    """The distinct terms of a text, ascending."""
    return sorted(set(encoder.words.terms([text])[0]))


def no_model(*_: object, **__: object) -> None:
    """What stands in for a model that must not be asked."""
    raise AssertionError("the model was asked")


def test_a_query_is_its_distinct_terms_with_the_weights_of_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contract = dataclasses.replace(CONTRACT, query_prefix="search: ", query_tokens=4)
    encoder = adapted(contract)
    monkeypatch.setattr(Tower, "forward", no_model)
    table = weights()["sparse.log_query"]
    queries = ["wing", "the jet and the wing and the flutterings", "", "heat heat heat"]
    found = encoder.sparse_queries(queries)
    assert len(found) == 4
    for place, query in enumerate(queries):
        terms, values = found.row(place)
        assert terms.tolist() == ids(encoder, query)
        assert_close(values, [math.exp(table[term]) for term in terms])
    assert (found.terms.dtype, found.weights.dtype) == (np.int32, np.float32)
    assert len(encoder.sparse_queries([])) == 0


def test_a_term_that_weighs_nothing_is_left_out_of_a_query() -> None:
    given = weights()
    the, wing = (ids(plain(), word)[0] for word in ("the", "wing"))
    given["sparse.log_query"][the] = -math.inf
    found = adapted(weights=given).sparse_queries(["the wing", "the"])
    assert found.terms.tolist() == [wing]
    assert found.ends.tolist() == [0, 1, 1]


WANTS: list[list[Want]] = [["dense"], ["sparse"], ["tokens"], ["sparse", "tokens"], []]


@pytest.mark.parametrize("want", WANTS)
def test_what_one_pass_gives_is_what_a_pass_of_each_gives(want: list[Want]) -> None:
    encoder = adapted(BOTH)
    every, found = encoder.encode_documents(TEXTS), encoder.encode_documents(TEXTS, want)
    assert_close(found.vectors, every.vectors, 1e-6)
    assert len(found.token_vectors) == (len(TEXTS) if "tokens" in want else 0)
    for one, other in zip(found.token_vectors, every.token_vectors, strict=False):
        assert_close(one, other)
    assert (found.sparse is not None) == ("sparse" in want)
    if found.sparse is not None:
        assert_close(whole(found.sparse), whole(sparse_of(every)))


def test_each_head_gives_beside_the_other_what_it_gives_alone() -> None:
    both = adapted(BOTH).encode_documents(TEXTS)
    assert_close(whole(sparse_of(both)), whole(sparse_of(adapted().encode_documents(TEXTS))), 1e-6)
    alone = adapted(dataclasses.replace(BOTH, sparse_dim=0), weights=token_weights())
    for one, other in zip(
        both.token_vectors, alone.encode_documents(TEXTS).token_vectors, strict=True
    ):
        assert_close(one, other, 1e-6)


def test_all_vectors_come_from_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_tower, read = Tower.forward, list[int]()

    def counted(tower: Tower, texts: Sequence[Tokens], *rest: Any) -> Any:
        read.append(len(texts))
        return whole_tower(tower, texts, *rest)

    monkeypatch.setattr(Tower, "forward", counted)
    found = adapted(BOTH).encode_documents(TEXTS)
    assert len(found.token_vectors) == len(sparse_of(found)) == sum(read) == len(TEXTS)


def test_heads_leave_the_dense_vectors_and_the_fingerprint_as_they_are() -> None:
    encoder = adapted(BOTH)
    for name in ("encode_documents", "encode_queries"):
        one, other = (getattr(each, name)(TEXTS).vectors for each in (encoder, plain()))
        assert_close(one, other, 1e-6)
    assert encoder.fingerprint == plain().fingerprint


@pytest.mark.parametrize("base", [BERT, QWEN], ids=["right", "left"])
def test_a_sparse_vector_does_not_depend_on_the_batch(base: Contract) -> None:
    terms = TERMS[base.family]
    encoder = adapted(dataclasses.replace(base, sparse_dim=terms, sparse_terms=EVERY))
    together = whole(sparse_of(encoder.encode_documents(TEXTS)), terms)
    alone = [whole(sparse_of(encoder.encode_documents([text])), terms)[0] for text in TEXTS]
    assert_close(together, np.stack(alone))


def test_out_of_memory_halves_the_batch_and_keeps_all_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, read, tried = adapted(BOTH), Run._read, list[int]()
    expected = encoder.encode_documents(TEXTS)

    def small(run: Run, texts: Sequence[Tokens], *rest: Any) -> Any:
        tried.append(len(texts))
        if len(texts) > 2:
            raise torch.OutOfMemoryError("simulated")
        return read(run, texts, *rest)

    monkeypatch.setattr(Run, "_read", small)
    found = encoder.encode_documents(TEXTS)
    assert max(tried) > 2
    assert_close(found.vectors, expected.vectors)
    assert_close(whole(sparse_of(found)), whole(sparse_of(expected)))
    for one, other in zip(found.token_vectors, expected.token_vectors, strict=True):
        assert_close(one, other)


def test_memory_that_ends_inside_the_head_halves_the_batch_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, votes = adapted(), SparseHead.votes
    expected = encoder.encode_documents(TEXTS)

    def small(head: SparseHead, states: Sequence[torch.Tensor], *rest: Any) -> Any:
        if len(states) > 3:
            raise torch.OutOfMemoryError("simulated")
        return votes(head, states, *rest)

    monkeypatch.setattr(SparseHead, "votes", small)
    found = encoder.encode_documents(TEXTS)
    assert_close(whole(sparse_of(found)), whole(sparse_of(expected)))


@pytest.mark.parametrize(
    ("contract", "want", "message"),
    [
        (None, "sparse", "tiny gives no sparse vectors of documents"),
        (None, "tokens", "tiny gives no tokens? vectors of documents"),
        (CONTRACT, "tokens", "tiny gives no tokens? vectors of documents"),
        (BOTH, "late", "want has 'late'; expected some of dense, sparse, tokens"),
    ],
)
def test_what_an_encoder_does_not_give_is_refused_by_name(
    contract: Contract | None, want: Any, message: str
) -> None:
    encoder = adapted(contract) if contract else plain()
    with pytest.raises(ValueError, match=f"^{message}$"):
        encoder.encode_documents(TEXTS, ["dense", want])


def test_an_encoder_without_a_sparse_head_gives_no_sparse_vectors() -> None:
    assert plain().encode_documents(TEXTS).sparse is None
    assert adapted(BOTH).encode_queries(TEXTS).sparse is None
    assert plain().sparse_fingerprint == ""
    with pytest.raises(ValueError, match=r"^tiny gives no sparse vectors of documents$"):
        plain().sparse_queries(["wing"])


def test_an_adapter_with_a_sparse_head_comes_back_from_its_folder(tmp_path: Path) -> None:
    name = bert_base(tmp_path / "base")
    given = adapter(BOTH, base=load_encoder(name, device="cpu").fingerprint, base_name=name)
    given.save(tmp_path / "adapted")
    found = load_encoder(tmp_path / "adapted", device="cpu")
    assert isinstance(found, TorchEncoder)
    assert found.contract == BOTH
    assert found.sparse_fingerprint == given.sparse_fingerprint
    expected = adapted(BOTH)
    one, other = found.encode_documents(TEXTS), expected.encode_documents(TEXTS)
    np.testing.assert_array_equal(whole(sparse_of(one)), whole(sparse_of(other)))
    queries = [each.sparse_queries(["a wing", "jet"]) for each in (found, expected)]
    np.testing.assert_array_equal(whole(queries[0]), whole(queries[1]))


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        ({"log_query": None}, {}, "sparse head does not fit: .*Missing key.*log_query"),
        ({"transform.bias": None}, {}, "Missing key.*transform.bias"),
        ({"words": torch.zeros(30522, 32)}, {}, "Unexpected key.*words"),
        ({"bias": torch.zeros(30521)}, {}, r"size mismatch.*\[30521\]"),
        ({"transform.weight": torch.zeros(32, 32)}, {}, r"size mismatch.*\[32, 32\]"),
        ({}, {"token_layers": 1}, "size mismatch"),
        ({}, {"sparse_dim": 30521}, "sparse_dim is 30521, the model has 30522 terms"),
        ({}, {"sparse_dim": 0}, "has a sparse head, and its contract's sparse_dim is 0"),
        (dict.fromkeys(name.removeprefix("sparse.") for name in weights()), {}, "Missing key"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    given: dict[str, torch.Tensor | None], changes: dict[str, Any], message: str
) -> None:
    every = weights() | {f"sparse.{name}": each for name, each in given.items()}
    kept = {name: each for name, each in every.items() if each is not None}
    with pytest.raises(AdapterError, match=message):
        adapted(dataclasses.replace(CONTRACT, **changes), weights=kept)


def test_the_sparse_fingerprint_is_of_what_makes_sparse_vectors_of_documents() -> None:
    first, given = adapter(BOTH), adapter(BOTH).weights
    for name in given:
        other = adapter(BOTH, weights=given | {name: given[name] + 1e-3})
        of_documents = name.startswith("sparse.") and name != "sparse.log_query"
        assert (other.sparse_fingerprint != first.sparse_fingerprint) == of_documents, name
        assert other.fingerprint != first.fingerprint
        assert (other.token_fingerprint != first.token_fingerprint) == ("project" in name)
    assert adapted(BOTH).sparse_fingerprint == first.sparse_fingerprint


def test_a_contract_without_sparse_vectors_has_the_digest_it_always_had() -> None:
    assert dataclasses.replace(MINILM, sparse_dim=0, sparse_terms=128).digest() == (
        "f7b5793ef98ab0c9"
    )
    fields = BERT.to_dict()
    del fields["sparse_dim"], fields["sparse_terms"]
    assert Contract.from_dict(fields) == BERT
    changes: list[dict[str, Any]] = [
        {},
        {"sparse_dim": 7},
        {"sparse_dim": 8},
        {"sparse_dim": 7, "sparse_terms": 9},
    ]
    digests = {dataclasses.replace(BERT, **each).digest() for each in changes}
    assert len(digests) == len(changes)


def test_a_head_that_gives_a_nan_is_an_error_not_a_missing_term() -> None:
    broken = weights()
    broken["sparse.gain"] = torch.tensor(float("nan"))
    with pytest.raises(EncodingError, match="sparse head gave a NaN"):
        adapted(weights=broken).encode_documents(["a wing"])


def test_heads_that_keep_another_number_of_terms_make_other_vectors() -> None:
    fewer = adapter(dataclasses.replace(CONTRACT, sparse_terms=64))
    assert fewer.sparse_fingerprint != adapter().sparse_fingerprint


def test_a_head_on_more_layers_than_the_model_has_is_refused() -> None:
    with pytest.raises(AdapterError, match="sparse head reads 9 layers, the model has 3"):
        adapted(dataclasses.replace(CONTRACT, token_layers=9))
