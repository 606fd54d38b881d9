"""Rerankers by name as rankers that can be evaluated, end to end or over given lists."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import cast

from e2rank.cli.checked import check_pattern
from e2rank.cli.options import Kind, Ranker, Refine
from e2rank.collapse import thing_of
from e2rank.contract import Prompt
from e2rank.encoders.presets import local_model
from e2rank.engine import Engine
from e2rank.evaluate.protocol import Ranker as Ask
from e2rank.evaluate.rankings import Run
from e2rank.evaluate.trec import write_run
from e2rank.hits import Hit, Hits
from e2rank.rerank.choose import Rerank
from e2rank.rerank.cross_encoder import CrossEncoderReranker
from e2rank.rerank.refine import MaxSim


@dataclass(frozen=True, slots=True)
class Before:
    """What comes before the rerank: the first stage, and how its candidates are refined.

    A first stage that nobody named is the dense one, or a given list.
    """

    gather: str | None = None
    refine: MaxSim | None = None

    @property
    def first(self) -> str:
        """What `Engine.search` takes for the first stage."""
        return self.gather or "dense"

    def named(self, rerank: Ranker) -> str:
        """A name of the whole search: the stages that were named, and what they do not leave out.

        >>> Before().named(Ranker.NONE), Before("dense").named(Ranker.NONE)
        ('none', 'dense')
        >>> Before("dense+bm25", MaxSim()).named(Ranker.LISTWISE)
        'dense+bm25 + maxsim + listwise'
        """
        stages = [
            self.gather or "",
            "maxsim" if self.refine else "",
            rerank.value if rerank is not Ranker.NONE else "",
        ]
        return " + ".join(filter(None, stages)) or "none"


def befores(
    gathers: Sequence[str] | None,
    refines: Sequence[Refine] | None,
    alpha: float | None,
    beta: int | None,
    k: int | None = None,
) -> list[Before]:
    """Every first stage with every way to refine; the usual ones, unnamed, where none is given.

    Args:
        gathers: first stages; several names joined by "+" are one, a hybrid of them.
        refines: ways to refine.
        alpha: of MaxSim.
        beta: of MaxSim.
        k: the length of the list that MaxSim's prunings are for; None for what a search returns.
    Raises:
        ValueError: for prunings of nothing, or out of range.
    """
    ways = refines or [Refine.NONE]
    if (alpha is not None or beta is not None) and Refine.MAXSIM not in ways:
        raise ValueError("--alpha and --beta are prunings of --refine maxsim, which is not given")
    made = [MaxSim(alpha, beta, k) if way is Refine.MAXSIM else None for way in ways]
    named: Sequence[str | None] = gathers or [None]
    return [Before(gather, way) for gather, way in product(named, made)]


def reranker(name: Ranker, cross_encoder: str | None) -> Rerank:
    """What `Engine.search` takes for this name; loads the cross-encoder where it is asked for."""
    if name is Ranker.CROSS_ENCODER:
        return CrossEncoderReranker(cross_encoder or local_model("ms-marco-MiniLM-L-12-v2"))
    return cast(Rerank, name.value)


def own_ranker(engine: Engine, prompt: Kind | None = None) -> Ranker:
    """What `rerank=True` means for the engine's model; a kind of prompt asks for a listwise one."""
    return Ranker.LISTWISE if prompt else Ranker(engine.encoder.contract.rerank)


def searching(
    engine: Engine,
    rerank: Rerank,
    depth: int,
    shown: int,
    fuse: float | None,
    prompt: Kind | None = None,
    before: Before = Before(),
    collapse: str | None = None,
) -> Ask:
    """The end-to-end protocol: the engine gathers its own candidates.

    What is collapsed is judged by the value that it was collapsed by.
    """
    kind = kind_of(prompt)

    def ask(_: str, query: str) -> Hits:
        hits = engine.search(
            query,
            depth,
            gather=before.first,
            refine=before.refine,
            rerank=rerank,
            depth=depth,
            prompt=kind,
            shown=shown,
            fuse=fuse,
            collapse=collapse,
        )
        return hits if collapse is None else replace(hits, hits=_things(hits, collapse))

    return ask


def _things(hits: Hits, field: str) -> tuple[Hit, ...]:
    return tuple(replace(hit, id=thing_of(hit.metadata, hit.id, field)) for hit in hits)


def reordering(
    engine: Engine,
    lists: Run,
    rerank: Rerank,
    shown: int,
    fuse: float | None,
    prompt: Kind | None = None,
    before: Before = Before(),
) -> Ask:
    """The fixed-list protocol: the engine reorders what another search found."""
    kind = kind_of(prompt)

    def ask(identifier: str, query: str) -> Hits:
        weight = fuse if rerank not in ("none", "cosine") else None
        return engine.rerank(
            query,
            lists[identifier],
            refine=before.refine,
            rerank=rerank,
            prompt=kind,
            shown=shown,
            fuse=weight,
        )

    return ask


def kind_of(prompt: Kind | None) -> Prompt | None:
    """What the engine calls this kind of prompt."""
    return prompt.value if prompt else None


def by_stages(
    befores: Sequence[Before],
    names: Sequence[Ranker],
    cross_encoder: str | None,
    make: Callable[[Rerank, Before], Ask],
) -> dict[str, Ask]:
    """A ranker for each reranker behind each of what may come before it, under their names."""
    chosen = {name: reranker(name, cross_encoder) for name in names}
    pairs = product(befores, chosen.items())
    return {before.named(name): make(each, before) for before, (name, each) in pairs}


def write_runs(pattern: str | None, runs: dict[str, Run]) -> None:
    """Write each run where `pattern` says, under its name without the blanks.

    Raises:
        ValueError: if several runs would go into one file.
    """
    if pattern is None:
        return
    check_pattern(pattern, len(runs))
    for name, run in runs.items():
        tag = name.replace(" ", "")
        write_run(Path(pattern.replace("{ranker}", tag)), run, tag=f"e2rank-{tag}")
