"""The command that gives a model of one's own the wording of another."""

import json
from pathlib import Path
from typing import Annotated

import typer

from e2rank.cli import options
from e2rank.cli.commands import app
from e2rank.contract import Contract
from e2rank.encoders.presets import CONTRACTS


@app.command()
def contract(
    like: Annotated[str, typer.Argument(help=f"Whose wording: {', '.join(CONTRACTS)}.")],
    out: Annotated[
        Path | None,
        typer.Option(help="A model's folder, to be read under it from now on; else it is printed."),
    ] = None,
    changes: options.Changes = None,
) -> None:
    """Write a contract: what a model is shown, where it is cut, pooled, and how it reranks.

    A folder of weights with a contract.json can be named wherever an encoder can: a copy of a
    published model, or a checkpoint of one's own to train further.
    """
    if like not in CONTRACTS:
        raise ValueError(f"{like!r} is no preset with a contract; expected {', '.join(CONTRACTS)}")
    fields = CONTRACTS[like].to_dict()
    if out is not None:
        fields["dim"] = _dim(out)
    changed = Contract.from_dict(fields | dict(map(options.changed, changes or [])))
    text = json.dumps(changed.to_dict(), indent=2, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    path = out / "contract.json"
    if path.exists():
        raise ValueError(f"{path} is there already; remove it to be read as {like} is")
    path.write_text(text + "\n", encoding="utf-8")
    typer.echo(f"{out} is read as {like} is, and can be named wherever an encoder can")


def _dim(folder: Path) -> int:
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{folder} holds no model: it has no config.json")
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} is not JSON: {error}") from None
    width = fields.get("hidden_size") if isinstance(fields, dict) else None
    if not isinstance(width, int):
        raise ValueError(f"{config} says no hidden_size; expected a transformer's")
    return width
