"""Rerankers by name as rankers that can be evaluated, end to end or over given lists."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from e2rank.cli.options import Ranker
from e2rank.encoders.presets import local_model
from e2rank.engine import Engine
from e2rank.evaluate.protocol import Answer
from e2rank.evaluate.protocol import Ranker as Ask
from e2rank.evaluate.trec import Run, write_run
from e2rank.hits import Hits
from e2rank.rerank.choose import Rerank
from e2rank.rerank.cross_encoder import CrossEncoderReranker


def reranker(name: Ranker, cross_encoder: str | None) -> Rerank:
    """What `Engine.search` takes for this name; loads the cross-encoder where it is asked for."""
    if name is Ranker.CROSS_ENCODER:
        return CrossEncoderReranker(cross_encoder or local_model("ms-marco-MiniLM-L-12-v2"))
    return cast(Rerank, name.value)


def searching(engine: Engine, rerank: Rerank, depth: int, shown: int, fuse: float | None) -> Ask:
    """The end-to-end protocol: the engine gathers its own candidates."""

    def ask(_: str, query: str) -> Answer:
        return _answer(
            engine.search(query, depth, rerank=rerank, depth=depth, shown=shown, fuse=fuse)
        )

    return ask


def reordering(engine: Engine, lists: Run, rerank: Rerank, shown: int, fuse: float | None) -> Ask:
    """The fixed-list protocol: the engine reorders what another search found."""

    def ask(identifier: str, query: str) -> Answer:
        weight = fuse if rerank not in ("none", "cosine") else None
        return _answer(
            engine.rerank(query, lists[identifier], rerank=rerank, shown=shown, fuse=weight)
        )

    return ask


def by_name(
    names: Sequence[Ranker], cross_encoder: str | None, make: Callable[[Rerank], Ask]
) -> dict[str, Ask]:
    """A ranker for each name, in order; naming one twice changes nothing."""
    return {name.value: make(reranker(name, cross_encoder)) for name in names}


def write_runs(pattern: str | None, runs: dict[str, Run]) -> None:
    """Write each run where `pattern` says.

    Raises:
        ValueError: if several runs would go into one file.
    """
    if pattern is None:
        return
    check_pattern(pattern, len(runs))
    for name, run in runs.items():
        write_run(Path(pattern.replace("{ranker}", name)), run, tag=f"e2rank-{name}")


def check_pattern(pattern: str | None, runs: int) -> None:
    """Refuse one file for several runs, before any work is done.

    Raises:
        ValueError: saying what to write instead.
    """
    if pattern is not None and runs > 1 and "{ranker}" not in pattern:
        raise ValueError(
            f"--run-out {pattern} is one file for {runs} rankers: put {{ranker}} into its name"
        )


def _answer(hits: Hits) -> Answer:
    return Answer(
        ranking=[(hit.id, hit.score) for hit in hits],
        ms=hits.timings["total"],
        model_calls=hits.model_calls,
        tokens=hits.tokens,
        truncated=hits.truncated,
        failed=bool(hits.rerank_error),
    )
