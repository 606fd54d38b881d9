"""From text to token ids under a contract's budgets; knows tokenizers, not models."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from tokenizers import Encoding as Pieces
from tokenizers import Tokenizer

from e2rank.checks import check_texts, listed
from e2rank.contract import Contract, fair_share
from e2rank.encoders.beginnings import read_beginnings


@dataclass(frozen=True, slots=True)
class Tokens:
    """One sequence a model reads.

    Args:
        ids: token ids, unpadded.
        positions: position id of each token, counted from 0.
        pooled: how many leading tokens belong to the pooled span.
        cut: whether the text lost tokens to a budget.
        soft: places of soft tokens: their ids mean nothing, embeddings come with the sequence.
    """

    ids: list[int]
    positions: Sequence[int]
    pooled: int
    cut: bool
    soft: range = range(0)


class Wording:
    """A tokenizer under a contract: queries, documents and listwise prompts as token ids.

    Whatever makes tokens raises ValueError, naming the place, for what is no list of texts or
    cannot be read as text.
    """

    def __init__(self, tokenizer: Tokenizer, contract: Contract) -> None:
        """Take a private copy of `tokenizer`: its own padding and truncation are switched off."""
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.contract = contract

    def under(self, contract: Contract) -> "Wording":
        """The same tokenizer under another contract."""
        return Wording(self._tokenizer, contract)

    def identity(self) -> str:
        """The tokenizer as one string, for hashing."""
        return self._tokenizer.to_str()

    def terms(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of bare texts: no prefix, no special tokens, nothing cut."""
        read = self._tokenizer.encode_batch_fast(_checked(texts), add_special_tokens=False)
        return [each.ids for each in read]

    def special(self) -> frozenset[int]:
        """Ids of tokens that stand for no text, such as those that open and close one."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(id_ for id_, token in added.items() if token.special)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a bare text stands in it: from this character, up to that one."""
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def length(self, document: str) -> int:
        """How many tokens a document would have, uncut, with what the contract adds."""
        contract = self.contract
        whole = f"{contract.document_prefix}{document}{contract.document_suffix}"
        return len(self._ids(whole, special=True))

    def queries(self, texts: Sequence[str]) -> list[Tokens]:
        """One sequence a query.

        Raises:
            ValueError: if a query has no token, or its budget no room for it.
        """
        contract = self.contract
        return self._fit(texts, contract.query_prefix, contract.query_suffix, contract.query_tokens)

    def documents(self, texts: Sequence[str]) -> list[Tokens]:
        """One sequence a document.

        Raises:
            ValueError: if a document has no token, or its budget no room for it.
        """
        contract = self.contract
        before, after = contract.document_prefix, contract.document_suffix
        return self._fit(texts, before, after, contract.document_tokens)

    def prompts(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[Tokens]:
        """One listwise prompt a query; its documents are cut to a fair share of the budget.

        A bidirectional encoder's query is cut to the contract's `query_tokens`, as it is without
        documents. A decoder's is cut only where it would take more than half of the prompt, too, or
        leave no room: what is asked often stands last, so documents go before it.

        Raises:
            ValueError: if a query leaves no room for its documents.
        """
        build = self._turn if self.contract.family == "decoder" else self._joint
        pairs = zip(_checked(queries), documents, strict=True)
        return [build(query, docs) for query, docs in pairs]

    def vector_prompts(self, queries: Sequence[str], counts: Sequence[int]) -> list[Tokens]:
        """One prompt a query with places for so many soft tokens.

        A decoder reads the soft tokens first, the query last. Otherwise they follow the query and
        share the position of a text's first token, so that their order makes no difference.

        Raises:
            ValueError: if a query leaves no room for its soft tokens.
        """
        pairs = zip(self.queries(queries), counts, strict=True)
        return [self._with_soft(asked, count) for asked, count in pairs]

    def _with_soft(self, asked: Tokens, count: int) -> Tokens:
        fair_share([1] * count, self.contract.prompt_tokens - len(asked.ids), 1)
        n = len(asked.ids)
        if self.contract.family == "decoder":
            ids = [0] * count + asked.ids
            return Tokens(ids, range(len(ids)), len(ids), asked.cut, range(count))
        positions = [*asked.positions, *[1] * count]
        return Tokens(asked.ids + [0] * count, positions, n, asked.cut, range(n, n + count))

    def _fit(self, texts: Sequence[str], before: str, after: str, budget: int) -> list[Tokens]:
        # Where each token stands costs a quarter of the time, and shows a prefix from the text.
        located = bool(before or after)
        encode = self._tokenizer.encode_batch if located else self._tokenizer.encode_batch_fast
        texts, read = read_beginnings(encode, _checked(texts), budget, before, after)
        fitted = []
        for place, (text, each) in enumerate(zip(texts, read, strict=True)):
            ids = each.ids
            if not ids:
                raise ValueError(
                    f"text {place} has no token: it is {text[:40]!r}, and the tokenizer adds none; "
                    "leave it out, give it a title, or put a suffix into the contract"
                )
            if over := max(0, len(ids) - budget):
                own = _standing_for(each, len(before), len(text)) if located else _unadded(each)
                ids = _without_last(ids, own, over)
            fitted.append(Tokens(ids, range(len(ids)), len(ids), over > 0))
        return fitted

    def _turn(self, query: str, documents: Sequence[str]) -> Tokens:
        """Decoder family: the query whole if it leaves room for the documents, else cut."""
        least, half = self.contract.query_tokens, self.contract.prompt_tokens // 2
        try:
            return self._turn_of(query, documents, max(least, half))
        except ValueError:
            if half <= least:
                raise
        return self._turn_of(query, documents, least)

    def _turn_of(self, query: str, documents: Sequence[str], most: int) -> Tokens:
        """Cut the texts, the query to so many tokens, then tokenise the prompt as training did."""
        contract = self.contract
        (query,), (asked,) = self._beginnings([query], "text", most)
        query, over = _head(query, asked, most), asked.ids[most:]
        documents, pieces = self._beginnings(documents)
        lengths = [len(each.ids) for each in pieces]
        fixed = len(self._ids(contract.listwise(query, [""] * len(documents))))
        room = contract.prompt_tokens - fixed
        while True:
            cap = fair_share(lengths, room, contract.prompt_document_tokens)
            shown = [_head(text, each, cap) for text, each in zip(documents, pieces, strict=True)]
            ids = self._ids(contract.listwise(query, shown))
            if len(ids) <= contract.prompt_tokens:
                cut = bool(over) or max(lengths, default=0) > cap
                return Tokens(ids, range(len(ids)), len(ids), cut)
            # Tokens at the seams may split differently than in the pieces; take it off the room.
            room -= len(ids) - contract.prompt_tokens

    def _joint(self, query: str, documents: Sequence[str]) -> Tokens:
        """Bidirectional family: the plain query, then every document closed by the separator."""
        contract = self.contract
        asked = self.queries([query])[0]
        separator = self._separator()
        _, pieces = self._beginnings(documents)
        lengths = [len(each.ids) for each in pieces]
        room = contract.prompt_tokens - len(asked.ids) - len(pieces)
        cap = fair_share(lengths, room, contract.prompt_document_tokens)
        ids, positions = list(asked.ids), list(asked.positions)
        for each in pieces:
            ids += [*each.ids[:cap], separator]
            # From 1: a document's first token stands after the (shared) opening token.
            positions += range(1, min(len(each.ids), cap) + 2)
        return Tokens(ids, positions, len(asked.ids), asked.cut or max(lengths, default=0) > cap)

    def _separator(self) -> int:
        closing = self._ids("", special=True)
        if len(closing) < 2:
            raise ValueError(
                "the tokenizer closes a text with no separator token, so a bidirectional listwise "
                "prompt cannot be written; use rerank=False or 'prf'"
            )
        return closing[-1]

    def _beginnings(
        self, texts: Sequence[str], what: str = "document", most: int | None = None
    ) -> tuple[list[str], list[Pieces]]:
        """Bare texts and their pieces; of long ones more than a prompt shows of each."""
        encode = partial(self._tokenizer.encode_batch, add_special_tokens=False)
        most = self.contract.prompt_document_tokens if most is None else most
        return read_beginnings(encode, _checked(texts, what), most)

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=special).ids


def _checked(texts: Sequence[str], what: str = "text") -> list[str]:
    """The texts as a list; what is none is refused by its place, before a tokenizer sees it."""
    texts = listed(texts)
    check_texts(texts, what)
    return list(texts)


def _standing_for(pieces: Pieces, start: int, length: int) -> list[int]:
    """Places of the tokens that stand for text[start : start + length]."""
    offsets = pieces.offsets
    # Of a blank some tokenizers say that it stands for no character: it counts by where it is.
    return [
        place
        for place in _unadded(pieces)
        if start <= offsets[place][0] <= offsets[place][1] <= start + length
    ]


def _unadded(pieces: Pieces) -> list[int]:
    """Places of the tokens but those that open or close a text."""
    return [place for place, added in enumerate(pieces.special_tokens_mask) if not added]


def _without_last(ids: list[int], own: Sequence[int], over: int) -> list[int]:
    """The ids without the last `over` of those at the places `own`."""
    if len(own) <= over:
        raise ValueError(
            f"a budget of {len(ids) - over} tokens has no room for the text between its prefix and "
            "suffix"
        )
    gone = own[-over:]
    if gone[-1] - gone[0] == over - 1:
        return ids[: gone[0]] + ids[gone[-1] + 1 :]
    apart = set(gone)
    return [id_ for place, id_ in enumerate(ids) if place not in apart]


def _head(text: str, pieces: Pieces, cap: int) -> str:
    if len(pieces.ids) <= cap:
        return text
    # A character may be several tokens: the cut falls before the one that is not whole.
    return text[: min(pieces.offsets[cap - 1][1], pieces.offsets[cap][0])]
