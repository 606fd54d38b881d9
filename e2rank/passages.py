"""Long documents as passages: each short enough for an encoder, together the whole text."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from e2rank.documents import Document, as_documents
from e2rank.encoders import Encoder
from e2rank.encoders.tokens import Wording
from e2rank.errors import CorpusError
from e2rank.index.staging import Ids
from e2rank.index.writer import Writer
from e2rank.whole import NUMBER, OF, START, number_of, passage_id, passages_of

# After what closes a sentence, or a line; some scripts write no blank behind a stop.
_ENDS = re.compile(
    r"[.!?][\"'\u201d\u2019)\]]*\s+"
    r"|[\u3002\uff01\uff1f\u0964\u0965\u061f\u06d4][\"'\u201d\u2019\u300d\u300f\uff09]*\s*"
    r"|\n+"
)


def split_documents(
    documents: Iterable[Document | Mapping[str, Any]],
    encoder: Encoder,
    *,
    tokens: int = 128,
    overlap: int | None = None,
) -> Iterator[Document]:
    """Every document as one or several passages that the encoder reads whole.

    An index of `IndexConfig(passages=128)` does this by itself, and is searched, added to and
    deleted from by documents. In any other index passages are documents of their own: the id of one
    is that of its document, "#" and a number from 0; it has its document's title and metadata,
    under "passage_of" its document's id, under "passage_number" that number and under
    "passage_start" the character of the document's text that it begins with.

    A passage ends with a sentence where one ends in its second half, and keeps the white space
    behind it: overlaps apart, passages one after another are the text. It begins with a sentence
    too, the first that fits into the overlap, or the first behind it, or else with a word.

    A title that would take more than half of a passage is split with the text, in front of it, and
    the passages have none; those that begin in it have a start below 0.

    Args:
        documents: as for `Engine.build`, without vectors.
        encoder: whose tokens are counted, with a tokenizer of its own (`words`), as those of torch
            and exported ones have.
        tokens: that a passage has at most, its title and what the contract adds included.
        overlap: how many tokens at the end of a passage the next one may begin with, a quarter at
            most; None for a quarter.
    Raises:
        CorpusError: for a document that brings a vector, which is none of its passages', or has
            metadata under one of these three names.
        ValueError: if the encoder has no tokenizer, or tokens and overlap leave no room for a text.
    """
    return _split(documents, *_checked(encoder, tokens, overlap))


def split_texts(
    texts: Sequence[str], encoder: Encoder, tokens: int = 0
) -> Iterator[tuple[int, str]]:
    """Plain texts as passages, so that the encoder reads all of them.

    Args:
        texts: any number of them.
        encoder: as for `split_documents`; for one that cannot split, texts stay as they are.
        tokens: of a passage; 0 for as many as the encoder reads.
    Yields:
        Each passage behind the place of the text that it is of.
    """
    if not can_split(encoder):  # as one of one's own
        yield from enumerate(texts)
        return
    words, budget, overlap = _checked(encoder, tokens or _most(encoder), None)
    for place, text in enumerate(texts):
        for start, stop in _pieces("", text, words, budget, overlap):
            yield place, text[start:stop]


def can_split(encoder: Encoder) -> bool:
    """Whether it has a tokenizer of its own."""
    return isinstance(getattr(encoder, "words", None), Wording)


def _checked(encoder: Encoder, tokens: int, overlap: int | None) -> tuple[Wording, int, int]:
    """What splits, and by how many tokens."""
    if not can_split(encoder):
        raise ValueError(
            f"{encoder.name} has no tokenizer of its own to split documents by: take an encoder "
            "that has one, or keep documents whole (passages=0)"
        )
    most = _most(encoder)
    over = tokens // 4 if overlap is None else overlap
    if not 0 < tokens <= most or not 0 <= over <= tokens // 4:
        raise ValueError(
            f"passages of {tokens} tokens that overlap by {over}; expected at most the {most} that "
            f"{encoder.name} reads, and an overlap of a quarter of them at most"
        )
    return cast(Any, encoder).words, tokens, over


def _most(encoder: Encoder) -> int:
    """How many tokens of a document are read by every one of the encoder's models."""
    return min(getattr(encoder, "document_budgets", (encoder.contract.document_tokens,)))


class Split(Iterable[Document]):
    """The passages of documents that an index of passages is given, and what they leave behind.

    To be iterated over once.

    `count` is how many documents were read so far. `left` are the ids of passages that the index
    holds of the former texts of these, and that they have no more; known when all are read.
    """

    def __init__(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        encoder: Encoder,
        tokens: int,
        writer: Writer | None = None,
    ) -> None:
        """Make ready to split.

        Args:
            documents: as for `split_documents`.
            encoder: of the index.
            tokens: of a passage.
            writer: of the index; None for a new one.
        Raises:
            ValueError: as by `split_documents`.
        """
        self._documents, self._writer = documents, writer
        # Refused before anything is written.
        self._how = _checked(encoder, tokens, None)
        self.count, self.left = 0, list[str]()

    def __iter__(self) -> Iterator[Document]:
        with contextlib.closing(Ids()) as ids:
            for document in as_documents(self._documents):
                ids.add([document.id], self.count)
                passages = list(_split([document], *self._how))
                self.count += 1
                yield from passages
                if self._writer:
                    own = passages_of(self._writer, document.id)
                    self.left += [each for each in own if number_of(each) >= len(passages)]


def _split(
    documents: Iterable[Document | Mapping[str, Any]], words: Wording, tokens: int, overlap: int
) -> Iterator[Document]:
    for document in as_documents(documents):
        _check(document)
        title, text, before = document.title, document.text, 0
        if tokens - words.length(title) < tokens // 2:
            before = len(title) + 1
            title, text = "", f"{title} {text}"
        for number, (start, stop) in enumerate(_pieces(title, text, words, tokens, overlap)):
            yield Document(
                id=passage_id(document.id, number),
                text=text[start:stop],
                title=title,
                metadata={
                    **document.metadata,
                    OF: document.id,
                    NUMBER: number,
                    START: start - before,
                },
            )


def _check(document: Document) -> None:
    if document.vector is not None:
        raise CorpusError(
            f"document {document.id!r} brings a vector, which is none of its passages': leave it "
            "out, or give the passages theirs"
        )
    if taken := {OF, NUMBER, START} & document.metadata.keys():
        raise CorpusError(
            f"document {document.id!r} has metadata under {min(taken)!r}, where passages say what "
            "they are of: call it otherwise"
        )


def _pieces(
    title: str, text: str, words: Wording, budget: int, overlap: int
) -> Iterator[tuple[int, int]]:
    """Where each passage begins and ends in the text."""
    found = None
    for start, stop in _cut(title, text, words, budget, overlap):
        if text[start:stop].strip():
            if found:
                yield found
            # An encoder leaves out the blanks before a text, but not those behind a title.
            found = (start if found or title else 0, stop)
        elif found:
            found = (found[0], stop)
        elif title:
            found = (0, stop)
    yield found or (0, len(text))


def _cut(
    title: str, text: str, words: Wording, budget: int, overlap: int
) -> Iterator[tuple[int, int]]:
    """The same, with those that are blank."""
    room = budget - words.length(title)
    if room < 1:
        raise ValueError(f"passages of {budget} tokens have no room for a text")
    places, start, most = _Places(text, words), 0, room
    while True:
        stop = places.end(start, most)
        first, last = places.at(start), places.at(stop)
        over = words.length(f"{title} {text[first:last]}".strip()) - budget
        if over > 0 and stop - start > 1:
            # Tokens at the seams may split differently than inside the text.
            most = max(1, stop - start - over)
            continue
        yield first, last
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

    def at(self, place: int) -> int:
        """The character that a passage begins with whose first token is this one."""
        if place == len(self):
            return len(self._text)
        return self._spans[place][0] if place else 0

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
        """The first token from `least` to `most` that begins a sentence, or else a word.

        `most` if none does.
        """
        for good in (self._after_sentence, self._after_space):
            for place in range(least, min(most + 1, len(self))):
                if good(place):
                    return place
        return most

    def _after_sentence(self, place: int) -> bool:
        return self._spans[place][0] in self._ends

    def _after_space(self, place: int) -> bool:
        return self._text[self._spans[place][0] - 1].isspace()
