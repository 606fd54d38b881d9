"""Plain records: what goes in (`Document`), and what a reranker sees (`Candidates`)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from e2rank.errors import CorpusError


@dataclass(frozen=True, slots=True)
class Document:
    """One thing to find.

    Args:
        id: unique in its index, not empty.
        text: what is searched; may be empty.
        title: searched too, in front of the text.
        metadata: anything JSON can hold; kept and returned, and what filters test (`e2rank.where`).
        vector: (d,) numbers, what the index's encoder gave for title and text somewhere else, of
            any length; None lets it encode them. Of each batch the longest and eight others that
            bring one, evenly spread, the first and the last among them, are encoded all the same:
            their cosine with what they bring must be .99. It is not given back by searches.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    vector: np.ndarray | Sequence[float] | None = field(default=None, compare=False, repr=False)

    @property
    def body(self) -> str:
        """Title and text as the encoder sees them: joined by one space, as BEIR does.

        >>> Document("1", "Lift of a wing.", title="Wings").body
        'Wings Lift of a wing.'
        """
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """Token vectors of n documents, for late interaction.

    Args:
        rows: (T, p) rows of their tokens, one document after another: float32, or the smaller
            type in which an index keeps them.
        ends: (n + 1,) int64 offsets: document i has the rows ends[i] to ends[i + 1].
        scale: what the rows are to be multiplied with to be unit rows.
    """

    rows: np.ndarray
    ends: np.ndarray
    scale: float = 1.0

    @classmethod
    def of(cls, documents: Sequence[np.ndarray]) -> Self:
        """One (t, p) array a document, put one after another; at least one document."""
        return cls(np.concatenate(documents), np.cumsum([0, *map(len, documents)]))


@dataclass(frozen=True, slots=True)
class SparseVectors:
    """Learned sparse vectors of n texts: terms of a vocabulary, each with a weight above 0.

    Args:
        terms: (m,) int32 term ids of all texts, one text after another; ascending in each.
        weights: (m,) float32, above 0.
        ends: (n + 1,) int64 offsets: text i has the terms ends[i] to ends[i + 1], perhaps none.
    """

    terms: np.ndarray
    weights: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends) - 1

    @classmethod
    def of(cls, texts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Self:
        """From the terms and weights of each text, any number of texts."""
        lengths = [len(terms) for terms, _ in texts]
        return cls(
            np.concatenate([np.zeros(0, np.int32), *(terms for terms, _ in texts)]),
            np.concatenate([np.zeros(0, np.float32), *(weights for _, weights in texts)]),
            np.cumsum([0, *lengths]),
        )

    def row(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """The terms and weights of one text."""
        own = slice(self.ends[place], self.ends[place + 1])
        return self.terms[own], self.weights[own]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What was gathered for one query, best first.

    ids and texts hold n strings; scores is (n,) float32; vectors is (n, d) float32 of unit rows
    and query the (d,) unit vector of the query, both made by the encoder with this fingerprint,
    or None where there is none. query_tokens are that encoder's (t, p) token vectors of the
    query; tokens reads those of the candidates when it is called, as they are large. Both are of
    the head with this token_fingerprint, and None where there are none.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    scores: np.ndarray
    vectors: np.ndarray | None = None
    query: np.ndarray | None = None
    fingerprint: str = ""
    query_tokens: np.ndarray | None = None
    tokens: Callable[[], TokenVectors] | None = None
    token_fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.ids)


def as_documents(records: Iterable[Document | Mapping[str, Any]]) -> Iterator[Document]:
    """Documents from documents or mappings; errors name the position, counted from 0.

    Vectors that are brought become (d,) float32 unit vectors.

    A mapping needs `id` (or BEIR's `_id`) and `text`; `title`, `metadata` and `vector` are
    optional, or None, and any other key is an error, since it would otherwise be lost without a
    word.

    Raises:
        CorpusError: for a record that is neither, lacks a field, or has one of the wrong type.
    """
    for position, record in enumerate(records):
        document = record if isinstance(record, Document) else _from_mapping(record, position)
        _check(document, position)
        yield document if document.vector is None else replace(document, vector=_unit(document))


def _from_mapping(record: Mapping[str, Any], position: int) -> Document:
    if not isinstance(record, Mapping):
        raise CorpusError(
            f"document {position} is a {type(record).__name__}; expected a Document or a mapping "
            "with 'id' and 'text'"
        )
    fields = dict(record)
    identifier = fields.pop("id", None) if "id" in fields else fields.pop("_id", None)
    unknown = fields.keys() - {"text", "title", "metadata", "vector"}
    if unknown:
        raise CorpusError(
            f"document {position} has the unknown field {sorted(map(str, unknown))[0]!r}; "
            "put extra fields under 'metadata'"
        )
    if identifier is None or "text" not in fields:
        missing = "id" if identifier is None else "text"
        raise CorpusError(f"document {position} has no {missing!r}")
    return Document(
        id=identifier,
        text=fields["text"],
        title="" if (title := fields.get("title")) is None else title,
        metadata={} if (metadata := fields.get("metadata")) is None else metadata,
        vector=fields.get("vector"),
    )


def _unit(document: Document) -> np.ndarray:
    """The vector that a document brings, (d,) float32 of length 1; one of zeros stays that."""
    try:
        vector = np.asarray(document.vector)
    except Exception as error:  # whatever an array of another library raises
        raise CorpusError(f"document {document.id!r} brings no vector: {error}") from error
    if vector.ndim != 1 or vector.dtype.kind not in "fiu":
        raise CorpusError(
            f"document {document.id!r} brings {vector.dtype} of shape {vector.shape} for a vector; "
            "expected (dimension,) floats"
        )
    vector = vector.astype(np.float64)
    if not np.isfinite(vector).all():
        raise CorpusError(f"document {document.id!r} brings a vector with a NaN or an infinity")
    # Of any length: the squares of very long or short ones are beyond what floats hold.
    vector = vector / (np.abs(vector).max(initial=0.0) or 1.0)
    return np.asarray(vector / (np.linalg.norm(vector) or 1.0), dtype=np.float32)


def _check(document: Document, position: int) -> None:
    if not isinstance(document.id, str):
        raise CorpusError(
            f"document {position} has the id {document.id!r} of type "
            f"{type(document.id).__name__}; ids are strings: use str(id)"
        )
    if not document.id:
        raise CorpusError(f"document {position} has an empty id")
    for name in ("text", "title"):
        value = getattr(document, name)
        if not isinstance(value, str):
            raise CorpusError(
                f"document {document.id!r} has a {name} of type {type(value).__name__}; "
                "expected a string"
            )
