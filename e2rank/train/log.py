"""What a run did, step by step: lines of JSON, and their curve."""

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_log = logging.getLogger("e2rank")

NAME, CURVE = "log.jsonl", "curve.png"


class RunLog:
    """One JSON object a line in `log.jsonl`: a step's losses and speed, or a measurement.

    A step's line has `step` (from 1), `loss`, `infonce`, `listwise`, `lr`, `lists_s`, `tokens_s`
    and `seconds`; a measurement's has `step` (steps done before it) and `dev`.
    """

    def __init__(self, folder: Path, done: int, *, write: bool = True) -> None:
        """Log into `folder`, after `done` steps; what was logged after those is forgotten.

        Args:
            folder: where the file is.
            done: steps that a resumed run does not do again.
            write: False logs nothing, as all processes but one do.
        """
        self._path, self._write = folder / NAME, write
        if write:
            kept = [line for line in read_log(folder) if line["step"] <= done] if done else []
            text = "".join(json.dumps(line) + "\n" for line in kept)
            self._path.write_text(text, encoding="utf-8")

    def line(self, **fields: Any) -> None:
        """Add one line; floats are kept whole, so that runs can be compared."""
        if self._write:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fields) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's log; none if it has none. A line that was cut short is left out."""
    path = folder / NAME
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def draw_curve(folder: Path) -> None:
    """Draw losses and measurements of a folder's log into `curve.png`, where matplotlib is."""
    if find_spec("matplotlib") is None:
        _log.info("no %s: matplotlib is not installed", CURVE)
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_log(folder)
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    steps = [line for line in lines if "loss" in line]
    for name in ("loss", "infonce", "listwise"):
        places, values = [line["step"] for line in steps], [line[name] for line in steps]
        axes.plot(places, values, linewidth=1, label=name)
    axes.legend(loc="upper left")
    if measured := [line for line in lines if "dev" in line]:
        other = axes.twinx()
        other.set_ylabel("nDCG@10")
        for name in measured[0]["dev"]:
            values = [line["dev"][name] for line in measured]
            other.plot([line["step"] for line in measured], values, "o--", label=name)
        other.legend(loc="upper right")
    figure.savefig(folder / CURVE, dpi=120)
