"""No damaged byte goes unnoticed, and none of them ends the process."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_flips import LAZY, answers, make
from index_support import files_in, one_line

from e2rank.errors import IndexFormatError
from e2rank.index import Store
from e2rank.index.manifest import NAME
from e2rank.index.verify import check

SCRIPT = Path(__file__).with_name("index_flips.py")
FUZZ = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index that is damaged; every test puts back what it changed."""
    folder = tmp_path_factory.mktemp("damaged") / "index"
    make(folder)
    return folder


def test_every_damaged_file_is_named_and_none_is_served_for_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "250", "20"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-5000:]
    report = json.loads(done.stdout)
    assert {"manifest.json", "deleted/000001-3.npy", "adapter-000004/weights.bin"} <= report.keys()
    for name, counts in report.items():
        assert counts.keys() <= {"bytes", "damaged", "refused", "served", "differs"}
        if not name.endswith(LAZY):
            # All of them are refused by every open.
            assert counts["refused"] == counts["damaged"], name
        # Whatever is cut short or runs on is refused, its size being looked at.
        assert counts["refused"] >= 5, name


def survives(folder: Path) -> None:
    """Whatever is in the folder, only errors that say so come out of it."""
    try:
        with Store.open(folder) as store:
            answers(store)
            check(store)
    except IndexFormatError as error:
        one_line(error)


@st.composite
def spliced(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes of the same length, with some parts overwritten: by others, zeros or other parts."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data) - 1))
        part = draw(st.one_of(st.binary(min_size=1, max_size=64), st.just(bytes(512))))
        if draw(st.booleans()):
            source = draw(st.integers(0, len(data) - 1))
            part = data[source : source + draw(st.integers(1, 600))]
        changed[start : start + len(part)] = part
    return bytes(changed[: len(data)])


NAMES = (
    "segments/000001/contract.json",
    "segments/000001/dense.faiss",
    "segments/000001/documents.sqlite",
    "segments/000001/postings_ends.npy",
    "segments/000001/postings_rows.npy",
    "segments/000001/postings_weights.npy",
    "segments/000001/sparse_ends.npy",
    "segments/000001/sparse_terms.npy",
    "segments/000001/sparse_weights.npy",
    "segments/000001/token_ends.npy",
    "segments/000001/tokens.npy",
    "segments/000001/vectors.npy",
    "segments/000002/vectors.npy",
    "deleted/000001-3.npy",
    NAME,
)


@pytest.mark.parametrize("name", NAMES)
def test_only_clear_errors_come_out_of_a_file_full_of_anything(
    index: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(index, folder)
    data = (folder / name).read_bytes()

    @FUZZ
    @given(spliced(data))
    def fuzz(damaged: bytes) -> None:
        # Not into the same file: others that were opened before are mapped.
        (folder / name).unlink()
        (folder / name).write_bytes(damaged)
        survives(folder)

    fuzz()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE documents SET text = NULL WHERE row = 5",
        "UPDATE documents SET title = x'ff' WHERE row = 5",
        "UPDATE documents SET metadata = NULL WHERE row = 5",
        "UPDATE documents SET metadata = '{' WHERE row = 5",
        "UPDATE documents SET metadata = '[]' WHERE row = 5",
        "UPDATE documents SET row = 99 WHERE row = 5",
        "UPDATE documents SET id = '1' || x'ff' WHERE row = 1",
        "DELETE FROM documents WHERE row = 5",
        "UPDATE fields SET rows = x'00'",
        "UPDATE fields SET rows = x'ffffffff'",
        "UPDATE fields SET rows = 'text'",
        "ALTER TABLE documents RENAME TO other",
    ],
)
def test_a_table_that_holds_anything_else_is_refused(index: Path, tmp_path: Path, sql: str) -> None:
    folder = tmp_path / "index"
    shutil.copytree(index, folder)
    with contextlib.closing(sqlite3.connect(folder / "segments/000001/documents.sqlite")) as table:
        table.execute(sql)
        table.commit()
    with (
        pytest.raises(IndexFormatError, match=r"000001/documents\.sqlite is damaged: .*; restore"),
        Store.open(folder) as store,
    ):
        answers(store)


def sealed(fields: dict[str, Any]) -> bytes:
    """A manifest that says so, with the right checksum."""
    body = json.dumps(fields, indent=2, ensure_ascii=False).encode()
    seal = f',\n  "checksum": "{xxhash.xxh3_64_hexdigest(body)}"\n}}\n'
    return body.removesuffix(b"\n}") + seal.encode()


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value of a JSON tree is."""
    inner: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        inner = [each for key in value for each in paths(value[key], (*path, key))]
    elif isinstance(value, list):
        inner = [each for n, item in enumerate(value) for each in paths(item, (*path, n))]
    return [path, *inner] if path else inner


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 10**30]),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.sampled_from(["", ".", "..", "../x", "/etc/passwd", "segments", "float16", "Flat", "HNSW8"]),
)
VALUES = st.recursive(
    SCALARS, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(st.text(max_size=5), v))
)


def test_a_manifest_that_says_anything_is_refused_or_right(index: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    shutil.copytree(index, folder)
    whole = json.loads((folder / NAME).read_bytes())
    del whole["checksum"]
    # What steers FAISS is the writer's word: a hash of a file that is there.
    places = [each for each in paths(whole) if each[-1] != "xxh3"]

    @settings(FUZZ, max_examples=300)
    @given(st.sampled_from(places), VALUES, st.booleans())
    def fuzz(place: tuple[Any, ...], value: Any, drop: bool) -> None:
        fields = json.loads(json.dumps(whole))
        inner = fields
        for each in place[:-1]:
            inner = inner[each]
        if drop:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        (folder / NAME).write_bytes(sealed(fields))
        survives(folder)

    fuzz()


def test_the_fuzzed_files_are_all_kinds_of_file_there_are(index: Path) -> None:
    kinds = {name.split("/")[-1].split("-")[0] for name in files_in(index)}
    fuzzed = {name.split("/")[-1].split("-")[0] for name in NAMES}
    # An adapter's files are compared by hash, and read by what loads encoders.
    assert kinds - fuzzed == {"adapter.json", "weights.bin", "000002"}
