"""Commands that change an index, look after it and move it to another encoder."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from e2rank import whole
from e2rank.cli import options
from e2rank.cli.commands import Corpus, Folder, Moved, app
from e2rank.cli.output import print_json, progress
from e2rank.config import IndexConfig, load_recipe
from e2rank.corpus import read_corpus
from e2rank.encoders.presets import load_encoder
from e2rank.engine import Engine
from e2rank.errors import IndexFormatError
from e2rank.index import Store, Writer
from e2rank.index.manifest import NAME, Manifest
from e2rank.index.verify import check, damage
from e2rank.index.verify import repair as repair_index
from e2rank.migrate import migrate as migrate_index
from e2rank.where import read_where


@app.command()
def add(
    folder: Folder,
    corpus: Corpus,
    encoder: Moved = None,
    dtype: options.Dtype = None,
    vectors: options.Vectors = None,
    json: options.Json = False,
) -> None:
    """Add documents to an index; one whose id is there already takes its place."""
    with _whole(folder), Engine.open(folder, encoder, dtype=dtype) as engine:
        before = len(engine)
        with progress("documents", None) as done:
            added = engine.add(read_corpus(corpus, vectors), progress=done)
        replaced = before + added - len(engine)
        fields = {"added": added - replaced, "replaced": replaced, "documents": len(engine)}
    _tell(fields, as_json=json)


@app.command()
def delete(
    folder: Folder,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of documents.")] = None,
    where: Annotated[str | None, typer.Option(help="All that meet this filter, too.")] = None,
    json: options.Json = False,
) -> None:
    """Delete documents of an index by id or by a filter."""
    if not ids and where is None:
        raise ValueError("nothing to delete: name ids, or a filter by --where")
    condition = None if where is None else read_where(where)
    with _writing(folder) as writer:
        deleted = whole.delete(writer, ids or (), condition)
        left = whole.count(writer.commit() if writer.changed else writer.base)
    # Of ids that the filter deleted nobody can tell any more that they were there.
    missing = {} if condition else {"not there": len(set(ids or ())) - deleted}
    fields = {"deleted": deleted} | missing | {"documents": left}
    _tell(fields, as_json=json)


@app.command()
def compact(folder: Folder, json: options.Json = False) -> None:
    """Merge an index into one segment, without what is deleted."""
    with _writing(folder) as writer:
        before = writer.base.manifest.bytes
        writer.compact()
        after = writer.commit() if writer.changed else writer.base
    fields = {
        "documents": whole.count(after),
        "segments": len(after.segments),
        "bytes before": before,
        "bytes": after.manifest.bytes,
    }
    _tell(fields, as_json=json)


@app.command()
def verify(folder: Folder, json: options.Json = False) -> None:
    """Read every byte of an index, compare hashes, and prove that its parts fit together."""
    found = damage(folder)
    if not found:
        with Store.open(folder) as store:
            check(store)
            whole.check(store)
            fields = {"files": len(store.manifest.files), "documents": whole.count(store)}
    if json:
        print_json({"damaged": found} if found else {"damaged": {}, **fields})
    elif not found:
        _tell(fields, as_json=False)
    if found:
        for line in found.values():
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(1)


@app.command()
def repair(folder: Folder, json: options.Json = False) -> None:
    """Build again what can be built from the rest of an index."""
    with _interruptible(lambda: "the same command continues"):
        done = repair_index(folder)
    if json:
        print_json({"rebuilt": done.rebuilt, "left": done.left})
    else:
        for name in done.rebuilt:
            typer.echo(f"rebuilt {name}")
        if not done.rebuilt and not done.left:
            typer.echo("nothing to repair")
    if done.left:
        raise IndexFormatError(
            f"{len(done.left)} damaged files cannot be made from others, so restore them from a "
            f"copy or build the index again: {', '.join(done.left)}"
        )


@app.command()
def migrate(
    old: Annotated[Path, typer.Argument(help="The index; it is only read.")],
    new: Annotated[Path, typer.Argument(help="The folder of the new one.")],
    encoder: Annotated[str, typer.Option(help="As for `index`.")],
    dtype: options.Dtype = None,
    recipe: Annotated[
        Path | None, typer.Option(help="TOML with fields of IndexConfig; as OLD if not given.")
    ] = None,
    update: Annotated[
        bool, typer.Option(help="Bring a whole NEW up to OLD: what OLD lacks is deleted.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Encode an index's documents again for another encoder; repeat it to continue."""
    config = load_recipe(IndexConfig, recipe) if recipe else None
    with (
        _interruptible(lambda: f"the same command{_then(new, update)} continues"),
        progress("documents", None) as done,
        migrate_index(
            old, new, load_encoder(encoder, dtype=dtype), config, update=update, progress=done
        ) as engine,
    ):
        fields = {"documents": len(engine), "encoder": engine.encoder.name}
    _tell(fields, as_json=json)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[Writer]:
    """A writer, for changes that need no model."""
    with _whole(folder), Store.open(folder) as store, Writer(store) as writer:
        yield writer


def _whole(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Say after an interrupt which of the two an index is: as it was, or changed as asked."""
    before = Manifest.load(folder).commit

    def left() -> str:
        same = Manifest.load(folder).commit == before
        return "the index is as it was" if same else "the index was changed by then"

    return _interruptible(left)


@contextlib.contextmanager
def _interruptible(left: Callable[[], str]) -> Iterator[None]:
    """Say after an interrupt what it left."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"error: interrupted; {left()}", err=True)
        raise typer.Exit(130) from None


def _then(new: Path, update: bool) -> str:
    """What a migration that was interrupted takes more than before: `new` may be whole by then."""
    return " with --update" if (new / NAME).exists() and not update else ""


def _tell(fields: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json({name.replace(" ", "_"): value for name, value in fields.items()})
        return
    for name, value in fields.items():
        typer.echo(f"{name:12} {value:,}" if isinstance(value, int) else f"{name:12} {value}")
