"""fast-plaid as a way to search, in an environment of its own: `plaid_peer.py` runs there."""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, WORK
from multivector_ways import FOLDER, Asked, Run

from e2rank.index.tokens import Tokens

PYTHON = WORK / "plaid-venv" / "bin" / "python"
SCRIPT = ROOT / "benchmarks" / "plaid_peer.py"
SETTINGS = ((1, 64), (2, 64), (4, 64), (2, 256), (4, 256), (8, 4096))
"""Centroids probed for each query token, and documents scored in full; (8, 4096) is its default."""


def name_of(setting: tuple[int, int]) -> str:
    """What a setting is called in tables."""
    return f"{setting[0]} probes, {setting[1]} in full"


def index_of(key: str, tokens: Tokens) -> Path | None:
    """The index of these token vectors, built once; none without the environment."""
    if not PYTHON.is_file():
        print("fast-plaid is left out: run `make plaid` to install it (several GB)")
        return None
    index = FOLDER / f"{key}.plaid"
    if not (index / "built.json").is_file():
        print(f"{index.name}: fast-plaid indexes {len(tokens)} token vectors", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "in.npz"
            np.savez(path, rows=tokens[:], ends=np.append(0, tokens.ends))
            subprocess.run([PYTHON, SCRIPT, "index", path, index], check=True)
    return index


def search(
    index: Path, asked: Asked, settings: Sequence[tuple[int, int]] = SETTINGS
) -> tuple[dict[str, Any], dict[tuple[int, int], Run]]:
    """Versions and the time of indexing, and what each setting finds."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "in.npz", Path(folder) / "out.json"
        ends = np.cumsum([0, *map(len, asked.tokens)])
        np.savez(path, rows=np.concatenate(asked.tokens), ends=ends, settings=settings)
        subprocess.run([PYTHON, SCRIPT, "search", path, index, out], check=True)
        about: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    runs = {
        setting: Run(
            each["ms"], [[(row, score) for row, score in found] for found in each["found"]]
        )
        for setting, each in zip(settings, about.pop("settings"), strict=True)
    }
    return about, runs
