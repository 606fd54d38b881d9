"""The command that trains: a recipe and changes to it in, a folder out."""

import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from e2rank.cli.commands import app
from e2rank.cli.output import progress
from e2rank.config import load_recipe
from e2rank.errors import MissingExtra


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file with the fields of TrainConfig.")],
    resume: Annotated[bool, typer.Option(help="Continue a run that was interrupted.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE in place of the recipe's; may come several times."),
    ] = None,
) -> None:
    """Train a model to read listwise prompts."""
    for name, extra in (("torch", "torch"), ("transformers", "torch")):
        if find_spec(name) is None:
            raise MissingExtra(name, extra=extra)
    from e2rank.train import TrainConfig
    from e2rank.train import train as run_training

    config = load_recipe(TrainConfig, recipe, dict(map(_changed, changes or [])))
    try:
        with progress("steps", config.steps) as done:
            out = run_training(config, resume=resume, progress=done)
    except KeyboardInterrupt:
        typer.echo("error: interrupted; the same command with --resume continues", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{out} can be named wherever an encoder can")


def _changed(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as TOML reads it; what TOML does not read is a string.

    >>> _changed("lists=8"), _changed("list_sizes=[5, 10]"), _changed("base=minilm-base")
    (('lists', 8), ('list_sizes', [5, 10]), ('base', 'minilm-base'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {text!r} is no KEY=VALUE, such as --set lists=8")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
