"""The objective is its definition, and what is saved is the trained model or is refused."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_support as support
from torch.nn.functional import normalize

from e2rank.encoders.adapter import Adapter
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.torch import TorchEncoder
from e2rank.errors import AdapterError
from e2rank.train import TrainConfig, model, saving, train
from e2rank.train.examples import Example
from e2rank.train.losses import LISTWISE
from e2rank.train.objective import objective, targets
from e2rank.train.sampling import ListBatch

CONFIG = TrainConfig(data=("a",), out="a", temperature=0.1, weight=1.5, scale=4.0)
# Two lists share a text; the second ties for the best.
BATCH = ListBatch(
    (
        Example("q1", ("a", "b", "c"), (0.0, 2.0, 1.0)),
        Example("q2", ("b", "d"), (1.0, 0.0)),
        Example("q3", ("e", "f", "a"), (1.0, 3.0, 3.0)),
    ),
    "s",
    3,
)
CPU = torch.device("cpu")
Make = Callable[[Path], str]
bert, uncurved = support.bert, support.uncurved


def random_rows(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_objective_equals_its_definition_in_loops() -> None:
    wanted = targets(BATCH)
    assert wanted.texts == ("a", "b", "c", "d", "e", "f")
    queries, prompts, documents = random_rows(3, 1), random_rows(3, 2), random_rows(6, 3)
    found = objective(CONFIG, wanted, queries, prompts, documents)

    vector = dict(zip(wanted.texts, documents, strict=True))
    contrast = ranking = 0.0
    for example, query, prompt in zip(BATCH.examples, queries, prompts, strict=True):
        label = dict(zip(example.documents, example.labels, strict=True))
        best = max(example.documents, key=lambda text: label[text])
        rivals = [text for text in vector if label.get(text, -1.0) < label[best]]
        logits = {text: float(query @ vector[text]) / 0.1 for text in [best, *rivals]}
        total = sum(math.exp(logit) for logit in logits.values())
        contrast += math.log(total) - logits[best]
        pairs = [(i, j) for i in label for j in label if label[i] > label[j]]
        gaps = [4.0 * float(prompt @ (vector[i] - vector[j])) for i, j in pairs]
        ranking += sum(math.log1p(math.exp(-gap)) for gap in gaps) / len(gaps)
    assert found.infonce.item() == pytest.approx(contrast / 3, rel=1e-5)
    assert found.listwise.item() == pytest.approx(ranking / 3, rel=1e-5)
    assert found.total.item() == pytest.approx(contrast / 3 + 1.5 * ranking / 3, rel=1e-5)


def test_a_list_without_a_best_document_takes_no_part() -> None:
    level = Example("q4", ("x", "y"), (1.0, 1.0))
    both = targets(dataclasses.replace(BATCH, examples=(*BATCH.examples, level)))
    assert not both.negatives[3].any()
    # One document alone is a positive, not a tie.
    alone = targets(dataclasses.replace(BATCH, examples=(Example("q", ("x",), (0.0,)), level)))
    assert alone.negatives[0].tolist() == [False, True]


def test_documents_of_lists_of_one_query_are_no_negatives_of_each_other() -> None:
    examples = (
        Example("q", ("gold", "low"), (1.0, 0.0)),
        Example("other", ("gold", "far"), (0.0, 1.0)),
        Example("q", ("second", "worse", "second"), (2.0, 1.0, 0.0)),
        # What the list itself says counts, whatever another list of the query says.
        Example("q", ("low", "gold"), (5.0, 3.0)),
    )
    wanted = targets(ListBatch(examples, "s", 3))
    for row, mine in enumerate(examples):
        best = mine.documents[mine.labels.index(max(mine.labels))]
        for place, text in enumerate(wanted.texts):
            if text in mine.documents:
                expected = text != best
            else:
                holders = [each for each in examples if text in each.documents]
                expected = all(each.query != mine.query for each in holders)
            assert wanted.negatives[row, place] == expected, (mine, text)


@pytest.mark.parametrize("among", [1, 2, 3, 9])
def test_negatives_are_of_the_lists_of_a_group(among: int) -> None:
    everywhere, wanted = targets(BATCH), targets(BATCH, among)
    for row, each in enumerate(everywhere.negatives.tolist()):
        start = row - row % among
        group = {text for one in BATCH.examples[start : start + among] for text in one.documents}
        expected = [was and text in group for was, text in zip(each, wanted.texts, strict=True)]
        assert wanted.negatives[row].tolist() == expected


@pytest.mark.parametrize("listwise", LISTWISE)
def test_labels_that_float32_would_make_equal_are_ordered(listwise: str) -> None:
    config = dataclasses.replace(CONFIG, listwise=listwise)
    vectors = random_rows(2, 1), random_rows(2, 2), random_rows(5, 3)

    def loss(start: float, *labels: float) -> float:
        examples = (
            Example("q1", ("a", "b", "c"), tuple(start + label for label in labels)),
            Example("q2", ("d", "e"), (0.99, 1e-9)),
        )
        return objective(config, targets(ListBatch(examples, "s", 3)), *vectors).listwise.item()

    found = loss(1_700_000_000.0, 2.0, 1.0, 0.0)
    assert found == pytest.approx(loss(0.0, 2.0, 1.0, 0.0), rel=1e-6)
    assert found != pytest.approx(loss(0.0, 0.0, 1.0, 2.0), rel=1e-3)


def test_the_teachers_temperature_divides_the_labels() -> None:
    wanted = targets(BATCH)
    vectors = random_rows(3, 1), random_rows(3, 2), random_rows(6, 3)
    soft = dataclasses.replace(CONFIG, listwise="kl", teacher_temperature=5.0)
    divided = dataclasses.replace(wanted, labels=wanted.labels / 5)
    plain = dataclasses.replace(CONFIG, listwise="kl")
    found = objective(soft, wanted, *vectors).listwise
    assert found.item() == objective(plain, divided, *vectors).listwise.item()
    assert found.item() != objective(plain, wanted, *vectors).listwise.item()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "lists.jsonl"
    return support.write_lists(path, support.lists(12))


@pytest.mark.parametrize("make", [support.bert_base, support.qwen_base], ids=["bert", "qwen"])
def test_updates_are_on_the_attention_and_start_at_nothing(tmp_path: Path, make: Make) -> None:
    config = support.config(make(tmp_path / "base"), "a", tmp_path, lora_dropout=0.0)
    trainee = model.load(config, [3], CPU)
    words = trainee.words.queries(["wing shock", "heat"])
    before = trainee.encode(words)
    model.tune(trainee, config)
    np.testing.assert_array_equal(trainee.encode(words), before)
    assert trainee.tower.training
    names = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainee.weights()}
    bert, decoder = {"query", "key", "value", "dense"}, {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert names == (bert if trainee.contract.family == "bidirectional" else decoder)
    assert not any("pooler" in name for name in trainee.weights())


@pytest.mark.parametrize("settings", [{"dropout": True, "lora_dropout": 0.0}, {}], ids=str)
def test_reading_has_a_gradient_and_encoding_has_no_dropout(
    bert: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = support.config(bert, "a", tmp_path, **settings)
    trainee = model.load(config, [3], CPU)
    model.tune(trainee, config)
    for weight in trainee.weights().values():
        # An update starts at nothing, and so does its dropout.
        torch.nn.init.normal_(weight)
    words = trainee.words.prompts(["wing shock"], [["a wing", "a shock"]])
    one, other = trainee.read(words), trainee.read(words)
    assert one.requires_grad
    assert not torch.equal(one, other)
    np.testing.assert_array_equal(trainee.encode(words), trainee.encode(words))
    assert trainee.tower.training


def test_no_token_of_padding_attends_to_nothing_while_a_model_is_trained(tmp_path: Path) -> None:
    config = support.config(support.qwen_base(tmp_path / "base"), "a", tmp_path)
    trainee = model.load(config, [3], CPU)
    assert trainee.tower.side == "left"
    calls: list[dict[str, Any]] = []
    trainee.tower.model.register_forward_pre_hook(
        lambda module, given, named: calls.append(named), with_kwargs=True
    )
    words = trainee.words.queries(["wing", "a wing of a shock and more words"])
    found = trainee.read(words).detach().numpy()
    # Every token of a causal sequence sees the first: it is none of padding.
    assert calls[-1]["input_ids"][:, 0].tolist() == [each.ids[0] for each in words]
    assert len(words[0].ids) < len(words[1].ids)
    assert "attention_mask" not in calls[-1]
    alone = np.concatenate([trainee.encode([each]) for each in words])
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)


def test_the_bases_own_dropout_is_off_unless_asked_for(bert: str, tmp_path: Path) -> None:
    settings = {"tune": "full", "train_documents": True}
    config = support.config(bert, "a", tmp_path, **settings)
    trainee = model.load(config, [3], CPU)
    model.tune(trainee, config)
    words = trainee.words.queries(["wing shock"])
    assert torch.equal(trainee.read(words), trainee.read(words))


def test_a_base_with_an_adapter_or_without_a_transformer_is_refused(
    bert: str, data: str, tmp_path: Path
) -> None:
    adapted = train(support.config(bert, data, tmp_path / "one", steps=1))
    for base in (str(adapted), "hashing"):
        with pytest.raises(ValueError, match="cannot be trained: expected a transformer"):
            train(support.config(base, data, tmp_path / "two"))


def test_an_adapter_reads_queries_as_trained_and_documents_as_the_base(
    bert: str, data: str, tmp_path: Path
) -> None:
    out = train(support.config(bert, data, tmp_path / "out", list_sizes=(2, 3, 9)))
    base, again = load_encoder(bert, device="cpu"), load_encoder(str(out), device="cpu")
    texts = ["a wing", "shock and heat here"]
    np.testing.assert_array_equal(
        again.encode_documents(texts).vectors, base.encode_documents(texts).vectors
    )
    assert again.fingerprint == base.fingerprint
    moved = again.encode_queries(texts).vectors - base.encode_queries(texts).vectors
    assert np.abs(moved).max() > 1e-2
    # Sizes that a list of three can have.
    assert again.contract.list_sizes == (2, 3)
    adapter = Adapter.load(out)
    assert adapter.lora_scale == 2.0
    assert adapter.about["config"]["prompt"] == "text"
    assert adapter.about["steps"] == 4
    assert list(adapter.about["data"]) == [data]


def test_the_control_reads_no_prompt(
    bert: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def spy(config: Any, wanted: Any, queries: Any, prompts: Any, documents: Any) -> Any:
        asked.append(prompts is queries)
        return objective(config, wanted, queries, prompts, documents)

    monkeypatch.setattr("e2rank.train.step.objective", spy)
    control = train(support.config(bert, data, tmp_path / "none", prompt="none", steps=2))
    train(support.config(bert, data, tmp_path / "text", steps=2))
    assert asked == [True, True, False, False]
    adapter = Adapter.load(control)
    assert adapter.contract.list_sizes == ()
    assert adapter.about["config"]["prompt"] == "none"


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("make", [support.bert_base, support.qwen_base], ids=["bert", "qwen"])
def test_a_trained_model_folder_reads_everything_as_trained(
    data: str, tmp_path: Path, make: Make, tune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make(tmp_path / "base")
    trained: list[model.Trainee] = []
    save = saving.save

    def keep(trainee: model.Trainee, *rest: Any) -> None:
        trained.append(trainee)
        save(trainee, *rest)

    monkeypatch.setattr(saving, "save", keep)
    config = support.config(
        base, data, tmp_path / "out", train_documents=True, tune=tune, prompt_document_tokens=7
    )
    again = load_encoder(str(train(config)), device="cpu")
    texts, words = ["a wing", "shock and heat here"], trained[0].words
    pairs = (
        (again.encode_queries(texts), words.queries(texts)),
        (again.encode_documents(texts), words.documents(texts)),
        (again.encode_prompts(texts[:1], [texts]), words.prompts(texts[:1], [texts])),
    )
    for found, tokens in pairs:
        np.testing.assert_allclose(found.vectors, trained[0].encode(tokens), rtol=0, atol=1e-5)
    before = load_encoder(base, device="cpu").encode_documents(texts).vectors
    assert np.abs(pairs[1][0].vectors - before).max() > 1e-2
    assert again.contract == trained[0].contract
    assert (again.contract.list_sizes, again.contract.prompt_document_tokens) == ((3,), 7)
    assert again.fingerprint.split("-")[1] == trained[0].fingerprint.split("-")[1]


def test_an_adapter_that_would_load_untrained_is_refused(
    bert: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchEncoder, "adapt", lambda self, adapter: self)
    # So little training that the two agree to 1e-4 is no excuse.
    for rate in (3e-3, 1e-6):
        out = tmp_path / f"{rate}"
        with pytest.raises(AdapterError, match="read back, gives vectors that differ"):
            train(support.config(bert, data, out, learning_rate=rate, weight=9.0))
        assert not (out / "adapter.json").exists()


def test_a_damaged_contract_of_a_model_folder_is_refused(tmp_path: Path) -> None:
    folder = Path(support.qwen_base(tmp_path / "base"))
    (folder / "contract.json").write_text("{")
    with pytest.raises(ValueError, match="holds no trained model"):
        load_encoder(str(folder))
