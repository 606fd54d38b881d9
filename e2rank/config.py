"""Settings: frozen dataclasses that refuse nonsense, and TOML recipes that fill them."""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_TOKENS = ("tokens", "token_factory", "token_nprobe", "token_nearest")
_BM25 = ("bm25_language", "bm25_k1", "bm25_b")
LATER = ("passages", "sparse", "sparse_cut", "sparse_heap_factor", *_TOKENS, *_BM25)
"""Settings of passages, of vectors that not every encoder makes, and of words; left out of what is
saved at their defaults."""

# Those that bm25s has stop words of and PyStemmer a stemmer, and none.
LANGUAGES = (
    *("english", "danish", "dutch", "french", "german", "italian", "norwegian", "portuguese"),
    *("russian", "spanish", "swedish", "turkish", ""),
)

_CHOICES = {
    "bm25_language": LANGUAGES,
    "raw": ("float32", "float16"),
    "sparse": ("exact", "seismic"),
    "tokens": ("int8", "float16", "pq"),
}
_COUNTS = (
    *("batch", "train_rows", "rescore", "nprobe", "ef_search", "sparse_cut"),
    *("token_nprobe", "token_nearest"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How an index is built.

    Args:
        factory: FAISS's own index_factory language: "Flat" is exact; "HNSW32,Flat",
            "IVF256,Flat" and "OPQ48,IVF256,PQ48" trade recall for speed or size. The metric is
            always cosine.
        passages: tokens of a passage, 128 say, its title included; documents are split into such,
            which overlap by up to a quarter, each of which has vectors of its own. Searches show
            documents by their best passage. 0 keeps documents whole: what is longer than the
            encoder reads is cut then.
        batch: documents encoded and made durable at a time; a killed build loses at most one.
        train_rows: rows a trained factory learns from, taken evenly over the corpus.
        nprobe: IVF lists visited by a search; None keeps FAISS's default of 1.
        ef_search: HNSW beam of a search; None keeps FAISS's default of 16.
        rescore: rows an approximate search fetches for each one asked for; their exact cosines
            with the raw rows decide. More than 1 wins back most of what compressed codes lose.
        raw: how raw rows are kept: "float32", or "float16" in half the space; scores are then
            within about 2e-4 of the cosines.
        sparse: how sparse vectors are searched: "exact", or "seismic", which is approximate and
            holds a second copy of them in memory, from 10,000 documents on.
        sparse_cut: terms of a query, those of largest weight, that a search by "seismic" follows.
        sparse_heap_factor: how readily a search by "seismic" skips documents, 0 (never) to 1.
        tokens: how token vectors are kept: "int8", in a byte a component; "float16", in two; or
            "pq", in about 34 bytes a token: the nearest of some thousand centroids, and codes of
            the rest. Both are learned once, from the first segment that has 9,984 token vectors
            or more; what is added in small segments waits in eight bits until it is merged.
        token_factory: FAISS's language for an index of the single token vectors, such as
            "IVF1024,SQ8", whose documents a search by token vectors then scores; "" has none, and
            every document is scored.
        token_nprobe: IVF lists of it visited for each query token; None keeps FAISS's 1.
        token_nearest: tokens it fetches for each query token.
        bm25_language: whose stop words BM25 leaves out and whose stemmer it takes: "english",
            "danish", "dutch", "french", "german", "italian", "norwegian", "portuguese", "russian",
            "spanish", "swedish" or "turkish"; "" for neither, every word as it is.
        bm25_k1: how slowly BM25 tires of a word that stands often in a document, at least 0.
        bm25_b: how much the length of a document counts against it in BM25, 0 to 1.
    """

    factory: str = "Flat"
    passages: int = 0
    batch: int = 1024
    train_rows: int = 262_144
    nprobe: int | None = None
    ef_search: int | None = None
    rescore: int = 1
    raw: str = "float32"
    sparse: str = "exact"
    sparse_cut: int = 10
    sparse_heap_factor: float = 0.8
    tokens: str = "int8"
    token_factory: str = ""
    token_nprobe: int | None = None
    token_nearest: int = 64
    bm25_language: str = "english"
    bm25_k1: float = 1.5
    bm25_b: float = 0.75

    def __post_init__(self) -> None:
        """Refuse values that could not build an index.

        Raises:
            ValueError: naming the field, its value and what it must be.
        """
        if not isinstance(self.factory, str) or not self.factory:
            raise ValueError(
                f"factory is {self.factory!r}; pass a FAISS factory string such as 'Flat'"
            )
        if not isinstance(self.token_factory, str):
            raise ValueError(
                f"token_factory is {self.token_factory!r}; pass a FAISS factory string, or ''"
            )
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                *others, last = map(repr, allowed)
                raise ValueError(f"{name} is {value!r}; it must be {', '.join(others)} or {last}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
        given = self.passages
        if not isinstance(given, int) or isinstance(given, bool) or given < 0:
            raise ValueError(f"passages is {given!r}; it must be a whole number of tokens, or 0")
        for name, most in (("sparse_heap_factor", 1), ("bm25_b", 1), ("bm25_k1", math.inf)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= most or value == math.inf:
                bounds = "at least 0" if most == math.inf else "0 to 1"
                raise ValueError(f"{name} is {value!r}; it must be a number, {bounds}")

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able; those that came later only where they are not their defaults.

        So an index that does without them is recorded as it was before they came.
        """
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in LATER or getattr(self, field.name) != field.default
        }

    @property
    def of_tokens(self) -> "IndexConfig":
        """How the index of single token vectors is built, as if they were the documents'."""
        factory = self.token_factory or "Flat"
        return dataclasses.replace(
            self, factory=factory, nprobe=self.token_nprobe, ef_search=None, rescore=1
        )


def load_recipe(cls: type[T], path: str | Path, changes: Mapping[str, Any] | None = None) -> T:
    """Read the TOML file `path` into dataclass `cls`; `changes` take the place of its values.

    Raises:
        ValueError: if the file is not TOML, or for a key that is not a field of `cls`, with the
            nearest field's name.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    table |= changes or {}
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in table.keys() - set(names):
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{path}: {cls.__name__} has no field {key!r}{hint}")
    return cls(**table)
