"""What a search returns: `Hits`, a sequence of `Hit` that knows what finding them took."""

import dataclasses
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload


@dataclass(frozen=True, slots=True)
class Hit:
    """One ranked document.

    Args:
        id: the document's.
        rank: from 1.
        score: higher is better; compare only within one ranking. The first stage's without a
            rerank, MaxSim where it was refined.
        text: the document's.
        title: the document's.
        metadata: the document's.
        first_score: the first stage's: the cosine of query and document unless another stage was
            asked for, or the score in the list given.
        first_rank: rank before the rerank, from 1, of the document, or of what it is collapsed to;
            None for one that only feedback found.
        start: in an index of passages, where `text` begins in the document's text, in characters
            from 0; below 0 where it begins in a title that was split with the text.

    In an index of passages `text` is the document's best passage, without the blanks behind it,
    and scores are that passage's.
    """

    id: str
    rank: int
    score: float
    text: str
    title: str
    metadata: Mapping[str, Any]
    first_score: float
    first_rank: int | None
    start: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Hits(Sequence[Hit]):
    """The answer to one query, best first.

    Args:
        query: what was asked; "" where that was a vector.
        hits: the ranked documents.
        timings: milliseconds of each step ("gather", "refine", "rerank", "total"); a batch of
            queries shares its time out evenly.
        model_calls: sequences the models read, the query's own among them, once for each model
            that read it.
        tokens: tokens they read.
        truncated: sequences that lost tokens to a budget.
        rerank_error: why the order is that of before the rerank, or of before refining, although
            it was asked; "" if it is not.
        refined: how many candidates MaxSim "scored", how many were "pruned" for their first-stage
            scores, and how many stood "unseen" behind the early exit; empty if not refined.
    """

    query: str
    hits: tuple[Hit, ...]
    timings: Mapping[str, float] = field(default_factory=dict)
    model_calls: int = 0
    tokens: int = 0
    truncated: int = 0
    rerank_error: str = ""
    refined: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @overload
    def __getitem__(self, place: int) -> Hit: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, place: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[place]

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        fields: dict[str, Any] = {
            each.name: getattr(self, each.name) for each in dataclasses.fields(self)
        }
        hits = [hit.to_dict() for hit in self.hits]
        mappings = {"timings": dict(self.timings), "refined": dict(self.refined)}
        return fields | {"hits": hits} | mappings

    def to_trec(self, query_id: str, tag: str = "e2rank") -> str:
        """Lines of a TREC run: `query Q0 document rank score tag`.

        Raises:
            ValueError: if a name has white space, which separates the columns; or where several
                passages of a document were shown.
        """
        self._check_once()
        check_columns([query_id, tag, *(hit.id for hit in self.hits)])
        lines = [f"{query_id} Q0 {hit.id} {hit.rank} {hit.score!r} {tag}" for hit in self.hits]
        return "\n".join(lines)

    def to_beir(self) -> dict[str, float]:
        """Document id to score, as BEIR's evaluators take it.

        Raises:
            ValueError: where several passages of a document were shown.
        """
        self._check_once()
        return {hit.id: hit.score for hit in self.hits}

    def _check_once(self) -> None:
        seen: set[str] = set()
        for hit in self.hits:
            if hit.id in seen:
                raise ValueError(
                    f"several passages of document {hit.id!r} are here, and a run names it once: "
                    "search without collapse=False"
                )
            seen.add(hit.id)


def check_columns(names: Iterable[str]) -> None:
    """Refuse what cannot be a column of a TREC run.

    Raises:
        ValueError: naming the first that is empty or has white space.
    """
    for name in names:
        if len(name.split()) != 1:
            raise ValueError(f"{name!r} cannot be a column of a run: white space separates columns")


def pairs_of(ranking: Iterable[tuple[str, float] | Hit]) -> list[tuple[str, float]]:
    """The (id, score) pairs of a ranking, or of hits: all of a search, or any of them.

    Raises:
        ValueError: naming the place of what is neither.
    """
    return [_pair(place, each) for place, each in enumerate(ranking)]


def _pair(place: int, entry: tuple[str, float] | Hit) -> tuple[str, float]:
    if isinstance(entry, Hit):
        return entry.id, entry.score
    if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[0], str):
        # Cut, since it may hold the text of a document.
        shown = reprlib.repr(entry)
        raise ValueError(f"entry {place} of the ranking is {shown}; expected (id, score) or a Hit")
    return entry
