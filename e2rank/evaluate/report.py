"""The report: one row a ranker, quality and cost side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from e2rank.evaluate.measures import PerQuery
from e2rank.evaluate.significance import Deltas


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One ranker over all queries.

    Args:
        ranker: its name.
        measures: measure to mean over the queries.
        per_query: measure to query id to value.
        latency_ms: "p50" and "p95" of one query, in milliseconds.
        model_calls: sequences the models read, over all queries.
        tokens: tokens they read.
        truncated: sequences that lost tokens to a budget.
        failed: queries that have the order of before a step that failed.
        refined: candidates "scored", "pruned" and "unseen" by MaxSim, over all queries; empty where
            nothing was refined.
        longest: documents in the longest of its lists.
        deeper: measures that are cut deeper than that: R@100 of lists of 20 is no R@100.
        p_value: of the first measure against the baseline; None for the baseline itself.
        deltas: query by query against the baseline; None for the baseline itself.
    """

    ranker: str
    measures: dict[str, float]
    latency_ms: dict[str, float]
    model_calls: int
    tokens: int
    truncated: int
    per_query: PerQuery = field(default_factory=dict)
    failed: int = 0
    refined: dict[str, int] = field(default_factory=dict)
    longest: int = 0
    deeper: tuple[str, ...] = ()
    p_value: float | None = None
    deltas: Deltas | None = None

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
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
            "longest": self.longest,
            "deeper": list(self.deeper),
            "p_value": self.p_value,
            "wins": self.deltas and self.deltas.wins,
            "losses": self.deltas and self.deltas.losses,
            "worst": worst,
        } | ({"per_query": self.per_query} if per_query else {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was measured, and a row a ranker.

    Args:
        dataset: the collection's name.
        split: whose judgments were used.
        queries: how many.
        depth: candidates a query.
        baseline: the ranker that the others are compared with.
        tested: the measure that p values, wins and losses are of.
        missing: judged queries a given run has no list for; they count 0 for every ranker.
        tied: how many neighbours in the given lists have equal scores; a list that comes back as
            it was given is measured in its order, whatever its scores.
        absent: judged "documents" that the index lacks, how many of them are "relevant", and how
            many are "judged" in all; empty where nobody looked.
        setting: what was measured, such as the encoder and the options of the search, JSON-able;
            empty where nobody said.
        rows: one a ranker.
    """

    dataset: str
    split: str
    queries: int
    depth: int
    baseline: str
    tested: str
    missing: tuple[str, ...] = ()
    tied: int = 0
    absent: Mapping[str, int] = field(default_factory=dict)
    setting: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """The report, JSON-able; with the values of every query, if they are asked for."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "queries": self.queries,
            "depth": self.depth,
            "baseline": self.baseline,
            "tested": self.tested,
            "missing": list(self.missing),
            "tied": self.tied,
            "absent": dict(self.absent),
            "setting": dict(self.setting),
            "rows": [row.to_dict(per_query=per_query) for row in self.rows],
        }
