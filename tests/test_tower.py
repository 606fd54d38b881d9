"""The tower: a text's states and vector are its own, as the model alone would give them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from encoders_support import (
    BERT,
    QWEN,
    abstracts,
    assert_close,
    byte_pairs,
    made,
    plainly,
    tiny_bert,
    tiny_qwen,
    wordpiece,
)

from e2rank.contract import Contract
from e2rank.encoders.tokens import Tokens, Wording
from e2rank.encoders.tower import Read, Tower

# Short and long by turns: in a batch every text but one is padded.
TEXTS = ["", *(text[: (position * 71) % 260 + 3] for position, text in enumerate(abstracts(6)))]
LISTS = [list(abstracts(count)) for count in (0, 3, 1, 2, 0, 4, 1)]

each_side = pytest.mark.parametrize("side", ["left", "right"])
each_kind = pytest.mark.parametrize("kind", ["documents", "prompts"])
each_contract = pytest.mark.parametrize(
    "contract", [BERT, QWEN], ids=lambda contract: contract.family
)


def tower_of(contract: Contract, side: str = "right", **changes: Any) -> Tower:
    """A tower of the family's tiny model."""
    model = tiny_qwen() if contract.family == "decoder" else tiny_bert()
    return Tower(model, contract, side=side, **changes).eval()


def sequences(contract: Contract, kind: str) -> list[Tokens]:
    """The texts as documents, or as prompts of a pooled query and what is not pooled."""
    tokenizer = byte_pairs() if contract.family == "decoder" else wordpiece()
    words = Wording(tokenizer, contract)
    if kind == "prompts":
        return words.prompts([f"wing {text}" for text in TEXTS], LISTS)
    return words.documents([f"wing {text}" for text in TEXTS])


@torch.inference_mode()
def read(tower: Tower, texts: Sequence[Tokens], layers: int = 0) -> Read:
    """Without gradients."""
    return tower(texts, layers)


@torch.inference_mode()
def alone(tower: Tower, tokens: Tokens, layers: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The model called on one sequence by hand: (pooled, hidden) of the last layers, and states."""
    given = tower.model(
        input_ids=torch.tensor([tokens.ids]),
        position_ids=torch.tensor([list(tokens.positions)]),
        output_hidden_states=True,
    )
    shown = [each[0, : tokens.pooled] for each in given.hidden_states[-layers:]]
    last = given.last_hidden_state[0, : tokens.pooled]
    assert torch.equal(shown[-1], last)
    return last, shown


@each_kind
@each_side
@each_contract
def test_states_are_those_of_the_pooled_span_in_the_last_layers(
    contract: Contract, side: str, kind: str
) -> None:
    tower, texts = tower_of(contract, side), sequences(contract, kind)
    found = read(tower, texts, 2)
    assert [len(states) for states in found.states] == [each.pooled for each in texts]
    for states, tokens in zip(found.states, texts, strict=True):
        _, layers = alone(tower, tokens, 2)
        expected = [
            [x / sum(y * y for y in row) ** 0.5 for x in row]
            for layer in layers
            for row in layer.double().tolist()
        ]
        wide = np.hstack(np.split(np.array(expected), 2))
        assert states.dtype == torch.float32
        assert_close(states.numpy(), wide)


@each_kind
@each_contract
def test_states_depend_neither_on_the_batch_nor_on_the_side_of_padding(
    contract: Contract, kind: str
) -> None:
    texts = sequences(contract, kind)
    right = read(tower_of(contract, "right"), texts, 3)
    left = read(tower_of(contract, "left"), texts[::-1], 3)
    assert_close(left.vectors.numpy()[::-1], right.vectors.numpy())
    for place, states in enumerate(right.states):
        assert_close(left.states[len(texts) - 1 - place].numpy(), states.numpy())
        single = read(tower_of(contract, "left"), [texts[place]], 3)
        assert_close(single.states[0].numpy(), states.numpy())
        assert_close(single.vectors[0].numpy(), right.vectors[place].numpy())


@pytest.mark.parametrize("layers", [1, 2, 3])
@each_contract
def test_each_layers_part_of_a_state_has_unit_length(contract: Contract, layers: int) -> None:
    for states in read(tower_of(contract), sequences(contract, "documents"), layers).states:
        assert states.shape[1] == layers * 32
        parts = states.reshape(len(states), layers, 32)
        assert_close(parts.norm(dim=2).numpy(), 1.0)


def test_more_layers_only_put_earlier_ones_in_front() -> None:
    texts = sequences(BERT, "documents")
    one, three = (read(tower_of(BERT), texts, layers).states for layers in (1, 3))
    for short, long in zip(one, three, strict=True):
        assert_close(long[:, 64:].numpy(), short.numpy())


@each_side
def test_a_vector_is_the_mean_of_its_own_tokens_and_nothing_elses(side: str) -> None:
    tower, texts = tower_of(BERT, side), sequences(BERT, "prompts")
    found = read(tower, texts).vectors
    for vector, tokens in zip(found, texts, strict=True):
        last, _ = alone(tower, tokens, 1)
        mean = [sum(column) / len(last) for column in last.double().T.tolist()]
        length = sum(x * x for x in mean) ** 0.5
        assert_close(vector.numpy(), [x / length for x in mean])


@each_side
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@each_contract
def test_vectors_are_those_of_a_plain_call_pooled_and_normalised(
    contract: Contract, pooling: Any, side: str
) -> None:
    contract = dataclasses.replace(contract, pooling=pooling)
    tower = tower_of(contract, side)
    words = Wording(byte_pairs() if contract.family == "decoder" else wordpiece(), contract)
    expected = plainly(tower.model, words, TEXTS)
    assert_close(read(tower, words.documents(TEXTS)).vectors.numpy(), expected)
    assert_close(made(contract, side=side).encode_documents(TEXTS).vectors, expected)


def test_states_come_only_when_asked_for_and_change_no_vector() -> None:
    texts = sequences(BERT, "documents")
    without, with_states = read(tower_of(BERT), texts), read(tower_of(BERT), texts, 2)
    assert without.states == ()
    assert_close(with_states.vectors.numpy(), without.vectors.numpy(), most=1e-6)


def test_a_head_changes_vectors_and_not_states() -> None:
    head = torch.nn.Linear(32, 8)
    texts = sequences(BERT, "documents")
    plain, headed = (
        read(tower_of(BERT), texts, 2),
        read(tower_of(BERT, head=head.requires_grad_(False)), texts, 2),
    )
    assert headed.vectors.shape == (len(texts), 8)
    for one, other in zip(plain.states, headed.states, strict=True):
        assert_close(one.numpy(), other.numpy(), most=1e-6)


def test_vectors_and_states_carry_gradients_into_the_model() -> None:
    tower, texts = tower_of(BERT), sequences(BERT, "documents")
    weight = tower.model.get_parameter("encoder.layer.0.output.dense.weight")
    found = tower(texts, 2)
    for loss in (found.vectors[:, 0].sum(), torch.cat(found.states)[:, 40].sum()):
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert gradient.abs().max() > 0


def given_to(tower: Tower, side: str) -> set[str]:
    """Names of what the model is given of a padded batch."""
    names: set[str] = set()
    tower.model.register_forward_pre_hook(
        lambda _, args, given: names.update(given), with_kwargs=True
    )
    with torch.no_grad():
        tower([Tokens([5, 6, 7], range(3), 3, cut=False), Tokens([5], range(1), 1, cut=False)],
              side=side)  # fmt: skip
    return names


def test_only_texts_that_look_back_and_are_padded_behind_are_read_without_a_mask() -> None:
    masked = {"attention_mask", "position_ids"}
    assert not masked & given_to(tower_of(QWEN), "right")
    assert masked <= given_to(tower_of(QWEN), "left")
    for side in ("left", "right"):
        assert masked <= given_to(tower_of(BERT), side)
    # A decoder whose tokens see all others, and one whose prompt counts otherwise.
    tower = tower_of(QWEN)
    tower.model.config.is_causal = False
    for layer in tower.model.layers:
        layer.self_attn.is_causal = False
    assert masked <= given_to(tower, "right")
    tower = tower_of(QWEN)
    assert not tower._needs_no_mask([Tokens([5, 6], [0, 0], 2, cut=False)])


def test_whether_a_model_looks_back_is_found_without_changing_it() -> None:
    tower = tower_of(QWEN).train()
    tower.model.layers[0].eval()
    modes = [each.training for each in tower.modules()]
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        assert tower._looks_back
    assert [each.training for each in tower.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not tower_of(QWEN).to(torch.bfloat16)._looks_back
