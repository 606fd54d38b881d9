"""A configuration that could train nothing is refused; the committed recipe is the paper's."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from e2rank.config import load_recipe
from e2rank.train import TrainConfig
from e2rank.train.examples import read_examples
from e2rank.train.loop import learning_rate

ROOT = Path(__file__).parents[1]
LEAST: dict[str, Any] = {"data": ("a.jsonl",), "out": "a"}


def test_the_least_configuration_is_the_published_objective() -> None:
    config = TrainConfig(**LEAST)
    assert (config.temperature, config.weight, config.scale) == (0.03, 2.0, 10.0)
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (8, 16, 0.05)
    assert (config.listwise, config.schedule, config.warmup) == ("ranknet", "linear", 0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "data names no file"),
        ({"data": "a.jsonl"}, "data is 'a.jsonl'; it must be a list"),
        ({"out": ""}, "out is empty"),
        ({"out": 3}, "out is 3; it must be a string"),
        ({"prompt": "title"}, "prompt is 'title'; expected one of text, vectors, none"),
        ({"prompt": "vectors", "train_documents": True}, "soft tokens are made of vectors that"),
        ({"tune": "heads"}, "tune='heads' with prompt='text' would train nothing"),
        ({"corpora": "a.jsonl"}, "corpora is 'a.jsonl'; it must be a list"),
        ({"tune": "all"}, "tune is 'all'; expected one of lora, full"),
        ({"tune": "full"}, "train_documents=false is refused"),
        ({"listwise": "rank"}, "listwise is 'rank'; expected one of ranknet"),
        ({"schedule": "cosine"}, "schedule is 'cosine'"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"train_documents": 1}, "train_documents is 1; it must be true or false"),
        ({"lora_rank": 0}, "lora_rank is 0; it must be a whole number, at least 1"),
        ({"lists": 2.5}, "lists is 2.5; it must be a whole number"),
        ({"negatives_among": 0}, "negatives_among is 0; it must be a whole number"),
        ({"wordings": {"nq": {"query": "x"}}}, "wordings has query = 'x' for 'nq'; expected"),
        ({"wordings": {"nq": {"query_prefix": 3}}}, "wordings has query_prefix = 3 for 'nq'"),
        ({"lists": True}, "lists is True"),
        ({"steps": 0}, "steps is 0"),
        ({"chunk_tokens": None}, "chunk_tokens is None"),
        ({"seed": -1}, "seed is -1; it must be a whole number, at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be a number, above 0"),
        ({"learning_rate": "high"}, "learning_rate is 'high'; it must be a number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"clip": float("inf")}, "clip is inf"),
        ({"clip": 10**400}, "clip is 10"),
        ({"warmup": 1.5}, "warmup is 1.5; it must be a number, at least 0 and at most 1"),
        ({"weight": -1.0}, "weight is -1.0"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"list_sizes": (1, 5)}, "list_sizes is"),
        ({"list_sizes": ()}, "list_sizes is"),
        ({"list_sizes": (5, "6")}, "list_sizes is"),
        ({"dev_run": "run.trec"}, "dev_run is given without dev"),
    ],
    ids=str,
)
def test_what_could_not_be_trained_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**LEAST | changes)


def test_lists_of_a_recipe_become_tuples_and_go_back() -> None:
    config = TrainConfig(data=["a.jsonl"], out="a", list_sizes=[5, 6])  # type: ignore[arg-type]
    assert (config.data, config.list_sizes) == (("a.jsonl",), (5, 6))
    assert TrainConfig(**config.to_dict()) == config


def test_the_committed_recipe_is_the_second_stage_as_published() -> None:
    config = load_recipe(TrainConfig, ROOT / "training" / "e2rank-0.6b.toml")
    assert (config.lists, config.negatives_among, config.shuffle) == (8 * 8 * 2, 8, False)
    assert (config.learning_rate, config.schedule, config.warmup) == (5e-6, "linear", 0.03)
    assert (config.epochs, config.steps, config.list_sizes) == (1, None, (16,))
    assert (config.tune, config.train_documents, config.prompt) == ("full", True, "text")
    assert (config.precision, config.gradient_checkpointing) == ("bfloat16", True)
    assert (config.listwise, config.temperature) == ("ranknet", 0.03)
    assert (config.weight, config.scale) == (2.0, 10.0)


def test_changes_take_the_place_of_a_recipes_values_and_unknown_ones_are_refused() -> None:
    recipe = ROOT / "training" / "e2rank-0.6b.toml"
    assert load_recipe(TrainConfig, recipe, {"lists": 4}).lists == 4
    with pytest.raises(ValueError, match="no field 'list'; did you mean 'lists'"):
        load_recipe(TrainConfig, recipe, {"list": 4})


def test_the_committed_examples_are_of_both_forms_and_two_sources() -> None:
    examples = list(read_examples(ROOT / "training" / "example.jsonl"))
    assert len(examples) == 6
    assert {each.source for each in examples} == {"aero", "kitchen"}
    assert [each.documents[int(max(range(len(each)), key=each.labels.__getitem__))][:9]
            for each in examples] == [
        "Vortices ", "Propeller", "Heat tran", "Hard-boil", "Soda brea", "Rinse wit"
    ]  # fmt: skip


def test_the_learning_rate_rises_to_its_highest_and_falls_to_nearly_zero() -> None:
    config = TrainConfig(**LEAST, learning_rate=2.0, warmup=0.2)
    rates = [learning_rate(step, 10, config) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[2:] == [2.0 * (10 - step) / 8 for step in range(2, 10)]


def test_a_constant_schedule_stays_after_its_warm_up() -> None:
    config = TrainConfig(**LEAST, learning_rate=2.0, warmup=0.2, schedule="constant")
    assert [learning_rate(step, 10, config) for step in range(10)] == [1.0] + [2.0] * 9


def test_without_warm_up_the_first_step_is_the_highest() -> None:
    config = TrainConfig(**LEAST, learning_rate=2.0, warmup=0.0)
    assert learning_rate(0, 4, config) == 2.0


def test_its_batches_are_made_as_it_says() -> None:
    config = TrainConfig(**LEAST, lists=3, list_sizes=(4,), token_budget=9, shuffle=False, seed=5)
    assert dataclasses.asdict(config.sampling()) == {
        "lists": 3, "list_sizes": (4,), "token_budget": 9, "shuffle": False, "seed": 5
    }  # fmt: skip
