"""What the command line shows: tables for people, one JSON object for programs."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def print_report(report: Report, console: Console) -> None:
    """A row a ranker, quality and then cost, and what the rows cannot hold: worst queries, doubts.

    Nothing is cut or wrapped, whatever the width of the console: it may be a file.
    """
    show = functools.partial(console.print, soft_wrap=True, markup=False, highlight=False)
    show(
        f"{report.dataset} {report.split}: {report.queries} queries, depth {report.depth}; "
        f"p of {report.tested} against {report.baseline}"
    )
    for cells in (_quality, _cost):
        head, *lines = _aligned([cells(row) for row in report.rows])
        show(f"\n{head}", style="bold")
        show("\n".join(lines))
    for note in ("", *_notes(report)):
        show(note)
    for row in report.rows:
        if row.deltas is not None and row.deltas.worst:
            worst = ", ".join(f"{query} ({delta:+.3f})" for query, delta in row.deltas.worst)
            show(f"worst of {row.ranker}: {worst}", style="dim")


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
    # What begins within a text is told from what begins with its title.
    shown = f"\N{HORIZONTAL ELLIPSIS} {hit.text}" if hit.start else f"{hit.title} {hit.text}"
    return " ".join(shown.split())[:200]


def _quality(row: Row) -> dict[str, str]:
    return (
        {"": row.ranker}
        | {name: f"{value:.4f}" for name, value in row.measures.items()}
        | {
            "p value": "" if row.p_value is None else f"{row.p_value:.4f}",
            "better/worse": f"{row.deltas.wins}/{row.deltas.losses}" if row.deltas else "",
        }
    )


def _cost(row: Row) -> dict[str, str]:
    return {
        "": row.ranker,
        "p50 ms": f"{row.latency_ms['p50']:.1f}",
        "p95 ms": f"{row.latency_ms['p95']:.1f}",
        "model calls": f"{row.model_calls:,}",
        "tokens": f"{row.tokens:,}",
        "truncated": f"{row.truncated:,}",
    }


def _aligned(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A head and a line a row; the first column to the left, the others to the right."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _notes(report: Report) -> Iterator[str]:
    shallow: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for row in report.rows:
        if row.deeper:
            shallow.setdefault((row.longest, row.deeper), []).append(row.ranker)
        if row.failed:
            yield f"{row.ranker} failed on {row.failed} queries: first-stage order there"
    for (longest, measures), names in shallow.items():
        of = "" if len(names) == len(report.rows) else f" of {', '.join(names)}"
        yield f"{', '.join(measures)}{of}: no list has more than {longest} documents"
    if report.absent.get("documents"):
        yield (
            "not in the index, and so never found: {documents:,} of the {judged:,} judged "
            "documents, {relevant:,} of them relevant".format(**report.absent)
        )
    if report.missing:
        yield f"no list for {len(report.missing)} judged queries; each counts 0"
    if report.tied:
        yield (
            f"{report.tied} neighbours in the given lists have equal scores: a list that no rerank "
            "changed is measured in its own order"
        )
