"""What the command line shows: tables for people, one JSON object for programs."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from e2rank.evaluate.report import Report, Row
from e2rank.hits import Hit, Hits


def print_json(fields: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(fields, ensure_ascii=False, indent=2))


def hits_table(hits: Hits, title: str) -> Table:
    """Rank, where it moved from, score, id and the beginning of the text."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, expand=True)
    for name in ("rank", "moved from", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("id", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for hit in hits:
        cells = (str(hit.rank), moved(hit.rank, hit.first_rank), f"{hit.score:.3f}", hit.id)
        table.add_row(*cells, _beginning(hit))
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


def compared_table(plain: Hits, reranked: Hits) -> Table:
    """Two rankings of one query side by side, with the beginning of the reranked texts."""
    times = [f"{hits.timings['total']:.0f} ms" for hits in (plain, reranked)]
    title = f"{plain.query}\n(no rerank {times[0]}, rerank {times[1]})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, expand=True)
    for name in ("rank", "no rerank", "score", "rerank", "moved from", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for before, hit in zip(plain, reranked, strict=True):
        first = (str(hit.rank), before.id, f"{before.score:.3f}")
        then = (hit.id, moved(hit.rank, hit.first_rank), f"{hit.score:.3f}")
        table.add_row(*first, *then, _beginning(hit))
    return table


def report_table(report: Report) -> Table:
    """A column a ranker: quality, p value, latency and what it cost; five fit a terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    for row in report.rows:
        table.add_column(row.ranker, justify="right")
    columns = [_cells(row) for row in report.rows]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    return table


def print_report(report: Report, console: Console) -> None:
    """The table under its heading, then what it cannot hold: the worst queries, missing lists."""
    console.print(
        f"{report.dataset} {report.split}: {report.queries} queries, depth {report.depth}; "
        f"p against {report.baseline}"
    )
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
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _beginning(hit: Hit) -> str:
    return " ".join(f"{hit.title} {hit.text}".split())[:200]


def _cells(row: Row) -> dict[str, str]:
    cells = {name: f"{value:.4f}" for name, value in row.measures.items()}
    return cells | {
        "p value": "" if row.p_value is None else f"{row.p_value:.4f}",
        "better/worse": f"{row.deltas.wins}/{row.deltas.losses}" if row.deltas else "",
        "p50 ms": f"{row.latency_ms['p50']:.1f}",
        "p95 ms": f"{row.latency_ms['p95']:.1f}",
        "model calls": f"{row.model_calls:,}",
        "tokens": f"{row.tokens:,}",
        "truncated": f"{row.truncated:,}",
    }
