"""The command that serves an index over HTTP."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from e2rank.cli.commands import app
from e2rank.engine import Engine

_log = logging.getLogger("e2rank")

KEY = "E2RANK_API_KEY"
"""The environment's variable with the key that callers have to send."""


@app.command()
def serve(
    folder: Annotated[
        Path | None, typer.Argument(help="An index; without one, texts are embedded and ranked.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="What reads queries, such as an exported bundle; the index's own if not given."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 for all addresses.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.", min=0, max=65535)] = 8080,
    model: Annotated[
        str, typer.Option(help="The model's name, as callers write it; its own if not given.")
    ] = "",
    waiting: Annotated[
        int, typer.Option(help="How many requests may wait for a worker.", min=1)
    ] = 128,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds that a search or 32 texts of other work may take, and that the end waits "
            "for what was taken before."
        ),
    ] = 30.0,
) -> None:
    """Serve an index over HTTP: searches, embeddings, reranks.

    Callers have to send the key of E2RANK_API_KEY, where that is set. What is added to the index
    meanwhile is searched soon, by an adapter that it is given, too.
    """
    from e2rank.serve import Service, run

    key = os.environ.get(KEY, "").strip()
    if folder is None:
        engine = Engine(encoder or "minilm")
    else:
        engine = Engine.open(folder, encoder, read_only=True)
    with engine:
        service = Service(engine, name=model, waiting=waiting, seconds=timeout)
        if not key and host not in ("127.0.0.1", "localhost", "::1"):
            _log.warning("anyone who reaches %s may call: set %s", host, KEY)
        run(service, host=host, port=port, key=key)
