"""The cross-encoder baseline gives what sentence-transformers gives, and counts what it cuts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from e2rank import Candidates, CrossEncoderReranker, Engine
from e2rank.errors import EncodingError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "wing", "lift", "stall", "heat", "flow"]
QUERY = "wing lift"
TEXTS = ["wing stall", "heat flow " * 40, "", "lift of a wing in flow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer cross-encoder that reads 32 tokens."""
    path = tmp_path_factory.mktemp("cross-encoder")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(path / "vocab.txt"), model_max_length=32)
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    shape.num_labels = 1
    BertForSequenceClassification(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def pool(texts: list[str]) -> Candidates:
    """The texts as candidates without vectors."""
    ids = [str(place) for place in range(len(texts))]
    return Candidates(ids=ids, texts=texts, scores=np.zeros(len(texts), dtype=np.float32))


def test_scores_are_those_of_sentence_transformers(folder: Path) -> None:
    found = CrossEncoderReranker(folder).score([QUERY], [pool(TEXTS)])[0]
    wanted = CrossEncoder(str(folder)).predict([(QUERY, text) for text in TEXTS])
    np.testing.assert_allclose(found.scores, wanted, atol=1e-6)
    assert found.scores.dtype == np.float32


def test_every_pair_is_a_call_and_cut_pairs_are_counted(folder: Path) -> None:
    found = CrossEncoderReranker(folder).score([QUERY], [pool(TEXTS)])[0]
    assert (found.calls, found.truncated) == (4, 1)
    # [CLS] wing lift [SEP] text [SEP]: 5 tokens and the text's, 32 at most.
    assert found.tokens - 4 * 5 == 2 + (32 - 5) + 0 + 6


def test_a_pair_of_just_as_many_tokens_as_are_read_is_not_counted_as_cut(folder: Path) -> None:
    texts = ["heat " * (32 - 5), "heat " * (32 - 4)]
    found = CrossEncoderReranker(folder).score([QUERY], [pool(texts)])[0]
    assert (found.tokens, found.truncated) == (2 * 32, 1)


def test_a_nan_is_refused(folder: Path) -> None:
    reranker = CrossEncoderReranker(folder)
    with torch.no_grad():
        next(iter(reranker._model.parameters())).fill_(float("nan"))
    with pytest.raises(EncodingError, match="gave a NaN or an infinity"):
        reranker.score([QUERY], [pool(TEXTS)])


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"cannot load the cross-encoder {tmp_path}"):
        CrossEncoderReranker(tmp_path)


def test_it_reranks_in_the_engine_by_its_scores_alone(folder: Path, tmp_path: Path) -> None:
    texts = {"a": "wing stall", "b": "heat flow heat", "c": "flow lift stall stall", "d": "heat"}
    documents = [{"id": name, "text": text} for name, text in texts.items()]
    scores = CrossEncoder(str(folder)).predict([(QUERY, text) for text in texts.values()])
    with Engine.build(documents, tmp_path / "index", "hashing") as engine:
        hits = engine.search(QUERY, rerank=CrossEncoderReranker(folder))
    wanted = dict(zip(texts, scores, strict=True))
    assert [hit.id for hit in hits] == sorted(texts, key=lambda name: -wanted[name])
    assert hits.model_calls == 1 + 4
