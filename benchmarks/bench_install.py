"""A container's install: `pip install .[cpu]` in a fresh environment, its size, and a search there.

The environment has no torch. It opens the index that torch made of a collection with the int8
bundle of bench_onnx, which is exported here if it is not there yet.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bundles import BUNDLES, ensure_bundles
from harness import ROOT, WORK, index_of, save
from search_cost import COLLECTION

VENV = WORK / "install-venv"
STARTS = 7

SEARCH = """
import json, sys, time
from importlib.util import find_spec
begun = time.perf_counter()
from e2rank import Engine
imported = time.perf_counter()
engine = Engine.open(sys.argv[1], encoder=sys.argv[2])
opened = time.perf_counter()
hits = {how: [hit.id for hit in engine.search("vitamin D and the immune system", 5, **options)]
        for how, options in {
            "dense": {"rerank": False},
            "sparse": {"rerank": False, "gather": "sparse"},
            "rerank": {"rerank": True},
        }.items()}
print(json.dumps({
    "torch": find_spec("torch") is not None or "torch" in sys.modules,
    "import_s": imported - begun,
    "open_s": opened - imported,
    "searches_s": time.perf_counter() - opened,
    "hits": hits,
}))
"""


def install() -> float:
    """Seconds that a fresh environment took."""
    shutil.rmtree(VENV, ignore_errors=True)
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip: list[str | Path] = [VENV / "bin" / "pip", "install", "-q"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", f"{ROOT}[cpu]"], check=True)
    return time.perf_counter() - begun


def sizes() -> dict[str, float]:
    """Megabytes of site-packages by folder, the largest first; pip itself is left out."""
    folder = next(VENV.glob("lib/python*/site-packages"))
    found: dict[str, float] = {}
    for each in folder.rglob("*"):
        name = each.relative_to(folder).parts[0]
        if each.is_file() and not name.startswith(("pip", "setuptools")):
            found[name] = found.get(name, 0.0) + each.stat().st_size / 1e6
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def seconds(code: str) -> float:
    """Of the fastest of some starts of Python with this code."""
    taken = []
    for _ in range(STARTS):
        begun = time.perf_counter()
        subprocess.run([VENV / "bin" / "python", "-c", code], check=True)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def searched(index: Path, bundle: Path) -> dict[str, object]:
    """What a search there gives, and what it took; elsewhere than here, so that it is the wheel."""
    words: list[str | Path] = [VENV / "bin" / "python", "-c", SEARCH, index, bundle]
    done = subprocess.run(words, cwd=VENV, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Install, measure, print and write."""
    ensure_bundles(["int8"])
    index = index_of(COLLECTION)
    took = install()
    by_folder = sizes()
    found = searched(index, BUNDLES / "minilm-int8")
    if found["torch"]:
        raise SystemExit("torch is installed in an environment that must not have it")
    bare = seconds("pass")
    results = {
        "install_s": took,
        "installed_mb": sum(by_folder.values()),
        "largest_mb": dict(list(by_folder.items())[:8]),
        "python_s": bare,
        "import_e2rank_s": seconds("import e2rank") - bare,
        "import_engine_s": seconds("from e2rank import Engine") - bare,
        "collection": COLLECTION,
        "search": found,
    }
    print(json.dumps(results, indent=2))
    save("install", "pip install .[cpu] in a fresh environment, and a search there", results)


if __name__ == "__main__":
    main()
