"""What the command line shows: tables for people, one JSON object for programs."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from e2rank.evaluate.report import Report, Row
from e2rank.hits import Hits


def print_json(fields: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(fields, ensure_ascii=False, indent=2))


def hits_table(hits: Hits, title: str) -> Table:
    """Rank, where it moved from, score, id and the beginning of the text."""
    table = Table(title=title, title_justify="left", expand=True)
    for name in ("rank", "moved from", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("id", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for hit in hits:
        text = " ".join(f"{hit.title} {hit.text}".split())[:200]
        cells = (str(hit.rank), moved(hit.rank, hit.first_rank), f"{hit.score:.3f}", hit.id)
        table.add_row(*cells, text)
    return table


def moved(rank: int, first: int | None) -> str:
    """Where a hit stood before the rerank, with an arrow for the way it went.

    >>> moved(1, 7), moved(3, 3), moved(2, None)
    ('7 ↑', '3', 'new')
    """
    if first is None:
        return "new"
    arrow = " ↑" if first > rank else " ↓" if first < rank else ""
    return f"{first}{arrow}"


def report_table(report: Report) -> Table:
    """A row a ranker: quality, p value, latency and what it cost."""
    title = (
        f"{report.dataset} {report.split}: {report.queries} queries, depth {report.depth}; "
        f"p values against {report.baseline}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("ranker")
    names = list(report.rows[0].measures) if report.rows else []
    rest = ["p", "better/worse", "p50 ms", "p95 ms", "calls", "tokens", "cut"]
    for name in [*names, *rest]:
        table.add_column(name, justify="right")
    for row in report.rows:
        table.add_row(row.ranker, *(f"{row.measures[name]:.4f}" for name in names), *_costs(row))
    return table


def print_report(report: Report, console: Console) -> None:
    """The table, then what it cannot hold: the worst queries, and those without a list."""
    console.print(report_table(report))
    for row in report.rows:
        if row.deltas is not None and row.deltas.worst:
            worst = ", ".join(f"{query} ({delta:+.3f})" for query, delta in row.deltas.worst)
            console.print(f"worst of {row.ranker}: {worst}", style="dim")
        if row.failed:
            console.print(f"{row.ranker} failed on {row.failed} queries: first-stage order there")
    if report.missing:
        console.print(f"no list for {len(report.missing)} judged queries; each counts 0")


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, where that is a terminal; call it with how many are done."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _costs(row: Row) -> list[str]:
    against = f"{row.deltas.wins}/{row.deltas.losses}" if row.deltas else ""
    return [
        "" if row.p_value is None else f"{row.p_value:.4f}",
        against,
        f"{row.latency_ms['p50']:.1f}",
        f"{row.latency_ms['p95']:.1f}",
        str(row.model_calls),
        str(row.tokens),
        str(row.truncated),
    ]
