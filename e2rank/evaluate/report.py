"""The report: one row a ranker, quality and cost side by side."""

from dataclasses import dataclass, field
from typing import Any

from e2rank.evaluate.significance import Deltas


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One ranker over all queries.

    Args:
        ranker: its name.
        measures: measure to mean over the queries.
        latency_ms: "p50" and "p95" of one query, in milliseconds.
        model_calls: sequences the models read, over all queries.
        tokens: tokens they read.
        truncated: sequences that lost tokens to a budget.
        failed: queries that have the order of before a step that failed.
        refined: candidates "scored", "pruned" and "unseen" by MaxSim, over all queries; empty where
            nothing was refined.
        p_value: of the first measure against the baseline; None for the baseline itself.
        deltas: query by query against the baseline; None for the baseline itself.
    """

    ranker: str
    measures: dict[str, float]
    latency_ms: dict[str, float]
    model_calls: int
    tokens: int
    truncated: int
    failed: int = 0
    refined: dict[str, int] = field(default_factory=dict)
    p_value: float | None = None
    deltas: Deltas | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row, JSON-able; the baseline has None for what is compared."""
        worst = self.deltas and [{"query": query, "delta": x} for query, x in self.deltas.worst]
        return {
            "ranker": self.ranker,
            "measures": self.measures,
            "latency_ms": self.latency_ms,
            "model_calls": self.model_calls,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "failed": self.failed,
            "refined": self.refined,
            "p_value": self.p_value,
            "wins": self.deltas and self.deltas.wins,
            "losses": self.deltas and self.deltas.losses,
            "worst": worst,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was measured, and a row a ranker.

    Args:
        dataset: the collection's name.
        split: whose judgments were used.
        queries: how many.
        depth: candidates a query.
        baseline: the ranker that the others are compared with.
        missing: judged queries a given run has no list for; they count 0 for every ranker.
        rows: one a ranker.
    """

    dataset: str
    split: str
    queries: int
    depth: int
    baseline: str
    missing: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report, JSON-able."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "queries": self.queries,
            "depth": self.depth,
            "baseline": self.baseline,
            "missing": list(self.missing),
            "rows": [row.to_dict() for row in self.rows],
        }
