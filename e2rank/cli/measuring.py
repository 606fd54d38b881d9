"""The commands that measure: search end to end, and the reranking of given lists."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from e2rank import __version__, whole
from e2rank.cli import options
from e2rank.cli.checked import check_ids, check_indexed, check_listed, check_pattern
from e2rank.cli.commands import Folder, Moved, app
from e2rank.cli.options import Ranker
from e2rank.cli.output import print_json, print_report, progress
from e2rank.cli.rankers import (
    befores,
    by_stages,
    own_ranker,
    reordering,
    searching,
    write_runs,
)
from e2rank.documents import Document
from e2rank.encoders import Encoder
from e2rank.encoders.presets import load_encoder
from e2rank.engine import Engine
from e2rank.evaluate.collection import Collection, load_beir
from e2rank.evaluate.measures import MEASURES, parse_measures
from e2rank.evaluate.protocol import Ranker as Ask
from e2rank.evaluate.protocol import evaluate as run_evaluation
from e2rank.evaluate.rankings import Run
from e2rank.evaluate.report import Report
from e2rank.evaluate.trec import read_run

Beir = Annotated[Path, typer.Argument(help="A BEIR folder: corpus, queries, qrels.")]
Baseline = Annotated[
    str | None,
    typer.Option(
        help="The row that the others are compared with, by its name in the report; the plain "
        "first stage, or else the first row, if not given."
    ),
]

_TOLD = (
    *("dtype", "depth", "shown", "prompt", "fuse", "alpha", "beta", "k", "cross_encoder"),
    "collapse",
)
"""Options that a report names, where a command has them: those that figures depend on."""


@app.command()
def evaluate(
    context: typer.Context,
    folder: Folder,
    beir: Beir,
    split: options.Split = "test",
    qrels: options.Qrels = None,
    gather: options.Gathers = None,
    refine: options.Refines = None,
    alpha: options.Alpha = None,
    beta: options.Beta = None,
    k: options.PrunedFor = 10,
    rerank: options.Rerank = None,
    depth: options.Depth = 100,
    shown: options.Shown = 20,
    prompt: options.Prompt = None,
    fuse: options.Fuse = None,
    collapse: options.Collapse = None,
    measure: options.Measures = None,
    baseline: Baseline = None,
    limit: options.Limit = None,
    encoder: Moved = None,
    dtype: options.Dtype = None,
    cross_encoder: options.CrossEncoder = None,
    run_out: options.RunOut = None,
    per_query: options.PerQuery = False,
    json: options.Json = False,
) -> None:
    """Measure search end to end on a judged collection.

    Every --gather is measured with every --refine and every --rerank; without --rerank, those that
    are given alone.
    """
    measures = tuple(parse_measures(measure or MEASURES))
    stages = befores(gather, refine, alpha, beta, k)
    # Whoever compares first stages asks for no rerank, unless it is named.
    alone = [Ranker.NONE] if gather or refine else None
    rows = len(set(stages)) * len(set(rerank or alone or (1, 2)))
    check_pattern(run_out, rows)
    collection = _judged(beir, split, qrels).first(limit)
    with Engine.open(folder, encoder, dtype=dtype) as engine:
        names = rerank or alone or [Ranker.NONE, own_ranker(engine, prompt)]
        absent = check_indexed(engine, collection, collapse)
        check_ids(run_out, collection.queries, whole.names(engine.store))
        rankers = by_stages(
            stages,
            names,
            cross_encoder,
            lambda each, before: searching(
                engine, each, depth, shown, fuse, prompt, before, collapse
            ),
        )
        report, runs = _evaluated(collection, rankers, measures, depth, None, baseline)
        report = replace(report, absent=absent, setting=_setting(context, engine, folder))
        _put_out(report, runs, run_out, as_json=json or per_query, per_query=per_query)


@app.command()
def rerank(
    context: typer.Context,
    beir: Beir,
    run: Annotated[Path, typer.Option(help="A TREC run: the candidates of each query.")],
    folder: Annotated[
        Path | None,
        typer.Option("--index", help="An index of the documents; made on the fly if not given."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="As for `index`; minilm, or the one that made --index.")
    ] = None,
    dtype: options.Dtype = None,
    split: options.Split = "test",
    qrels: options.Qrels = None,
    refine: options.Refines = None,
    alpha: options.Alpha = None,
    beta: options.Beta = None,
    k: options.PrunedFor = 10,
    rerank: options.Rerank = None,
    depth: options.Depth = 100,
    shown: options.Shown = 20,
    prompt: options.Prompt = None,
    fuse: options.Fuse = None,
    measure: options.Measures = None,
    baseline: Baseline = None,
    limit: options.Limit = None,
    cross_encoder: options.CrossEncoder = None,
    run_out: options.RunOut = None,
    per_query: options.PerQuery = False,
    json: options.Json = False,
) -> None:
    """Measure reranking of given candidate lists.

    Every --refine is measured with every --rerank; without --rerank, those that are given alone.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1")
    measures = tuple(parse_measures(measure or MEASURES))
    stages = befores(None, refine, alpha, beta, k)
    alone = [Ranker.NONE] if refine else None
    check_pattern(run_out, len(set(stages)) * len(set(rerank or alone or (1, 2, 3))))
    collection = _judged(beir, split, qrels).first(limit)
    lists = {query: ranking[:depth] for query, ranking in read_run(run).items()}
    lists = {query: lists[query] for query in collection.queries if lists.get(query)}
    if not lists:
        raise ValueError(f"{run} has no list for any query that {collection.split} judges")
    with tempfile.TemporaryDirectory() as scratch:
        if folder:
            engine = Engine.open(folder, encoder, dtype=dtype)
        else:
            loaded = load_encoder(encoder or "minilm", dtype=dtype)
            engine = _index_listed(collection, lists, Path(scratch) / "index", loaded)
        with engine:
            check_listed(engine, collection, lists)
            own = [Ranker.NONE, Ranker.COSINE, own_ranker(engine, prompt)]
            rankers = by_stages(
                stages,
                rerank or alone or own,
                cross_encoder,
                lambda each, before: reordering(engine, lists, each, shown, fuse, prompt, before),
            )
            report, runs = _evaluated(collection, rankers, measures, depth, lists, baseline)
            setting = _setting(context, engine, folder) | {"lists": str(run)}
            report = replace(report, setting=setting)
            _put_out(report, runs, run_out, as_json=json or per_query, per_query=per_query)


def _judged(beir: Path, split: str, qrels: Path | None) -> Collection:
    if qrels is None:
        return load_beir(beir, split)
    if split != "test":
        raise ValueError("--split names judgments in qrels/ and --qrels others: give one of them")
    return load_beir(beir, qrels.name, qrels)


def _evaluated(
    collection: Collection,
    rankers: dict[str, Ask],
    measures: Sequence[str],
    depth: int,
    lists: Run | None,
    baseline: str | None,
) -> tuple[Report, dict[str, Run]]:
    if baseline is None and "dense" in rankers:
        # Where first stages are named; else "none", which is the same search.
        baseline = "dense"
    with progress("queries", len(collection.queries)) as done:
        return run_evaluation(
            collection,
            rankers,
            depth=depth,
            lists=lists,
            baseline=baseline,
            measures=measures,
            progress=done,
        )


def _setting(context: typer.Context, engine: Engine, folder: Path | None) -> dict[str, Any]:
    """What the figures are of: without it nothing tells why another time gave others."""
    encoder = engine.encoder
    return {
        "e2rank": __version__,
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "adapter": getattr(encoder, "adapter_fingerprint", ""),
        # One that was made on the fly is gone with its commits.
        "index": str(folder) if folder else None,
        "commit": engine.store.manifest.commit if folder else None,
    } | {name: context.params[name] for name in _TOLD if name in context.params}


def _put_out(
    report: Report, runs: dict[str, Run], run_out: str | None, *, as_json: bool, per_query: bool
) -> None:
    if as_json:
        print_json(report.to_dict(per_query=per_query))
    else:
        print_report(report, Console())
    write_runs(run_out, runs)


def _index_listed(collection: Collection, lists: Run, folder: Path, encoder: Encoder) -> Engine:
    wanted = {document for ranking in lists.values() for document, _ in ranking}

    def listed() -> Iterator[Document]:
        for document in collection.documents():
            if document.id in wanted:
                yield document

    with progress("documents", len(wanted)) as done:
        return Engine.build(listed(), folder, encoder, progress=done)
