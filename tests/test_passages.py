"""Passages: each fits its encoder, together they are the text, and a search shows a text once."""

import dataclasses
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from encoders_support import BERT, QWEN, byte_pairs, wordpiece
from hypothesis import given, settings
from hypothesis import strategies as st

from e2rank import CorpusError, Document, Engine, Hybrid, MaxSim
from e2rank import passages as passages_module
from e2rank.collapse import Collapse
from e2rank.encoders.tokens import Wording
from e2rank.passages import split_documents
from e2rank.search import Search

SENTENCE = "The lift of a wing grows with its angle of attack until it stalls"
LONG = ". ".join(f"{SENTENCE}, case {n}" for n in range(60)) + "."


def reader(family: str = "bert", **changes: Any) -> Any:
    """As much of an encoder as splitting asks for."""
    tokenizer, contract = {"bert": (wordpiece, BERT), "qwen": (byte_pairs, QWEN)}[family]
    contract = dataclasses.replace(contract, document_tokens=256, **changes)
    return SimpleNamespace(name=family, contract=contract, words=Wording(tokenizer(), contract))


def plain(text: str) -> str:
    return "".join(text.split())


def split(document: Document, encoder: Any = None, **options: Any) -> list[Document]:
    return list(split_documents([document], encoder or reader(), **options))


@pytest.mark.parametrize("family", ["bert", "qwen"])
@pytest.mark.parametrize("tokens", [16, 40, 128, 256])
@pytest.mark.parametrize("title", ["", "Stalling of wings"])
def test_no_passage_is_cut_and_nothing_is_left_out(family: str, tokens: int, title: str) -> None:
    encoder = reader(family)
    passages = split(Document("a", LONG, title), encoder, tokens=tokens, overlap=0)
    assert len(passages) > 3
    assert "".join(each.text for each in passages) == LONG
    for each in encoder.words.documents([passage.body for passage in passages]):
        assert len(each.ids) <= tokens
    assert {each.title for each in passages} == {title}


@settings(deadline=None, max_examples=60)
@given(
    text=st.text(alphabet=st.sampled_from("ab .?!\n\tÄ漢字🙂-'\u00a0\x07"), max_size=300),
    title=st.text(alphabet="xy ", max_size=20),
    tokens=st.integers(8, 60),
)
@pytest.mark.parametrize("family", ["bert", "qwen"])
def test_any_text_is_whole_in_its_passages(family: str, text: str, title: str, tokens: int) -> None:
    encoder = reader(family)
    document = Document("a", text, title)
    passages = split(document, encoder, tokens=tokens, overlap=0)
    # Blanks in front of a text are read behind a title, and may fill a passage there.
    own = passages[1:] if title else passages
    assert len(passages) == 1 or all(each.text.strip() for each in own)
    titled = [each for each in passages if each.title]
    assert len(titled) in (0, len(passages))
    whole = document.text if titled or not title.strip() else f"{title} {text}"
    assert "".join(each.text for each in passages) == whole
    starts = [each.metadata["passage_start"] for each in passages]
    before = 0 if titled or not title.strip() else len(title) + 1
    ends = [sum(len(each.text) for each in passages[:n]) for n in range(len(passages))]
    assert starts == [end - before for end in ends]
    assert [each.metadata["passage_number"] for each in passages] == list(range(len(passages)))
    lengths = [encoder.words.length(each.body) for each in passages]
    # A character may be more tokens than a passage has.
    assert all(n <= tokens for n, each in zip(lengths, passages, strict=True) if len(each.text) > 1)


def test_a_passage_ends_with_a_sentence_or_else_a_word() -> None:
    *passages, last = split(Document("a", LONG), tokens=64, overlap=0)
    assert all(each.text.endswith(". ") for each in passages)
    assert last.text.endswith("case 59.")
    endless = LONG.replace(". ", ", ")
    words = set(endless.split())
    for each in split(Document("a", endless), tokens=64, overlap=0):
        assert set(each.text.split()) <= words


def overlaps(text: str, tokens: int, overlap: int) -> list[str]:
    """What each passage repeats of the one before."""
    passages = split(Document("a", text), tokens=tokens, overlap=overlap)
    assert len(passages) > 3
    found = []
    for one, other in pairwise(passages):
        starts = [each.metadata["passage_start"] for each in (one, other)]
        found.append(one.text[starts[1] - starts[0] :])
        assert other.text.startswith(found[-1])
        assert text[starts[1] - 1].isspace()
        assert len(reader().words.spans(found[-1])) <= overlap
    return found


def test_passages_overlap_by_whole_sentences() -> None:
    for repeated in overlaps("Wings stall. Panels flutter at speed. " * 60, 64, 16):
        assert repeated.startswith(("Wings", "Panels"))
        assert repeated.endswith(". ")
    # Where a sentence is longer than the overlap they begin behind it.
    assert set(overlaps(LONG, 64, 16)) == {""}


def test_where_no_sentence_begins_passages_overlap_by_whole_words() -> None:
    for repeated in overlaps(LONG.replace(". ", ", "), 64, 16):
        assert len(repeated.split()) > 5


@pytest.mark.parametrize(
    "sentences",
    [
        ("今天天气很好。", "我们去公园散步。"),
        ("किताब मेज पर है। ", "वह घर जाता है। "),
        ("هل ذهبت إلى البيت؟ ", "نعم ذهبت. "),
        ("“Wings stall.” ", "Panels (two) flutter.) "),
        ("| a | b |\n", "| longer cell | of a table |\r\n"),
    ],
)
def test_sentences_of_many_scripts_and_lines_are_kept_together(sentences: tuple[str, ...]) -> None:
    passages = split(Document("a", "".join(sentences) * 40), tokens=64, overlap=16)
    assert len(passages) > 3
    assert all(each.text.startswith(sentences) for each in passages)
    assert all(each.text.endswith(sentences) for each in passages)


def test_a_passage_is_a_document_that_names_its_own() -> None:
    (one,) = split(Document("a", "Wings stall.", "Wings", {"year": 1960}))
    says = {"year": 1960, "passage_of": "a", "passage_number": 0, "passage_start": 0}
    assert one == Document("a#0", "Wings stall.", "Wings", says)
    assert [each.id for each in split(Document("a", LONG), tokens=128)] == [
        f"a#{n}" for n in range(len(split(Document("a", LONG), tokens=128)))
    ]


def test_a_title_that_leaves_no_room_is_split_with_the_text() -> None:
    passages = split(Document("a", "Short.", LONG), tokens=64, overlap=0)
    assert plain("".join(each.text for each in passages)) == plain(f"{LONG} Short.")
    assert {each.title for each in passages} == {""}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 257, "overlap": 0}, "at most the 256"),
        ({"tokens": 0, "overlap": 0}, "passages of 0"),
        ({"tokens": 64, "overlap": 17}, "a quarter of them at most"),
        ({"tokens": 64, "overlap": -1}, "overlap by -1"),
        ({"tokens": 2, "overlap": 0}, "no room for a text"),
    ],
)
def test_passages_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(Document("a", LONG), **options)


def test_what_would_be_lost_or_wrong_is_refused() -> None:
    for name in ("passage_of", "passage_number", "passage_start"):
        with pytest.raises(CorpusError, match=f"'a' has metadata under '{name}'"):
            split(Document("a", LONG, metadata={name: 0}))
    with pytest.raises(CorpusError, match="'a' brings a vector"):
        split(Document("a", LONG, vector=np.ones(3)))
    with pytest.raises(ValueError, match="hashing-256 has no tokenizer"):
        split(Document("a", LONG), Engine("hashing").encoder)


def test_of_joined_models_the_one_that_reads_least_reads_passages_whole() -> None:
    joined = reader()
    joined.document_budgets = (48, 256)
    assert len(split(Document("a", LONG), joined, tokens=48)) > 3
    with pytest.raises(ValueError, match="at most the 48 that bert reads"):
        split(Document("a", LONG), joined, tokens=64)


def led_by_blanks(text: str) -> SimpleNamespace:
    """As much of a tokenizer as splitting asks for, whose tokens begin with the blank before."""
    spans = [match.span() for match in re.finditer(r"\s*\S+", text)]
    return SimpleNamespace(spans=lambda _: spans, length=lambda given: len(given.split()))


def test_tokens_that_begin_with_a_blank_begin_words_too() -> None:
    spans = list(passages_module._pieces("", LONG, led_by_blanks(LONG), 40, 10))
    pieces = [LONG[start:stop] for start, stop in spans]
    assert len(pieces) > 3
    for one, other in pairwise(pieces):
        assert one.endswith(". ")
        shared = other.split()[:10]
        assert " ".join(shared) in one


def test_prunings_for_what_is_shown_are_refused_where_it_is_collapsed() -> None:
    settings = {"gatherer": None, "store": None, "encoder": None, "reranker": None}
    how = {"k": 4, "depth": 9, "collapse": Collapse("of")}
    with pytest.raises(ValueError, match="give MaxSim a k of its own"):
        Search(**settings, **how, refine=MaxSim(beta=1))
    Search(**settings, **how, refine=MaxSim(beta=1, k=20))
    Search(**settings, **how, refine=MaxSim())


def test_a_hybrid_that_looks_deeper_keeps_what_it_found_first(tmp_path: Path) -> None:
    documents = [
        Document(
            f"{n}", f"wing {n % 13} stalls {n % 7} " + "x " * (n % 11), metadata={"of": n // 30}
        )
        for n in range(900)
    ]
    hybrid = Hybrid(("dense", "bm25"), depth=10)
    options = {"gather": hybrid, "rerank": False, "collapse": "of", "depth": 10}
    with Engine.build(documents, tmp_path / "i", "hashing") as engine:
        few, many = (engine.search("wing 3 stalls 4", k, **options) for k in (10, 28))
    assert [hit.id for hit in few] == [hit.id for hit in many][:10]
    assert len(many) == 28


# Documents that hold one value stand for one thing; those of `None` have none.
OWNERS = ["x", "x", "y", None, "x", "z", None, "y", "x", "w"]


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Engine]:
    documents = [
        Document(
            str(n),
            f"wing {'stalls ' * (10 - n)}",
            metadata={} if owner is None else {"of": owner, "parts": [n], "n": n % 2},
        )
        for n, owner in enumerate(OWNERS)
    ]
    with Engine.build(documents, tmp_path / "i", "hashing") as engine:
        yield engine


def owner_of(hit: Any) -> Any:
    return hit.metadata.get("of", hit.id)


@pytest.mark.parametrize("rerank", [False, "prf", "listwise"])
@pytest.mark.parametrize("k", [1, 3, 6, 20])
def test_a_search_that_collapses_is_the_best_of_each_of_a_search_that_does_not(
    owned: Engine, rerank: Any, k: int
) -> None:
    whole = owned.search("wing stalls", 10, rerank=rerank)
    found = owned.search("wing stalls", k, rerank=rerank, collapse="of")
    best: dict[Any, Any] = {}
    for hit in whole:
        best.setdefault(owner_of(hit), hit)
    expected = list(best.values())[:k]
    assert [hit.id for hit in found] == [hit.id for hit in expected]
    assert [hit.score for hit in found] == [hit.score for hit in expected]
    assert [hit.rank for hit in found] == list(range(1, len(expected) + 1))
    assert len(found) == min(k, 6)


def test_values_of_another_type_are_other_values(tmp_path: Path) -> None:
    values = [1, "1", True, 1, None, None]
    documents = [Document(str(n), "a wing", metadata={"v": v}) for n, v in enumerate(values)]
    with Engine.build(documents, tmp_path / "i", "hashing") as engine:
        found = engine.search("wing", 9, rerank=False, collapse="v")
    assert sorted(hit.id for hit in found) == ["0", "1", "2", "4", "5"]


@pytest.mark.parametrize("rerank", [False, "prf"])
@pytest.mark.parametrize("gather", ["dense", "bm25", "dense+bm25"])
def test_there_are_k_hits_wherever_the_first_stage_can_find_k_things(
    tmp_path: Path, rerank: Any, gather: str
) -> None:
    # The nearest 300 documents stand for one thing.
    documents = [
        Document(str(n), "wing stalls " + "x " * (n // 300 + n % 7), metadata={"of": max(n, 300)})
        for n in range(310)
    ]
    with Engine.build(documents, tmp_path / "i", "hashing") as engine:
        options = {"rerank": rerank, "gather": gather, "depth": 5, "collapse": "of"}
        found = engine.search("wing stalls", 8, **options)
        alone = engine.search_many(["wing stalls", "x wing"], 8, **options)
        few = engine.search("wing stalls", 5, **options)
    assert len({hit.metadata["of"] for hit in found}) == len(found) == 8
    assert [hit.id for hit in alone[0]] == [hit.id for hit in found]
    # Nor does what is shown first depend on how many are shown.
    if rerank is False and gather != "dense+bm25":
        assert [hit.id for hit in few] == [hit.id for hit in found][:5]
    # However deep it looked, it read the query once.
    assert found.model_calls == (0 if gather == "bm25" and not rerank else 1)


def test_vectors_are_collapsed_too_and_filters_come_first(owned: Engine) -> None:
    vector = owned.vectors(["0"])[0]
    found = owned.search(vector, 20, rerank=False, collapse="of", where={"n": 1})
    assert [hit.id for hit in found] == [
        hit.id
        for hit in owned.search(vector, 20, rerank=False, where={"n": 1})
        if hit.id in ("1", "5", "7", "9")
    ]


@pytest.mark.parametrize("field", ["", 3])
def test_a_field_that_is_none_is_refused(owned: Engine, field: Any) -> None:
    with pytest.raises(ValueError, match="expected the name of a metadata field"):
        owned.search("wing", collapse=field)


def test_a_field_of_several_values_is_refused(owned: Engine) -> None:
    with pytest.raises(ValueError, match="'parts'; to collapse by it, it must be one value"):
        owned.search("wing", collapse="parts")
