"""Parts for the tests of training: tiny bases in folders, and lists that can be learned.

A module of tests takes a fixture by naming it: `bert, uncurved = support.bert, support.uncurved`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders_support import BERT, QWEN, byte_pairs, tiny_bert, tiny_qwen, wordpiece

from e2rank.train import TrainConfig, loop
from e2rank.train.log import read_log

WORDS = ["wing", "shock", "heat", "panel", "flutter", "nose", "jet", "wake"]
OTHERS = ["bread", "coffee", "egg", "stain", "yeast", "milk", "pan", "salt"]


class Killed(Exception):
    """What ends a run in a test."""


def killed_after(steps: int) -> Callable[[int], None]:
    """A progress that ends the run when so many steps are done."""

    def progress(done: int) -> None:
        if done == steps:
            raise Killed

    return progress


@pytest.fixture(autouse=True)
def uncurved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no curve, which would take a third of their time."""
    monkeypatch.setattr(loop, "draw_curve", lambda folder: None)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random BERT."""
    return bert_base(tmp_path_factory.mktemp("bert"))


def bert_base(folder: Path) -> str:
    """A folder with a random BERT and its contract."""
    _write(folder, tiny_bert(), wordpiece().to_str(), BERT.to_dict(), "right")
    return str(folder)


def qwen_base(folder: Path) -> str:
    """A folder with a random Qwen3 and E2Rank's contract; it pads on the left as Qwen3 does."""
    fields = QWEN.to_dict() | {"list_sizes": []}
    _write(folder, tiny_qwen(), byte_pairs().to_str(), fields, "left")
    return str(folder)


def _write(folder: Path, model: Any, tokenizer: str, contract: dict[str, Any], side: str) -> None:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": side}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "contract.json").write_text(json.dumps(contract), encoding="utf-8")


def lists(count: int, source: str = "aero") -> list[dict[str, Any]]:
    """Queries of two words; the documents hold both, one or none of them."""
    words = WORDS if source == "aero" else OTHERS
    rows = []
    for number in range(count):
        one, two = words[number % 8], words[(3 * number + 1) % 8]
        other, last = words[(number + 4) % 8], words[(number + 5) % 8]
        documents = [f"{other} {last}", f"{two} and {one} here", f"{one} of {last}"]
        rows.append(
            {
                "query": f"{one} {two}",
                "documents": documents,
                "labels": [0.0, 2.0, 1.0],
                "source": source,
            }
        )
    return rows


def write_lists(path: Path, rows: list[dict[str, Any]]) -> str:
    """The rows as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(base: str, data: str, out: Path, **changes: Any) -> TrainConfig:
    """A short run with settings under which a random model learns."""
    fields: dict[str, Any] = {
        "base": base,
        "data": (data,),
        "out": str(out),
        "lists": 4,
        "list_sizes": (3,),
        "steps": 4,
        "learning_rate": 3e-3,
    }
    return TrainConfig(**fields | changes)


def losses(folder: Path | str) -> list[float]:
    """The loss of every step that a run logged."""
    return [line["loss"] for line in read_log(Path(folder)) if "loss" in line]


def changed(model: torch.nn.Module, other: torch.nn.Module) -> set[str]:
    """Names of the weights in which two models differ."""
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    return {name for name in mine if not torch.equal(mine[name], theirs[name])}
