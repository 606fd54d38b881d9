"""What a server counts, in the form that Prometheus reads."""

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from e2rank.engine import Engine
from e2rank.serve.lane import Lane

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Telemetry:
    """Counters of one server; several in a process do not mix."""

    def __init__(self) -> None:
        self._all = CollectorRegistry()
        ProcessCollector(registry=self._all)
        self._requests = Counter(
            "e2rank_requests", "Requests answered.", ("path", "status"), registry=self._all
        )
        self._seconds = Histogram(
            "e2rank_request_seconds",
            "From the head of a request to its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._all,
        )
        self._batches = Histogram(
            "e2rank_batch_size",
            "Queries, texts or rankings done in one call.",
            ("worker",),
            buckets=_SIZES,
            registry=self._all,
        )
        self._tokens = Counter("e2rank_tokens", "Tokens that models read.", registry=self._all)
        self._truncated = Counter(
            "e2rank_truncated", "Texts that lost tokens to a model's budget.", registry=self._all
        )
        self.unranked = Counter(
            "e2rank_rerank_failures",
            "Searches whose order is that of before the rerank.",
            registry=self._all,
        )
        self.stale = Counter(
            "e2rank_refresh_failures",
            "Looks for a newer commit that failed: what is served may be old.",
            registry=self._all,
        )

    def watch(self, lanes: Sequence[Lane], engine: Engine) -> None:
        """Show what waits, and what is searched, as it is when somebody looks."""
        waiting = Gauge(
            "e2rank_waiting", "What waits for a worker.", ("worker",), registry=self._all
        )
        for lane in lanes:
            waiting.labels(lane.name).set_function(lane.__len__)
        if engine.indexed:
            documents = Gauge("e2rank_documents", "Documents searched.", registry=self._all)
            documents.set_function(lambda: len(engine))
            commit = Gauge("e2rank_commit", "The commit searched.", registry=self._all)
            commit.set_function(lambda: engine.store.manifest.commit)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def took(self, worker: str, size: int) -> None:
        """Count a batch."""
        self._batches.labels(worker).observe(size)

    def cost(self, tokens: int, truncated: int) -> None:
        """Count what models read."""
        self._tokens.inc(tokens)
        self._truncated.inc(truncated)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._all)
