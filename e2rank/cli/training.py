"""The commands that train: a recipe in and a folder out, or an index that learns from itself."""

import enum
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from e2rank.cli import options
from e2rank.cli.commands import Folder, app
from e2rank.cli.options import Ranker
from e2rank.cli.output import print_json, progress
from e2rank.cli.rankers import reranker
from e2rank.config import load_recipe
from e2rank.errors import MissingExtra
from e2rank.rerank import Reranker

if TYPE_CHECKING:
    from e2rank.train import Adapted


class Teaching(enum.StrEnum):
    """Who labels the candidates of an adaptation."""

    TOKENS = "tokens"
    CROSS_ENCODER = "cross-encoder"


@app.command()
def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A TOML file with the fields of TrainConfig; of LateConfig if token_dim is "
            "among them, of SparseConfig if sparse_terms is."
        ),
    ],
    resume: Annotated[
        bool, typer.Option(help="Continue a run that was interrupted; not for heads.")
    ] = False,
    changes: options.Changes = None,
) -> None:
    """Train a model to read listwise prompts, or a head for token or sparse vectors."""
    _check_installed()
    changed = dict(map(options.changed, changes or []))
    if (kind := _kind(recipe, changed)) is not None:
        out = _train_head(kind, recipe, changed, resume=resume)
    else:
        out = _train_prompts(recipe, changed, resume=resume)
    typer.echo(f"{out} can be named wherever an encoder can")


@app.command()
def adapt(
    folder: Folder,
    teacher: Annotated[
        Teaching,
        typer.Option(help="What orders the candidates: stored token vectors, or a model of pairs."),
    ] = Teaching.TOKENS,
    cross_encoder: options.CrossEncoder = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="A log, one query a line; queries made from the documents if not given."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            help="Queries to make, or to take from the log: 400, with a cross-encoder 2,000, if "
            "not given.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes which queries, and how they are split.")] = 0,
    encoder: Annotated[
        str | None,
        typer.Option(help="The model that made the index, where that was exported to ONNX."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the index's adapter.")] = False,
    json: options.Json = False,
) -> None:
    """Adapt an index to its own corpus, without labels, if that helps."""
    if remove:
        _remove(folder, as_json=json)
        return
    _check_installed()
    if cross_encoder is not None and teacher is not Teaching.CROSS_ENCODER:
        raise ValueError(
            "--cross-encoder is given, and the teacher is 'tokens': add --teacher cross-encoder"
        )
    from e2rank.train import AdaptConfig
    from e2rank.train import adapt as run_adaptation
    from e2rank.train.queries import read_query_log

    started, settings = time.perf_counter(), AdaptConfig(queries=n, seed=seed)
    log = read_query_log(queries).queries if queries else None
    asking = None
    if teacher is Teaching.CROSS_ENCODER:
        asking = cast(Reranker, reranker(Ranker.CROSS_ENCODER, cross_encoder))
    try:
        most = settings.most(trains=asking is not None)
        with progress("queries", min(most, len(log)) if log else most) as done:
            found = run_adaptation(
                folder,
                settings,
                teacher=asking,
                queries=log,
                encoder=encoder,
                progress=done,
            )
    except KeyboardInterrupt:
        typer.echo("error: interrupted; the index is as it was. The same command goes on", err=True)
        raise typer.Exit(130) from None
    _show_adapted(found, teacher, time.perf_counter() - started, as_json=json)


def _train_prompts(recipe: Path, changed: dict[str, Any], *, resume: bool) -> Path:
    from e2rank.train import TrainConfig
    from e2rank.train import train as run_training

    config = load_recipe(TrainConfig, recipe, changed)
    try:
        with progress("steps", config.steps) as done:
            return run_training(config, resume=resume, progress=done)
    except KeyboardInterrupt:
        typer.echo("error: interrupted; the same command with --resume continues", err=True)
        raise typer.Exit(130) from None


def _train_head(kind: str, recipe: Path, changed: dict[str, Any], *, resume: bool) -> Path:
    from e2rank.train import LateConfig, SparseConfig, train_sparse, train_tokens

    if resume:
        raise ValueError(f"a {kind} head has nothing to resume: leave --resume out, it starts anew")
    config: LateConfig | SparseConfig
    try:
        if kind == "token":
            config = load_recipe(LateConfig, recipe, changed)
            with progress("steps", config.steps) as done:
                return train_tokens(config, progress=done)
        config = load_recipe(SparseConfig, recipe, changed)
        with progress("steps", config.steps) as done:
            return train_sparse(config, progress=done)
    except KeyboardInterrupt:
        typer.echo("error: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None


def _kind(recipe: Path, changed: dict[str, Any]) -> str | None:
    """Which head a recipe is of, if any; what is no TOML is refused by who reads it next."""
    try:
        fields = tomllib.loads(recipe.read_text(encoding="utf-8")) | changed
    except ValueError:
        return None
    heads = {"token_dim": "token", "sparse_terms": "sparse"}
    return next((kind for field, kind in heads.items() if field in fields), None)


def _remove(folder: Path, *, as_json: bool) -> None:
    _check_installed()
    from e2rank.train import remove_adapter

    removed = remove_adapter(folder)
    if as_json:
        print_json({"removed": removed})
        return
    typer.echo(f"{folder} is as it was built" if removed else f"{folder} has no adapter")


def _show_adapted(found: "Adapted", teacher: Teaching, seconds: float, *, as_json: bool) -> None:
    trained, held = found.queries
    if as_json:
        print_json(
            {
                "kept": found.folder is not None,
                "folder": str(found.folder) if found.folder else None,
                "terms": found.terms,
                "before": found.before,
                "after": found.after,
                "p_value": found.p_value,
                "queries": {"trained": trained, "held_out": held},
                "teacher": teacher.value,
                "teacher_calls": found.teacher_calls,
                "seconds": seconds,
            }
        )
        return
    typer.echo(
        f"agreement with the teacher ({teacher.value}) on {held:,} held-out queries, nDCG@10: "
        f"{found.before:.4f} -> {found.after:.4f}, p {found.p_value:.4f}"
    )
    typer.echo(
        f"{found.terms:,} terms, {trained + held:,} queries, "
        f"{found.teacher_calls:,} teacher calls, {seconds:.1f} s"
    )
    typer.echo(
        f"kept: {found.folder} is used whenever the index is opened; --remove takes it away"
        if found.folder
        else "not kept: the held-out queries are not better with it; the index is as it was"
    )


def _check_installed() -> None:
    for name, extra in (("torch", "torch"), ("transformers", "torch")):
        if find_spec(name) is None:
            raise MissingExtra(name, extra=extra)
