"""The commands that ship an index: as one file, or through a hub."""

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from e2rank import hub
from e2rank.cli import options
from e2rank.cli.commands import Folder, app
from e2rank.cli.output import print_json, progress
from e2rank.index.manifest import Manifest
from e2rank.index.pack import Progress
from e2rank.index.pack import pack as pack_index
from e2rank.index.pack import unpack as unpack_index

NewFolder = Annotated[Path, typer.Argument(help="A new or empty folder for the index.")]
Repo = Annotated[str, typer.Argument(help="A repository of the hub: OWNER/NAME.")]
Endpoint = Annotated[
    str | None, typer.Option(help="The hub's address; Hugging Face's if not given.")
]

_MB = 1_000_000


@app.command()
def pack(
    folder: Folder,
    archive: Annotated[Path, typer.Argument(help="The file to make, such as index.tar.zst.")],
    json: options.Json = False,
) -> None:
    """Pack an index into one file: the same index, the same bytes."""
    with _all_or_nothing(), _megabytes(Manifest.load(folder).bytes) as done:
        sha256 = pack_index(folder, archive, progress=done)
    size = archive.stat().st_size
    if json:
        print_json({"archive": str(archive), "bytes": size, "sha256": sha256})
        return
    typer.echo(f"{archive}: {size:,} bytes\nsha256 {sha256}")


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(help="What `e2rank pack` made.")],
    folder: NewFolder,
    json: options.Json = False,
) -> None:
    """Unpack an index and verify every file."""
    with _all_or_nothing(), _megabytes(None) as done:
        manifest = unpack_index(archive, folder, progress=done)
    _show(manifest, folder, as_json=json)


@app.command()
def push(
    folder: Folder,
    repo: Repo,
    private: Annotated[bool, typer.Option("--private", help="Only you may read it.")] = False,
    license: Annotated[
        str | None, typer.Option(help="A licence for the card, such as apache-2.0.")
    ] = None,
    endpoint: Endpoint = None,
    json: options.Json = False,
) -> None:
    """Verify an index and publish it on a hub, with a card, in one commit."""
    _quiet_hub()
    commit = hub.push(folder, repo, private=private, license=license, endpoint=endpoint)
    if json:
        print_json({"repo": repo, "commit": commit})
        return
    typer.echo(f"{folder} is in {repo} at {commit}")


@app.command()
def pull(
    repo: Repo,
    folder: NewFolder,
    revision: Annotated[
        str | None, typer.Option(help="A commit, tag or branch; the newest commit if not given.")
    ] = None,
    endpoint: Endpoint = None,
    json: options.Json = False,
) -> None:
    """Fetch an index from a hub and verify every file."""
    _quiet_hub()
    with _all_or_nothing():
        manifest = hub.pull(repo, folder, revision=revision, endpoint=endpoint)
    _show(manifest, folder, as_json=json)


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("error: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None


@contextlib.contextmanager
def _megabytes(total: int | None) -> Iterator[Progress]:
    with progress("MB", None if total is None else -(-total // _MB)) as done:
        yield lambda count: done(-(-count // _MB))


def _quiet_hub() -> None:
    """Keep the progress bars of the hub's library to terminals."""
    if sys.stderr.isatty() or find_spec("huggingface_hub") is None:
        return
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()


def _show(manifest: Manifest, folder: Path, *, as_json: bool) -> None:
    fields = {
        "folder": str(folder),
        manifest.noun: manifest.count,
        "encoder": manifest.encoder.name,
        "fingerprint": manifest.encoder.fingerprint,
        "bytes": manifest.bytes,
    }
    if as_json:
        print_json(fields)
        return
    typer.echo(
        # A stranger's words: quoted, so that a terminal does not obey them.
        f"{folder}: {manifest.count:,} {manifest.noun} by {manifest.encoder.name!r}, every file "
        "verified"
    )
