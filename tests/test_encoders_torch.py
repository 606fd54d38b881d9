"""The PyTorch encoder: a text's vector is its own, whatever is encoded with it and wherever."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from encoders_support import (
    BERT,
    QWEN,
    SMALL,
    abstracts,
    assert_close,
    byte_pairs,
    longer_tokenizer,
    made,
    nudged_bert,
    plainly,
    random_model,
    tiny_bert,
    tiny_qwen,
    wordpiece,
)

from e2rank.contract import Contract
from e2rank.encoders import DType, Encoding, difference
from e2rank.encoders.run import Run
from e2rank.encoders.tokens import Tokens, Wording
from e2rank.encoders.torch import TorchEncoder, _compute_dtype
from e2rank.errors import EncodingError

# Short and long by turns, so that batches mix lengths and their order is not the given one.
TEXTS = [text[: (position * 97) % 500] for position, text in enumerate(abstracts(9))]
SHOWN = [abstracts(count) for count in (0, 3, 1, 0, 5, 2, 1, 4, 3)]

each_kind = pytest.mark.parametrize("kind", ["queries", "documents", "prompts"])
each_side = pytest.mark.parametrize("side", ["left", "right"])
each_pooling = pytest.mark.parametrize(
    "contract",
    [
        dataclasses.replace(contract, pooling=pooling)
        for contract in (BERT, QWEN)
        for pooling in ("mean", "cls", "last")
    ],
    ids=lambda each: f"{each.family}-{each.pooling}",
)


def encoded(encoder: TorchEncoder, kind: str, positions: Sequence[int]) -> Encoding:
    """The texts at these positions, as queries, documents or prompts."""
    texts = [TEXTS[position] for position in positions]
    if kind == "prompts":
        return encoder.encode_prompts(texts, [SHOWN[position] for position in positions])
    return getattr(encoder, f"encode_{kind}")(texts)


@each_kind
@each_side
@each_pooling
def test_a_text_has_one_vector_alone_and_in_any_batch(
    contract: Contract, side: str, kind: str
) -> None:
    encoder, every = made(contract, side=side), range(len(TEXTS))
    together = encoded(encoder, kind, every).vectors
    assert_close(together, [encoded(encoder, kind, [each]).vectors[0] for each in every])
    assert_close(encoded(encoder, kind, every[::-1]).vectors[::-1], together)
    assert together.dtype == np.float32
    assert_close(np.linalg.norm(together, axis=1), 1.0)


@each_side
@each_pooling
def test_a_vector_is_what_the_model_gives_for_that_text(contract: Contract, side: str) -> None:
    decoder = contract.family == "decoder"
    model, words = (tiny_qwen(), byte_pairs()) if decoder else (tiny_bert(), wordpiece())
    expected = plainly(model, Wording(words, contract), TEXTS)
    assert_close(made(contract, side=side).encode_documents(TEXTS).vectors, expected)
    assert np.abs(np.diff(expected[:-1], axis=0)).max() > 1e-3


def test_roberta_counts_positions_from_after_its_padding_token() -> None:
    config = transformers.RobertaConfig(
        **SMALL, vocab_size=30522, type_vocab_size=1, pad_token_id=1, max_position_embeddings=514
    )
    model = random_model(transformers.RobertaModel, config)
    expected = plainly(model, Wording(wordpiece(), BERT), TEXTS)
    assert_close(made(model=model).encode_documents(TEXTS).vectors, expected)


@pytest.mark.parametrize("contract", [BERT, QWEN], ids=["bidirectional", "decoder"])
def test_nothing_to_encode_gives_no_rows_of_the_right_width(contract: Contract) -> None:
    encoder = made(contract)
    nothing = (
        encoder.encode_queries([]),
        encoder.encode_documents([]),
        encoder.encode_prompts([], []),
    )
    assert [(each.vectors.shape, each.vectors.dtype) for each in nothing] == [
        ((0, 32), "float32")
    ] * 3
    assert [(each.tokens, each.truncated) for each in nothing] == [(0, ())] * 3


def test_a_bidirectional_prompt_of_no_documents_is_the_query_vector() -> None:
    encoder = made()
    prompts = encoder.encode_prompts(TEXTS, [[]] * len(TEXTS))
    assert_close(prompts.vectors, encoder.encode_queries(TEXTS).vectors)


@pytest.mark.parametrize(
    ("contract", "same"), [(BERT, True), (QWEN, False)], ids=["bidi", "decoder"]
)
def test_only_the_documents_of_a_decoder_prompt_have_an_order(
    contract: Contract, same: bool
) -> None:
    documents = abstracts(6)
    lists = [documents, documents[::-1], documents[:3]]
    one, other, fewer = made(contract).encode_prompts(["what lifts a wing"] * 3, lists).vectors
    assert (np.abs(one - other).max() <= 1e-5) == same
    assert np.abs(one - fewer).max() > 1e-3


@each_kind
def test_what_was_cut_and_read_is_counted_exactly(kind: str) -> None:
    contract = dataclasses.replace(BERT, query_tokens=24, document_tokens=30, prompt_tokens=120)
    words = Wording(wordpiece(), contract)
    shown = [SHOWN] if kind == "prompts" else []
    sequences: list[Tokens] = getattr(words, kind)(TEXTS, *shown)
    encoding = encoded(made(contract), kind, range(len(TEXTS)))
    assert encoding.tokens == sum(len(each.ids) for each in sequences)
    assert encoding.truncated == tuple(i for i, each in enumerate(sequences) if each.cut)
    assert 0 < len(encoding.truncated) < len(TEXTS)


@pytest.mark.parametrize(
    ("weight", "row", "named"),
    [("encoder.layer.1.output.dense.bias", 0, 3), ("embeddings.word_embeddings.weight", 3358, 2)],
    ids=["everywhere", "in the word 'wing'"],
)
def test_nan_is_refused_by_the_names_of_the_encoder_and_the_text(
    weight: str, row: int, named: int
) -> None:
    model = tiny_bert()
    with torch.no_grad():
        model.get_parameter(weight)[row] = torch.nan
    with pytest.raises(EncodingError, match=rf"^tiny gave a NaN or an infinity for text {named};"):
        made(model=model).encode_documents(["lift", "drag", "a wing", "the longest comes first"])


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let a batch of more than `most` texts run out of memory; gives the sizes that are tried."""
    whole, tried = Run._read, list[int]()

    def small(run: Run, texts: Sequence[Tokens], *rest: Any) -> Any:
        tried.append(len(texts))
        if len(texts) > most:
            raise torch.OutOfMemoryError("simulated")
        return whole(run, texts, *rest)

    monkeypatch.setattr(Run, "_read", small)
    return tried


def test_out_of_memory_halves_the_batch_and_gives_the_same_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = made()
    expected = encoder.encode_documents(TEXTS)
    tried = limit(monkeypatch, 2)
    found = encoder.encode_documents(TEXTS)
    assert_close(found.vectors, expected.vectors)
    assert (found.tokens, found.truncated) == (expected.tokens, expected.truncated)
    assert tried == [9, 4, 2, 2, 5, 2, 3, 1, 2]


def test_a_single_text_that_does_not_fit_into_memory_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = made()
    limit(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode_queries(["wing", "lift"])


def test_a_head_is_applied_before_normalisation() -> None:
    head = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Tanh())
    contract = dataclasses.replace(BERT, dim=8)
    expected = plainly(tiny_bert(), Wording(wordpiece(), contract), TEXTS, head)
    assert_close(made(contract, head=head).encode_documents(TEXTS).vectors, expected)


def test_what_is_the_same_has_one_fingerprint() -> None:
    assert made(side="left").fingerprint == made().fingerprint


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("weights", lambda: made(model=nudged_bert())),
        ("weights", lambda: made(head=torch.nn.Linear(32, 32))),
        ("tokenizer", lambda: made(tokenizer=longer_tokenizer())),
        ("contract", lambda: made(dataclasses.replace(BERT, query_prefix="query: "))),
        ("contract", lambda: made(dataclasses.replace(BERT, prompt_tokens=99))),
    ],
)
def test_a_change_shows_in_its_part_of_the_fingerprint(
    part: str, change: Callable[[], TorchEncoder]
) -> None:
    assert difference(made().fingerprint, change().fingerprint) == part


def test_one_fingerprint_is_never_of_two_models_that_differ_in_more_than_weights() -> None:
    one, other = made(), made(model=tiny_bert(hidden_act="relu"))
    assert (
        np.abs(one.encode_queries(["wing"]).vectors - other.encode_queries(["wing"]).vectors).max()
        > 1e-3
    )
    assert one.fingerprint != other.fingerprint


def test_a_fingerprint_does_not_depend_on_the_precision_a_model_computes_in() -> None:
    full, half = made(), made(dtype="bfloat16")
    vectors = half.encode_prompts(TEXTS, SHOWN).vectors
    assert half.fingerprint == full.fingerprint
    assert half.tower.model.dtype == torch.bfloat16
    assert vectors.dtype == np.float32
    assert_close(np.linalg.norm(vectors, axis=1), 1.0)
    assert_close(vectors, full.encode_prompts(TEXTS, SHOWN).vectors, most=0.05)


@pytest.mark.parametrize(
    ("device", "supported", "asked", "expected"),
    [
        ("cpu", True, None, torch.float32),
        ("cuda", True, None, torch.bfloat16),
        ("cuda", False, None, torch.float32),
        ("cpu", False, "bfloat16", torch.bfloat16),
        ("cuda", True, "float32", torch.float32),
    ],
)
def test_the_precision_is_what_is_asked_for_or_bfloat16_where_a_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    supported: bool,
    asked: DType | None,
    expected: torch.dtype,
) -> None:
    def has_bfloat16(including_emulation: bool = True) -> bool:
        return supported or including_emulation  # any GPU can emulate it, slowly

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", has_bfloat16)
    assert _compute_dtype(torch.device(device), asked) == expected


def test_a_dtype_whose_range_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype is 'float16'; expected 'float32' or 'bfloat16'"):
        made(dtype=cast(Any, "float16"))


@pytest.mark.parametrize(
    ("found", "warned"),
    [
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": False}, True),
        ({"architecture": "aarch64"}, False),
        ({}, False),
    ],
)
def test_bfloat16_on_a_processor_that_does_not_multiply_it_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    found: dict[str, Any],
    warned: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    made(dtype="bfloat16")
    assert ("does not multiply matrices of bfloat16" in caplog.text) == warned
