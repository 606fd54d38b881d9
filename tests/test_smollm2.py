"""What SmolLM2 is trained on is apart from what it is measured on, and its family trains."""

import dataclasses
import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import train_support as support
import transformers
from encoders_support import ROOT, SMALL, byte_pairs, random_model

from e2rank.config import load_recipe
from e2rank.encoders.load import load_trained
from e2rank.train import TrainConfig, train
from e2rank.train.examples import Example, read_lists

NAMES = ("smollm2_lists", "bench_smollm2", "models")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts of `training` and `benchmarks`, imported from where they are."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("training", "benchmarks"):
            patch.syspath_prepend(str(ROOT / folder))
        yield {name: importlib.import_module(name) for name in NAMES}


@pytest.mark.parametrize("source", ["squad", "pubmedqa", "medquad"])
def test_no_query_is_both_trained_on_and_held_out(
    scripts: dict[str, ModuleType], source: str
) -> None:
    folder = ROOT / "training" / "minilm"
    corpus = str(folder / f"{source}-documents.jsonl.gz")
    examples = read_lists([str(folder / f"{source}.jsonl.gz")], [corpus])
    learned, held = scripts["smollm2_lists"].split(source, examples)
    assert len({each.query for each in held}) == len(held) == 60
    assert not {each.query for each in held} & {each.query for each in learned}
    assert {each.query for each in [*held, *learned]} == {each.query for each in examples}
    # The order of the file makes no difference, so the rule is the seed alone.
    again = scripts["smollm2_lists"].split(source, examples[::-1])[1]
    assert [each.query for each in again] == [each.query for each in held]


def test_quality_is_ndcg_of_how_many_the_teacher_puts_below(
    scripts: dict[str, ModuleType],
) -> None:
    lists = [
        Example("one", ("a", "b", "c"), (0.5, 2.0, 0.5)),
        Example("two", ("a", "b"), (1.0, 3.0)),
    ]
    scores = np.array([0.9, 0.8, 0.1, 0.2, 0.3])
    found = scripts["bench_smollm2"].quality("s", lists, scores)
    # Gains 0, 2, 0 shown as a, b, c; then gains 0, 1 shown as b, a.
    assert found == {"s-0": pytest.approx(1 / math.log2(3)), "s-1": pytest.approx(1.0)}


def test_the_second_recipe_starts_where_the_first_ends() -> None:
    first, second = (
        load_recipe(TrainConfig, ROOT / "training" / f"{name}.toml")
        for name in ("smollm2-contrastive", "smollm2")
    )
    assert second.base == first.out
    assert (first.data, first.corpora) == (second.data, second.corpora)
    assert all("held-out" not in each for each in first.data)


@pytest.mark.parametrize("prompt", ["text", "none"])
def test_a_llama_is_trained_with_its_documents_and_read_back(
    tmp_path: Path, scripts: dict[str, ModuleType], prompt: str
) -> None:
    models = scripts["models"]
    contract = dataclasses.replace(models.SMOLLM2, dim=32)
    assert contract.listwise("lift", ["a wing"]).endswith("Query: lift\nThis is about the")
    config = transformers.LlamaConfig(**SMALL, vocab_size=720, num_key_value_heads=1)
    base = tmp_path / "base"
    random_model(transformers.LlamaForCausalLM, config).save_pretrained(base)
    (base / "tokenizer.json").write_text(byte_pairs().to_str(), encoding="utf-8")
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right"}
    (base / "tokenizer_config.json").write_text(json.dumps(words))
    (base / "contract.json").write_text(json.dumps(contract.to_dict()), encoding="utf-8")

    data = support.write_lists(tmp_path / "data.jsonl", support.lists(8))
    changes = {"prompt": prompt, "train_documents": True, "steps": 2}
    out = train(support.config(str(base), data, tmp_path / "out", **changes))
    before, after = (load_trained(each, device="cpu") for each in (base, out))
    moved = before.encode_documents(["wing"]).vectors - after.encode_documents(["wing"]).vectors
    assert np.abs(moved).max() > 1e-3
    assert after.contract.prompt_trained == (prompt == "text")
