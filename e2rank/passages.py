"""Long documents as passages: each short enough for an encoder, together the whole text."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from e2rank.documents import Document, as_documents
from e2rank.encoders import Encoder
from e2rank.encoders.tokens import Wording
from e2rank.errors import CorpusError

FIELD = "document"
"""The metadata field of a passage that holds its document's id."""

# After what closes a sentence, or a line.
_ENDS = re.compile(r"[.!?][\"')\]]*\s+|\n+")


def split_documents(
    documents: Iterable[Document | Mapping[str, Any]],
    encoder: Encoder,
    *,
    tokens: int = 128,
    overlap: int = 32,
) -> Iterator[Document]:
    """Every document as one or several passages that the encoder reads whole.

    A passage is a document of its own: its id is that of its document, "#" and a number from 0; it
    has its document's title and metadata, and under "document" its document's id, by which
    `Engine.search(collapse="document")` shows each document once, by its best passage, and
    `engine.delete(where={"document": id})` deletes all. It ends with a sentence where one ends in
    its second half. Nothing of a text is left out but white space between passages.

    A title that would take more than half of a passage is split with the text instead.

    Before a document is added again, delete its passages: there may be fewer of them now.

    Args:
        documents: as for `Engine.build`, without vectors.
        encoder: whose tokens are counted, with a tokenizer of its own (`words`), as those of torch
            and exported ones have.
        tokens: that a passage has at most, its title and what the contract adds included.
        overlap: tokens at the end of a passage that the next one begins with, a quarter at most.
    Raises:
        CorpusError: for a document that brings a vector, which is none of its passages', or has
            metadata under "document".
        ValueError: if the encoder has no tokenizer, or tokens and overlap leave no room for a text.
    """
    words = getattr(encoder, "words", None)
    if not isinstance(words, Wording):
        raise ValueError(f"{encoder.name} has no tokenizer of its own to split documents by")
    most = encoder.contract.document_tokens
    if not 0 < tokens <= most or not 0 <= overlap <= tokens // 4:
        raise ValueError(
            f"passages of {tokens} tokens that overlap by {overlap}; expected at most the {most} "
            "that the encoder reads, and an overlap of a quarter at most"
        )
    for document in as_documents(documents):
        _check(document)
        for number, (title, text) in enumerate(_pieces(document, words, tokens, overlap)):
            yield Document(
                id=f"{document.id}#{number}",
                text=text,
                title=title,
                metadata={**document.metadata, FIELD: document.id},
            )


def _check(document: Document) -> None:
    if document.vector is not None:
        raise CorpusError(
            f"document {document.id!r} brings a vector, which is none of its passages': leave it "
            "out, or give the passages theirs"
        )
    if FIELD in document.metadata:
        raise CorpusError(
            f"document {document.id!r} has metadata under {FIELD!r}, where the ids of documents "
            "stand in their passages: call it otherwise"
        )


def _pieces(
    document: Document, words: Wording, budget: int, overlap: int
) -> Iterator[tuple[str, str]]:
    """Title and text of each passage."""
    title, text = document.title, document.text
    if budget - words.length(title) < budget // 2:
        title, text = "", document.body
    room = budget - words.length(title)
    if room < 1:
        raise ValueError(f"passages of {budget} tokens have no room for a text")
    places, start, most = _Places(text, words), 0, room
    while True:
        stop = places.end(start, most)
        piece = places.text(start, stop)
        over = words.length(f"{title} {piece}".strip()) - budget
        if over > 0 and stop - start > 1:
            # Tokens at the seams may split differently than inside the text.
            most = max(1, stop - start - over)
            continue
        if piece.strip() or (not start and stop == len(places)):
            yield title, piece
        if stop == len(places):
            return
        start, most = places.beginning(max(start + 1, stop - overlap), stop), room


def _without_blank(text: str, start: int, stop: int) -> int:
    """Where a token's letters begin: to some tokenizers the blank before a word is part of it."""
    letters = text[start:stop].lstrip()
    return stop - len(letters) if letters else start


class _Places:
    """The tokens of a text, and where it may be cut between two of them."""

    def __init__(self, text: str, words: Wording) -> None:
        self._text = text
        self._spans = [(_without_blank(text, *span), span[1]) for span in words.spans(text)]
        self._ends = {match.end() for match in _ENDS.finditer(text)}

    def __len__(self) -> int:
        return len(self._spans)

    def text(self, start: int, stop: int) -> str:
        """The text of the tokens from `start` up to `stop`, and what is between them."""
        first = self._spans[start][0] if start else 0
        last = self._spans[stop][0] if stop < len(self) else len(self._text)
        return self._text[first:last].strip() if start or stop < len(self) else self._text

    def end(self, start: int, most: int) -> int:
        """Where a passage of so many tokens at most ends: with the text, a sentence or a word."""
        if len(self) - start <= most:
            return len(self)
        half = range(start + most, start + most // 2, -1)
        for good in (self._after_sentence, self._after_space):
            for place in half:
                if good(place):
                    return place
        return start + most

    def beginning(self, least: int, most: int) -> int:
        """The first token in between that begins a word; `most` if none does."""
        return next((place for place in range(least, most) if self._after_space(place)), most)

    def _after_sentence(self, place: int) -> bool:
        return self._spans[place][0] in self._ends

    def _after_space(self, place: int) -> bool:
        return self._text[self._spans[place][0] - 1].isspace()
