"""The demo: one real collection, indexed, searched with and without rerank, and measured."""

import json
from pathlib import Path

from rich.console import Console

from e2rank.cli.options import Ranker
from e2rank.cli.output import compared_table, print_report, progress
from e2rank.cli.rankers import by_name, searching
from e2rank.corpus import read_corpus
from e2rank.engine import Engine
from e2rank.errors import CorpusError, IndexFormatError
from e2rank.evaluate.collection import load_beir
from e2rank.evaluate.protocol import evaluate

QUERIES = (
    "how does the boundary layer change heat transfer at hypersonic speed",
    "what causes flutter of thin panels in supersonic flow",
    "lift and drag of slender wings at high angles of attack",
)


def run_demo(data: Path | None, out: Path, console: Console) -> None:
    """Do the main job once, keeping the index and the report in `out` for the next time."""
    folder = data or _cranfield()
    with _open(folder, out / "index", console) as engine:
        for query in QUERIES:
            plain, reranked = (engine.search(query, 5, rerank=each) for each in (False, True))
            console.print(compared_table(plain, reranked))
        _report(engine, folder, out / "report.txt", console)


def _cranfield() -> Path:
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder := root / "benchmarks" / "data" / "cranfield").is_dir():
            return folder
    raise CorpusError(
        "the demo's Cranfield collection is part of the project's repository and is not here: "
        "run `make demo` in a clone, or pass --data with a BEIR folder"
    )


def _open(data: Path, folder: Path, console: Console) -> Engine:
    try:
        engine = Engine.open(folder)
    except (IndexFormatError, ValueError):
        with progress("documents", None) as done:
            engine = Engine.build(
                read_corpus(data), folder, "minilm", overwrite=True, progress=done
            )
    console.print(f"{len(engine)} documents in {folder}, encoder {engine.encoder.name}")
    return engine


def _report(engine: Engine, data: Path, saved: Path, console: Console) -> None:
    """Measure, or show what was measured before with this very index."""
    stamp = json.dumps([str(data), engine.encoder.fingerprint, len(engine)])
    if saved.is_file() and saved.read_text(encoding="utf-8").startswith(stamp):
        console.print(saved.read_text(encoding="utf-8").removeprefix(stamp).strip(), markup=False)
        console.print(f"(measured before; delete {saved} to measure again)", style="dim")
        return
    names = [Ranker.NONE, Ranker.LISTWISE, Ranker.PRF]
    rankers = by_name(names, None, lambda each: searching(engine, each, 100, 20, None))
    collection = load_beir(data)
    with progress("queries", len(collection.queries)) as done:
        report, _ = evaluate(collection, rankers, depth=100, progress=done)
    with console.capture() as shown:
        print_report(report, console)
    saved.write_text(f"{stamp}\n{shown.get()}", encoding="utf-8")
    console.print(shown.get(), markup=False, highlight=False)
