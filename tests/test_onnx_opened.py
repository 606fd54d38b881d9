"""A bundle in use: the same bytes to the end, whatever becomes of its folder meanwhile."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx_support import TEXTS, exported

from e2rank.encoders.onnx import BundleError, OnnxEncoder, gate, sessions
from e2rank.encoders.onnx.bundle import Bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle, and one of an encoder that gives nearly the same vectors."""
    folder = tmp_path_factory.mktemp("bundles")
    with mock.patch.object(gate, "_ALONE", 2):
        one = exported("adapted", "fp32", folder)
    other = shutil.copytree(one, folder / "other")
    for path in other.glob("*.onnx"):
        model = onnx.load(path)
        for each in model.graph.initializer:
            if each.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(each) * np.float32(1.0001)
                each.CopyFrom(onnx.numpy_helper.from_array(values, each.name))
        onnx.save(model, path)
    dataclasses.replace(Bundle.load(one), name="other").save(other)
    return one, other


@pytest.fixture
def both(made: tuple[Path, Path], tmp_path: Path) -> list[Path]:
    """Copies of the two."""
    return [shutil.copytree(each, tmp_path / f"{n}") for n, each in enumerate(made)]


def bulk(given: OnnxEncoder) -> Any:
    """Read so much that it is read beside itself."""
    return given.encode_documents(TEXTS, want=["dense"])


def sparse(given: OnnxEncoder) -> Any:
    """Make the first sparse vectors."""
    return given.encode_documents(TEXTS[:1], want=["sparse"])


def queries(given: OnnxEncoder) -> Any:
    """Read so many queries that they are read beside each other."""
    return given.encode_queries(TEXTS)


each_late = pytest.mark.parametrize("late", [bulk, sparse, queries])


@each_late
def test_files_that_were_replaced_are_never_mixed_with_those_opened(
    late: Callable[[OnnxEncoder], Any], both: list[Path]
) -> None:
    one, other = both
    given = OnnxEncoder(one, threads=2)
    for each in other.iterdir():
        shutil.copyfile(each, one / each.name)
    with pytest.raises(BundleError, match="was changed since the bundle was opened: open it anew"):
        late(given)
    assert OnnxEncoder(one, threads=2).bundle.name == "other"


@each_late
def test_a_link_that_is_switched_leaves_an_open_encoder_what_it_opened(
    late: Callable[[OnnxEncoder], Any], both: list[Path], tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(both[0])
    given, known = OnnxEncoder(link, threads=2), OnnxEncoder(both[0], threads=2)
    link.unlink()
    link.symlink_to(both[1])
    np.testing.assert_array_equal(late(given).vectors, late(known).vectors)
    assert (late(given).vectors != late(OnnxEncoder(link, threads=2)).vectors).any()
    assert given.name == str(both[0])


def test_a_process_may_leave_the_folder_that_it_named_a_bundle_from(
    both: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = OnnxEncoder(both[0].name, threads=2)
    monkeypatch.chdir("/")
    for late in (bulk, sparse, queries):
        assert np.isfinite(late(given).vectors).all()


@each_late
def test_a_bundle_that_was_removed_is_missed_by_name(
    late: Callable[[OnnxEncoder], Any], both: list[Path]
) -> None:
    given = OnnxEncoder(both[0], threads=2)
    moved = both[0].rename(both[0].with_name("elsewhere"))
    with pytest.raises(BundleError, match="was removed since the bundle was opened"):
        late(given)
    # What runs already needs no file, and what is put back is found.
    assert len(given.encode_queries(["wing"]).vectors) == 1
    moved.rename(both[0])
    assert np.isfinite(late(given).vectors).all()


def test_weights_beside_a_graph_are_compared_as_the_graph_is(both: list[Path]) -> None:
    folder = both[0]
    (folder / "model.onnx.data").write_bytes(b"weights")
    bundle = Bundle.load(folder)
    bundle.save(folder)
    bundle = Bundle.load(folder)
    bundle.check_unchanged(folder, "model.onnx")
    (folder / "model.onnx.data").write_bytes(b"weighty")
    bundle.check_unchanged(folder, "query.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx\.data was changed"):
        bundle.check_unchanged(folder, "model.onnx")


def test_what_is_replaced_while_it_is_read_is_noticed(
    both: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, real = OnnxEncoder(both[0], threads=2), sessions.Sessions._started

    def slowly(self: sessions.Sessions, threads: int) -> Any:
        shutil.copyfile(both[1] / "model.onnx", both[0] / "model.onnx")
        return real(self, threads)

    monkeypatch.setattr(sessions.Sessions, "_started", slowly)
    with pytest.raises(BundleError, match="was changed since"):
        bulk(given)


def test_no_byte_of_what_a_bundle_says_of_itself_can_change(both: list[Path]) -> None:
    path = both[0] / "bundle.json"
    raw = path.read_bytes()
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(BundleError):
            Bundle.load(both[0])
    path.write_bytes(raw)
    Bundle.load(both[0])
