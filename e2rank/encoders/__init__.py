"""From text to vectors. `Encoder` is the seam: any object with these three methods will do."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np

from e2rank.contract import Contract
from e2rank.documents import SparseVectors

__all__ = [
    "Cost",
    "CutTexts",
    "DType",
    "Encoder",
    "Encoding",
    "SparseQueries",
    "Want",
    "check_dtype",
    "check_wanted",
    "difference",
    "encode_documents",
    "encode_sparse_queries",
    "report_cut",
    "sparse_fingerprint",
    "token_fingerprint",
    "total",
]

_log = logging.getLogger("e2rank")

Want = Literal["dense", "sparse", "tokens"]
"""A kind of representation of a document."""

DType = Literal["float32", "bfloat16"]
"""What a torch model computes in; its vectors are float32 in any case."""


def check_dtype(dtype: object) -> None:
    """Refuse what no model computes in here.

    Raises:
        ValueError: unless it is a `DType` or None.
    """
    if dtype is not None and dtype not in get_args(DType):
        raise ValueError(
            f"dtype is {dtype!r}; expected {' or '.join(map(repr, get_args(DType)))}, or None"
        )


PARTS = ("weights", "tokenizer", "contract")

Cost = tuple[int, int, int]
"""Calls of models, tokens that they read, and texts that lost tokens to a budget."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """The vectors of one call, and what making them took.

    Args:
        vectors: (n, d) float32, unit rows, in the order of the texts.
        tokens: tokens the model read, padding not counted.
        truncated: positions of the texts that lost tokens to a budget.
        token_vectors: a (t, p) float32 matrix a text, for late interaction: unit rows of a
            document; of a query, rows whose lengths are the shares of its tokens. Empty where the
            encoder gives none.
        sparse: the learned sparse vectors of n texts, or None where the encoder gives none.
        calls: how many models read each text.
    """

    vectors: np.ndarray
    tokens: int = 0
    truncated: tuple[int, ...] = ()
    token_vectors: tuple[np.ndarray, ...] = ()
    sparse: SparseVectors | None = None
    calls: int = 1

    def only(self, places: Sequence[int]) -> "Encoding":
        """The vectors of the texts at these places, without what making them took."""
        sparse = self.sparse and SparseVectors.of([self.sparse.row(place) for place in places])
        tokens = tuple(self.token_vectors[place] for place in places) if self.token_vectors else ()
        return Encoding(self.vectors[list(places)], token_vectors=tokens, sparse=sparse, calls=0)

    def costs(self) -> list[Cost]:
        """What each text took; the tokens are shared out evenly."""
        n, cut = len(self.vectors), set(self.truncated)
        return [
            (self.calls, self.tokens // n + (place < self.tokens % n), int(place in cut))
            for place in range(n)
        ]


def total(costs: Iterable[Cost]) -> Cost:
    """All of them together.

    >>> total([(1, 10, 0), (2, 5, 1)]), total([])
    ((3, 15, 1), (0, 0, 0))
    """
    calls, tokens, truncated = zip((0, 0, 0), *costs, strict=True)
    return sum(calls), sum(tokens), sum(truncated)


class CutTexts:
    """Counts documents that lost tokens, so that nothing is cut without a word."""

    def __init__(self, encoder: "Encoder") -> None:
        """Count what is longer than the encoder reads, or one of several models that it is of."""
        self._encoder = encoder
        self._texts = self.cut = 0

    def counted(self, encoding: Encoding) -> Encoding:
        """`encoding` as it is, counted."""
        self._texts += len(encoding.vectors)
        self.cut += len(encoding.truncated)
        return encoding

    def report(self) -> None:
        """Log how many were cut, if any were."""
        hint = " (IndexConfig(passages=128), --passages 128, splits them)"
        report_cut(self._encoder, self.cut, self._texts, hint)


def report_cut(encoder: "Encoder", cut: int, texts: int, hint: str = "") -> None:
    """Log how many of so many texts were longer than the encoder reads, if any were.

    `hint` is what can be done about it.
    """
    if not cut:
        return
    of_one = (encoder.contract.document_tokens,)
    budgets: Sequence[int] = getattr(encoder, "document_budgets", of_one)
    # What the vectors lack, BM25 still finds, and perhaps another model's vectors.
    what = "the encoder reads ({} tokens): what is beyond is not in its vectors"
    if len(budgets) > 1:
        what = (
            "one of the encoder's models reads ({} tokens): what is beyond is not in that "
            "model's vectors"
        )
    what = what.format(", ".join(map(str, budgets)))
    _log.warning("%d of the %d documents read are longer than %s%s", cut, texts, what, hint)


@runtime_checkable
class Encoder(Protocol):
    """Texts in, unit vectors out.

    Two encoders of one fingerprint give one vector for one text: stored vectors are reused by it.
    The fingerprint is `weights-tokenizer-contract`, each part a hash.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def contract(self) -> Contract: ...

    def encode_queries(self, texts: Sequence[str]) -> Encoding: ...

    def encode_documents(self, texts: Sequence[str]) -> Encoding: ...

    def encode_prompts(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]]
    ) -> Encoding:
        """One listwise prompt a query, showing that query's documents, best first."""
        ...


@runtime_checkable
class SparseQueries(Protocol):
    """An encoder whose documents have sparse vectors, of `contract.sparse_dim` terms."""

    @property
    def sparse_fingerprint(self) -> str:
        """What identifies the sparse vectors of documents."""
        ...

    def encode_documents(
        self, texts: Sequence[str], want: Collection[Want] | None = None
    ) -> Encoding:
        """As an `Encoder`; only what is wanted, all of it if None."""
        ...

    def sparse_queries(self, texts: Sequence[str]) -> SparseVectors:
        """The sparse vectors of queries; a dot product with a document's is its score."""
        ...


def check_wanted(encoder: Encoder, want: Collection[Want] | None) -> None:
    """Refuse to be asked for what an encoder does not give.

    Raises:
        ValueError: naming it.
    """
    given = {
        "dense": True,
        "sparse": encoder.contract.sparse_dim > 0,
        "tokens": encoder.contract.token_dim > 0,
    }
    for each in want or ():
        if each not in given:
            raise ValueError(f"want has {each!r}; expected some of {', '.join(get_args(Want))}")
        if not given[each]:
            raise ValueError(f"{encoder.name} gives no {each} vectors of documents")


def encode_documents(encoder: Encoder, texts: Sequence[str], want: Collection[Want]) -> Encoding:
    """The documents' representations that are wanted, and no sparse vectors made for nobody.

    Raises:
        TypeError: if an encoder of one's own gives something else.
    """
    given: Any = encoder
    if encoder.contract.sparse_dim and "sparse" not in want:
        read = given.encode_documents(texts, want=want)
    else:
        read = given.encode_documents(texts)
    if not isinstance(read, Encoding):
        raise TypeError(
            f"{encoder.name} gave {read!r:.60} for documents; expected an e2rank.encoders.Encoding"
        )
    return read


def encode_sparse_queries(encoder: Any, texts: Sequence[str]) -> Encoding:
    """The sparse vectors of n queries beside vectors of (n, 0), and what reading them took.

    A model reads them where the encoder has a method of this name. Else they are `sparse_queries`,
    read from a table, which costs nothing.
    """
    reads = getattr(encoder, "encode_sparse_queries", None)
    if reads is not None:
        return cast(Encoding, reads(texts))
    none = np.zeros((len(texts), 0), dtype=np.float32)
    return Encoding(none, sparse=encoder.sparse_queries(texts), calls=0)


def sparse_fingerprint(encoder: Encoder) -> str:
    """What identifies the encoder's sparse vectors of documents; "" for one that gives none."""
    return str(getattr(encoder, "sparse_fingerprint", ""))


def token_fingerprint(encoder: Encoder) -> str:
    """What identifies the encoder's token vectors of documents; "" for one that gives none."""
    return str(getattr(encoder, "token_fingerprint", ""))


def difference(one: str, other: str) -> str:
    """Which parts of two fingerprints differ, for a message.

    >>> difference("a-b-c", "a-x-y")
    'tokenizer and contract'
    """
    pairs = zip(PARTS, one.split("-"), other.split("-"), strict=False)
    return " and ".join(part for part, a, b in pairs if a != b) or "kind of encoder"
