"""What the benchmarks share: where collections are, indexes built once, results as JSON."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".work"
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("E2RANK_DATA", ROOT.parent / "shared" / "data"))
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "faiss-cpu",
    "faiss-gpu",
    "onnxruntime-gpu",
    "numpy",
)


def collection(name: str) -> Path:
    """The BEIR folder of a collection; without it the benchmark ends here, with a message."""
    folder = ROOT / "benchmarks" / "data" / name
    if not folder.is_dir():
        folder = DATA / name
    if not folder.is_dir():
        print(f"skipped: no collection {name!r} in {DATA}; set E2RANK_DATA to the folder it is in")
        sys.exit(0)
    return folder


def command(*arguments: str | Path) -> str:
    """What `e2rank ARGUMENTS` prints on stdout."""
    words = [sys.executable, "-m", "e2rank", *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def tested(script: str, *options: str | Path) -> Any:
    """What a script of tests/ reports as JSON: the test at length is the benchmark."""
    WORK.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / script, *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout)


def index_of(name: str, encoder: str = "minilm", dtype: str | None = None, *more: str) -> Path:
    """The index of a collection, built the first time it is needed; `more` options of its build."""
    kind = [*([dtype] if dtype else []), *(each.lstrip("-") for each in more)]
    folder = WORK / "indexes" / "-".join([name, encoder, *kind])
    if not (folder / "manifest.json").is_file():
        how = ["--encoder", encoder, *(["--dtype", dtype] if dtype else []), *more]
        command("index", collection(name), "--out", folder, *how, "--resume")
    return folder


def adapted_index_of(name: str, *more: str) -> Path:
    """That index adapted to its corpus without labels or queries, in a folder of its own."""
    built = index_of(name, "minilm", None, *more)
    folder = built.with_name(f"{built.name}-adapted")
    if not folder.is_dir():
        copy = folder.with_name(folder.name + ".partial")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(built, copy)
        command("adapt", copy)
        copy.rename(folder)
    return folder


def save(name: str, what: str, results: Any) -> None:
    """Write benchmarks/results/NAME.json: the results, and on what machine they were measured."""
    machine = {
        "processor": platform.machine(),
        "instructions": instructions(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": _versions(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    fields = {"what": what, "machine": machine, "results": results}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")


def instructions() -> list[str]:
    """Those of the processor that multiply matrices; what int8 and bfloat16 gain hangs on them."""
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return [name for name in INSTRUCTIONS if name in flags]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        # Of packages for a CPU and a GPU one is installed.
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def rows(table: Sequence[Sequence[str]]) -> None:
    """Print cells in aligned columns."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
