"""The demo: one real collection, indexed, searched with and without rerank, and measured."""

import io
import json
from pathlib import Path
from typing import Any

import xxhash
from rich.console import Console

from e2rank.cli.options import Ranker
from e2rank.cli.output import compared_table, print_json, print_report, progress
from e2rank.cli.rankers import Before, by_stages, own_ranker, searching
from e2rank.corpus import read_corpus
from e2rank.encoders import token_fingerprint
from e2rank.engine import Engine
from e2rank.errors import CorpusError, EncoderMismatch, IndexFormatError
from e2rank.evaluate import Report, load_beir
from e2rank.evaluate.protocol import evaluate

QUERIES = (
    "how does the boundary layer change heat transfer at hypersonic speed",
    "what causes flutter of thin panels in supersonic flow",
    "lift and drag of slender wings at high angles of attack",
)


def run_demo(data: Path | None, out: Path, *, as_json: bool) -> None:
    """Do the main job once, keeping the index and the report in `out` for the next time."""
    folder = (data or _cranfield()).resolve()
    # Each collection has its own place: an index of another one is neither searched nor replaced.
    own = out / f"{folder.name}-{xxhash.xxh3_64_hexdigest(str(folder).encode())[:8]}"
    console = Console(quiet=as_json)
    with _open(folder, own / "index", console) as engine:
        for query in QUERIES:
            plain, reranked = (engine.search(query, 5, rerank=each) for each in (False, True))
            console.print(compared_table(plain, reranked))
        fields, shown = _measured(engine, folder, own / "report.json", console)
    if as_json:
        print_json(fields)
    console.print(shown, markup=False, highlight=False)


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
        if engine.store.manifest.encoder.tokens != token_fingerprint(engine.encoder):
            engine.close()
            raise EncoderMismatch(f"{folder} was built before the model had its token vectors")
    except (IndexFormatError, EncoderMismatch):
        with progress("documents", None) as done:
            engine = Engine.build(
                read_corpus(data), folder, "minilm", overwrite=True, progress=done
            )
    console.print(f"{len(engine)} documents in {folder}, encoder {engine.encoder.name}")
    return engine


def _measured(
    engine: Engine, data: Path, saved: Path, console: Console
) -> tuple[dict[str, Any], str]:
    """The report as fields and as text: of this run, or of an earlier one with this very index."""
    weights = getattr(engine.encoder, "adapter_fingerprint", "")
    stamp = [engine.encoder.fingerprint, weights, engine.store.manifest.files]
    if saved.is_file():
        before = json.loads(saved.read_text(encoding="utf-8"))
        if before["stamp"] == stamp:
            note = f"(measured before; delete {saved} to measure again)"
            return before["report"], f"{before['shown']}{note}"
    names = [Ranker.NONE, own_ranker(engine), Ranker.PRF]
    rankers = by_stages(
        [Before()], names, None, lambda each, _: searching(engine, each, 100, 20, None)
    )
    collection = load_beir(data)
    with progress("queries", len(collection.queries)) as done:
        report, _ = evaluate(collection, rankers, depth=100, progress=done)
    fields, shown = report.to_dict(), _text(report, console.width)
    kept = {"stamp": stamp, "report": fields, "shown": shown}
    saved.write_text(json.dumps(kept), encoding="utf-8")
    return fields, shown


def _text(report: Report, width: int) -> str:
    page = io.StringIO()
    print_report(report, Console(file=page, width=width))
    return page.getvalue()
