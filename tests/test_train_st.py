"""The loss for sentence-transformers: its value, and a real run of their trainer."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from encoders_support import qwen, tiny_qwen
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn.functional import normalize

from e2rank.train.config import TrainConfig
from e2rank.train.contrastive import infonce
from e2rank.train.examples import Example
from e2rank.train.losses import LISTWISE
from e2rank.train.objective import objective, targets
from e2rank.train.sampling import ListBatch
from e2rank.train.st import ListwiseLoss

WORDS = [f"w{number}" for number in range(40)]
# Four lists of three documents; the second ties, and the third lacks its last document.
GAINS = [[0.0, 2.0, 1.0], [1.0, 1.0, 0.0], [3.0, 1.0, math.nan], [0.1, 0.2, 0.3]]


@pytest.fixture
def model(tmp_path: Path) -> SentenceTransformer:
    """A random BERT of one layer that reads the words above, without dropout."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(
        WordLevel({word: place for place, word in enumerate([*special, *WORDS])}, "[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=24, **names
    ).save_pretrained(tmp_path / "bert")
    config = transformers.BertConfig(
        vocab_size=44,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=24,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    body = Transformer(str(tmp_path / "bert"))
    return SentenceTransformer(modules=[body, Pooling(16, "mean")], device="cpu")


def texts() -> dict[str, list[str]]:
    """The text columns of four rows, no two texts alike."""
    names = ("query", "prompt", "document_1", "document_2", "document_3")
    return {
        name: [f"{WORDS[5 * row + column]} {WORDS[column]} {WORDS[row + 30]}" for row in range(4)]
        for column, name in enumerate(names)
    }


def vectors(model: SentenceTransformer) -> dict[str, Tensor]:
    """What the model's own `encode` makes of each column, brought to unit length."""
    return {
        name: normalize(model.encode(column, convert_to_tensor=True), dim=-1)
        for name, column in texts().items()
    }


def value(model: SentenceTransformer, gains: Any = GAINS, **options: Any) -> Tensor:
    """The loss of one batch of these rows."""
    features = [model.preprocess(column) for column in texts().values()]
    return ListwiseLoss(model, **options)(features, torch.tensor(gains))


def by_hand(model: SentenceTransformer, *, weight: float, scale: float, listwise: str) -> Tensor:
    """The loss of those rows from its two parts, every index and negative written down."""
    found = vectors(model)
    documents = torch.stack([found[f"document_{n}"] for n in (1, 2, 3)], 1)
    allowed = torch.ones(4, 12, dtype=torch.bool)
    allowed[:, 8] = False  # no document: the third list's last
    allowed[1, 3] = False  # equal to the second list's positive, which is the first of the two
    allowed[1, 4] = False
    positives = torch.tensor([1, 3, 6, 11])
    contrast = infonce(found["query"], documents.reshape(12, 16), positives, 0.05, allowed)
    cosines = torch.stack([(documents[row] * found["prompt"][row]).sum(-1) for row in range(4)])
    mask = torch.tensor(GAINS).isnan().logical_not()
    return contrast + weight * LISTWISE[listwise](scale * cosines, torch.tensor(GAINS), mask)


@pytest.mark.parametrize("listwise", LISTWISE)
def test_loss_is_infonce_of_queries_plus_weighted_listwise_loss_of_prompts(
    model: SentenceTransformer, listwise: str
) -> None:
    found = value(model, temperature=0.05, weight=1.5, scale=7.0, listwise=listwise)
    wanted = by_hand(model, weight=1.5, scale=7.0, listwise=listwise)
    torch.testing.assert_close(found, wanted)


def test_defaults_are_those_e2rank_was_trained_with(model: SentenceTransformer) -> None:
    config = {"temperature": 0.03, "weight": 2.0, "scale": 10.0, "listwise": "ranknet"}
    assert ListwiseLoss(model).get_config_dict() == config
    assert torch.equal(value(model), value(model, **config))


def test_each_part_trains_its_own_side(model: SentenceTransformer) -> None:
    tables = []
    for options in ({"weight": 0.0}, {"weight": 2.0}):
        model.zero_grad()
        value(model, **options).backward()
        slope = model.get_parameter("0.model.embeddings.word_embeddings.weight").grad
        assert slope is not None
        # Words that only a prompt holds: the first word of each, but for what columns share.
        tables.append(slope[[4 + 6, 4 + 11, 4 + 16]].abs().sum().item())
    assert tables[0] == 0
    assert tables[1] > 0


def test_list_without_documents_changes_nothing(model: SentenceTransformer) -> None:
    none = [math.nan] * 3
    features = [model.preprocess(column[:3]) for column in texts().values()]
    wanted = ListwiseLoss(model)(features, torch.tensor(GAINS[:3]))
    torch.testing.assert_close(value(model, [*GAINS[:3], none]), wanted)


def test_another_list_of_the_same_query_holds_none_of_its_negatives(
    model: SentenceTransformer,
) -> None:
    columns = texts()
    columns["query"][2] = columns["query"][0]
    features = [model.preprocess(column) for column in columns.values()]
    found = ListwiseLoss(model, weight=0.0)(features, torch.tensor(GAINS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.texts", lambda: columns)
        vector = vectors(model)
    documents = torch.stack([vector[f"document_{n}"] for n in (1, 2, 3)], 1)
    allowed = torch.ones(4, 12, dtype=torch.bool)
    allowed[:, 8] = allowed[1, 3:5] = allowed[0, 6:9] = allowed[2, 0:3] = False
    positives = torch.tensor([1, 3, 6, 11])
    wanted = infonce(vector["query"], documents.reshape(12, 16), positives, 0.03, allowed)
    torch.testing.assert_close(found, wanted)


def test_the_loss_is_that_of_a_training_of_the_same_lists(model: SentenceTransformer) -> None:
    columns = texts()
    # One list's positive is another's worst, and one text is a document of three lists.
    columns["document_2"][0] = columns["document_3"][1]
    columns["document_1"][3] = columns["document_1"][2] = columns["document_1"][0]
    columns["query"][3] = columns["query"][1]
    examples = []
    for row, gains in enumerate(GAINS):
        held = [place for place, gain in enumerate(gains) if not math.isnan(gain)]
        own = tuple(columns[f"document_{place + 1}"][row] for place in held)
        given = tuple(gains[place] for place in held)
        examples.append(Example(columns["query"][row], own, given))
    wanted = targets(ListBatch(tuple(examples), "", 3))
    config = TrainConfig(data=("a",), out="a", temperature=0.05, weight=1.5, scale=7.0)
    rows = [
        normalize(model.encode(list(each), convert_to_tensor=True), dim=-1)
        for each in (columns["query"], columns["prompt"], wanted.texts)
    ]
    features = [model.preprocess(column) for column in columns.values()]
    loss = ListwiseLoss(model, temperature=0.05, weight=1.5, scale=7.0)
    found = loss(features, torch.tensor(GAINS))
    torch.testing.assert_close(found, objective(config, wanted, *rows).total)


def test_a_model_that_reads_finished_prompts_through_a_chat_template_is_refused(
    tmp_path: Path,
) -> None:
    tiny_qwen().save_pretrained(tmp_path / "bare")
    qwen().save_pretrained(tmp_path / "bare")
    wrapping = SentenceTransformer(str(tmp_path / "bare"), device="cpu")
    with pytest.raises(ValueError, match="its chat template"):
        ListwiseLoss(wrapping)


def test_integer_labels_are_read_as_gains(model: SentenceTransformer) -> None:
    gains = [[0, 2, 1], [1, 1, 0], [3, 1, 0], [1, 2, 3]]
    floats = [[float(gain) for gain in row] for row in gains]
    assert torch.equal(value(model, gains), value(model, floats))


def test_prompts_that_reach_the_models_length_are_warned_about_once(
    model: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    loss = ListwiseLoss(model)
    columns = texts()
    with caplog.at_level(logging.WARNING, "e2rank"):
        loss([model.preprocess(column) for column in columns.values()], torch.tensor(GAINS))
        assert caplog.messages == []
        columns["prompt"][0] = " ".join(WORDS)
        for _ in range(2):
            loss([model.preprocess(column) for column in columns.values()], torch.tensor(GAINS))
    assert [message[:62] for message in caplog.messages] == [
        "listwise prompts reach the model's max_seq_length of 24 tokens"
    ]


def test_unknown_listwise_loss_is_refused_with_the_known_ones(model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="listwise is 'lambda'; expected one of ranknet, weight"):
        ListwiseLoss(model, listwise="lambda")


@pytest.mark.parametrize("gains", [[1.0, 2.0, 3.0, 4.0], [[1.0, 2.0]] * 4])
def test_labels_that_do_not_match_the_columns_are_refused(
    model: SentenceTransformer, gains: Any
) -> None:
    with pytest.raises(ValueError, match=r"5 text columns and labels \(4,( 2)?\); expected"):
        value(model, gains)


def test_sentence_transformers_own_trainer_trains_with_it(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    loss = ListwiseLoss(model)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    start = value(model).item()
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=12,
            per_device_train_batch_size=4,
            learning_rate=5e-3,
            logging_steps=4,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({**texts(), "labels": GAINS}),
        loss=loss,
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    assert logged[-1] < logged[0]
    assert value(model).item() < 0.5 * start
    moved = [
        name for name, each in model.state_dict().items() if not torch.equal(each, before[name])
    ]
    assert "0.model.embeddings.word_embeddings.weight" in moved
