"""A long text's first tokens are found without reading the rest of it."""

import dataclasses
from collections.abc import Callable

import pytest
from encoders_support import abstracts, byte_pairs, wordpiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers
from tokenizers.models import Unigram

from e2rank.contract import Contract
from e2rank.encoders import beginnings
from e2rank.encoders.presets import e2rank_contract
from e2rank.encoders.tokens import Tokens, Wording

BERT = Contract(family="bidirectional", pooling="mean", dim=8)
E2RANK = e2rank_contract(1024)


def unigram() -> Tokenizer:
    """Pieces of a whole text at once, blanks among them: no text is split before."""
    words = {word for text in abstracts(30) for word in text.split()}
    parts = {word[:size] for word in words for size in range(1, 9)}
    pieces = [("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [(part, -12.0 + len(part) / 8) for part in sorted(parts)]
    pieces += [(f"\u2581{word}", -9.0) for word in sorted(words)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    return tokenizer


TOKENIZERS: dict[str, tuple[Callable[[], Tokenizer], Contract]] = {
    "wordpiece": (wordpiece, BERT),
    "byte pairs": (byte_pairs, E2RANK),
    "unigram": (unigram, BERT),
}
TEXTS = {
    "long": " ".join(abstracts(30)),
    "lines": "\n\n".join(abstracts(30)),
    "blanks": "wing" + " " * 9000 + "lift and drag " * 900,
    "no blank": "wing" * 3000,
    "long words": ("aerodynamics" * 20 + " ") * 60,
    "another script": "\u7ffc\u306e\u63da\u529b" * 900 + " " + "\u7ffc" * 900,
    "accents": "na\u00efve nai\u0308ve \u0308 " * 900,
    "short": "wing",
}


def with_budget(kind: str, budget: int) -> Wording:
    make, contract = TOKENIZERS[kind]
    return Wording(
        make(),
        dataclasses.replace(
            contract,
            query_tokens=budget,
            document_tokens=budget,
            prompt_document_tokens=budget,
            prompt_tokens=8000,
        ),
    )


def all_of(words: Wording, text: str) -> list[Tokens]:
    """What is made of a text, as a query, a document, and in a prompt."""
    made = [*words.queries([text, "lift"]), *words.documents(["lift", text])]
    # A joint prompt needs a tokenizer that closes a text, which this one does not.
    prompts = [] if "Unigram" in words.identity() else words.prompts([text], [["lift", text]])
    return [*made, *prompts]


@pytest.mark.parametrize("budget", [60, 200])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_long_text_has_the_tokens_it_has_when_all_of_it_is_read(
    kind: str, text: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = with_budget(kind, budget)
    found = all_of(words, TEXTS[text])
    monkeypatch.setattr(beginnings, "_CHARACTERS", 10**6)
    assert found == all_of(words, TEXTS[text])
    assert found[0].cut or text not in ("long", "lines")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12), st.text(max_size=6), st.sampled_from([" ", "\n", ". ", ""]))
def test_any_text_repeated_has_the_tokens_of_the_whole(word: str, other: str, between: str) -> None:
    text = between.join([word, other] * 150)
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("wordpiece", "byte pairs"):
            words = with_budget(kind, 24)
            patch.setattr(beginnings, "_CHARACTERS", 3)
            found = words.documents([f"a {text}"])
            patch.setattr(beginnings, "_CHARACTERS", 10**6)
            assert found == words.documents([f"a {text}"])


def test_of_a_long_text_no_more_than_its_beginning_is_tokenised() -> None:
    read: list[str] = []
    tokenizer = wordpiece()

    def encode(texts: list[str]) -> list[object]:
        read.extend(texts)
        return list(tokenizer.encode_batch(texts))

    text = " ".join(abstracts(30))
    texts, pieces = beginnings.read_beginnings(encode, [text, "lift"], 50, "query: ", " end")  # type: ignore[arg-type]
    assert read == [f"query: {each} end" for each in texts]
    assert len(texts[0]) <= 6 * 66 < len(text)
    assert texts[1] == "lift"
    assert text.startswith(texts[0])
    assert text[len(texts[0])].isspace()
    assert len(pieces[0].ids) >= 66
