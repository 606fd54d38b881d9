"""Training prompts of vectors: the gate opens, the result reads as trained, documents stay."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_support as support
from safetensors.torch import load_file
from train_support import Killed, killed_after

from e2rank.config import load_recipe
from e2rank.encoders.adapter import Adapter
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.torch import TorchEncoder
from e2rank.errors import AdapterError
from e2rank.train import TrainConfig, model, saving, train
from e2rank.train.distributed import World
from e2rank.train.examples import Example
from e2rank.train.log import read_log
from e2rank.train.model import Trainee
from e2rank.train.objective import objective, targets
from e2rank.train.sampling import ListBatch
from e2rank.train.step import freeze, learn

ROOT = Path(__file__).parents[1]
bert, uncurved = support.bert, support.uncurved
CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"prompt": "vectors", "lists": 8, "warmup": 0.0, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "lists.jsonl"
    return support.write_lists(path, support.lists(16))


def loaded(folder: Path | str) -> TorchEncoder:
    encoder = load_encoder(str(folder), device="cpu")
    assert isinstance(encoder, TorchEncoder)
    return encoder


@pytest.mark.parametrize("make", [support.bert_base, support.qwen_base], ids=["bert", "qwen"])
@pytest.mark.parametrize("tune", ["lora", "heads"])
def test_training_opens_the_gate_and_leaves_documents_as_they_are(
    data: str, tmp_path: Path, make: Any, tune: str
) -> None:
    base = make(tmp_path / "base")
    out = train(support.config(base, data, tmp_path / "out", **QUICK, steps=30, tune=tune))
    lines = [line["listwise"] for line in read_log(out)]
    assert np.mean(lines[-6:]) < 0.9 * np.mean(lines[:6])
    weights = Adapter.load(out).weights
    kinds = {name.split(".")[0] for name in weights}
    assert kinds == ({"soft", "lora"} if tune == "lora" else {"soft"})
    assert weights["soft.gate"].abs() > 1e-2

    before, again = loaded(base), loaded(out)
    texts = ["a wing", "shock and heat here"]
    documents = again.encode_documents(texts).vectors
    np.testing.assert_array_equal(documents, before.encode_documents(texts).vectors)
    asked = again.encode_queries(texts).vectors
    moved = np.abs(asked - before.encode_queries(texts).vectors).max()
    assert moved > 1e-2 if tune == "lora" else moved == 0
    prompts = again.encode_vector_prompts(texts, asked, [documents] * 2).vectors
    assert np.abs(prompts - asked).max() > 1e-3
    assert (again.contract.prompt, again.contract.list_sizes) == ("vectors", (3,))
    assert again.fingerprint == before.fingerprint


@pytest.mark.parametrize("chunk", [8, 8192])
@pytest.mark.parametrize("tune", ["lora", "heads"])
def test_a_steps_loss_is_the_objective_of_the_adapters_own_vectors(
    bert: str, tmp_path: Path, chunk: int, tune: str
) -> None:
    # Queries whose order by length is not the one that they come in.
    pairs = [("wing", ("a", "b c d e f", "g h")), ("a shock here", ("i j k", "l")), ("jet", ("m",))]
    examples = [Example(query, own, tuple(map(float, range(len(own))))) for query, own in pairs]
    settings = {"prompt": "vectors", "lora_dropout": 0.0, "chunk_tokens": chunk, "tune": tune}
    config = support.config(bert, "a", tmp_path, **settings)
    trainee = model.load(config, [3], CPU)
    frozen = freeze(trainee, examples, tmp_path, World())
    model.tune(trainee, config)
    assert trainee.soft is not None
    trainee.soft.gate.data.fill_(0.05)
    for weight in trainee.weights().values():
        weight.data += 0.01
    found, tokens = learn(trainee, config, ListBatch(tuple(examples), "s", 3), frozen, World())

    wanted = targets(ListBatch(tuple(examples), "s", 3))
    again = loaded(bert).adapt(saving.adapter(trainee, config, {}))
    queries, lists = [each for each, _ in pairs], [own for _, own in pairs]
    asked = again.encode_queries(queries)
    shown = [again.encode_documents(own).vectors for own in lists]
    prompts = again.encode_vector_prompts(queries, asked.vectors, shown)
    texts = again.encode_documents(wanted.texts).vectors
    vectors = map(torch.from_numpy, (asked.vectors, prompts.vectors, texts))
    expected = objective(config, wanted, *vectors)
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-4)
    assert found.listwise.item() == pytest.approx(expected.listwise.item(), rel=1e-4)
    assert tokens == asked.tokens + prompts.tokens
    named = trainee.weights().items()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for _, weight in named)
    assert {name.split(".")[0] for name, _ in named} >= {"soft"}


def test_chunks_do_not_change_the_gradients(bert: str, tmp_path: Path) -> None:
    examples = [Example("wing", ("a", "b c d", "e"), (0.0, 1.0, 2.0)),
                Example("a long shock here", ("f g", "h"), (1.0, 0.0))]  # fmt: skip
    gradients = []
    for chunk in (8, 8192):
        settings = {"prompt": "vectors", "lora_dropout": 0.0, "chunk_tokens": chunk}
        config = support.config(bert, "a", tmp_path, **settings)
        trainee = model.load(config, [3], CPU)
        frozen = freeze(trainee, examples, tmp_path, World())
        torch.manual_seed(1)
        model.tune(trainee, config)
        assert trainee.soft is not None
        trainee.soft.gate.data.fill_(0.05)
        learn(trainee, config, ListBatch(tuple(examples), "s", 3), frozen, World())
        gradients.append({name: each.grad for name, each in trainee.weights().items()})
    for name, one in gradients[0].items():
        torch.testing.assert_close(one, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    bert: str, data: str, tmp_path: Path
) -> None:
    settings = QUICK | {"steps": 5, "save_every": 2, "lists": 4}
    whole = train(support.config(bert, data, tmp_path / "whole", **settings))
    config = support.config(bert, data, tmp_path / "cut", **settings)
    with pytest.raises(Killed):
        train(config, progress=killed_after(3))
    out = train(config, resume=True)
    mine, theirs = (load_file(each / "adapter.safetensors") for each in (out, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_soft_prompt_that_would_load_otherwise_is_refused(
    bert: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt = TorchEncoder.adapt

    def closed(self: TorchEncoder, adapter: Adapter, **rest: Any) -> TorchEncoder:
        weights = adapter.weights | {"soft.gate": torch.zeros(())}
        return adapt(self, dataclasses.replace(adapter, weights=weights), **rest)

    monkeypatch.setattr(TorchEncoder, "adapt", closed)
    with pytest.raises(AdapterError, match="read back, gives vectors that differ"):
        train(support.config(bert, data, tmp_path / "out", **QUICK, tune="heads"))


def test_the_control_of_the_same_recipe_reads_no_prompt(
    bert: str, data: str, tmp_path: Path
) -> None:
    out = train(support.config(bert, data, tmp_path / "out", **QUICK | {"prompt": "none"}))
    adapter = Adapter.load(out)
    assert not any(name.startswith("soft.") for name in adapter.weights)
    assert (adapter.contract.prompt, adapter.contract.list_sizes) == ("text", ())


def test_the_measurement_shows_as_many_vectors_as_the_longest_list(
    bert: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    texts = [*support.WORDS, "wing shock"]
    for name, rows in (("corpus", texts), ("queries", ["wing"])):
        lines = [json.dumps({"_id": f"{name[0]}{n}", "text": text}) for n, text in enumerate(rows)]
        (beir / f"{name}.jsonl").write_text("\n".join(lines))
    head = "query-id\tcorpus-id\tscore\n"
    (beir / "qrels" / "dev.tsv").write_text(head + "q0\tc8\t2\nq0\tc0\t1")
    order = [3, 8, 1, 0, 5]
    run = [f"q0 Q0 c{each} {n} {9 - n} x" for n, each in enumerate(order, 1)]
    (tmp_path / "run.trec").write_text("\n".join(run))
    settings = QUICK | {"dev": str(beir), "dev_run": str(tmp_path / "run.trec"), "steps": 6}
    whole, shown = Trainee.vector_prompts, list[int]()

    def spy(trainee: Trainee, queries: Any, asked: Any, vectors: Any) -> np.ndarray:
        shown.extend(map(len, vectors))
        return whole(trainee, queries, asked, vectors)

    monkeypatch.setattr(Trainee, "vector_prompts", spy)
    out = train(support.config(bert, data, tmp_path / "out", **settings))
    assert set(shown) == {3}
    again = loaded(out)
    vectors = again.encode_documents([texts[each] for each in order]).vectors
    asked = again.encode_queries(["wing"]).vectors
    prompt = again.encode_vector_prompts(["wing"], asked, [vectors[:3]]).vectors[0]
    best = [order[place] for place in np.argsort(-(vectors @ prompt))]
    gain = 2 / np.log2(best.index(8) + 2) + 1 / np.log2(best.index(0) + 2)
    last = [line["dev"] for line in read_log(out) if "dev" in line][-1]
    assert last["prompt"] == pytest.approx(gain / (2 + 1 / np.log2(3)))


def test_lists_may_name_their_documents_by_id_in_corpora(bert: str, tmp_path: Path) -> None:
    whole = support.lists(8)
    texts = sorted({text for row in whole for text in row["documents"]})
    corpus = [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    rows = [
        {key: row[key] for key in ("query", "labels", "source")}
        | {"ids": [f"d{texts.index(text)}" for text in row["documents"]]}
        for row in whole
    ]
    names = {"corpora": (support.write_lists(tmp_path / "corpus.jsonl", corpus),)}
    by_id = support.write_lists(tmp_path / "ids.jsonl", rows)
    by_text = support.write_lists(tmp_path / "texts.jsonl", whole)
    one = train(support.config(bert, by_id, tmp_path / "one", **QUICK, **names))
    other = train(support.config(bert, by_text, tmp_path / "other", **QUICK))
    assert support.losses(one) == support.losses(other)
    assert list(Adapter.load(one).about["data"]) == [by_id, *names["corpora"]]


@pytest.mark.parametrize("prompt", ["text", "vectors"])
def test_the_committed_recipes_of_both_kinds_name_files_that_are_there(prompt: str) -> None:
    config = load_recipe(TrainConfig, ROOT / "training" / f"minilm-{prompt}.toml")
    assert config.prompt == prompt
    assert (config.tune, config.listwise, config.train_documents) == ("lora", "kl", False)
    assert len(config.data) == len(config.corpora) == 3
    assert all((ROOT / name).is_file() for name in (*config.data, *config.corpora))
