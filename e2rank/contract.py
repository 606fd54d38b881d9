"""The contract: every text a model is shown, where it is cut, and where it is pooled.

A model understands the wording it was trained on and no other, so the wording travels with the
weights: it is saved beside the index and hashed into its fingerprint.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

import xxhash

Family = Literal["bidirectional", "decoder"]
Pooling = Literal["mean", "cls", "last"]
Rerank = Literal["listwise", "tokens"]
Prompt = Literal["text", "vectors"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "family": get_args(Family),
    "pooling": get_args(Pooling),
    "rerank": get_args(Rerank),
    "prompt": get_args(Prompt),
}

# Of a rerank for which none was chosen.
_WEIGHT = 0.6

# A field that came later is left out of the digest while it has its default, so that what was
# made before it came keeps its fingerprint.
_LATER = ("token_dim", "token_layers", "rerank", "prompt", "sparse_dim", "sparse_terms")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """How one model is spoken to.

    A query is shown as query_prefix + text + query_suffix, a document likewise. A listwise prompt
    depends on the family:

    - decoder: prompt_before, then every document as prompt_number + text joined by
      prompt_separator, then prompt_query + query + prompt_after; pooled like any text.
    - bidirectional: `[CLS] query [SEP] d1 [SEP] d2 [SEP] ...`; positions restart for every
      document and only the span of the query is pooled, so the prompt of no documents is the
      plain query vector.

    A prompt of vectors shows the documents' vectors instead, one soft token each: a decoder reads
    them in front of the query, a bidirectional encoder behind it, all at one position.

    Budgets are in tokens and include the model's special tokens. A text over budget loses the
    end of its own text; prefixes, suffixes and closing tokens always stay.

    Args:
        family: which listwise prompt the model reads.
        pooling: which positions become the vector.
        dim: length of that vector.
        query_tokens: budget of one query; a decoder's prompt shows more of it where there is room.
        document_tokens: budget of one document.
        prompt_tokens: budget of a whole listwise prompt.
        prompt_document_tokens: most tokens of one document inside a prompt.
        list_sizes: numbers of documents a prompt had in training; empty when it had none.
        fusion_weight: share of the score of the model's own rerank in the final one, 0 to 1; other
            kinds have .6, see `weight_of`.
        token_dim: length of the token vectors of late interaction; 0 where the model gives none.
        token_layers: how many of its last layers the token vectors are made from.
        sparse_dim: terms of the vocabulary of its sparse vectors; 0 where the model gives none.
        sparse_terms: most terms of a document's sparse vector, those of largest weight.
        rerank: what `rerank=True` means for this model.
        prompt: what the listwise prompts of list_sizes were made of: the documents' texts, or
            their vectors.
    """

    family: Family
    pooling: Pooling
    dim: int
    query_prefix: str = ""
    query_suffix: str = ""
    document_prefix: str = ""
    document_suffix: str = ""
    prompt_before: str = ""
    prompt_number: str = "[{number}] "
    prompt_separator: str = "\n"
    prompt_query: str = "\nQuery: "
    prompt_after: str = ""
    query_tokens: int = 512
    document_tokens: int = 512
    prompt_tokens: int = 2048
    prompt_document_tokens: int = 96
    list_sizes: tuple[int, ...] = ()
    fusion_weight: float = _WEIGHT
    token_dim: int = 0
    token_layers: int = 2
    rerank: Rerank = "listwise"
    prompt: Prompt = "text"
    sparse_dim: int = 0
    sparse_terms: int = 128

    def __post_init__(self) -> None:
        """Refuse a contract that no model could keep.

        Raises:
            ValueError: naming the field and what it must be.
        """
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                *others, last = map(repr, allowed)
                raise ValueError(f"{name} is {value!r}; expected {', '.join(others)} or {last}")
        budgets = ("query_tokens", "document_tokens", "prompt_tokens", "prompt_document_tokens")
        if self.prompt == "vectors" and not self.list_sizes:
            raise ValueError(
                "prompt is 'vectors' and list_sizes is empty; no model reads soft tokens untrained"
            )
        least = {"token_dim": 0, "sparse_dim": 0}
        for name in ("dim", "token_dim", "token_layers", "sparse_dim", "sparse_terms", *budgets):
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be at least {least.get(name, 1)}"
                )
        if not 0.0 <= self.fusion_weight <= 1.0:
            raise ValueError(f"fusion_weight is {self.fusion_weight}; it must be in [0, 1]")

    @property
    def prompt_trained(self) -> bool:
        """Whether the model was trained to read listwise prompts."""
        return bool(self.list_sizes)

    def weight_of(self, rerank: Rerank) -> float:
        """The share of a rerank's score in the final one: `fusion_weight` is that of one kind."""
        return self.fusion_weight if rerank == self.rerank else _WEIGHT

    def listwise(self, query: str, documents: Sequence[str]) -> str:
        """The decoder family's listwise prompt as one string, nothing cut.

        Source: E2Rank, arXiv 2510.22733, in the form it was trained on.
        """
        numbered = (
            self.prompt_number.format(number=number) + text
            for number, text in enumerate(documents, start=1)
        )
        listed = self.prompt_separator.join(numbered)
        return f"{self.prompt_before}{listed}{self.prompt_query}{query}{self.prompt_after}"

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-able."""
        return dataclasses.asdict(self) | {"list_sizes": list(self.list_sizes)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The contract `to_dict` wrote.

        Raises:
            ValueError: if a field is unknown, missing or of another type: some write one by hand.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = fields.keys() - known
        if unknown:
            raise ValueError(
                f"a contract has no field {sorted(unknown)[0]!r}; this e2rank knows "
                f"{', '.join(sorted(known))}: is it misspelt, or of a newer one?"
            )
        required = {
            field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING
        }
        if missing := required - fields.keys():
            raise ValueError(f"the contract lacks the field {sorted(missing)[0]!r}")
        for field in dataclasses.fields(cls):
            if field.name in fields:
                _check_type(field.name, field.type, fields[field.name])
        return cls(**{**fields, "list_sizes": tuple(fields.get("list_sizes", ()))})

    def digest(self) -> str:
        """16 hex digits that differ when any field differs."""
        fields = self.to_dict()
        for name in _LATER:
            if fields[name] == type(self).__dataclass_fields__[name].default:
                del fields[name]
        canonical = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return xxhash.xxh3_64_hexdigest(canonical.encode())


def _check_type(name: str, kind: Any, value: Any) -> None:
    if kind in (int, float):
        fits, said = _is_number(value, kind), "a number" if kind is float else "a whole number"
    elif name == "list_sizes":
        fits = isinstance(value, list | tuple) and all(_is_number(each, int) for each in value)
        said = "a list of whole numbers"
    else:
        fits, said = isinstance(value, str), "a string"
    if not fits:
        raise ValueError(f"{name} is {value!r}; expected {said}")


def _is_number(value: Any, kind: type) -> bool:
    # True is a whole number to Python.
    return isinstance(value, int | kind) and not isinstance(value, bool)


def fair_share(lengths: Sequence[int], room: int, most: int) -> int:
    """The largest cut at which the documents fit, water-filling: short ones leave their rest.

    Args:
        lengths: tokens of each document.
        room: tokens that all of them may take together.
        most: tokens that one may take.
    Returns:
        The largest cap <= most with sum(min(length, cap)) <= room.
    Raises:
        ValueError: if not even one token of each fits, or room is negative.

    >>> fair_share([2, 10, 10], room=12, most=8)
    5
    """
    low, high = 0, most
    while low < high:
        cap = (low + high + 1) // 2
        if sum(min(length, cap) for length in lengths) <= room:
            low = cap
        else:
            high = cap - 1
    if room < 0 or (low < 1 and any(lengths)):
        raise ValueError(
            f"{len(lengths)} documents do not fit into {max(room, 0)} tokens of the prompt; "
            "show fewer, or shorten the query"
        )
    return low
