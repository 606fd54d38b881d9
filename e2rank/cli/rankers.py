"""Rerankers by name as rankers that can be evaluated, end to end or over given lists."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from e2rank.cli.options import Kind, Ranker
from e2rank.contract import Prompt
from e2rank.encoders.presets import local_model
from e2rank.engine import Engine
from e2rank.evaluate.collection import Collection
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
) -> Ask:
    """The end-to-end protocol: the engine gathers its own candidates."""
    kind = kind_of(prompt)

    def ask(_: str, query: str) -> Answer:
        return _answer(
            engine.search(
                query, depth, rerank=rerank, depth=depth, prompt=kind, shown=shown, fuse=fuse
            )
        )

    return ask


def reordering(
    engine: Engine,
    lists: Run,
    rerank: Rerank,
    shown: int,
    fuse: float | None,
    prompt: Kind | None = None,
) -> Ask:
    """The fixed-list protocol: the engine reorders what another search found."""
    kind = kind_of(prompt)

    def ask(identifier: str, query: str) -> Answer:
        weight = fuse if rerank not in ("none", "cosine") else None
        listed = lists[identifier]
        return _answer(
            engine.rerank(query, listed, rerank=rerank, prompt=kind, shown=shown, fuse=weight)
        )

    return ask


def kind_of(prompt: Kind | None) -> Prompt | None:
    """What the engine calls this kind of prompt."""
    return prompt.value if prompt else None


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
    """Refuse one file for several runs, or a folder that is not there, before any work is done.

    Raises:
        ValueError: saying what to write instead.
    """
    if pattern is None:
        return
    if not Path(pattern).parent.is_dir():
        raise ValueError(f"--run-out {pattern}: there is no folder {Path(pattern).parent}")
    if runs > 1 and "{ranker}" not in pattern:
        raise ValueError(
            f"--run-out {pattern} is one file for {runs} rankers: put {{ranker}} into its name"
        )


def check_indexed(engine: Engine, collection: Collection) -> None:
    """Refuse an index that lacks most of what the collection judges.

    Raises:
        ValueError: saying how much it lacks.
    """
    judged = {document for grades in collection.qrels.values() for document in grades}
    absent = sum(engine.store.row_of(document) is None for document in judged)
    if 2 * absent > len(judged):
        raise ValueError(
            f"the index lacks {absent} of the {len(judged)} judged documents: it is of another "
            f"collection than {collection.name}"
        )


def check_listed(engine: Engine, lists: Run) -> None:
    """Refuse lists of documents that the index lacks, before any work is done.

    Raises:
        ValueError: naming the first.
    """
    for query, ranking in lists.items():
        for document, _ in ranking:
            if engine.store.row_of(document) is None:
                raise ValueError(f"the list of query {query!r} has {document!r}, which is nowhere")


def _answer(hits: Hits) -> Answer:
    return Answer(
        ranking=[(hit.id, hit.score) for hit in hits],
        ms=hits.timings["total"],
        model_calls=hits.model_calls,
        tokens=hits.tokens,
        truncated=hits.truncated,
        failed=bool(hits.rerank_error),
    )
