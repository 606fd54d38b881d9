"""Queries without labels: from documents evenly and never verbatim, from logs without loss."""

import gzip
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from e2rank import Document
from e2rank.errors import CorpusError
from e2rank.train.queries import (
    PseudoQuery,
    pseudo_queries,
    read_query_log,
    salience,
    sentences,
    without,
)

NOTICE = "All rights are reserved by the publisher here."


def document(number: int, *, title: bool = True) -> Document:
    """A document of three sentences of its own and a notice that all have."""
    return Document(
        id=f"d{number}",
        title=f"The study number {number} of wings" if title else "",
        text=f"In the air of it there is {NOTICE.split()[0].lower()} that is. "
        f"Wing{number}a lifts plate{number}a over flow{number}a past body{number}a. "
        f"The wing{number}b stalls in the flow of the air. {NOTICE} Too short.",
    )


CORPUS = [document(number) for number in range(40)]
UNTITLED = [document(number, title=False) for number in range(40)]


def source_text(query: PseudoQuery, corpus: list[Document]) -> str:
    """The body of the document that a query is from."""
    (found,) = [each for each in corpus if each.id == query.id]
    return found.body


@pytest.mark.parametrize("corpus", [CORPUS, UNTITLED])
@pytest.mark.parametrize("most", [1, 7, 40, 1000])
def test_every_query_is_a_text_of_its_document_and_none_is_blank(
    corpus: list[Document], most: int
) -> None:
    found = pseudo_queries(corpus, most=most, seed=0)
    assert 0 < len(found) <= most
    for query in found:
        assert query.text.strip()
        assert query.text in source_text(query, corpus)


@pytest.mark.parametrize("most", [1, 7, 40, 41, 79])
def test_as_many_queries_come_as_asked_where_there_are_as_many(most: int) -> None:
    assert len(pseudo_queries(CORPUS, most=most, seed=0)) == most


def test_a_seed_gives_the_same_queries_and_another_gives_others() -> None:
    assert pseudo_queries(CORPUS, most=10, seed=3) == pseudo_queries(iter(CORPUS), most=10, seed=3)
    lists = {tuple(pseudo_queries(CORPUS, most=10, seed=seed)) for seed in range(5)}
    assert len(lists) == 5


def test_every_document_gives_one_before_any_gives_two() -> None:
    for most in (10, 40, 60, 80):
        counts = Counter(each.id for each in pseudo_queries(CORPUS, most=most, seed=1))
        assert max(counts.values()) - min(counts[each.id] for each in CORPUS) <= 1


def test_every_document_is_drawn_as_often() -> None:
    few = CORPUS[:10]
    counts = Counter(
        query.id for seed in range(400) for query in pseudo_queries(few, most=2, seed=seed)
    )
    # Expected 80 each; five standard deviations are 40.
    assert all(abs(counts[each.id] - 80) < 40 for each in few)


def test_a_title_comes_before_the_sentences() -> None:
    found = pseudo_queries(CORPUS, most=80, seed=0)
    assert [query.kind for query in found] == ["title"] * 40 + ["sentence"] * 40


def test_the_most_salient_sentence_comes_first_without_a_title() -> None:
    found = pseudo_queries(UNTITLED, most=40, seed=0)
    assert {query.kind for query in found} == {"sentence"}
    for query in found:
        number = query.id.removeprefix("d")
        assert query.text.startswith(f"Wing{number}a lifts")


def test_salience_equals_its_definition_in_loops() -> None:
    corpus = ["the wing", "the air", "the wing stalls"]
    frequencies = Counter(word for text in corpus for word in set(text.split()))
    text = "The wing of the wing"
    wanted = 0.0
    for word in {"the", "wing", "of"}:
        holding = sum(word in each.split() for each in corpus)
        wanted += math.log((1 + len(corpus)) / (1 + holding))
    assert salience(text, frequencies, len(corpus)) == pytest.approx(wanted / 5)


def test_a_sentence_that_many_documents_hold_is_never_a_query() -> None:
    texts = [query.text for query in pseudo_queries(CORPUS, most=1000, seed=0)]
    assert NOTICE not in texts
    assert not [text for text in texts if text.startswith("In the air")]


def test_a_sentence_in_up_to_one_percent_of_the_documents_is_no_boilerplate() -> None:
    shared = "This sentence stands in two of the documents."
    for count, kept in ((200, True), (199, False)):
        corpus = [Document(str(n), f"Wing{n} has a{n} b{n} c{n} d{n}.") for n in range(count)]
        corpus[3] = Document("3", shared)
        corpus[150] = Document("150", shared)
        texts = [query.text for query in pseudo_queries(corpus, most=1000, seed=0)]
        assert texts.count(shared) == int(kept)


def test_what_differs_in_case_and_marks_only_comes_once() -> None:
    corpus = [
        Document("1", "", title="Lift of a wing"),
        *(Document(str(n), f"Body{n} of{n} a{n} b{n} c{n}.") for n in range(2, 300)),
        Document("300", "", title="lift of a Wing."),
    ]
    texts = [query.text.lower() for query in pseudo_queries(corpus, most=1000, seed=0)]
    assert sum(text.startswith("lift of a wing") for text in texts) == 1
    assert len(texts) == 299


@pytest.mark.parametrize(
    ("title", "fits"),
    [
        ("Two words", False),
        ("Three words here", True),
        (" ".join(f"w{n}" for n in range(30)), True),
        (" ".join(f"w{n}" for n in range(31)), False),
        ("3.1 4.1 5.9 2.6 table", False),
        ("Table 1 of 12 wings", True),
    ],
)
def test_titles_of_3_to_30_words_with_letters_are_taken(title: str, fits: bool) -> None:
    found = pseudo_queries([Document("1", "", title=title)], most=5, seed=0)
    assert [query.text for query in found] == [title] * fits


@pytest.mark.parametrize(("words", "fits"), [(4, False), (5, True), (40, True), (41, False)])
def test_sentences_of_5_to_40_words_are_taken(words: int, fits: bool) -> None:
    text = " ".join(f"W{n}" for n in range(words))
    found = pseudo_queries([Document("1", text)], most=5, seed=0)
    assert [query.text for query in found] == [text] * fits


@pytest.mark.parametrize(
    "corpus",
    [[], [Document("1", "")], [Document("1", "short", title="too")], [Document("1", "... !?")]],
)
def test_a_corpus_with_nothing_to_ask_gives_no_query(corpus: list[Document]) -> None:
    assert pseudo_queries(corpus, most=5, seed=0) == []


def test_a_corpus_of_one_document_gives_its_queries() -> None:
    found = pseudo_queries(CORPUS[:1], most=100, seed=0)
    assert [query.kind for query in found] == ["title"] + ["sentence"] * 4
    assert {query.id for query in found} == {"d0"}


def test_a_query_is_on_one_line() -> None:
    text = "A wing\nstalls late   in\tslow air ."
    (query,) = pseudo_queries([Document("1", text)], most=5, seed=0)
    assert query.text == "A wing stalls late in slow air"


@pytest.mark.parametrize(("most", "seed"), [(0, 0), (1, -1)])
def test_options_out_of_range_are_refused(most: int, seed: int) -> None:
    with pytest.raises(ValueError, match=f"most is {most} and seed {seed}"):
        pseudo_queries(CORPUS, most=most, seed=seed)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One ends. Two ends! Three? Four", ["One ends.", "Two ends!", "Three?", "Four"]),
        ('He said "stop." She did.', ['He said "stop."', "She did."]),
        ("See e.g. Smith et al. 1999 and J. Doe.", ["See e.g. Smith et al. 1999 and J. Doe."]),
        ("Dr. No saw Fig. 3. It was good.", ["Dr. No saw Fig. 3.", "It was good."]),
        ("Version 2.5 of it. then more.", ["Version 2.5 of it. then more."]),
        ("all low . no capital. none", ["all low", "no capital.", "none"]),
        ("A Wing . it stalls", ["A Wing", "it stalls"]),
        ("A heading\n\nA text\nof two lines.", ["A heading", "A text of two lines."]),
        ("Élan vital. Über alles.", ["Élan vital.", "Über alles."]),
        (" \n . ! ", []),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_sees_their_end(text: str, wanted: list[str]) -> None:
    assert list(sentences(text)) == wanted


def test_sentences_keep_every_word() -> None:
    for each in CORPUS:
        words = [word for sentence in sentences(each.text) for word in sentence.split()]
        assert words == each.text.split()


@pytest.mark.parametrize(
    ("text", "sentence", "left"),
    [
        ("Wings stall. They do. Often.", "They do.", "Wings stall. Often."),
        ("Wings stall. Wings\n  STALL often.", "wings stall", "often."),
        ("Wings stall", "Wings stall.", ""),
        ("On wings . wings stall .", "on wings", "wings stall ."),
        ("By air.The wing stalls.So it is.", "The wing stalls.", "By air. So it is."),
        ("Costs (in $) rise.", "Costs (in $)", "rise."),
        ("a b a b c c", "a b c", ""),
        ("Nothing\nof it", "something else", "Nothing\nof it"),
        ("", "wing", ""),
    ],
)
def test_without_removes_a_sentence_wherever_it_stands(text: str, sentence: str, left: str) -> None:
    assert without(text, sentence) == left


@pytest.mark.parametrize("corpus", [CORPUS, UNTITLED])
def test_no_document_holds_its_own_query_any_more(corpus: list[Document]) -> None:
    for query in pseudo_queries(corpus, most=1000, seed=0):
        body = source_text(query, corpus)
        left = without(body, query.text)
        assert query.text.lower() not in left.lower()
        words, gone = (Counter(re.findall(r"\w+", each)) for each in (body, query.text))
        assert Counter(re.findall(r"\w+", left)) == words - gone


def test_without_a_sentence_is_refused() -> None:
    with pytest.raises(ValueError, match="the sentence is blank"):
        without("Wings stall.", " \n")


@pytest.mark.parametrize("name", ["log.txt", "log.txt.gz"])
def test_a_log_gives_each_query_once_in_order_and_counts_the_rest(
    tmp_path: Path, name: str
) -> None:
    data = "\nwing lift\n  heat \n\t\nwing lift\nWing lift\nheat\n\n\nflow é".encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    log = read_query_log(tmp_path / name)
    assert log.queries == ("wing lift", "heat", "Wing lift", "flow é")
    assert (log.blank, log.repeated) == (4, 2)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "holds no query"), (b"\n \n", "holds no query"), (b"a\n\xff\n", "line 2 is not UTF-8")],
)
def test_a_log_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    (tmp_path / "log.txt").write_bytes(data)
    with pytest.raises(CorpusError, match=rf"log\.txt {reason}"):
        read_query_log(tmp_path / "log.txt")


def test_a_log_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"gone\.txt does not exist"):
        read_query_log(tmp_path / "gone.txt")
