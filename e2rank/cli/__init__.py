"""The command line: `e2rank --help` lists its commands."""

import logging
import sqlite3
import sys

import typer

# Imported for their commands, which register themselves.
from e2rank.cli import advise as advise
from e2rank.cli import export as export
from e2rank.cli import measuring as measuring
from e2rank.cli import serve as serve
from e2rank.cli import ship as ship
from e2rank.cli import training as training
from e2rank.cli import upkeep as upkeep
from e2rank.cli import wording as wording
from e2rank.cli.commands import app

__all__ = ["app", "main"]

KNOWN = (ValueError, OSError, ImportError, RuntimeError, sqlite3.Error)
"""What a user can do something about; anything else is a defect, and shows its traceback."""


def main() -> None:
    """Run the command line; a known error is one line on stderr and exit status 1."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # What a bundle is, and what it does to rankings, is said wherever one opens.
    logging.getLogger("e2rank.onnx").setLevel(logging.INFO)
    logging.getLogger("e2rank.serve").setLevel(logging.INFO)
    try:
        app(standalone_mode=True)
    except KNOWN as error:
        typer.echo(f"error: {_line(error)}", err=True)
        sys.exit(1)


def _line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and not error.filename:
        # Made with a message of our own: shown without the number in front.
        text = error.strerror
    # The library names its arguments; here they are options.
    text = text.replace("resume=True", "--resume").replace("overwrite=True", "--overwrite")
    text = text.replace("update=True", "--update")
    return " ".join(text.split())
