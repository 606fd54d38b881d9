"""Token vectors in an index: what is kept of them, how they stream, what is refused."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifest_support import reseal
from test_index_build import (
    BATCH,
    DOCUMENTS,
    INFO,
    build,
    content,
    interrupted,
    quick_disk,  # noqa: F401 - every test here uses it
)
from test_index_faults import full_disk, struck
from test_index_folder import flip

from e2rank.config import IndexConfig
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import EncodingError, IndexFormatError
from e2rank.index import EncoderInfo, Manifest, Store

WITH = EncoderInfo(name="hashing-16", fingerprint="first", dim=16, token_dim=4, tokens="head")
FILES = ("tokens.npy", "token_ends.npy")
FLAT = IndexConfig(batch=BATCH)
LENGTHS = [5, 0, 0, 1, 7, 2, 0, 3, 40, 0]
GIVEN = [
    np.float32((1, 50, 0.001)[row % 3])
    * np.random.default_rng(row).normal(size=(length, 4)).astype(np.float32)
    for row, length in enumerate(LENGTHS)
]
GIVEN[4][3] = 0.0
ROWS = dict(zip((each.body for each in DOCUMENTS), GIVEN, strict=True))
Change = Callable[[list[np.ndarray]], Any]


class Head:
    """An encoder with token vectors: stops at batch `stop_at`, changes those of the second."""

    def __init__(self, stop_at: int | None = None, change: Change = lambda rows: rows) -> None:
        self.asked, self._stop_at, self._change = list[str](), stop_at, change
        self._texts: Sequence[str] = ()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(f"encode {len(texts)}")
        self._texts = texts
        return HashingEncoder(16).encode_documents(texts).vectors

    def tokens(self) -> Any:
        if self.asked.count("tokens") == self._stop_at:
            raise KeyboardInterrupt
        self.asked.append("tokens")
        rows = [ROWS[text] for text in self._texts]
        return self._change(rows) if DOCUMENTS[BATCH].body in self._texts else rows


def make(folder: Path, head: Head | None = None, **changes: Any) -> Manifest:
    """An index with token vectors of `DOCUMENTS`, and no FAISS index."""
    head = head or Head()
    options = {"encode": head.encode, "tokens": head.tokens, "encoder": WITH, "config": FLAT}
    return build(folder, **(options | changes))


def stopped(folder: Path, stop_at: int) -> Path:
    """A build that was stopped when `stop_at` batches were done, in the middle of the next."""
    with pytest.raises(KeyboardInterrupt):
        make(folder, Head(stop_at))
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The folder of an index with token vectors."""
    make(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an index that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    make(folder)
    return content(folder)


def normalised(rows: np.ndarray) -> list[list[float]]:
    """The definition of unit rows, a zero row staying zero."""
    exact = rows.astype(np.float64).tolist()
    return [[x / (sum(y * y for y in row) ** 0.5 or 1.0) for x in row] for row in exact]


def test_token_vectors_come_back_as_unit_rows_within_half_a_step(index: Path) -> None:
    with Store.open(index) as store:
        assert store.token_dim == 4
        found = store.tokens(range(10))
        store.verify()
    assert [rows.shape for rows in found] == [(length, 4) for length in LENGTHS]
    for rows, given in zip(found, GIVEN, strict=True):
        assert rows.dtype == np.float32
        expected = np.array(normalised(given)).reshape(-1, 4)
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1 / 127 / 2 + 1e-6)
    assert found[4][3].tolist() == [0.0] * 4


def test_both_files_are_the_arrays_they_are_said_to_be(index: Path) -> None:
    rows, ends = (np.load(index / "segments/000001" / name) for name in FILES)
    lines = [line for given in GIVEN for line in normalised(given)]
    assert rows.dtype == np.int8
    assert rows.tolist() == [[round(127 * x) for x in line] for line in lines]
    assert ends.dtype == np.int64
    assert ends.tolist() == list(itertools.accumulate(LENGTHS))


def test_rows_come_in_the_order_asked_packed_or_not(index: Path) -> None:
    wanted = [8, 0, 1, 8, 9, 4, 3]
    with Store.open(index) as store:
        held = store.token_vectors(np.array(wanted))
        packed, offsets = held.rows, held.ends
        found, each = store.tokens(wanted), [store.tokens([row])[0] for row in wanted]
        none = store.token_vectors([])
        assert store.tokens([]) == []
    assert packed.dtype == np.int8
    assert offsets.dtype == np.int64
    assert offsets.tolist() == [0, *itertools.accumulate(LENGTHS[row] for row in wanted)]
    assert (none.rows.shape, none.ends.tolist()) == ((0, 4), [0])
    assert held.scale == 1 / 127
    for place, rows in enumerate(found):
        assert rows.tolist() == each[place].tolist()
        part = packed[offsets[place] : offsets[place + 1]]
        assert rows.tolist() == (part.astype(np.float32) / np.float32(127)).tolist()


def test_token_vectors_are_mapped_not_loaded(index: Path) -> None:
    with Store.open(index) as store:
        (segment,) = store.segments
        assert segment.tokens is not None
        assert isinstance(segment.tokens._rows.base, np.memmap)


@pytest.mark.parametrize("row", [10, -1])
def test_a_row_that_is_not_there_is_named(index: Path, row: int) -> None:
    with Store.open(index) as store, pytest.raises(IndexError, match=f"has no row {row}"):
        store.tokens([0, row])


def test_documents_may_all_be_without_a_token(tmp_path: Path) -> None:
    documents = [DOCUMENTS[row] for row in (1, 2, 6)]
    make(tmp_path / "index", documents=documents, config=IndexConfig(batch=1))
    with Store.open(tmp_path / "index") as store:
        assert [rows.shape for rows in store.tokens([2, 0, 1])] == [(0, 4)] * 3


def test_the_head_is_asked_once_a_batch_right_after_its_texts_were_encoded(tmp_path: Path) -> None:
    make(tmp_path / "index", head := Head())
    assert head.asked == ["encode 4", "tokens", "encode 4", "tokens", "encode 2", "tokens"]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_size_of_a_batch_changes_no_file_but_the_manifest(
    tmp_path: Path, whole: dict[str, bytes], batch: int
) -> None:
    make(tmp_path / "index", config=IndexConfig(batch=batch))
    found = content(tmp_path / "index")
    assert [name for name in whole if whole[name] != found[name]] == ["manifest.json"]


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_a_build_stopped_at_any_batch_goes_on_to_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], stop_at: int
) -> None:
    make(stopped(tmp_path / "index", stop_at), head := Head(), resume=True)
    assert head.asked.count("tokens") == 3 - stop_at
    assert content(tmp_path / "index") == whole


def die(folder: str, stop_at: int) -> None:
    """Build, and be killed in this batch: run in a process of its own."""

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    head = Head()
    real = head.tokens
    head.tokens = lambda: real() if head.asked.count("tokens") < stop_at else kill()  # type: ignore[method-assign]
    make(Path(folder), head)


@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_killed_build_goes_on_to_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], stop_at: int
) -> None:
    code = f"import test_index_tokens as t; t.die({str(tmp_path / 'index')!r}, {stop_at})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert done.returncode == -signal.SIGKILL
    make(tmp_path / "index", resume=True)
    assert content(tmp_path / "index") == whole


# Of each of three batches, four files and their record; then three headers and three files.
MOMENTS = 3 * 5 + 3 + 3


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_disk_full_at_any_moment_loses_no_byte(
    tmp_path: Path, whole: dict[str, bytes], moment: int
) -> None:
    head = Head()
    changes = {"encoder": WITH, "encode": head.encode, "tokens": head.tokens, "config": FLAT}
    struck(tmp_path / "index", full_disk(moment), **changes)
    make(tmp_path / "index", head := Head(), resume=True)
    assert head.asked.count("tokens") == 3 - min(moment // 5, 3)
    assert content(tmp_path / "index") == whole


def test_no_moment_of_a_build_is_left_out_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(MOMENTS)(monkeypatch)
    assert make(tmp_path / "index").count == len(DOCUMENTS)


def test_bytes_written_after_the_last_durable_batch_are_cut_off(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    part = stopped(tmp_path / "index", 2) / "segments/000001.partial"
    for name in FILES:
        with (part / name).open("ab") as file:
            file.write(b"half a batch")
    make(tmp_path / "index", resume=True)
    assert content(tmp_path / "index") == whole


@pytest.mark.parametrize("name", FILES)
def test_an_unfinished_build_that_lost_bytes_is_refused(tmp_path: Path, name: str) -> None:
    path = stopped(tmp_path / "index", 2) / "segments/000001.partial" / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match=rf"{name} has lost bytes .* overwrite=True"):
        make(tmp_path / "index", resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": dataclasses.replace(WITH, tokens="another head")},
        {"encoder": dataclasses.replace(WITH, token_dim=5)},
        {"encoder": INFO, "tokens": None},
    ],
)
def test_going_on_with_another_head_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = stopped(tmp_path / "index", 1)
    with pytest.raises(ValueError, match="has another encoder or configuration"):
        make(folder, resume=True, **changes)
    interrupted(tmp_path / "without", config=FLAT)
    with pytest.raises(ValueError, match="has another encoder or configuration"):
        make(tmp_path / "without", resume=True)


def spoiled(place: int, change: Callable[[np.ndarray], Any]) -> Change:
    """Change the token vectors of one document of the second batch."""
    return lambda rows: [*rows[:place], change(rows[place]), *rows[place + 1 :]]


BAD: dict[str, tuple[Change, str]] = {
    "nan": (spoiled(1, lambda rows: rows * np.nan), "a NaN or an infinity .* document 'd2'"),
    "infinity": (spoiled(3, lambda rows: rows + np.inf), "a NaN or an infinity .* 'd4'"),
    "wide": (spoiled(0, lambda r: np.hstack([r, r])), r"\(7, 8\) for document 'd1', .* \(t, 4\)"),
    "none but wide": (spoiled(2, lambda _: np.zeros((0, 5))), r"\(0, 5\) for document 'd3'"),
    "flat": (spoiled(0, np.ravel), r"shape \(28,\) for document 'd1', expected \(t, 4\)"),
    "too few": (lambda rows: rows[1:], "of 3 documents, expected 4"),
    "too many": (lambda rows: [*rows, rows[0]], "of 5 documents, expected 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_unfit_token_vectors_are_named_and_nothing_of_their_batch_is_written(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    change, message = BAD[name]
    with pytest.raises(EncodingError, match=f"hashing-16 gave .*{message}") as caught:
        make(tmp_path / "index", Head(change=change))
    assert "\n" not in str(caught.value)
    assert content(tmp_path / "index") == content(stopped(tmp_path / "after one batch", 1))
    make(tmp_path / "index", resume=True)
    assert content(tmp_path / "index") == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "token_dim is 4, so `tokens` must be given"),
        ({"encoder": INFO}, "token_dim is 0"),
        ({"encoder": dataclasses.replace(INFO, tokens="head"), "tokens": None}, "token_dim is 0"),
        ({"encoder": dataclasses.replace(WITH, token_dim=-1)}, "token_dim is -1"),
    ],
)
def test_token_vectors_without_their_length_or_the_reverse_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    head = Head()
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "index", head, **changes)
    assert head.asked == []
    assert not (tmp_path / "index").exists()


def test_an_index_without_token_vectors_says_so(tmp_path: Path) -> None:
    build(tmp_path / "index")
    with Store.open(tmp_path / "index") as store:
        assert store.token_dim == 0
        for read in (store.tokens, store.token_vectors):
            with pytest.raises(ValueError, match="index holds no token vectors: build it again"):
                read([0])


def test_an_index_without_token_vectors_names_none(tmp_path: Path) -> None:
    build(tmp_path / "index")
    text = (tmp_path / "index/manifest.json").read_text()
    head = '"name": "hashing-16",\n    "fingerprint": "first",\n    "dim": 16\n  },\n  "config"'
    assert text.startswith(
        '{\n  "format": 3,\n  "kind": "e2rank-index",\n  "encoder": {\n    ' + head
    )
    names = ["contract.json", "dense.faiss", "documents.sqlite", "vectors.npy"]
    assert list(json.loads(text)["files"]) == [f"segments/000001/{name}" for name in names]
    assert "token" not in text
    assert Manifest.load(tmp_path / "index").encoder == INFO


def test_an_unfinished_build_without_token_vectors_is_recorded_as_before(tmp_path: Path) -> None:
    part = interrupted(tmp_path / "index", 2) / "segments/000001.partial"
    record = json.loads((part / "progress.json").read_bytes())
    assert list(record) == ["done", "truncated", "vectors", "spool", "documents", "settings"]
    assert (record["vectors"], record["done"]) == (128 + 8 * 16 * 4, 8)
    assert record["spool"] == (part / "documents.jsonl").stat().st_size
    assert record["settings"]["encoder"] == {
        "name": "hashing-16",
        "fingerprint": "first",
        "dim": 16,
    }


def test_an_index_with_token_vectors_names_its_head(index: Path) -> None:
    fields = json.loads((index / "manifest.json").read_bytes())
    assert fields["format"] == 3
    assert (fields["encoder"]["token_dim"], fields["encoder"]["tokens"]) == (4, "head")
    assert {f"segments/000001/{name}" for name in FILES} < fields["files"].keys()
    assert Manifest.load(index).encoder == WITH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["encoder"].pop("token_dim"),
            r"is damaged: it names .*/token_ends\.npy",
        ),
        (lambda m: m["encoder"].update(token_dim=-4), "is damaged: token_dim is -4"),
        (
            lambda m: m["files"].pop("segments/000001/tokens.npy"),
            r"is damaged: it names no segments/000001/tokens\.npy",
        ),
        (lambda m: m["encoder"].update(token_dim="4"), "is damaged: token_dim is '4'"),
        (lambda m: m["encoder"].update(tokens=None), "is damaged: tokens is None"),
        (lambda m: m["encoder"].update(token_dim=5), r"tokens\.npy is damaged: .*\(58, 5\)"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    index: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    reseal(index, change)
    with pytest.raises(IndexFormatError, match=message):
        Store.open(index)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_named_by_verify_and_a_lost_one_at_once(index: Path, name: str) -> None:
    path = index / "segments/000001" / name
    with Store.open(index) as store:
        flip(path, 150)
        with pytest.raises(IndexFormatError, match=f"{name} is damaged"):
            store.verify()
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(IndexFormatError, match=f"{name} has .* bytes, expected"):
        Store.open(index)
    path.unlink()
    with pytest.raises(IndexFormatError, match=f"{name} is missing"):
        Store.open(index)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_header_is_refused_or_named_by_verify(index: Path, name: str) -> None:
    path = index / "segments/000001" / name
    for place in range(128):
        flip(path, place)
        with pytest.raises(IndexFormatError, match=name), Store.open(index) as store:
            store.verify()
        flip(path, place)


def replaced(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change an array of an index, and the size that its manifest gives."""
    path = folder / "segments/000001" / name
    np.save(path, change(np.load(path)))
    entry = {"bytes": path.stat().st_size}
    reseal(folder, lambda m: m["files"][f"segments/000001/{name}"].update(entry))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokens.npy", lambda rows: rows[:-1]),
        ("tokens.npy", lambda rows: rows.view(np.uint8)),
        ("tokens.npy", np.ravel),
        ("tokens.npy", lambda rows: rows.reshape(-1, 2)),
        ("token_ends.npy", lambda ends: ends[1:]),
        ("token_ends.npy", lambda ends: ends[:, None]),
        ("token_ends.npy", lambda ends: ends.astype(np.float64)),
    ],
)
def test_arrays_that_do_not_fit_are_refused_at_once(
    index: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    replaced(index, name, change)
    with pytest.raises(IndexFormatError, match=f"{name} is damaged: it holds"):
        Store.open(index)


@pytest.mark.parametrize(("end", "row"), [(12, 5), (59, 5), (59, 6), (-1, 5), (-1, 6)])
def test_ends_out_of_order_are_refused_when_they_are_read(index: Path, end: int, row: int) -> None:
    replaced(index, "token_ends.npy", lambda ends: np.where(np.arange(10) == 5, end, ends))
    with Store.open(index) as store:
        assert len(store.tokens([4])[0]) == LENGTHS[4]
        with pytest.raises(IndexFormatError, match=r"token_ends\.npy is damaged"):
            store.token_vectors([4, row])


def test_an_index_is_replaced_by_one_with_token_vectors_and_back(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build(folder, config=FLAT)
    first = content(folder)
    for dim, maker in ((4, make), (0, build), (4, make)):
        with pytest.raises(ValueError, match="pass overwrite=True"):
            maker(folder)
        maker(folder, overwrite=True, config=FLAT)
        with Store.open(folder) as store:
            store.verify()
            assert store.token_dim == dim
            segment = store.manifest.segments[0].folder
        names = {"manifest.json", *store.manifest.files}
        assert content(folder).keys() == names
        assert {f"{segment}/{name}" in names for name in FILES} == {dim > 0}
        for name in ("vectors.npy", "documents.sqlite"):
            assert content(folder)[f"{segment}/{name}"] == first[f"segments/000001/{name}"]
