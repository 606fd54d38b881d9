"""What the engine refuses, and in which words: queries, options, models and folders."""

import copy
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2rank import Candidates, Document, EncoderMismatch, Engine, IndexConfig, IndexFormatError
from e2rank.encoders import Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import UnknownEncoder
from e2rank.rerank import Scored

QUERY = "heat transfer in the boundary layer of a slender wing"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 0}, "k is 0; it must be at least 1"),
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"shown": 0}, "shown is 0"),
        ({"fuse": 1.5}, "fuse is 1.5; it must be between 0 and 1"),
        ({"feedback_rounds": -1}, "feedback_rounds is -1"),
        ({"feedback_rounds": 1, "rerank": False}, "feedback_rounds needs a rerank"),
        ({"prompt": "title"}, "prompt is 'title'; expected 'text' or 'vectors'"),
        ({"prompt": "vectors"}, "hashing-256 was not trained to read prompts of vectors"),
        ({"rerank": "bm25"}, "rerank is 'bm25'; expected"),
        ({"k": 1.5}, "k is 1.5; it must be a whole number"),
        ({"k": "5"}, "k is '5'; it must be a whole number"),
        ({"k": None}, "k is None; it must be a whole number"),
        ({"k": True}, "k is True; it must be a whole number"),
        ({"depth": 1e2}, "depth is 100.0; it must be a whole number"),
    ],
)
def test_options_out_of_range_are_refused(
    engine: Engine, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        engine.search(QUERY, **options)


@pytest.mark.parametrize("query", ["", "  \n", None, 7])
def test_what_is_no_query_is_refused(engine: Engine, query: Any) -> None:
    with pytest.raises(ValueError, match="a query is a text that is not blank"):
        engine.search(query)
    with pytest.raises(ValueError, match="a query is a text that is not blank"):
        engine.rank(query, ["text"])


def test_one_string_instead_of_several_queries_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="expected a list of queries, got one string"):
        engine.search_many(QUERY)


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_engine_that_is_pickled_or_copied_says_how_to_have_another(
    engine: Engine, act: Any
) -> None:
    with pytest.raises(TypeError, match=r"open the index in each process, by Engine\.open"):
        act(engine)


def test_an_engine_that_was_closed_says_so(tmp_path: Path) -> None:
    engine = Engine.build([{"id": "wing", "text": "lift"}], tmp_path / "index", "hashing")
    store = engine.store
    engine.close()
    with pytest.raises(ValueError, match="has no index, or was closed"):
        engine.search(QUERY)
    with pytest.raises(ValueError, match="was closed: open it again"):
        list(store)


def test_an_engine_without_an_index_says_so() -> None:
    with pytest.raises(ValueError, match="this engine has no index"):
        Engine("hashing").search(QUERY)


class ShortSighted(HashingEncoder):
    """An encoder that cuts every other text."""

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        return replace(super().encode_documents(texts), truncated=tuple(range(0, len(texts), 2)))


def test_documents_longer_than_the_encoder_reads_are_counted_and_logged(
    documents: list[Document], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = IndexConfig(batch=20)
    Engine.build(documents, tmp_path / "index", ShortSighted(), config).close()
    Engine(ShortSighted()).rank(QUERY, ["one", "two", "three"], rerank=False)
    assert (
        "30 of the 60 documents read are longer than the encoder reads (512 tokens)" in caplog.text
    )
    assert "2 of the 3 documents read are longer" in caplog.text


def test_an_engine_that_adds_one_at_a_time_warns_of_long_texts_once_and_counts_all(
    documents: list[Document], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine.build(documents[:1], tmp_path / "index", ShortSighted()) as engine:
        caplog.clear()
        for each in documents[1:4]:
            engine.add([each])
        assert [each for each in caplog.messages if "are longer" in each] == [
            "1 of the 1 documents read are longer than the encoder reads (512 tokens): what is "
            "beyond is not in its vectors (IndexConfig(passages=128), --passages 128, splits them)"
        ]
        assert engine.store.manifest.truncated == 4


def test_documents_without_a_word_are_counted_once_a_build_and_once_an_engine(
    documents: list[Document], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blank = [Document(f"blank {each}", " \n" * each) for each in range(3)]
    with Engine.build([*blank, *documents[:3]], tmp_path / "index", "hashing") as engine:
        said = "of the documents read have neither title nor text: they are in the index"
        assert [each.split(" ")[0] for each in caplog.messages if said in each] == ["3"]
        caplog.clear()
        for name in ("x", "y"):
            engine.add([Document(name, "", title=" ")])
        assert [each.split(" ")[0] for each in caplog.messages if said in each] == ["1"]
        assert len(engine) == 8


class SameSize(HashingEncoder):
    """Another model of the same dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "another"
        self.fingerprint = "other" + self.fingerprint

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        raise AssertionError("a refused model encodes nothing")


def test_another_model_of_the_same_dimension_is_refused_by_name(
    documents: list[Document], tmp_path: Path
) -> None:
    Engine.build(documents, tmp_path / "index", "hashing").close()
    with pytest.raises(
        EncoderMismatch, match=r"was built by 'hashing-256', and 'another' is another .*weights"
    ):
        Engine.open(tmp_path / "index", SameSize())


def test_an_index_opens_with_the_encoder_that_made_it(
    documents: list[Document], tmp_path: Path
) -> None:
    Engine.build(documents, tmp_path / "index", "hashing-64").close()
    with Engine.open(tmp_path / "index") as engine:
        assert engine.encoder.name == "hashing-64"
        assert len(engine) == 60
    with pytest.raises(ValueError, match="has no index"):
        engine.search(QUERY)


def test_an_index_whose_encoder_was_moved_says_which_folder_to_pass(
    documents: list[Document], tmp_path: Path
) -> None:
    encoder = HashingEncoder()
    encoder.name = f"{tmp_path}/bundle"
    Engine.build(documents, tmp_path / "index", encoder).close()
    says = rf"made with the encoder of {encoder.name}, which is not here: pass its folder, or"
    with pytest.raises(ValueError, match=says):
        Engine.open(tmp_path / "index")
    Engine.open(tmp_path / "index", encoder).close()


def test_a_folder_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match=r"has no manifest\.json: not an e2rank index"):
        Engine.open(tmp_path)


@pytest.mark.parametrize(
    ("ranking", "says"),
    [
        ([("1", 2.0), ("1", 1.0)], "holds a document twice"),
        ([("1", float("nan"))], "NaN or infinite"),
        ([("1", 1.0), ("2", 2.0)], "not sorted; expected the best first"),
        (["1", "2"], r"entry 0 of the ranking is '1'; expected \(id, score\)"),
        ({"1": 2.0}, r"entry 0 of the ranking is '1'; expected \(id, score\)"),
        ([("1", 2.0), (2, 1.0)], r"entry 1 of the ranking is \(2, 1.0\); expected"),
    ],
)
def test_what_is_no_ranking_is_refused(
    engine: Engine, ranking: list[tuple[str, float]], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        engine.rerank(QUERY, ranking)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ("wing", "expected a list of documents, got one string"),
        (["wing", 7], "document 1 is of type int"),
        (["wing", "\ud83d"], "document 1 has half a surrogate pair"),
    ],
)
def test_what_are_no_texts_to_rank_is_refused(engine: Engine, texts: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        engine.rank(QUERY, texts)


def test_a_query_that_was_not_read_as_utf_8_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="query 0 has half a surrogate pair"):
        engine.search("wing \udcff")


class Blind:
    """A reranker without a vector for the query."""

    name = "blind"

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        return [Scored(np.zeros(len(pool), dtype=np.float32)) for pool in pools]


def test_feedback_by_a_reranker_without_a_query_vector_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="and the rerank 'blind' has none; take"):
        engine.search(QUERY, rerank=Blind(), feedback_rounds=1)


@pytest.mark.parametrize("scores", [1e9 + np.arange(60.0), 1 - 1e-9 * np.arange(60.0)[::-1]])
def test_a_rerankers_scores_are_told_apart_as_finely_as_they_are_given(
    engine: Engine, scores: np.ndarray
) -> None:
    class Fine:
        name = "fine"

        def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
            return [Scored(scores[: len(pool)]) for pool in pools]

    before = [hit.id for hit in engine.search(QUERY, 60, rerank=False)]
    hits = engine.search(QUERY, 60, rerank=Fine())
    assert [hit.id for hit in hits] == before[::-1]
    assert [hit.score for hit in hits] == scores[::-1].tolist()


def test_what_is_no_answer_of_an_encoder_or_a_gatherer_says_what_one_is(
    engine: Engine, tmp_path: Path
) -> None:
    class Bare(HashingEncoder):
        def encode_documents(self, texts: Sequence[str]) -> Any:
            return super().encode_documents(texts).vectors

    with pytest.raises(TypeError, match=r"hashing-256 gave .* an e2rank\.encoders\.Encoding"):
        Engine.build([{"id": "wing", "text": "lift"}], tmp_path / "index", Bare())

    class Pair:
        def gather(self, queries: Sequence[str], k: int) -> Any:
            return np.zeros((len(queries), k)), np.zeros((len(queries), k))

    with pytest.raises(TypeError, match=r"expected an e2rank\.gather\.Gathered"):
        engine.search(QUERY, gather=Pair(), rerank=False)


def test_an_encoder_of_another_dimension_is_refused_whatever_it_says_it_is(
    tmp_path: Path,
) -> None:
    class Own(HashingEncoder):
        def __init__(self, dim: int) -> None:
            super().__init__(dim)
            self.name, self.fingerprint = "mine", "mine-words-1"

    Engine.build([{"id": "wing", "text": "lift"}], tmp_path / "index", Own(64)).close()
    Engine.open(tmp_path / "index", Own(64)).close()
    with pytest.raises(EncoderMismatch, match="dimension 64, and 'mine' makes such of 32"):
        Engine.open(tmp_path / "index", Own(32))
    with pytest.raises(UnknownEncoder, match=r"names 'mine' .* Engine\.open\(folder, encoder\)"):
        Engine.open(tmp_path / "index")


def test_a_name_of_an_encoder_that_no_folder_can_have_is_refused(tmp_path: Path) -> None:
    encoder = HashingEncoder()
    encoder.name = "x" * 5000
    Engine.build([{"id": "wing", "text": "lift"}], tmp_path / "index", encoder).close()
    with pytest.raises(UnknownEncoder, match="xxx as the encoder"):
        Engine.open(tmp_path / "index")
