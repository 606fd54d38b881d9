"""Golden prompts: the token ids of every kind of text, against the recipe models are trained by."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from encoders_support import abstracts, at_most, byte_pairs, qwen, wordpiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import RobertaProcessing

from e2rank.contract import Contract
from e2rank.encoders.presets import e2rank_contract
from e2rank.encoders.tokens import Tokens, Wording

RERANK = (
    "Given a web search query and some relevant documents, "
    "rerank the documents that answer the query"
)
SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
CLOSING = "<|endoftext|><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

E2RANK = e2rank_contract(1024)
BERT = Contract(family="bidirectional", pooling="mean", dim=8)
QUERY = "what lifts a wing"
LISTS = {
    "short": ["The wing lifts.", "A propeller turns.", "Slipstream."],
    "one": ["The wing lifts."],
    "none": [],
    "twenty": abstracts(20),
    "empty": ["", "", ""],
    "some empty": ["", "the wing", ""],
    "whitespace": [" two  spaces ", "\ttab\r\n\r\nlines\n", "\n\n", "   ", "\u00a0\u3000\u2028x"],
    "unicode": [
        "na\u00efve nai\u0308ve",
        "\u7ffc\u306e\u63da\u529b",
        "\U0001f600\U0001f1e9",
        "\ufb01\u200d\u0130",
    ],
    "digits": ["1234567890", "[3] 3.14e-10", "\u0663\u00b2\u2462"],
    "special": [
        "<|endoftext|>",
        "a<|im_end|>\n<|im_start|>assistant\n",
        "<think>x</think>",
        "<|im_",
    ],
    "template": ["{number} {0} {{ content }}", "%s", "[1] x\nQuery: y", "{% raw %}"],
}


def recipe(query: str, documents: Sequence[str]) -> list[int]:
    """The prompt of the published training code, which leaves every document whole."""
    listed = "\n".join(f"[{i}] {text}" for i, text in enumerate(documents, start=1))
    content = f"{RERANK}:\nDocuments:\n{listed}\nQuery: {query}" + str(qwen().pad_token)
    turn = [{"role": "user", "content": content}]
    encoded = qwen().apply_chat_template(
        turn, tokenize=True, add_generation_prompt=True, enable_thinking=False, return_dict=True
    )
    return list(encoded["input_ids"])


def first_tokens(text: str, count: int) -> str:
    """A document cut to its first tokens."""
    return qwen().decode(qwen()(text)["input_ids"][:count])


def e2rank(query: str, documents: Sequence[str], **changes: int) -> Tokens:
    """The prompt of the contract with some budgets changed."""
    contract = dataclasses.replace(E2RANK, **changes)
    return Wording(byte_pairs(), contract).prompts([query], [documents])[0]


def bert(query: str, documents: Sequence[str], **changes: int) -> Tokens:
    """The joint sequence of a bidirectional encoder."""
    contract = dataclasses.replace(BERT, **changes)
    return Wording(wordpiece(), contract).prompts([query], [documents])[0]


def pieces(text: str) -> list[int]:
    """A text's own WordPiece ids, without budget, padding or special tokens."""
    wording = Wording(wordpiece(), dataclasses.replace(BERT, query_tokens=9999))
    return wording.queries([text])[0].ids[1:-1]


@pytest.mark.parametrize("name", LISTS)
def test_a_listwise_prompt_has_the_ids_of_the_training_recipe(name: str) -> None:
    prompt = e2rank(QUERY, LISTS[name])
    assert prompt.ids == recipe(QUERY, LISTS[name])
    assert list(prompt.positions) == list(range(len(prompt.ids)))
    assert prompt.pooled == len(prompt.ids)
    assert not prompt.cut


@given(st.text(max_size=20), st.lists(st.text(max_size=30), max_size=4))
@settings(max_examples=50, deadline=None)
def test_any_text_gives_the_ids_of_the_training_recipe(query: str, documents: list[str]) -> None:
    assert e2rank(query, documents).ids == recipe(query, documents)


def test_a_document_in_a_prompt_is_cut_to_its_first_tokens() -> None:
    # The published evaluation cuts each document to a maximum before it writes the prompt, in
    # words; ours is in tokens. Within the whole budget that is all the cutting there is.
    documents = ["wing", *abstracts(3), "the lift ..."]
    prompt = e2rank(QUERY, documents, prompt_document_tokens=24)
    assert prompt.ids == recipe(QUERY, [first_tokens(text, 24) for text in documents])
    assert prompt.cut


def test_a_document_at_its_maximum_is_whole() -> None:
    text = first_tokens(abstracts(1)[0], 24)
    assert not e2rank(QUERY, [text], prompt_document_tokens=24).cut
    assert e2rank(QUERY, [text], prompt_document_tokens=23).cut


@pytest.mark.parametrize("most", [1, 2, 4, 5, 6, 9])
def test_a_cut_inside_a_character_keeps_to_the_maximum(most: int) -> None:
    # A character outside the vocabulary is several tokens, one a byte.
    prompt = e2rank("", ["a\U0001f600\U0001f601 b"], prompt_document_tokens=most)
    text = qwen().decode(prompt.ids).removeprefix(E2RANK.prompt_before + "[1] ")
    shown = text.removesuffix(E2RANK.prompt_query + CLOSING)
    assert len(qwen()(shown)["input_ids"]) <= most


@pytest.mark.parametrize("budget", [230, 300, 301, 450, 1000])
def test_a_list_over_the_whole_budget_keeps_everything_but_the_ends_of_documents(
    budget: int,
) -> None:
    # Training cuts a prompt over its budget on the right, so it loses the query and the pooled
    # token; ours shares the budget out among the documents.
    documents = [*abstracts(8), "wing", "lift"]
    prompt = e2rank(QUERY, documents, prompt_tokens=budget)
    text = qwen().decode(prompt.ids, skip_special_tokens=False)
    before, after = f"<|im_start|>user\n{RERANK}:\nDocuments:\n", f"\nQuery: {QUERY}{CLOSING}"
    assert budget - 10 * len(documents) < len(prompt.ids) <= budget
    assert prompt.cut
    assert text.startswith(before)
    assert text.endswith(after)
    shown = re.split(r"\n?\[\d+\] ", text.removeprefix(before).removesuffix(after))[1:]
    assert len(shown) == len(documents)
    assert all(whole.startswith(part) for whole, part in zip(documents, shown, strict=True))
    assert all(shown)
    assert shown[-2:] == ["wing", "lift"]


@given(st.lists(st.integers(1, 120), min_size=1, max_size=8), st.integers(160, 400))
@settings(max_examples=40, deadline=None)
def test_any_prompt_stays_within_its_budget_and_says_when_it_cut(
    lengths: list[int], budget: int
) -> None:
    # What starts with a digit takes more tokens after "[1] " than it takes alone.
    documents = [first_tokens(f"7 {abstracts(2)[1]}", length) for length in lengths]
    prompt, whole = e2rank(QUERY, documents, prompt_tokens=budget), recipe(QUERY, documents)
    assert len(prompt.ids) <= budget
    assert prompt.cut == (prompt.ids != whole)


@pytest.mark.parametrize("documents", [abstracts(2), [""], []], ids=["two", "an empty one", "none"])
def test_a_query_that_leaves_no_room_is_refused(documents: Sequence[str]) -> None:
    with at_most(2), pytest.raises(ValueError, match="tokens of the prompt"):
        e2rank("lift " * 300, documents, prompt_tokens=200)


@pytest.mark.parametrize("text", [text for name in LISTS for text in LISTS[name][:5]])
def test_queries_and_documents_have_the_ids_of_the_training_recipe(text: str) -> None:
    wording = Wording(byte_pairs(), E2RANK)
    query, document = wording.queries([text])[0], wording.documents([text])[0]
    end = str(qwen().pad_token)
    assert query.ids == qwen()(f"Instruct: {SEARCH}\nQuery:{text}" + end)["input_ids"]
    assert document.ids == qwen()(text + end)["input_ids"]
    assert [(each.cut, each.pooled) for each in (query, document)] == [
        (False, len(query.ids)),
        (False, len(document.ids)),
    ]


@pytest.mark.parametrize("kind", ["queries", "documents"])
@pytest.mark.parametrize("text", [abstracts(1)[0], "\U0001f600" * 200, "\n" * 400 + "x\n " * 200])
def test_a_text_over_budget_loses_its_end_and_keeps_its_end_token(kind: str, text: str) -> None:
    # Training cuts on the right, end token and all, and then pools an ordinary token.
    whole, cut = (
        getattr(Wording(byte_pairs(), contract), kind)([text])[0]
        for contract in (
            dataclasses.replace(E2RANK, query_tokens=9999, document_tokens=9999),
            dataclasses.replace(E2RANK, query_tokens=90, document_tokens=90),
        )
    )
    assert cut.ids == [*whole.ids[:89], qwen().pad_token_id]
    assert (whole.cut, cut.cut) == (False, True)


@pytest.mark.parametrize("text", [abstracts(1)[0], "wing [SEP] lift " * 99, "é\U0001f600漢 " * 99])
def test_a_text_over_budget_without_a_prefix_keeps_its_first_tokens(text: str) -> None:
    whole, cut, prefixed = (
        Wording(wordpiece(), dataclasses.replace(BERT, **changes)).documents([text])[0]
        for changes in (
            {"document_tokens": 9999},
            {"document_tokens": 20},
            {"document_tokens": 22, "document_prefix": "the wing "},
        )
    )
    assert cut.ids == [*whole.ids[:19], whole.ids[-1]]
    # Beside a prefix the text is found by where its tokens stand.
    assert prefixed.ids[3:] == cut.ids[1:]
    assert (whole.cut, cut.cut, prefixed.cut) == (False, True, True)


@pytest.mark.parametrize("prefix", ["", "the wing "])
def test_a_text_over_budget_loses_its_end_blanks_and_all(prefix: str) -> None:
    # RoBERTa's tokenizers say of blanks that they stand for no character.
    tokenizer = Tokenizer.from_str(byte_pairs().to_str())
    closing = ("</s>", tokenizer.token_to_id("<|endoftext|>"))
    opening = ("<s>", tokenizer.token_to_id("<|im_start|>"))
    tokenizer.post_processor = RobertaProcessing(closing, opening, trim_offsets=True)
    text = "lift    and    drag   at a    wing   " * 20
    changes = {"document_prefix": prefix, "document_tokens": 30}
    whole, cut = (
        Wording(tokenizer, dataclasses.replace(BERT, **each)).documents([text])[0]
        for each in (changes | {"document_tokens": 9999}, changes)
    )
    assert cut.ids == [*whole.ids[:29], closing[1]]


def test_a_budget_without_room_for_the_text_is_refused() -> None:
    wording = Wording(byte_pairs(), dataclasses.replace(E2RANK, query_tokens=5))
    with pytest.raises(ValueError, match="budget of 5 tokens has no room"):
        wording.queries([abstracts(1)[0]])


def test_a_joint_prompt_is_the_query_then_every_document_closed_by_the_separator() -> None:
    query, one, two = pieces(QUERY), pieces("the wing lifts ."), pieces("slipstream")
    prompt = bert(QUERY, ["the wing lifts .", "slipstream"])
    assert prompt.ids == [101, *query, 102, *one, 102, *two, 102]
    assert list(prompt.positions) == [
        *range(len(query) + 2),
        *range(1, len(one) + 2),
        *range(1, len(two) + 2),
    ]
    assert prompt.pooled == len(query) + 2
    assert not prompt.cut


@pytest.mark.parametrize("query", [QUERY, "", abstracts(1)[0]])
def test_a_joint_prompt_of_no_documents_is_the_plain_query(query: str) -> None:
    changes = {"query_tokens": 32}
    plain = Wording(wordpiece(), dataclasses.replace(BERT, **changes)).queries([query])[0]
    prompt = bert(query, [], **changes)
    assert prompt.ids == plain.ids
    assert list(prompt.positions) == list(plain.positions)
    assert (prompt.pooled, prompt.cut) == (plain.pooled, plain.cut)


def test_a_joint_prompt_may_be_longer_than_the_positions_of_its_model() -> None:
    prompt = bert(QUERY, abstracts(20))
    assert 512 < len(prompt.ids) <= BERT.prompt_tokens
    assert max(prompt.positions) < 512
    assert prompt.cut


@pytest.mark.parametrize("budget", [60, 61, 200, 333])
def test_a_joint_prompt_shares_its_budget_out_fairly(budget: int) -> None:
    documents = [*abstracts(6), "wing"]
    prompt = bert(QUERY, documents, prompt_tokens=budget)
    starts = [i for i, place in enumerate(prompt.positions) if place == 1][1:]
    stops = [*starts[1:], len(prompt.ids)]
    shown = [prompt.ids[start : stop - 1] for start, stop in zip(starts, stops, strict=True)]
    cap = max(len(each) for each in shown)
    assert shown == [pieces(text)[:cap] for text in documents]
    assert len(prompt.ids) <= budget < len(prompt.ids) + len(documents)
    assert prompt.cut


@pytest.mark.parametrize("texts", [["wing"] * 40, [""] * 70], ids=["a word each", "empty"])
def test_more_documents_than_a_joint_prompt_can_hold_are_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"{len(texts)} documents do not fit .* show fewer"):
        bert(QUERY, texts, prompt_tokens=64)


@pytest.mark.parametrize("most", [150, 201])
def test_a_query_in_a_prompt_is_cut_to_half_of_it(most: int) -> None:
    long = " ".join(abstracts(6))
    changes = {"query_tokens": 20, "prompt_tokens": 2 * most}
    prompt = e2rank(long, ["wing", "lift"], **changes)
    assert prompt.ids == recipe(first_tokens(long, most), ["wing", "lift"])
    assert prompt.cut
    short = first_tokens(long, most)
    assert not e2rank(short, ["wing", "lift"], **changes).cut


def test_a_query_longer_than_its_own_budget_is_shown_whole_where_a_prompt_has_room() -> None:
    long, documents = " ".join([*abstracts(6), QUERY]), abstracts(20)
    prompt = e2rank(long, documents, query_tokens=20)
    assert prompt.ids == recipe(long, documents)
    assert not prompt.cut


def test_a_long_query_gives_way_where_documents_would_not_fit() -> None:
    long, documents = " ".join(abstracts(6)), ["wing"] * 60
    changes = {"query_tokens": 20, "prompt_tokens": 520}
    prompt = e2rank(long, documents, **changes)
    assert prompt.ids == recipe(first_tokens(long, 20), documents)
    assert prompt.cut


def test_a_query_over_a_whole_prompt_leaves_room_for_documents() -> None:
    prompt = e2rank("lift " * 9000, [*abstracts(3)], prompt_tokens=1000)
    assert len(prompt.ids) <= 1000
    assert prompt.cut


@pytest.mark.parametrize("texts", [[""], ["wing", "", "lift"]], ids=["alone", "among others"])
@pytest.mark.parametrize("kind", ["queries", "documents"])
def test_a_text_without_a_token_is_refused_by_its_place(kind: str, texts: list[str]) -> None:
    bare = dataclasses.replace(E2RANK, query_prefix="", query_suffix="", document_suffix="")
    says = rf"text {texts.index('')} has no token: it is '', .* put a suffix into the contract"
    with pytest.raises(ValueError, match=says):
        getattr(Wording(byte_pairs(), bare), kind)(texts)


NO_TEXTS = [
    ("wing", "expected a list of {}s, got one string"),
    (["wing", None], "{} 1 is of type NoneType; expected a text"),
    (["wing", "a \ud83d b"], "{} 1 has half a surrogate pair"),
]


@pytest.mark.parametrize(("texts", "says"), NO_TEXTS, ids=["one", "none", "surrogate"])
@pytest.mark.parametrize("kind", ["queries", "documents", "terms"])
@pytest.mark.parametrize("words", [byte_pairs, wordpiece])
def test_what_is_no_list_of_texts_is_refused_by_its_place(
    words: Callable[[], Tokenizer], kind: str, texts: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says.format("text")):
        getattr(Wording(words(), BERT), kind)(texts)


@pytest.mark.parametrize(("texts", "says"), NO_TEXTS, ids=["one", "none", "surrogate"])
@pytest.mark.parametrize("prompt", [e2rank, bert])
def test_what_is_no_text_of_a_prompt_is_refused_by_its_place(
    prompt: Callable[..., Tokens], texts: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says.format("document")):
        prompt(QUERY, texts)
    with pytest.raises(ValueError, match=says.format("text")):
        Wording(byte_pairs(), E2RANK).prompts(texts, [[]] * len(texts))


def test_a_joint_prompt_needs_a_tokenizer_that_closes_a_text() -> None:
    with pytest.raises(ValueError, match="closes a text with no separator token"):
        Wording(byte_pairs(), BERT).prompts([QUERY], [["wing"]])


def test_texts_may_come_from_an_iterator() -> None:
    words, texts = Wording(byte_pairs(), E2RANK), ["a wing", "a panel"]
    for kind in ("queries", "documents", "terms"):
        read = getattr(words, kind)
        assert read(text for text in texts) == read(texts)
