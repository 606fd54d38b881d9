"""Models of all kinds by their folder: read as sentence-transformers reads them, or refused."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders_support import (
    SMALL,
    abstracts,
    assert_close,
    minilm_folder,
    random_model,
    saved,
    tiny_bert,
)
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling

from e2rank.encoders import digest
from e2rank.encoders.presets import load_encoder

TEXTS = ["", "wing", *abstracts(4), "a wing. " * 200]

# Kinds that count positions from the one after their padding token's, and others that do not.
OFFSET: dict[str, dict[str, Any]] = {
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "mpnet": {},
    "data2vec-text": {},
    "roberta-prelayernorm": {},
    "xlm-roberta-xl": {},
    "longformer": {"attention_window": 16},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "electra": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "albert": {"embedding_size": 16},
}


def of_kind(kind: str, **changes: Any) -> torch.nn.Module:
    """A random model of the kind with that name in transformers, for BERT's tokenizer."""
    sizes: dict[str, Any] = {"vocab_size": 30522, "max_position_embeddings": 514}
    padding = {"pad_token_id": 1} if kind in OFFSET else {}
    settings = SMALL | sizes | padding | (OFFSET | OTHERS)[kind] | changes
    config = transformers.AutoConfig.for_model(kind, **settings)
    return random_model(transformers.AutoModel.from_config, config)


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file."""
    known = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(known | fields), encoding="utf-8")


def bare(folder: Path, kind: type, **changes: Any) -> Path:
    """A random BERT of this kind and its tokenizer, as transformers save them."""
    config = transformers.BertConfig(**SMALL, vocab_size=30522, **changes)
    random_model(kind, config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)
    return folder


def refused(folder: Path | str) -> str:
    """What is said of a folder that is not loaded: one line that names it."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at what is said
        load_encoder(folder, device="cpu")
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", [*OFFSET, *OTHERS])
def test_positions_are_those_that_the_model_counts(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, of_kind(kind), Pooling(32, "mean"), Normalize())
    expected = SentenceTransformer(folder, device="cpu").encode_document(TEXTS)
    assert_close(load_encoder(folder, device="cpu").encode_documents(TEXTS).vectors, expected)


@pytest.mark.parametrize(("kind", "offset"), [("data2vec-text", 0), ("electra", 1), ("mpnet", 3)])
def test_a_model_that_counts_positions_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, offset: int
) -> None:
    folder = saved(tmp_path, of_kind(kind), Pooling(32, "mean"))
    monkeypatch.setattr("e2rank.encoders.tower.position_offset", lambda _: offset)
    assert f"is of the kind {kind!r}, which counts the positions" in refused(folder)


def test_the_budget_ends_where_the_positions_of_the_model_do(tmp_path: Path) -> None:
    folder = saved(tmp_path, of_kind("roberta", max_position_embeddings=40), Pooling(32, "mean"))
    for name, field in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        edit(Path(folder) / name, **{field: 40})
    encoder = load_encoder(folder, device="cpu")
    # Of 40 positions two are those up to the padding token's.
    assert (encoder.contract.query_tokens, encoder.contract.document_tokens) == (38, 38)
    own = SentenceTransformer(folder, device="cpu")
    own.max_seq_length = 38
    expected = own.encode_document(TEXTS, normalize_embeddings=True)
    assert_close(encoder.encode_documents(TEXTS).vectors, expected)


@pytest.mark.parametrize("after", [[], [Dense(32, 24), Normalize()]], ids=["plain", "dense"])
def test_a_matryoshka_model_gives_the_first_components(
    tmp_path: Path, after: list[torch.nn.Module]
) -> None:
    folder = saved(tmp_path, tiny_bert(), Pooling(32, "mean"), *after, truncate_dim=8)
    encoder = load_encoder(folder, device="cpu")
    own = SentenceTransformer(folder, device="cpu")
    assert encoder.contract.dim == 8
    expected = own.encode_document(TEXTS, normalize_embeddings=True)
    assert_close(encoder.encode_documents(TEXTS).vectors, expected)
    assert encoder.encode_prompts(["lift"], [["wing"]]).vectors.shape == (1, 8)
    others = []
    for dim in (6, 99):
        edit(Path(folder) / "config_sentence_transformers.json", truncate_dim=dim)
        others.append(load_encoder(folder, device="cpu"))
    assert len({each.fingerprint for each in (encoder, *others)}) == 3
    # What cuts nothing is the model without it.
    whole = load_encoder(saved(tmp_path / "whole", tiny_bert(), Pooling(32, "mean"), *after))
    assert others[1].fingerprint == whole.fingerprint


def cross_encoder(folder: Path) -> Path:
    """A CrossEncoder's folder."""
    base = bare(folder / "base", transformers.BertForSequenceClassification, num_labels=1)
    CrossEncoder(str(base), device="cpu").save_pretrained(str(folder / "pairs"))
    return folder / "pairs"


def sparse(folder: Path) -> Path:
    """A SparseEncoder's folder."""
    base = str(bare(folder / "base", transformers.BertForMaskedLM))
    modules = [Transformer(base, transformer_task="fill-mask"), SpladePooling()]
    whole = SparseEncoder(modules=modules, device="cpu")
    whole.save_pretrained(str(folder / "sparse"), create_model_card=False)
    return folder / "sparse"


def multi_vector(folder: Path) -> Path:
    """A MultiVectorEncoder's folder."""
    base = Transformer(str(bare(folder / "base", transformers.BertModel)))
    modules = [base, MultiVectorMask(), Normalize("token_embeddings")]
    whole = MultiVectorEncoder(modules=modules, device="cpu")
    whole.save_pretrained(str(folder / "tokens"), create_model_card=False)
    return folder / "tokens"


def pairs_alone(folder: Path) -> Path:
    """A cross-encoder as transformers save it."""
    return bare(folder / "base", transformers.BertForSequenceClassification, num_labels=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (cross_encoder, "it is a CrossEncoder; load it as a reranker, CrossEncoderReranker('{}')"),
        (pairs_alone, "it is BertForSequenceClassification, as a CrossEncoder is"),
        (pairs_alone, "load it as a reranker, CrossEncoderReranker('{}')"),
    ],
)
def test_a_cross_encoder_is_refused_by_what_loads_it(
    tmp_path: Path, make: Callable[[Path], Path], says: str
) -> None:
    folder = make(tmp_path)
    assert says.format(folder) in refused(folder)


@pytest.mark.parametrize(
    ("make", "says", "join"),
    [
        (sparse, "it is a SparseEncoder; ", "+"),
        (multi_vector, "it is a MultiVectorEncoder; ", "++"),
    ],
)
def test_a_model_without_dense_vectors_is_refused_by_the_name_that_loads_it(
    tmp_path: Path, make: Callable[[Path], Path], says: str, join: str
) -> None:
    folder = make(tmp_path)
    message = refused(folder)
    assert says in message
    assert f"load it joined to a dense encoder, load_encoder('minilm{join}{folder}')" in message
    contract = load_encoder(f"hashing-8{join}{folder}", device="cpu").contract
    assert (bool(contract.sparse_dim), bool(contract.token_dim)) == (join == "+", join == "++")


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        (transformers.BertModel, "no prompts"),
        (transformers.BertForMaskedLM, "no prompts; a SPLADE is loaded as 'minilm+{}'"),
    ],
)
def test_a_folder_of_transformers_alone_without_a_contract_says_how_it_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Any, hint: str
) -> None:
    folder = bare(tmp_path / "base", kind)
    contract = load_encoder(folder, device="cpu").contract
    assert (contract.pooling, contract.query_prefix, contract.document_prefix) == ("mean", "", "")
    (folder / "contract.json").write_text(json.dumps(contract.to_dict()), encoding="utf-8")
    load_encoder(folder, device="cpu")
    # Once, and not again with a contract.
    (said,) = [each for each in caplog.records if each.name == "e2rank"]
    assert said.levelname == "WARNING"
    assert f"{folder} holds no modules.json: read as a dense model, with mean" in said.message
    assert said.message.endswith(hint.format(folder))


@pytest.mark.parametrize(
    ("prompts", "level", "says"),
    [
        ({"query": "ask: ", "passage": "text: "}, "INFO", "query, 'ask: ', stands before queries"),
        (
            {"query": "ask: ", "passage": "text: "},
            "INFO",
            "'text: ', before documents; not used: n",
        ),
        ({"query": "ask: ", "sts": "same: "}, "INFO", "'', before documents; not used: sts"),
        ({"corpus": "text: ", "retrieval": "a: "}, "WARNING", "not used: corpus, retrieval"),
    ],
)
def test_the_prompts_that_are_taken_are_logged(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    prompts: dict[str, str],
    level: str,
    says: str,
) -> None:
    folder = saved(tmp_path, tiny_bert(), Pooling(32, "mean"), prompts=prompts)
    with caplog.at_level(logging.INFO, "e2rank"):
        load_encoder(folder, device="cpu")
    (said,) = [each for each in caplog.records if each.name == "e2rank"]
    assert said.levelname == level
    assert says in said.message


@pytest.mark.parametrize(
    ("similarity", "after", "warns"),
    [
        ("dot", [], True),
        ("euclidean", [], True),
        ("manhattan", [], True),
        ("cosine", [], False),
        ("dot", [Normalize()], False),
        ("euclidean", [Normalize()], False),
        ("manhattan", [Normalize()], True),
    ],
)
def test_a_model_made_for_another_similarity_than_cosine_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, similarity: str, after: list[Any], warns: bool
) -> None:
    folder = saved(tmp_path, tiny_bert(), Pooling(32, "mean"), *after)
    edit(Path(folder) / "config_sentence_transformers.json", similarity_fn_name=similarity)
    load_encoder(folder, device="cpu")
    said = [each for each in caplog.messages if "is searched here by cosine" in each]
    assert len(said) == warns
    assert all(f"{folder} was made for {similarity} similarity" in each for each in said)


def test_a_tokenizer_that_cuts_on_the_left_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_bert(), Pooling(32, "mean"))
    edit(Path(folder) / "tokenizer_config.json", truncation_side="left")
    assert "cuts long texts on the left, and texts lose their end here; set" in refused(folder)


def test_a_tokenizer_in_python_is_refused(tmp_path: Path) -> None:
    folder = bare(tmp_path / "base", transformers.BertModel)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    transformers.CanineTokenizer().save_pretrained(folder)
    assert "is read by CanineTokenizer, which runs in Python; expected" in refused(folder)


def test_an_empty_tokenizer_that_stands_for_a_missing_one_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_bert(), Pooling(32, "mean"))
    (Path(folder) / "tokenizer.json").unlink()
    said = "knows 0 tokens besides special ones; put the model's tokenizer.json into the folder"
    assert said in refused(folder)


def test_a_missing_pooling_is_refused_by_its_file(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_bert(), Pooling(32, "mean"))
    shutil.rmtree(Path(folder) / "1_Pooling")
    assert "1_Pooling/config.json is missing; copy the whole model again" in refused(folder)


@pytest.mark.parametrize(("kind", "told"), [("data2vec-text", True), ("roberta", False)])
def test_where_positions_start_is_part_of_what_a_model_is_where_it_was_not_always_known(
    monkeypatch: pytest.MonkeyPatch, kind: str, told: bool
) -> None:
    model = of_kind(kind)
    before = digest.model_digest(model, None)
    monkeypatch.setattr(digest, "position_offset", lambda _: 0)
    assert (digest.model_digest(model, None) != before) == told
