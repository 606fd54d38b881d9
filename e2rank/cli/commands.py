"""The commands that build, search and show an index."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from e2rank import whole
from e2rank.cli import options
from e2rank.cli.demo import run_demo
from e2rank.cli.options import Ranker, Refine
from e2rank.cli.output import hits_table, print_json, progress
from e2rank.cli.rankers import befores, kind_of, own_ranker, reranker
from e2rank.config import IndexConfig, load_recipe
from e2rank.corpus import read_corpus
from e2rank.encoders.presets import load_encoder
from e2rank.engine import Engine
from e2rank.index import Store
from e2rank.index.tokens import kinds_of
from e2rank.index.verify import check
from e2rank.where import where_from_text

app = typer.Typer(
    help="One embedding model that retrieves and reranks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Folder = Annotated[Path, typer.Argument(help="An index folder.")]
Corpus = Annotated[
    Path, typer.Argument(help="A BEIR folder, a .jsonl or a .jsonl.gz; - for standard input.")
]
Encoder = Annotated[str, typer.Option(help="A preset, a folder, or owner/name of a model.")]
Moved = Annotated[
    str | None, typer.Option(help="Where the model that made the index now is, if it has moved.")
]


@app.command()
def index(
    corpus: Corpus,
    out: Annotated[Path, typer.Option(help="The folder to build the index in.")],
    encoder: Encoder = "minilm",
    dtype: options.Dtype = None,
    vectors: options.Vectors = None,
    passages: options.Passages = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A TOML file with the fields of IndexConfig.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue a build that was killed.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    json: options.Json = False,
) -> None:
    """Build an index over a corpus."""
    config = load_recipe(IndexConfig, recipe) if recipe else IndexConfig()
    loaded, documents = load_encoder(encoder, dtype=dtype), read_corpus(corpus, vectors)
    if passages is not None:
        config = replace(config, passages=passages)
    try:
        with progress("documents", None) as done:
            engine = Engine.build(
                documents,
                out,
                loaded,
                config,
                resume=resume,
                overwrite=overwrite,
                progress=done,
            )
    except KeyboardInterrupt:
        typer.echo("error: interrupted; the same command with --resume continues", err=True)
        raise typer.Exit(130) from None
    with engine:
        _show(engine.store, as_json=json)


@app.command()
def search(
    folder: Folder,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", help="Documents to return.")] = 10,
    gather: options.Gather = "dense",
    refine: Annotated[Refine, typer.Option(help="Refine before the rerank.")] = Refine.NONE,
    alpha: options.Alpha = None,
    beta: options.Beta = None,
    rerank: Annotated[
        Ranker | None, typer.Option(help="How to rerank; the model's own way if not given.")
    ] = None,
    depth: options.Depth = 100,
    shown: options.Shown = 20,
    prompt: options.Prompt = None,
    where: Annotated[
        str | None,
        typer.Option(help="What a hit's metadata must be, such as: year >= 2020 and lang = 'en'."),
    ] = None,
    collapse: options.Collapse = None,
    every_passage: Annotated[
        bool, typer.Option(help="Show each passage, where documents were split into some.")
    ] = False,
    encoder: Moved = None,
    cross_encoder: options.CrossEncoder = None,
    json: options.Json = False,
) -> None:
    """Search an index."""
    if every_passage and collapse is not None:
        raise ValueError("--every-passage and --collapse contradict each other: give one of them")
    asked = None if where is None else where_from_text(where)
    (before,) = befores([gather], [refine], alpha, beta)
    with Engine.open(folder, encoder) as engine:
        named = rerank or own_ranker(engine, prompt)
        chosen, kind = reranker(named, cross_encoder), kind_of(prompt)
        hits = engine.search(
            query,
            k,
            gather=before.first,
            refine=before.refine,
            rerank=chosen,
            depth=depth,
            prompt=kind,
            shown=shown,
            where=asked,
            collapse=False if every_passage else collapse,
        )
    if json:
        print_json(hits.to_dict())
        return
    Console().print(
        hits_table(hits, f"{query} ({before.named(named)}, {hits.timings['total']:.0f} ms)")
    )


@app.command()
def show(
    folder: Folder,
    verify: Annotated[bool, typer.Option(help="Read every byte and check its hash.")] = False,
    json: options.Json = False,
) -> None:
    """Show what an index holds."""
    with Store.open(folder) as store:
        if verify:
            store.verify()
            check(store)
            whole.check(store)
        _show(store, as_json=json)


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="A BEIR folder; the project's Cranfield if not given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to keep the index and the report.")] = Path(
        ".demo"
    ),
    json: options.Json = False,
) -> None:
    """Index 1,400 abstracts, search them with and without rerank, and measure both."""
    run_demo(data, out, as_json=json)


def _show(store: Store, *, as_json: bool) -> None:
    manifest, config = store.manifest, store.manifest.index_config
    fields = {
        "folder": str(store.folder),
        "documents": whole.count(store),
        "passages": len(store) if whole.is_split(store) else 0,
        "deleted": manifest.deleted,
        "segments": len(manifest.segments),
        "commit": manifest.commit,
        "truncated": manifest.truncated,
        "encoder": manifest.encoder.name,
        "fingerprint": manifest.encoder.fingerprint,
        "adapter": manifest.adapter or "none",
        "dim": store.dim,
        "factory": config.factory,
        "token_dim": store.token_dim,
        "tokens": " and ".join(kinds_of(manifest)) or "none",
        "sparse_dim": store.sparse_dim,
        "sparse": config.sparse if store.sparse_dim else "none",
        "format": manifest.format,
        "bytes": manifest.bytes,
    }
    if as_json:
        print_json(fields)
        return
    console = Console()
    for name, value in fields.items():
        console.print(f"{name:12} {value:,}" if isinstance(value, int) else f"{name:12} {value}")
