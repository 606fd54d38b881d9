"""Separate models for sparse and token vectors: each gives what it gives alone, and is named."""

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from encoders_support import SMALL, abstracts, assert_close, random_model, wordpiece
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from tokenizers import BertWordPieceTokenizer, Tokenizer

from e2rank import Document, Engine
from e2rank.documents import SparseVectors
from e2rank.encoders import Encoder, Encoding, SparseQueries
from e2rank.encoders.colbert import ColbertEncoder
from e2rank.encoders.combined import Combined
from e2rank.encoders.hashing import HashingEncoder
from e2rank.encoders.joined import load_combined, sparse_model
from e2rank.encoders.pipeline import Pipeline
from e2rank.encoders.presets import load_encoder, local_model, split_terms
from e2rank.encoders.splade import TABLE, SpladeEncoder, idf
from e2rank.errors import EncoderMismatch, EncodingError
from e2rank.gather import Hybrid
from e2rank.ingest import Ingest, info_of

# Short, long and empty ones by turns; the longest are over the models' budget of 64 tokens.
TEXTS = [text[: (place * 197) % 700] for place, text in enumerate(abstracts(8))]
QUERIES = ["lift of a wing", "", "wing wing wing of a [MASK] aeroplane", "heat"]


@functools.cache
def pieces() -> Tokenizer:
    """BERT's tokenizer with only the words of these texts."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
    read = wordpiece().encode_batch([*abstracts(8), *QUERIES], add_special_tokens=False)
    words = sorted({word for each in read for word in each.tokens} - {*special})
    vocabulary = {word: place for place, word in enumerate([*special, *words])}
    return Tokenizer.from_str(BertWordPieceTokenizer(vocabulary).to_str())


VOCABULARY = pieces().get_vocab_size()


def saved(folder: Path, kind: type, shape: Any, budget: int = 64) -> str:
    """A random BERT of this kind and its tokenizer, as transformers save them."""
    random_model(kind, shape).save_pretrained(folder)
    names = ("unk", "sep", "pad", "cls", "mask")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces(),
        model_max_length=budget,
        **{f"{name}_token": f"[{name.upper()}]" for name in names},
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models of every kind, saved: what each is called by."""
    root = tmp_path_factory.mktemp("models")
    shape = transformers.BertConfig(**SMALL, vocab_size=VOCABULARY)
    masked = saved(root / "splade", transformers.BertForMaskedLM, shape)
    plain = saved(root / "plain", transformers.BertModel, shape)
    body = Transformer(masked, transformer_task="fill-mask")
    table = torch.linspace(-0.5, 2.0, VOCABULARY)
    static = SparseStaticEmbedding(body.tokenizer, table, frozen=True)
    routed = Router.for_query_document([static], [body, SpladePooling("max", "log1p_relu")])
    summed = [Transformer(masked, transformer_task="fill-mask"), SpladePooling("sum")]
    made = {
        "routed": SparseEncoder(modules=[routed], device="cpu"),
        "summed": SparseEncoder(modules=summed, device="cpu", prompts={"query": "ask: "}),
        "colbert": colbert(plain),
        "expanding": colbert(plain, query_expansion={"strategy": "fixed", "length": 16}),
        "attending": colbert(
            plain, query_expansion={"strategy": "min", "length": 5, "attend": True}
        ),
        "dense": SentenceTransformer(plain, device="cpu"),
    }
    for name, model in made.items():
        model.save_pretrained(str(root / name), create_model_card=False)
    return {name: str(root / name) for name in [*made, "splade", "plain"]}


def colbert(plain: str, **settings: Any) -> MultiVectorEncoder:
    """A late-interaction model with a projection, a list of words to skip, and prompts."""
    body = Transformer(plain, document_length=48, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        project = Dense(
            32,
            16,
            bias=False,
            activation_function=torch.nn.Identity(),
            module_input_name="token_embeddings",
        )
    rest = [MultiVectorMask(skiplist_words=[".", ","]), Normalize("token_embeddings")]
    prompts = {"query": "[MASK] ", "document": "[unused1] "}
    return MultiVectorEncoder(modules=[body, project, *rest], device="cpu", prompts=prompts)


def splade(folders: dict[str, str], name: str = "splade", **settings: Any) -> SpladeEncoder:
    return SpladeEncoder(
        "tiny", SparseEncoder(folders[name], device="cpu"), device="cpu", **settings
    )


def whole(vectors: SparseVectors, terms: int = VOCABULARY) -> np.ndarray:
    """(n, terms) of sparse vectors, which are as they have to be."""
    out = np.zeros((len(vectors), terms), dtype=np.float32)
    assert (vectors.terms.dtype, vectors.weights.dtype) == (np.int32, np.float32)
    for place in range(len(vectors)):
        own, weights = vectors.row(place)
        assert (np.diff(own) > 0).all()
        assert (weights > 0).all()
        out[place, own] = weights
    return out


each_sparse = pytest.mark.parametrize("name", ["splade", "routed", "summed"])
each_colbert = pytest.mark.parametrize("name", ["colbert", "expanding", "attending"])


@each_sparse
def test_sparse_vectors_are_those_of_sentence_transformers(
    folders: dict[str, str], name: str
) -> None:
    theirs = SparseEncoder(folders[name], device="cpu")
    ours = splade(folders, name, sparse_terms=VOCABULARY)
    expected = theirs.encode_document(TEXTS, convert_to_sparse_tensor=False).numpy()
    assert_close(whole(ours.encode_documents(TEXTS).sparse), expected)
    # A text without a token is one that their table cannot take alone.
    asked = [query for query in QUERIES if query]
    expected = theirs.encode_query(asked, convert_to_sparse_tensor=False).numpy()
    assert_close(whole(ours.sparse_queries(asked)), np.maximum(expected, 0.0))
    assert expected.max() > 0.1


@each_sparse
def test_a_text_has_one_sparse_vector_alone_and_in_any_batch(
    folders: dict[str, str], name: str
) -> None:
    encoder = splade(folders, name, sparse_terms=VOCABULARY)
    encoder.batch_tokens = 100
    for encode, texts in (
        (lambda some: encoder.encode_documents(some).sparse, TEXTS),
        (encoder.sparse_queries, QUERIES),
    ):
        together = whole(encode(texts))
        assert_close(together, np.concatenate([whole(encode([text])) for text in texts]))
        assert_close(whole(encode(texts[::-1]))[::-1], together)
        assert len(encode([])) == 0


def test_a_document_keeps_its_terms_of_largest_weight(folders: dict[str, str]) -> None:
    every = whole(splade(folders, sparse_terms=VOCABULARY).encode_documents(TEXTS).sparse)
    few = splade(folders, sparse_terms=7).encode_documents(TEXTS)
    for row, kept in zip(every, whole(few.sparse), strict=True):
        largest = np.sort(np.argsort(-row, kind="stable")[:7])
        np.testing.assert_array_equal(np.flatnonzero(kept), largest)
        assert_close(kept[largest], row[largest])
    assert splade(folders, sparse_terms=7).contract.sparse_terms == 7


def test_of_equal_weights_the_lower_terms_are_kept(folders: dict[str, str]) -> None:
    model = SparseEncoder(folders["splade"], device="cpu")
    for weights in model[0].auto_model.cls.parameters():
        torch.nn.init.ones_(weights)
    terms, _ = SpladeEncoder("flat", model, sparse_terms=5).encode_documents(["wing"]).sparse.row(0)
    assert terms.tolist() == [0, 1, 2, 3, 4]


def test_a_table_answers_queries_without_the_model(folders: dict[str, str]) -> None:
    table = np.linspace(0.1, 1.0, VOCABULARY)
    table[pieces().token_to_id("of")] = 0.0
    table = table.astype(np.float32)
    encoder = splade(folders, query_weights=table)
    encoder._asked.modules = []
    found = whole(encoder.sparse_queries(["wing of a wing", "", "heat"]))
    expected = np.zeros_like(found)
    for place, words in enumerate((["wing", "a"], [], ["heat"])):
        for word in words:
            expected[place, pieces().token_to_id(word)] = table[pieces().token_to_id(word)]
    np.testing.assert_array_equal(found, expected)
    prompted = splade(folders, "summed", query_weights=table)
    np.testing.assert_array_equal(whole(prompted.sparse_queries(["wing of a wing"])), found[:1])
    with pytest.raises(ValueError, match=r"is \(5,\), expected a number for each of the"):
        splade(folders, query_weights=np.ones(5))
    with pytest.raises(ValueError, match="is with a NaN or an infinity, expected a number"):
        splade(folders, query_weights=np.full(VOCABULARY, np.inf))


def test_a_table_in_the_folder_is_read_with_the_model(
    folders: dict[str, str], tmp_path: Path
) -> None:
    for file in Path(folders["splade"]).iterdir():
        (tmp_path / file.name).symlink_to(file)
    before = SpladeEncoder.load("tiny", str(tmp_path), device="cpu")
    documents = before.encode_documents(TEXTS).sparse
    np.save(tmp_path / TABLE, idf(documents, VOCABULARY))
    after = SpladeEncoder.load("tiny", str(tmp_path), device="cpu")
    own = [each.ids for each in pieces().encode_batch(QUERIES, add_special_tokens=False)]
    special = pieces().token_to_id("[MASK]")
    wanted = [sorted({id_ for id_ in ids if id_ > special}) for ids in own]
    found = after.sparse_queries(QUERIES)
    assert [found.row(place)[0].tolist() for place in range(len(QUERIES))] == wanted
    assert after.sparse_fingerprint == before.sparse_fingerprint


def test_idf_falls_with_the_documents_that_hold_a_term() -> None:
    rows = [[0, 1], [0], [0, 2]]
    vectors = SparseVectors.of([(np.int32(row), np.ones(len(row), np.float32)) for row in rows])
    expected = [np.log(1 + (3 - held + 0.5) / (held + 0.5)) for held in (3, 1, 1, 0)]
    assert_close(idf(vectors, 4), expected)


@each_colbert
def test_token_vectors_are_those_of_sentence_transformers(
    folders: dict[str, str], name: str
) -> None:
    theirs = MultiVectorEncoder(folders[name], device="cpu")
    ours = ColbertEncoder.load("tiny", folders[name], device="cpu")
    found = ours.encode_documents(TEXTS).token_vectors
    expected = theirs.encode_document(TEXTS, convert_to_numpy=True)
    assert [len(each) for each in found] == [len(each) for each in expected]
    assert_close(np.concatenate(found), np.concatenate(expected))
    found = ours.encode_queries(QUERIES).token_vectors
    expected = theirs.encode_query(QUERIES, convert_to_numpy=True)
    for mine, rows in zip(found, expected, strict=True):
        assert_close(mine * len(rows), rows)
        assert np.linalg.norm(mine, axis=1).sum() == pytest.approx(1.0, abs=1e-5)
    assert ours.contract.token_dim == 16
    assert ours.blend() == (1.0, 0.0)


@each_colbert
def test_a_text_has_one_set_of_token_vectors_alone_and_in_any_batch(
    folders: dict[str, str], name: str
) -> None:
    encoder = ColbertEncoder.load("tiny", folders[name], device="cpu")
    encoder.batch_tokens = 100
    for encode, texts in ((encoder.encode_documents, TEXTS), (encoder.encode_queries, QUERIES)):
        for mine, text in zip(encode(texts).token_vectors, texts, strict=True):
            assert_close(mine, encode([text]).token_vectors[0])
        assert encode([]).token_vectors == ()


def test_a_text_over_the_budget_is_counted(folders: dict[str, str]) -> None:
    tokens = [len(each.ids) for each in pieces().encode_batch(TEXTS)]
    read = splade(folders).encode_documents(TEXTS)
    assert read.truncated == tuple(place for place, each in enumerate(tokens) if each > 64)
    assert read.tokens == sum(min(each, 64) for each in tokens)
    marked = ColbertEncoder.load("tiny", folders["expanding"], device="cpu")
    over = tuple(place for place, each in enumerate(tokens) if each + 1 > 48)
    assert marked.encode_documents(TEXTS).truncated == over
    long = " ".join(["wing"] * 14)
    assert marked.encode_queries(["wing", long]).truncated == (1,)


def test_threads_read_as_one_does(folders: dict[str, str]) -> None:
    late = ColbertEncoder.load("tiny", folders["expanding"], device="cpu")
    work = [(read, text) for text in TEXTS for read in (late.encode_queries, late.encode_documents)]
    expected = [read([text]).token_vectors[0] for read, text in work]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: each[0]([each[1]]).token_vectors[0], work * 2))
    for mine, rows in zip(found, expected * 2, strict=True):
        assert_close(mine, rows)


def test_a_batch_that_does_not_fit_into_memory_is_halved(folders: dict[str, str]) -> None:
    encoder = splade(folders)
    expected, sizes = whole(encoder.encode_documents(TEXTS).sparse), []
    body = encoder._shown.modules[0]
    preprocess = body.preprocess

    def small(texts: list[str], **settings: Any) -> Any:
        sizes.append(len(texts))
        if len(texts) > 2:
            raise torch.OutOfMemoryError("simulated")
        return preprocess(texts, **settings)

    body.preprocess = small
    assert_close(whole(encoder.encode_documents(TEXTS).sparse), expected)
    assert max(sizes) > 2


def test_a_model_that_gives_no_numbers_is_named(folders: dict[str, str]) -> None:
    sparse, late = splade(folders), ColbertEncoder.load("tiny", folders["colbert"], device="cpu")
    for encoder in (sparse, late):
        torch.nn.init.constant_(next(encoder._shown.modules[0].parameters()), float("nan"))
        with pytest.raises(EncodingError, match="tiny gave a NaN"):
            encoder.encode_documents(["wing"])


def test_a_fingerprint_differs_with_what_makes_documents(folders: dict[str, str]) -> None:
    prints = [splade(folders, name).sparse_fingerprint for name in ("splade", "routed", "summed")]
    prints.append(splade(folders, sparse_terms=7).sparse_fingerprint)
    nudged = SparseEncoder(folders["splade"], device="cpu")
    with torch.no_grad():
        nudged[0].auto_model.get_parameter("cls.predictions.bias")[5] += 1e-6
    prints.append(SpladeEncoder("tiny", nudged, device="cpu").sparse_fingerprint)
    assert len(set(prints)) == len(prints)
    assert prints[0] == splade(folders).sparse_fingerprint
    skipping = MultiVectorEncoder(folders["colbert"], device="cpu")
    skipping[2].skiplist_words = ["."]
    tokens = [
        ColbertEncoder.load("tiny", folders["colbert"], device="cpu"),
        ColbertEncoder("tiny", skipping, device="cpu"),
        ColbertEncoder.load("tiny", folders["expanding"], device="cpu"),
    ]
    assert len({each.token_fingerprint for each in tokens}) == 3


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (SpladeEncoder.load, "dense", "tiny is no SparseEncoder but a SentenceTransformer"),
        (SpladeEncoder.load, "plain", "tiny is no SparseEncoder: expected a model that was"),
        (SpladeEncoder.load, "colbert", "tiny is no SparseEncoder but a MultiVectorEncoder"),
        (ColbertEncoder.load, "dense", "tiny is no MultiVectorEncoder but a SentenceTransf"),
        (ColbertEncoder.load, "plain", "tiny is no MultiVectorEncoder: expected a model"),
        (ColbertEncoder.load, "splade", "tiny is no MultiVectorEncoder: expected a model"),
        (ColbertEncoder.load, "nothing", "cannot load tiny as a MultiVectorEncoder"),
    ],
)
def test_a_model_that_was_not_trained_for_it_is_refused(
    folders: dict[str, str], load: Callable[..., Any], name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        load("tiny", folders.get(name, str(tmp_path / "empty")), device="cpu")


class Counting:
    """A model that counts the calls for documents."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode_documents(self, texts: Sequence[str], **settings: Any) -> Encoding:
        self.calls += 1
        return self.inner.encode_documents(texts, **settings)


@pytest.fixture(scope="module")
def parts(folders: dict[str, str]) -> tuple[HashingEncoder, SpladeEncoder, ColbertEncoder]:
    """An encoder of each kind."""
    late = ColbertEncoder.load("late", folders["colbert"], device="cpu")
    return HashingEncoder(16), splade(folders), late


@pytest.mark.parametrize(
    "want",
    [None, [], ["dense"], ["sparse"], ["tokens"], ["tokens", "dense"], ["sparse", "tokens"]],
)
def test_only_what_is_wanted_is_made(parts: Any, want: Any) -> None:
    counted = [Counting(each) for each in parts]
    read = Combined(*counted).encode_documents(TEXTS, want)
    wanted = {"dense", "sparse", "tokens"} if want is None else set(want)
    assert [each.calls for each in counted] == [
        int(kind in wanted) for kind in ("dense", "sparse", "tokens")
    ]
    assert read.vectors.shape == (len(TEXTS), 16 if "dense" in wanted else 0)
    assert (read.sparse is not None) == ("sparse" in wanted)
    assert len(read.token_vectors) == (len(TEXTS) if "tokens" in wanted else 0)


def test_each_kind_is_what_its_own_model_gives(parts: Any) -> None:
    dense, sparse, tokens = parts
    both = Combined(*parts)
    alone = [each.encode_documents(TEXTS) for each in parts]
    read = both.encode_documents(TEXTS)
    np.testing.assert_array_equal(read.vectors, alone[0].vectors)
    np.testing.assert_array_equal(whole(read.sparse), whole(alone[1].sparse))
    for mine, rows in zip(read.token_vectors, alone[2].token_vectors, strict=True):
        np.testing.assert_array_equal(mine, rows)
    assert read.tokens == sum(each.tokens for each in alone)
    assert read.truncated == tuple(sorted({*alone[1].truncated, *alone[2].truncated}))
    asked = both.encode_queries(QUERIES)
    np.testing.assert_array_equal(asked.vectors, dense.encode_queries(QUERIES).vectors)
    expected = tokens.encode_queries(QUERIES).token_vectors
    np.testing.assert_array_equal(np.concatenate(asked.token_vectors), np.concatenate(expected))
    assert both.encode_queries(QUERIES, ["dense"]).token_vectors == ()
    assert both.encode_queries(QUERIES, ["tokens"]).vectors.shape == (len(QUERIES), 0)
    np.testing.assert_array_equal(
        whole(both.sparse_queries(QUERIES)), whole(sparse.sparse_queries(QUERIES))
    )
    shown = [["wing"]] * len(QUERIES)
    prompts = dense.encode_prompts(QUERIES, shown).vectors
    np.testing.assert_array_equal(both.encode_prompts(QUERIES, shown).vectors, prompts)


@pytest.mark.parametrize("own", ["tokens", "listwise"])
def test_the_weight_of_a_rerank_by_tokens_is_not_that_of_listwise_prompts(
    parts: Any, own: Any
) -> None:
    _, sparse, tokens = parts
    dense = HashingEncoder(16)
    dense.contract = dataclasses.replace(dense.contract, rerank=own, fusion_weight=1.0)
    found = Combined(dense, sparse, tokens).contract.weight_of("tokens")
    assert found == (1.0 if own == "tokens" else tokens.contract.weight_of("tokens"))


def test_a_combined_encoder_says_whose_its_parts_are(parts: Any) -> None:
    dense, sparse, tokens = parts
    both = Combined(*parts)
    assert isinstance(both, Encoder)
    assert isinstance(both, SparseQueries)
    assert both.fingerprint == dense.fingerprint
    assert both.sparse_fingerprint == sparse.sparse_fingerprint
    assert both.token_fingerprint == tokens.token_fingerprint
    contract = both.contract
    assert (contract.dim, contract.sparse_dim, contract.token_dim) == (16, VOCABULARY, 16)
    assert (contract.rerank, both.blend()) == ("tokens", (1.0, 0.0))
    names = [Combined(dense, *rest).name for rest in ((), (sparse,), (None, tokens), parts[1:])]
    assert names == ["hashing-16", "hashing-16+tiny", "hashing-16++late", "hashing-16+tiny+late"]
    assert Combined(dense, sparse).token_fingerprint == ""


def test_what_no_part_gives_is_refused(parts: Any) -> None:
    dense, sparse, tokens = parts
    with pytest.raises(ValueError, match="gives no sparse vectors"):
        Combined(dense, None, tokens).encode_documents(TEXTS, ["sparse"])
    with pytest.raises(ValueError, match="gives no tokens vectors"):
        Combined(dense, sparse).encode_documents(TEXTS, ["dense", "tokens"])
    with pytest.raises(ValueError, match="gives no sparse vectors"):
        Combined(dense, None, tokens).sparse_queries(QUERIES)
    with pytest.raises(ValueError, match="gives no tokens vectors"):
        Combined(dense, sparse).blend()
    with pytest.raises(ValueError, match="sparse vectors of sparse_queries"):
        Combined(dense, sparse).encode_queries(QUERIES, ["sparse"])


SEARCHES: list[dict[str, Any]] = [
    {"rerank": False},
    {"gather": "sparse", "rerank": False},
    {"gather": "multivector", "rerank": False},
    {"gather": "hybrid", "rerank": False},
    {"gather": Hybrid(["sparse", "bm25"]), "rerank": False},
    {"gather": Hybrid(["multivector", "sparse", "dense"]), "rerank": "listwise"},
    {"gather": "sparse", "rerank": "tokens"},
    {"gather": "sparse", "rerank": "prf"},
    {"gather": "sparse", "refine": "maxsim", "rerank": "tokens"},
    {"gather": "bm25", "rerank": True},
]


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("how", SEARCHES, ids=str)
def test_what_every_model_reads_of_a_query_is_counted(
    folders: dict[str, str],
    parts: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, Any],
    table: bool,
) -> None:
    dense, sparse, tokens = parts
    if table:
        sparse = splade(folders, query_weights=np.ones(VOCABULARY, dtype=np.float32))
    records = [{"id": str(place), "text": text} for place, text in enumerate(TEXTS)]
    with Engine.build(records, tmp_path / "index", Combined(dense, sparse, tokens)) as engine:
        spent = np.zeros(3, dtype=int)
        by_pipeline, by_hashing = Pipeline.read, HashingEncoder.encode_documents

        def read(self: Pipeline, texts: Sequence[str], *rest: Any, **options: Any) -> Any:
            rows = by_pipeline(self, texts, *rest, **options)
            spent[:] += len(texts), rows.tokens, len(rows.truncated)
            return rows

        def hashed(self: HashingEncoder, texts: Sequence[str]) -> Encoding:
            rows = by_hashing(self, texts)
            spent[:] += len(texts), rows.tokens, 0
            return rows

        monkeypatch.setattr(Pipeline, "read", read)
        monkeypatch.setattr(HashingEncoder, "encode_documents", hashed)
        monkeypatch.setattr(HashingEncoder, "encode_queries", hashed)
        asked = ["lift of a wing", "heat", "wing " * 100]
        found = engine.search_many(asked, 3, **how)
    assert [hits.rerank_error for hits in found] == [""] * 3
    counted = [(hits.model_calls, hits.tokens, hits.truncated) for hits in found]
    assert np.sum(counted, axis=0)[:2].tolist() == spent[:2].tolist()
    # A query that two models cut is counted once.
    assert [cut for _, _, cut in counted[:2]] == [0, 0]
    assert (counted[2][2] > 0) == (spent[2] > 0)


def test_a_part_of_the_dense_encoder_stays_where_no_model_replaces_it(parts: Any) -> None:
    _, sparse, tokens = parts
    late = Counting(tokens)
    inner = Counting(Combined(HashingEncoder(16), None, late))
    inner.name = "inner"
    outer = Combined(inner, sparse)
    read = outer.encode_documents(TEXTS)
    assert inner.calls == 1
    assert (len(read.token_vectors), len(read.sparse)) == (len(TEXTS), len(TEXTS))
    assert read.tokens == sum(each.encode_documents(TEXTS).tokens for each in (inner, sparse))
    assert outer.token_fingerprint == tokens.token_fingerprint
    assert len(outer.encode_queries(QUERIES).token_vectors) == len(QUERIES)
    before = late.calls
    assert outer.encode_documents(TEXTS, ["dense"]).token_vectors == ()
    assert late.calls == before


def test_a_number_of_terms_in_a_name_is_kept_by_what_is_built_and_opened_by_it(
    folders: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "e2rank")
    where, name = tmp_path / "index", f"hashing-16+{folders['splade']}:7"
    assert split_terms(f"{folders['splade']}:007") == (folders["splade"], 7)
    records = [{"id": str(place), "text": text} for place, text in enumerate(TEXTS)]
    Engine.build(records, where, name).close()
    assert not [each for each in caplog.messages if "terms of largest weight" in each]
    with Engine.open(where) as engine:
        assert engine.encoder.name == name
        assert np.diff(engine.store.sparse(engine.store.rows).ends).max() == 7
        assert len(engine.search("wing", gather="sparse", rerank=False)) > 0
        engine.add([{"id": "more", "text": TEXTS[1]}])
    assert Engine.open(where, name[:-2] + ":07").encoder.name == name
    with Engine.open(where, name[:-2]) as engine:
        said = [each for each in caplog.messages if "terms of largest weight" in each]
        assert said == [
            f"{folders['splade']}: of a document the 128 terms of largest weight are kept; "
            f"{folders['splade']}:1000 would keep 1000"
        ]
        says = r"made by another contract than that of .*, such as another number of terms that"
        with pytest.raises(ValueError, match=says):
            engine.search("wing", gather="sparse", rerank=False)
    with pytest.raises(ValueError, match="keeps no term of a document; expected a number of"):
        load_combined(f"hashing-16+{folders['splade']}:0")


def test_a_folder_whose_name_ends_like_a_number_of_terms_is_that_folder(
    folders: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "tiny:9").symlink_to(folders["splade"])
    assert split_terms(str(tmp_path / "tiny:9")) == (str(tmp_path / "tiny:9"), None)


def test_documents_are_not_added_that_keep_another_number_of_terms(
    folders: dict[str, str],
) -> None:
    few, many = (Combined(HashingEncoder(16), splade(folders, sparse_terms=n)) for n in (7, 9))
    assert few.name == many.name
    says = "made by another contract, such as another number of terms kept of a document: migrate"
    with pytest.raises(EncoderMismatch, match=says):
        Ingest(few, info_of(many), "it")
    other = Combined(HashingEncoder(16), splade(folders, "summed"))
    with pytest.raises(EncoderMismatch, match="of another version of its head: migrate"):
        Ingest(few, info_of(other), "it")


def test_a_text_that_one_model_cuts_is_not_said_to_be_cut_by_all(
    folders: dict[str, str], parts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    both = Combined(*parts)
    assert both.document_budgets == (48, 64, 512)
    assert Combined(parts[0], parts[1]).document_budgets == (64, 512)
    ingest = Ingest(both)
    ingest.batches.batch([Document("long", "wing " * 60), Document("short", "wing")])
    told: set[str] = set()
    ingest.report(told)
    ingest.report(told)
    assert caplog.messages == [
        "1 of the 2 documents read are longer than one of the encoder's models reads "
        "(48, 64, 512 tokens): what is beyond is not in that model's vectors "
        "(IndexConfig(passages=128), --passages 128, splits them)"
    ]


def without_type(folder: Path, out: Path, modules: list[str], **settings: Any) -> Path:
    """A late-interaction folder as PyLate saved them before it said of which kind they are."""
    shutil.copytree(folder, out)
    path = out / "config_sentence_transformers.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["model_type"]
    path.write_text(json.dumps(config | settings), encoding="utf-8")
    path = out / "modules.json"
    held = json.loads(path.read_text(encoding="utf-8"))[: len(modules)]
    for module, kind in zip(held, modules, strict=True):
        module["type"] = kind
    path.write_text(json.dumps(held), encoding="utf-8")
    return out


@pytest.mark.parametrize(
    ("dense", "settings"),
    [
        ("pylate.models.Dense.Dense", {}),
        (
            "sentence_transformers.models.Dense",
            {"query_prefix": "[MASK]", "document_prefix": "[unused1]", "query_length": 32},
        ),
    ],
)
def test_a_pylate_folder_that_says_no_kind_is_loaded_and_is_no_dense_model(
    folders: dict[str, str], tmp_path: Path, dense: str, settings: dict[str, Any]
) -> None:
    modules = ["sentence_transformers.models.Transformer", dense]
    folder = without_type(Path(folders["colbert"]), tmp_path / "late", modules, **settings)
    rows = ColbertEncoder.load("late", str(folder), device="cpu").encode_documents(TEXTS)
    assert [each.shape[1] for each in rows.token_vectors] == [16] * len(TEXTS)
    with pytest.raises(ValueError, match=r"it is a MultiVectorEncoder; load it joined") as refused:
        load_encoder(str(folder))
    assert f"load_encoder('minilm++{folder}')" in str(refused.value)


def test_a_folder_that_says_no_kind_and_is_not_pylates_is_refused(
    folders: dict[str, str], tmp_path: Path
) -> None:
    modules = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Dense"]
    folder = without_type(Path(folders["colbert"]), tmp_path / "late", modules)
    with pytest.raises(ValueError, match="is no MultiVectorEncoder: expected a model"):
        ColbertEncoder.load("late", str(folder), device="cpu")


def test_the_name_loads_the_same_encoder(folders: dict[str, str]) -> None:
    name = f"hashing-16+{folders['routed']}+{folders['colbert']}"
    made = load_combined(name, device="cpu")
    assert made.name == name
    again = load_combined(made.name, device="cpu")
    assert again.sparse_fingerprint == made.sparse_fingerprint
    assert again.token_fingerprint == made.token_fingerprint
    assert load_combined(f"hashing-16++{folders['colbert']}").name.count("+") == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("+splade-tiny", "no name of joined models"),
        ("hashing+a/b+c/d+e/f", "no name of joined models"),
        ("hashing+spade", "unknown model 'spade': known here are splade-tiny"),
        ("hashing++colbert", "unknown model 'colbert': known here are colbert-small"),
    ],
)
def test_a_name_that_loads_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_combined(name)


def test_a_part_with_the_joining_sign_in_its_name_is_refused(folders: dict[str, str]) -> None:
    part = SpladeEncoder.load("a+b", folders["splade"], device="cpu")
    with pytest.raises(ValueError, match=r"'a\+b' has '\+' in its name"):
        Combined(HashingEncoder(16), part)


def test_the_real_splade_is_that_of_sentence_transformers_and_expands() -> None:
    try:
        folder = local_model("splade-tiny")
    except ValueError:
        pytest.skip("no weights here; `make models` writes them")
    encoder = sparse_model("splade-tiny", device="cpu")
    texts = [*abstracts(3), "tides are caused by the moon"]
    theirs = SparseEncoder(str(folder), device="cpu").encode_document(texts)
    found = whole(encoder.encode_documents(texts).sparse, 30522)
    expected = theirs.to_dense().numpy()
    assert_close(found[found > 0], expected[found > 0])
    assert (found > 0).sum(1).tolist() == np.minimum((expected > 0).sum(1), 128).tolist()
    assert found[3, wordpiece().token_to_id("sea")] > 0.5
