"""The contract: saved whole, hashed whole, refused when it makes no sense, shared out fairly."""

import dataclasses
import json
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from e2rank.contract import Contract, Rerank, fair_share
from e2rank.encoders.presets import e2rank_contract

CONTRACT = Contract(family="decoder", pooling="last", dim=8, list_sizes=(16, 20))
FIELDS = [field.name for field in dataclasses.fields(Contract)]
OTHER = {
    "family": "bidirectional",
    "pooling": "cls",
    "list_sizes": (16,),
    "fusion_weight": 0.5,
    "rerank": "tokens",
    "prompt": "vectors",
}


def changed(name: str) -> Contract:
    """The contract with another value in this one field."""
    value = getattr(CONTRACT, name)
    other = OTHER.get(name, value + "x" if isinstance(value, str) else None)
    return dataclasses.replace(CONTRACT, **{name: value + 1 if other is None else other})


def largest_cap(lengths: Sequence[int], room: int, most: int) -> int | None:
    """The definition of a fair share: try every cap, keep the last that fits."""
    found = None
    for cap in range(most + 1):
        if sum(min(length, cap) for length in lengths) <= room:
            found = cap
    return found


def test_a_contract_survives_json() -> None:
    again = Contract.from_dict(json.loads(json.dumps(CONTRACT.to_dict())))
    assert again == CONTRACT
    assert again.digest() == CONTRACT.digest()


def test_a_contract_is_saved_with_every_field() -> None:
    assert sorted(CONTRACT.to_dict()) == sorted(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_changes_the_digest(name: str) -> None:
    assert changed(name).digest() != CONTRACT.digest()


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_survives_json(name: str) -> None:
    contract = changed(name)
    assert Contract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_equal_contracts_have_one_digest_of_sixteen_hex_digits() -> None:
    assert changed("dim").digest() == changed("dim").digest()
    assert f"{int(CONTRACT.digest(), base=16):016x}" == CONTRACT.digest()


def test_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="a contract has no field 'querry_prefix'"):
        Contract.from_dict(CONTRACT.to_dict() | {"querry_prefix": ""})


@pytest.mark.parametrize("name", ["family", "pooling", "dim"])
def test_a_missing_field_is_refused_by_name(name: str) -> None:
    fields = CONTRACT.to_dict()
    del fields[name]
    with pytest.raises(ValueError, match=name):
        Contract.from_dict(fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("family", "encoder"),
        ("pooling", "max"),
        ("dim", 0),
        ("query_tokens", 0),
        ("document_tokens", -1),
        ("prompt_tokens", 0),
        ("prompt_document_tokens", 0),
        ("fusion_weight", -0.1),
        ("fusion_weight", 1.1),
        ("fusion_weight", float("nan")),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_field(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is"):
        dataclasses.replace(CONTRACT, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("query_tokens", "20", "a whole number"),
        ("query_tokens", 20.0, "a whole number"),
        ("dim", True, "a whole number"),
        ("fusion_weight", "half", "a number"),
        ("query_prefix", None, "a string"),
        ("pooling", 3, "a string"),
        ("list_sizes", 16, "a list of whole numbers"),
        ("list_sizes", ["16"], "a list of whole numbers"),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(name: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected {says}$"):
        Contract.from_dict(CONTRACT.to_dict() | {name: value})


@pytest.mark.parametrize("own", ["tokens", "listwise"])
def test_a_fusion_weight_is_that_of_the_models_own_rerank(own: Rerank) -> None:
    contract = dataclasses.replace(CONTRACT, token_dim=8, rerank=own, fusion_weight=0.9)
    found = {kind: contract.weight_of(kind) for kind in ("tokens", "listwise")}
    assert found == {"tokens": 0.6, "listwise": 0.6} | {own: 0.9}


def test_a_prompt_is_trained_when_it_had_list_sizes() -> None:
    assert CONTRACT.prompt_trained
    assert not dataclasses.replace(CONTRACT, list_sizes=()).prompt_trained


def test_the_listwise_text_of_e2rank_is_the_one_it_was_trained_on() -> None:
    assert e2rank_contract(1024).listwise("what lifts a wing", ["Air.", "A {propeller}."]) == (
        "<|im_start|>user\n"
        "Given a web search query and some relevant documents, rerank the documents that answer "
        "the query:\n"
        "Documents:\n"
        "[1] Air.\n"
        "[2] A {propeller}.\n"
        "Query: what lifts a wing<|endoftext|><|im_end|>\n"
        "<|im_start|>assistant\n"
        "<think>\n"
        "\n"
        "</think>\n"
        "\n"
    )


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(-5, 200), st.integers(1, 50))
@example([2, 10, 10], 12, 8)
@example([], -1, 4)
@example([0, 0], -1, 4)
@example([0, 5], 0, 4)
def test_a_fair_share_is_the_largest_cap_that_fits(
    lengths: list[int], room: int, most: int
) -> None:
    expected = largest_cap(lengths, room, most)
    if expected is None or (expected < 1 and any(lengths)):
        with pytest.raises(ValueError, match=f"into {max(room, 0)} tokens of the prompt"):
            fair_share(lengths, room, most)
    else:
        assert fair_share(lengths, room, most) == expected


def test_short_documents_leave_their_rest_to_long_ones() -> None:
    assert fair_share([1, 1, 100, 100], room=42, most=96) == 20


def test_documents_that_do_not_get_one_token_each_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="3 documents do not fit into 2 tokens of the prompt; sh"):
        fair_share([5, 5, 5], room=2, most=96)
