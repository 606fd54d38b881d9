"""The installed package: what it exports, what importing it costs, what its wheel holds."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import e2rank
from e2rank.config import IndexConfig, load_recipe

ROOT = Path(__file__).parents[1]
HEAVY = (
    "faiss",
    "huggingface_hub",
    "onnxruntime",
    "prometheus_client",
    "sentence_transformers",
    "starlette",
    "torch",
    "transformers",
    "uvicorn",
)


def run(*arguments: str) -> str:
    """Run this Python with `arguments` at the root of the project and return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder))
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = f"import sys, e2rank; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run("-c", code).strip() == "[]"


def test_every_extra_that_an_error_names_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "e2rank").rglob("*.py")]
    named = {name for text in texts for name in re.findall(r'extra="(\w+)"', text)}
    assert {"cpu", "hub", "minilm", "serve", "torch", "train"} <= named
    assert named <= project["optional-dependencies"].keys()


def test_every_exported_name_resolves() -> None:
    assert [name for name in e2rank.__all__ if not hasattr(e2rank, name)] == []


def test_version_is_that_of_the_metadata() -> None:
    assert e2rank.__version__ == version("e2rank")


def test_wheel_holds_the_whole_package(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "e2rank").rglob("*.py")}
    assert modules | {"e2rank/py.typed"} <= set(wheel.namelist())


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"e2rank", f"e2rank-{e2rank.__version__}.dist-info"}


@pytest.mark.parametrize("name", ["flat", "hnsw", "ivf", "ivfpq"])
def test_index_recipes_load(name: str) -> None:
    assert load_recipe(IndexConfig, ROOT / "indexes" / f"{name}.toml").factory
