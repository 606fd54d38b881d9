"""Exported encoders that several benchmarks run: written once, into .work/bundles."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import WORK

BUNDLES = WORK / "bundles"


def ensure_bundles(precisions: Sequence[str]) -> None:
    """Export what is missing of `minilm`."""
    for precision in precisions:
        ensure_bundle("minilm", precision, BUNDLES / f"minilm-{precision}")


def ensure_bundle(encoder: str, precision: str, folder: Path) -> None:
    """Export one, in a process of its own: its memory is not to count here."""
    if not (folder / "bundle.json").is_file():
        options: list[str | Path] = ["--out", folder, "--precision", precision]
        words = [sys.executable, "-m", "e2rank", "export", encoder, *options]
        subprocess.run(words, check=True)
