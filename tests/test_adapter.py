"""Adapters: saved whole or refused, and what they change of an encoder, which is the query side."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from encoders_support import (
    BERT,
    abstracts,
    assert_close,
    longer_tokenizer,
    made,
    nudged_bert,
    tiny_bert,
)
from train_support import bert_base

from e2rank.contract import Contract
from e2rank.encoders import Encoding
from e2rank.encoders.adapter import Adapter
from e2rank.encoders.heads import TokenHead
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.torch import TorchEncoder
from e2rank.errors import AdapterError, EncoderMismatch

TEXTS = [text[: (position * 83) % 300] for position, text in enumerate(abstracts(7))]
CONTRACT = dataclasses.replace(
    BERT, token_dim=8, token_layers=2, rerank="tokens", fusion_weight=1.0
)
QUERY_LAYER = "encoder.layer.1.attention.self.query"
WIDE_LAYER = "encoder.layer.0.intermediate.dense"
SCALE = 0.5
Change = Callable[[dict[str, Any]], Any]


@functools.cache
def base() -> TorchEncoder:
    """The tiny BERT that the adapters here are for."""
    return made()


def head_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """A token head of random weights, for two layers of 32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = TokenHead(64, 8)
        head.weigh.weight.data.normal_()
        head.weigh.bias.data.normal_()
        head.log_maxsim.data += 0.1 * seed
    return {f"tokens.{name}": each for name, each in head.state_dict().items()}


def lora_weights() -> dict[str, torch.Tensor]:
    """Updates of rank 2 and 3 of two linear layers."""
    make = torch.Generator().manual_seed(3)
    shapes = {QUERY_LAYER: (2, 32, 32), WIDE_LAYER: (3, 32, 64)}
    weights = {}
    for name, (rank, wide, long) in shapes.items():
        weights[f"lora.{name}.A"] = torch.randn(rank, wide, generator=make)
        weights[f"lora.{name}.B"] = torch.randn(long, rank, generator=make)
    return weights


def adapter(weights: dict[str, torch.Tensor] | None = None, **changes: Any) -> Adapter:
    """An adapter of the tiny BERT, with a head and updates unless told."""
    fields: dict[str, Any] = {
        "base": base().fingerprint,
        "base_name": "tiny",
        "contract": CONTRACT,
        "weights": head_weights() | lora_weights() if weights is None else weights,
        "lora_scale": SCALE,
        "about": {"lists": 3, "data": ["ä.jsonl"]},
    }
    return Adapter(**fields | changes)


def saved(folder: Path, change: Change = lambda fields: fields, **changes: Any) -> Path:
    """The folder of an adapter, whose adapter.json then went through `change`."""
    adapter(**changes).save(folder)
    fields = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    (folder / "adapter.json").write_text(json.dumps(change(fields)), encoding="utf-8")
    return folder


def without(name: str) -> Change:
    """A change that takes one field away."""
    return lambda fields: {each: fields[each] for each in fields if each != name}


def same(one: Encoding, other: Encoding) -> bool:
    """Whether two encodings are equal to the last bit."""
    pairs = zip(one.token_vectors, other.token_vectors, strict=True)
    return np.array_equal(one.vectors, other.vectors) and all(
        np.array_equal(*each) for each in pairs
    )


def test_an_adapter_comes_back_exactly_as_it_was_saved(tmp_path: Path) -> None:
    given = adapter()
    given.save(tmp_path / "new" / "folder")
    found = Adapter.load(tmp_path / "new" / "folder")
    assert found.weights.keys() == given.weights.keys()
    assert all(torch.equal(found.weights[name], given.weights[name]) for name in given.weights)
    for name in ("base", "base_name", "contract", "lora_scale", "about", "fingerprint"):
        assert getattr(found, name) == getattr(given, name)
    one, other = base().adapt(given), base().adapt(found)
    assert same(one.encode_queries(TEXTS), other.encode_queries(TEXTS))
    assert same(one.encode_documents(TEXTS), other.encode_documents(TEXTS))


def test_weights_of_half_precision_stay_so_on_disk(tmp_path: Path) -> None:
    weights = {name: each.bfloat16() for name, each in adapter().weights.items()}
    adapter(weights).save(tmp_path)
    found = Adapter.load(tmp_path).weights
    assert {each.dtype for each in found.values()} == {torch.bfloat16}
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields | {"kind": "e2rank-index"}, "is no adapter .* 'e2rank-index'"),
        (lambda fields: fields | {"format": 2}, r"format 2, expected up to 1\); run: pip install"),
        (lambda fields: fields | {"format": "one"}, "holds no whole adapter"),
        (lambda fields: fields | {"weights": "0" * 16}, "is damaged: its hash is .* 0000000000"),
        (lambda fields: fields | {"contract": ["mean"]}, "holds no whole adapter"),
        (lambda fields: fields | {"lora_scale": None}, "holds no whole adapter"),
        (
            lambda fields: fields | {"contract": fields["contract"] | {"later": 1}},
            "has no field 'later'; this e2rank knows .*: is it misspelt, or of a newer one",
        ),
        (lambda fields: [fields], "holds no whole adapter"),
        *(
            (without(name), f"holds no whole adapter: '{name}'")
            for name in ("kind", "format", "base", "base_name", "weights", "contract", "about")
        ),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused_with_the_reason(
    tmp_path: Path, change: Change, message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        Adapter.load(saved(tmp_path, change))


def test_a_newer_format_is_told_apart_whatever_its_files_are(tmp_path: Path) -> None:
    folder = saved(tmp_path, lambda fields: {"kind": fields["kind"], "format": 9})
    (folder / "adapter.safetensors").unlink()
    with pytest.raises(AdapterError, match="pip install -U e2rank"):
        Adapter.load(folder)


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
@pytest.mark.parametrize("keep", [None, 0, 100])
def test_a_missing_or_cut_file_is_refused_by_its_folders_name(
    tmp_path: Path, name: str, keep: int | None
) -> None:
    path = saved(tmp_path / "one") / name
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    with pytest.raises(AdapterError, match=r"one holds no whole adapter: .+"):
        Adapter.load(tmp_path / "one")


def test_one_changed_bit_of_the_weights_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path) / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=r"adapter\.safetensors is damaged: its hash is"):
        Adapter.load(tmp_path)


def test_another_adapters_weights_are_found(tmp_path: Path) -> None:
    saved(tmp_path)
    safetensors.torch.save_file(head_weights(1), tmp_path / "adapter.safetensors")
    with pytest.raises(AdapterError, match="is damaged"):
        Adapter.load(tmp_path)


def test_weights_of_no_known_part_are_refused_rather_than_left_out(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"no known part, 'prefix\.0'"):
        Adapter.load(saved(tmp_path, weights=head_weights() | {"prefix.0": torch.zeros(2)}))


def test_an_adapter_of_before_that_pools_by_shares_is_refused(tmp_path: Path) -> None:
    adapter(head_weights() | {"query.shares": torch.ones(1)}).save(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"'query\.shares': train it again; .* --remove"):
        Adapter.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("weights", lambda: made(model=nudged_bert())),
        ("tokenizer", lambda: made(tokenizer=longer_tokenizer())),
        ("contract", lambda: made(dataclasses.replace(BERT, query_prefix="query: "))),
    ],
)
def test_on_another_model_an_adapter_is_refused_by_what_differs(
    part: str, other: Callable[[], TorchEncoder]
) -> None:
    with pytest.raises(EncoderMismatch, match=rf"another model than 'tiny' \(different {part}\)"):
        other().adapt(adapter())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("document_prefix", "passage: "),
        ("document_suffix", "."),
        ("document_tokens", 20),
        ("pooling", "cls"),
        ("dim", 16),
        ("family", "decoder"),
    ],
)
def test_a_contract_that_would_change_document_vectors_is_refused(name: str, value: Any) -> None:
    contract = dataclasses.replace(CONTRACT, **{name: value})
    with pytest.raises(AdapterError, match=f"contract has another {name} than 'tiny'"):
        base().adapt(adapter(contract=contract))


def test_a_contract_may_change_how_queries_are_read() -> None:
    contract = dataclasses.replace(CONTRACT, query_prefix="query: ", query_tokens=20)
    changed = base().adapt(adapter({}, contract=dataclasses.replace(contract, token_dim=0)))
    prefixed = base().encode_queries([f"query: {text}" for text in TEXTS[:2]])
    assert_close(changed.encode_queries(TEXTS[:2]).vectors[0], prefixed.vectors[0])
    assert changed.encode_queries([TEXTS[3]]).truncated == (0,)
    assert same(changed.encode_documents(TEXTS), base().encode_documents(TEXTS))


def test_updates_change_queries_and_prompts_and_not_one_bit_of_a_document() -> None:
    plain, headed, adapted = base(), base().adapt(adapter(head_weights())), base().adapt(adapter())
    shown = [TEXTS[:2]] * len(TEXTS)
    one, other = plain.encode_prompts(TEXTS, shown), adapted.encode_prompts(TEXTS, shown)
    assert np.abs(one.vectors - other.vectors).max() > 1e-2
    one, other = headed.encode_queries(TEXTS), adapted.encode_queries(TEXTS)
    assert np.abs(one.vectors - other.vectors).max() > 1e-2
    assert np.abs(one.token_vectors[3] - other.token_vectors[3]).max() > 1e-3
    assert same(headed.encode_documents(TEXTS), adapted.encode_documents(TEXTS))
    documents = plain.encode_documents(TEXTS).vectors
    assert np.array_equal(documents, adapted.encode_documents(TEXTS).vectors)
    assert adapted.fingerprint == plain.fingerprint
    assert adapted.token_fingerprint == headed.token_fingerprint != plain.token_fingerprint


def test_an_update_is_the_scaled_product_of_its_parts_added_to_the_layer() -> None:
    weights, model = lora_weights(), tiny_bert()
    with torch.no_grad():
        for name in (QUERY_LAYER, WIDE_LAYER):
            layer = model.get_submodule(name).weight
            down, up = weights[f"lora.{name}.A"].tolist(), weights[f"lora.{name}.B"].tolist()
            for i in range(layer.shape[0]):
                for j in range(layer.shape[1]):
                    product = sum(up[i][k] * down[k][j] for k in range(len(down)))
                    layer[i, j] += SCALE * product
    by_hand, adapted = made(model=model), base().adapt(adapter())
    assert_close(adapted.encode_queries(TEXTS).vectors, by_hand.encode_queries(TEXTS).vectors)
    shown = [TEXTS[:3]] * len(TEXTS)
    expected = by_hand.encode_prompts(TEXTS, shown).vectors
    assert_close(adapted.encode_prompts(TEXTS, shown).vectors, expected)


def test_adapting_leaves_the_encoder_itself_as_it_was() -> None:
    encoder = made()
    weights = {name: each.clone() for name, each in encoder.tower.state_dict().items()}
    before = encoder.encode_queries(TEXTS)
    encoder.adapt(adapter(), name="another")
    found = encoder.tower.state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert same(encoder.encode_queries(TEXTS), before)
    assert (encoder.name, encoder.contract, encoder.token_fingerprint) == ("tiny", BERT, "")
    assert encoder.encode_documents(TEXTS).token_vectors == ()
    with pytest.raises(ValueError, match="tiny gives no token vectors"):
        encoder.blend()


def test_an_adapter_without_updates_shares_the_models_weights() -> None:
    assert adapter(head_weights()).on(base().tower) is base().tower


def test_the_second_adapter_takes_the_place_of_the_first() -> None:
    plain = adapter(lora_weights(), contract=dataclasses.replace(CONTRACT, token_dim=0))
    twice, once = base().adapt(adapter()).adapt(plain), base().adapt(plain)
    assert same(twice.encode_queries(TEXTS), once.encode_queries(TEXTS))
    assert (twice.token_fingerprint, twice.contract) == ("", plain.contract)
    with pytest.raises(ValueError, match="gives no token vectors"):
        twice.blend()
    back = base().adapt(plain).adapt(adapter(head_weights()))
    assert np.array_equal(back.encode_queries(TEXTS).vectors, base().encode_queries(TEXTS).vectors)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"encoder.layer.7.output.dense.A": (2, 32)}, r"layer\.7\.output\.dense' does not fit"),
        ({"pooler.A": (2, 32), "pooler.B": (32, 2)}, "'pooler' does not fit"),
        ({f"{QUERY_LAYER}.A": (2, 32)}, "query' does not fit"),
        ({f"{QUERY_LAYER}.B": (32, 2)}, "query' does not fit"),
        (
            {f"{QUERY_LAYER}.A": (2, 32), f"{QUERY_LAYER}.B": (32, 3)},
            r"query' is \(32, 3\) times \(2, 32\), the layer \(32, 32\)",
        ),
        (
            {f"{WIDE_LAYER}.A": (2, 32), f"{WIDE_LAYER}.B": (32, 2)},
            r"is \(32, 2\) times \(2, 32\), the layer \(64, 32\)",
        ),
        ({f"{QUERY_LAYER}.A": (32,), f"{QUERY_LAYER}.B": (32, 1)}, "the layer"),
        ({f"{QUERY_LAYER}.A": (1, 1), f"{QUERY_LAYER}.B": (1, 1)}, "the layer"),
    ],
)
def test_an_update_that_fits_no_layer_is_refused_by_the_layers_name(
    weights: dict[str, tuple[int, ...]], message: str
) -> None:
    updates = {f"lora.{name}": torch.ones(shape) for name, shape in weights.items()}
    with pytest.raises(AdapterError, match=message):
        base().adapt(adapter(head_weights() | updates))


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        ({"tokens.weigh.bias": None}, {}, "Missing key.*weigh.bias"),
        ({"tokens.log_cosine": None}, {}, "Missing key.*log_cosine"),
        ({"tokens.extra": torch.zeros(1)}, {}, "Unexpected key.*extra"),
        ({"tokens.project.weight": torch.zeros(9, 64)}, {}, r"size mismatch.*\[9, 64\]"),
        ({}, {"token_dim": 9}, "size mismatch"),
        ({}, {"token_layers": 1}, "size mismatch"),
        ({}, {"token_layers": 4}, "reads 4 layers, the model has 3"),
        ({}, {"token_dim": 0}, "has a token head, and its contract's token_dim is 0"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    weights: dict[str, torch.Tensor | None], changes: dict[str, int], message: str
) -> None:
    every = head_weights() | weights
    kept = {name: each for name, each in every.items() if each is not None}
    with pytest.raises(AdapterError, match=message):
        base().adapt(adapter(kept, contract=dataclasses.replace(CONTRACT, **changes)))


def test_the_token_fingerprint_is_of_what_makes_token_vectors_of_documents() -> None:
    def changed(name: str) -> Adapter:
        weights = adapter().weights
        return adapter(weights | {name: weights[name] + 1e-3})

    first = adapter().token_fingerprint
    assert changed("tokens.project.weight").token_fingerprint != first
    for name in ("tokens.weigh.weight", "tokens.log_maxsim", f"lora.{QUERY_LAYER}.A"):
        assert changed(name).token_fingerprint == first
        assert changed(name).fingerprint != adapter().fingerprint


@pytest.mark.parametrize("change", [{"lora_scale": 0.25}, {"contract": BERT}])
def test_the_fingerprint_is_of_everything_that_counts(change: dict[str, Any]) -> None:
    assert adapter(**change).fingerprint != adapter().fingerprint


def test_the_folder_of_an_adapter_is_an_encoders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bert_base(tmp_path / "base")
    plain = load_encoder(name, device="cpu")
    assert isinstance(plain, TorchEncoder)
    adapter(base=plain.fingerprint, base_name=name).save(tmp_path / "adapted")
    monkeypatch.chdir(tmp_path)
    found = load_encoder("adapted", device="cpu")
    assert isinstance(found, TorchEncoder)
    assert found.name == str(tmp_path / "adapted")
    assert (found.fingerprint, found.contract) == (plain.fingerprint, CONTRACT)
    expected = plain.adapt(adapter(base=plain.fingerprint))
    assert same(found.encode_queries(TEXTS), expected.encode_queries(TEXTS))


def test_an_adapters_folder_beside_another_base_is_refused(tmp_path: Path) -> None:
    name = bert_base(tmp_path / "base")
    adapter(base="a-b-c", base_name=name).save(tmp_path / "adapted")
    with pytest.raises(EncoderMismatch, match="different weights and tokenizer and contract"):
        load_encoder(tmp_path / "adapted", device="cpu")


def test_an_adapter_of_what_is_no_transformer_is_refused(tmp_path: Path) -> None:
    adapter(base_name="hashing").save(tmp_path)
    with pytest.raises(AdapterError, match="names the base 'hashing', which takes no adapter"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("fields", "digest"),
    [
        (
            {"family": "decoder", "pooling": "last", "dim": 8, "list_sizes": (16, 20)},
            "d5ee6804b5b6de2c",
        ),
        (
            {
                "family": "bidirectional",
                "pooling": "mean",
                "dim": 384,
                "query_tokens": 256,
                "document_tokens": 256,
            },
            "f7b5793ef98ab0c9",
        ),
    ],
)
def test_a_contract_without_token_vectors_has_the_digest_it_always_had(
    fields: dict[str, Any], digest: str
) -> None:
    assert Contract(**fields).digest() == digest
    contract = Contract(**fields, token_dim=0, token_layers=2, rerank="listwise")
    assert contract.digest() == digest


def test_every_choice_about_token_vectors_changes_the_digest() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"token_dim": 1},
        {"token_dim": 2},
        {"token_layers": 1},
        {"token_layers": 3},
        {"rerank": "tokens"},
    ]
    digests = {dataclasses.replace(BERT, **each).digest() for each in changes}
    assert len(digests) == len(changes)


def test_a_contract_that_was_saved_before_token_vectors_is_read() -> None:
    fields = BERT.to_dict()
    for name in ("token_dim", "token_layers", "rerank"):
        del fields[name]
    assert Contract.from_dict(fields) == BERT
    assert (BERT.token_dim, BERT.token_layers, BERT.rerank) == (0, 2, "listwise")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_dim": -1}, "token_dim is -1; it must be at least 0"),
        ({"token_layers": 0}, "token_layers is 0; it must be at least 1"),
        ({"rerank": "prf"}, "rerank is 'prf'; expected 'listwise' or 'tokens'"),
    ],
)
def test_a_contract_no_head_could_keep_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BERT, **change)
