"""What is served: an engine behind two workers, one for searches and one for plain texts."""

import asyncio
import logging
import reprlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.engine import Engine
from e2rank.hits import Hits
from e2rank.ranking import Ordered
from e2rank.serve.fields import MOST_TEXTS
from e2rank.serve.lane import Lane
from e2rank.serve.refused import Refused
from e2rank.serve.telemetry import Telemetry
from e2rank.serve.work import (
    SIDES,
    Embedded,
    EmbedWork,
    Ranking,
    RankWork,
    ReadWork,
    SearchWork,
    Side,
    SplitWork,
    joined,
)

_log = logging.getLogger("e2rank")

_DAY = 86_400

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
        if waiting < 1 or not 0 < seconds <= _DAY:
            raise ValueError(
                f"{waiting} requests may wait, each for {seconds:g} s; expected at least one, and "
                "more than 0 s up to a day"
            )
        self.engine, self.seconds = engine, seconds
        self.name = name or _name(engine)
        self.telemetry = Telemetry()
        took = self.telemetry.took
        self.searches = Lane("search", waiting=waiting, seconds=seconds, took=took)
        self.texts = Lane("texts", waiting=waiting, seconds=seconds, took=took)
        self.telemetry.watch(self.lanes, engine)
        self.stopping = False
        self._warm = False
        self._complaint = ""

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        return self.searches, self.texts

    @property
    def ready(self) -> bool:
        """Whether a request would be answered: the server does not stop, and no worker hangs."""
        return not self.stopping and not any(lane.stuck for lane in self.lanes)

    def warm(self) -> None:
        """Load what is loaded at first use, so that no caller waits for it.

        Raises:
            Exception: whatever keeps the engine from searching or ranking.
        """
        if self._warm:
            return
        # First, as a search would go on without its rerank.
        self.engine.rank("warm", ["warm"])
        if self.engine.indexed:
            self.engine.search("warm")
        self._warm = True

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
                _log.error("the index cannot be read again, what was open is served: %s", error)

    def close(self) -> None:
        """Stop the workers when they have done what waits, or the time for that is over."""
        self.stopping = True
        for lane in self.lanes:
            lane.close()
        end = time.monotonic() + self.seconds
        for lane in self.lanes:
            lane.join(end)


@dataclass(frozen=True, slots=True)
class Caller:
    """One request's way to the workers.

    Args:
        service: what it asks.
        gone: done when the caller closed the connection.
    """

    service: Service
    gone: "asyncio.Future[Any]"

    def side_of(self, model: str | None) -> Side | None:
        """Which side of a search the model's name asks for, if it does.

        Raises:
            Refused: for another model than the one that answers.
        """
        names: dict[str | None, Side | None] = {None: None, self.service.name: None}
        names |= {f"{self.service.name}:{side}": side for side in SIDES}
        if model not in names:
            raise Refused(
                404, f"no model {reprlib.repr(model)} is served here; {self.service.name!r} is"
            )
        return names[model]

    async def search(
        self, queries: Sequence[str | np.ndarray], options: Mapping[str, Any]
    ) -> list[Hits]:
        """Hits of each query."""
        if not self.service.engine.indexed:
            raise Refused(404, "no index is served here: start with one, e2rank serve FOLDER")
        vectors = any(isinstance(query, np.ndarray) for query in queries)
        work = SearchWork.of(self.service.engine, options, vectors=vectors)
        found: list[Hits] = []
        for part in _parts(queries):
            found += await self.service.searches.ask(work, part, self.gone, len(part))
        self.service.telemetry.cost(
            sum(each.tokens for each in found), sum(each.truncated for each in found)
        )
        failed = sum(bool(each.rerank_error) for each in found)
        self.service.telemetry.unranked.inc(failed)
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
        """Documents ranked for a query; they are split and read first, some at a time."""
        engine, lane = self.service.engine, self.service.texts
        split = SplitWork(engine, MOST_TEXTS + 1)
        passages, places = list[str](), list[int]()
        for start, part in zip(count(0, TOGETHER), _parts(documents), strict=False):
            for place, passage in await lane.ask(split, part, self.gone, len(part)):
                passages.append(passage)
                places.append(start + place)
            if len(passages) > MOST_TEXTS:
                raise Refused(
                    413,
                    f"the documents are more than {MOST_TEXTS:,} passages of a length that the "
                    "model reads; send several requests",
                )
        parts = [
            await lane.ask(ReadWork(engine), part, self.gone, len(part))
            for part in _parts(passages) or [[]]
        ]
        item = Ranking(query, passages, places, joined(parts))
        found: Ordered = await lane.ask(RankWork(engine, rerank), item, self.gone)
        self.service.telemetry.cost(found.tokens, found.cut)
        return found


def _name(engine: Engine) -> str:
    """What callers call the model; where it lies, and if it is adapted, is nothing to them."""
    bundle = getattr(engine.encoder, "bundle", None)
    made = engine.store.manifest.encoder.name if engine.indexed else engine.encoder.name
    path = Path(bundle.name if bundle else made)
    return path.name if path.is_dir() else str(path)


def _parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    """Some at a time."""
    return [items[start : start + TOGETHER] for start in range(0, len(items), TOGETHER)]
