"""Vectors that documents bring: the index they make, and those of another model found out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_support import EveryEncoder, TokenEncoder

from e2rank import Document, Engine, IndexConfig
from e2rank.corpus import with_vectors
from e2rank.encoders import Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import CorpusError

DOCUMENTS = [Document(str(n), f"text {n} of word{n % 7} and more", f"title {n}") for n in range(20)]
IN_BATCHES = IndexConfig(batch=6)


class Counting(HashingEncoder):
    """Keeps the texts of documents that it is given."""

    def __init__(self) -> None:
        super().__init__(64)
        self.read = list[str]()

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        """As ever."""
        self.read += texts
        return super().encode_documents(texts)


def vectors_of(documents: Sequence[Document]) -> np.ndarray:
    """What the encoder gives for them."""
    return HashingEncoder(64).encode_documents([each.body for each in documents]).vectors


def bringing(documents: Sequence[Document], scale: float = 1.0) -> list[Document]:
    """The same documents with their vectors."""
    rows = vectors_of(documents).astype(np.float64) * scale
    return [replace(each, vector=row) for each, row in zip(documents, rows, strict=True)]


def files(folder: Path) -> dict[str, bytes]:
    """Every file of an index."""
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*.*")}


@pytest.mark.parametrize("scale", [1.0, 3e30, 1e-200])
def test_vectors_that_are_brought_make_the_index_that_encoding_makes(
    tmp_path: Path, scale: float
) -> None:
    encoder = Counting()
    Engine.build(DOCUMENTS, tmp_path / "read", encoder, IN_BATCHES).close()
    assert len(encoder.read) == 20
    encoder.read.clear()
    with Engine.build(bringing(DOCUMENTS, scale), tmp_path / "brought", encoder, IN_BATCHES) as one:
        np.testing.assert_allclose(one.vectors(["3", "17"]), vectors_of(DOCUMENTS)[[3, 17]], 1e-5)
        one.verify()
    assert encoder.read == [DOCUMENTS[n].body for n in (0, 6, 12, 18)]
    if scale == 1.0:
        assert files(tmp_path / "brought") == files(tmp_path / "read")


def test_some_documents_may_bring_vectors_and_others_not(tmp_path: Path) -> None:
    encoder = Counting()
    mixed = [
        each if n % 3 else bring
        for n, (each, bring) in enumerate(zip(DOCUMENTS, bringing(DOCUMENTS), strict=True))
    ]
    with Engine.build(mixed[:15], tmp_path / "mixed", encoder, IN_BATCHES) as engine:
        fields = ("id", "text", "title", "vector")
        engine.add({name: getattr(each, name) for name in fields} for each in mixed[15:])
        stored = engine.vectors([each.id for each in DOCUMENTS])
    np.testing.assert_allclose(stored, vectors_of(DOCUMENTS), atol=1e-6)
    assert len(encoder.read) < 20


def test_a_build_that_was_cut_short_goes_on_with_the_vectors_of_its_rest(tmp_path: Path) -> None:
    def stopping() -> Any:
        yield from bringing(DOCUMENTS)[:14]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine.build(stopping(), tmp_path / "cut", Counting(), IN_BATCHES)
    Engine.build(bringing(DOCUMENTS), tmp_path / "cut", Counting(), IN_BATCHES, resume=True).close()
    Engine.build(DOCUMENTS, tmp_path / "whole", Counting(), IN_BATCHES).close()
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_vectors_one_row_too_late_are_found_out(tmp_path: Path) -> None:
    rows = np.roll(vectors_of(DOCUMENTS), 1, axis=0)
    late = [replace(each, vector=row) for each, row in zip(DOCUMENTS, rows, strict=True)]
    with pytest.raises(CorpusError, match=r"document '0' brings .* cosine .* is 0\.\d+; expected"):
        Engine.build(late, tmp_path / "late", Counting())
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (np.zeros(63), r"a vector of shape \(63,\); expected \(64,\), as hashing-64 gives"),
        (np.zeros((1, 64)), r"a vector of shape \(1, 64\)"),
        (np.zeros(64), "a vector that is zero"),
        ([float("nan")] * 64, "a vector that is zero, or holds a NaN"),
        (["a"] * 64, "brings no vector: could not convert"),
        ([[1.0], [1.0, 2.0]], "brings no vector"),
    ],
)
def test_what_is_no_vector_is_refused_by_the_document(
    tmp_path: Path, vector: Any, says: str
) -> None:
    documents = [DOCUMENTS[0], replace(DOCUMENTS[1], vector=vector)]
    with pytest.raises(CorpusError, match=f"document '1'.*{says}"):
        Engine.build(documents, tmp_path / "index", Counting())
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("encoder", "kinds"), [(TokenEncoder(64), "token"), (EveryEncoder(64), "token and sparse")]
)
def test_an_index_of_other_vectors_too_cannot_be_brought_one_kind(
    tmp_path: Path, encoder: Any, kinds: str
) -> None:
    with pytest.raises(CorpusError, match=f"document '0' brings its vector.* {kinds} vectors of"):
        Engine.build(bringing(DOCUMENTS), tmp_path / "index", encoder)


def test_rows_of_a_file_are_those_of_documents_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", vectors_of(DOCUMENTS))
    given = list(with_vectors(DOCUMENTS, tmp_path / "rows.npy"))
    assert given == DOCUMENTS
    np.testing.assert_array_equal([each.vector for each in given], vectors_of(DOCUMENTS))


@pytest.mark.parametrize("count", [19, 21])
def test_a_file_of_more_or_fewer_rows_than_documents_builds_nothing(
    tmp_path: Path, count: int
) -> None:
    np.save(tmp_path / "rows.npy", np.resize(vectors_of(DOCUMENTS), (count, 64)))
    with pytest.raises(CorpusError, match=f"holds {count} vectors, and the corpus 20 documents"):
        Engine.build(with_vectors(DOCUMENTS, tmp_path / "rows.npy"), tmp_path / "i", Counting())
    assert not (tmp_path / "i" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no .npy file of vectors"),
        (b"PK\x03\x04 no zip", "is no .npy file"),
        (np.zeros(4), r"holds float64 of shape \(4,\); expected floats of shape"),
        (np.zeros((4, 2), dtype=np.int64), "holds int64"),
        (np.array(["a", None], dtype=object), "is no .npy file"),
    ],
)
def test_a_file_without_rows_of_floats_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "rows.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(CorpusError, match=says):
        list(with_vectors(DOCUMENTS, path))


def test_archives_of_arrays_and_missing_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", rows=vectors_of(DOCUMENTS))
    for name in ("rows.npz", "missing.npy"):
        with pytest.raises(CorpusError, match=f"{name}"):
            list(with_vectors(DOCUMENTS, tmp_path / name))
