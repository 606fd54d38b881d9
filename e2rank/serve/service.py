"""What is served: an engine behind two workers, one for searches and one for plain texts."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.encoders import Encoder
from e2rank.engine import Engine
from e2rank.hits import Hits
from e2rank.search import Ordered
from e2rank.serve.lane import Lane
from e2rank.serve.refused import Refused
from e2rank.serve.telemetry import Telemetry
from e2rank.serve.work import Embedded, EmbedWork, RankWork, SearchWork, Side

_log = logging.getLogger("e2rank")

TOGETHER = 32
"""Texts or queries of one request that are worked on at a time: in between others have a turn."""


class Service:
    """An engine that many callers share.

    Searches have a worker of their own, so that nobody who embeds a corpus keeps them waiting.
    """

    def __init__(
        self, engine: Engine, *, name: str = "", waiting: int = 128, seconds: float = 30.0
    ) -> None:
        """Start the workers.

        Args:
            engine: what answers; one without an index embeds and ranks only.
            name: of the model, as callers write it; the encoder's own if not given.
            waiting: how many requests may wait for each worker.
            seconds: how long a search, a ranking or a part of an embedding may take.
        Raises:
            ValueError: for a number out of range.
        """
        if waiting < 1 or not seconds > 0:
            raise ValueError(
                f"{waiting} requests may wait, each for {seconds:g} s; both must be more than 0"
            )
        self.engine, self.seconds = engine, seconds
        self.name = name or _name(engine.encoder)
        self.telemetry = Telemetry()
        took = self.telemetry.took
        self.searches = Lane("search", waiting=waiting, seconds=seconds, took=took)
        self.texts = Lane("texts", waiting=waiting, seconds=seconds, took=took)
        self.telemetry.watch(self.lanes, engine)
        self.stopping = False
        self._complaint = ""

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        return self.searches, self.texts

    @property
    def ready(self) -> bool:
        """Whether a request would be answered: the server does not stop, and no worker hangs."""
        return not self.stopping and not any(lane.stuck for lane in self.lanes)

    def warm(self) -> None:
        """Load what is loaded at first use, so that no caller waits for it."""
        if self.engine.indexed:
            self.engine.search("warm")
        self.engine.rank("warm", ["warm"])

    def refresh(self) -> None:
        """Take up what others committed to the index; what fails is logged, and the old serves."""
        if not self.engine.indexed:
            return
        try:
            self.engine.refresh()
            self._complaint = ""
        except Exception as error:  # the commit that is open goes on answering
            self.telemetry.stale.inc()
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("the newest commit cannot be served, the one before is: %s", error)

    def close(self) -> None:
        """Stop the workers when they have done what waits."""
        self.stopping = True
        for lane in self.lanes:
            lane.close(self.seconds)


@dataclass(frozen=True, slots=True)
class Caller:
    """One request's way to the workers.

    Args:
        service: what it asks.
        gone: done when the caller closed the connection.
    """

    service: Service
    gone: "asyncio.Future[Any]"

    def check_model(self, asked: str | None) -> None:
        """Refuse a model by another name than the one that answers."""
        if asked not in (None, self.service.name):
            raise Refused(404, f"no model {asked!r} is served here; {self.service.name!r} is")

    async def search(
        self, queries: Sequence[str | np.ndarray], options: Mapping[str, Any]
    ) -> list[Hits]:
        """Hits of each query."""
        if not self.service.engine.indexed:
            raise Refused(404, "no index is served here: start with one, e2rank serve FOLDER")
        work = SearchWork.of(self.service.engine, options)
        found: list[Hits] = []
        for part in _parts(queries):
            found += await self.service.searches.ask(work, part, self.gone, len(part))
        self.service.telemetry.cost(
            sum(each.tokens for each in found), sum(each.truncated for each in found)
        )
        return found

    async def embed(self, texts: Sequence[str], side: Side) -> Embedded:
        """Vectors of texts."""
        work = EmbedWork(self.service.engine, side)
        dim = self.service.engine.encoder.contract.dim
        made = Embedded(np.zeros((0, dim), dtype=np.float32), 0, ())
        for part in _parts(texts):
            made += await self.service.texts.ask(work, part, self.gone, len(part))
        self.service.telemetry.cost(made.tokens, len(made.truncated))
        return made

    async def rank(self, query: str, documents: Sequence[str], rerank: bool | str) -> Ordered:
        """Documents ranked for a query."""
        work = RankWork(self.service.engine, rerank)
        found: Ordered = await self.service.texts.ask(work, (query, documents), self.gone)
        self.service.telemetry.cost(found.tokens, found.cut.cut)
        return found


def _name(encoder: Encoder) -> str:
    """What callers call the model; where a bundle or a folder lies is nothing to them."""
    bundle = getattr(encoder, "bundle", None)
    path = Path(getattr(bundle, "name", encoder.name))
    return path.name if path.is_dir() else str(path)


def _parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    """Some at a time."""
    return [items[start : start + TOGETHER] for start in range(0, len(items), TOGETHER)]
