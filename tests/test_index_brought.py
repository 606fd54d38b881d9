"""Vectors that documents bring: the index they make, and those of another model found out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from index_support import EveryEncoder, TokenEncoder

from e2rank import Document, Engine, IndexConfig, read_corpus
from e2rank.corpus import with_vectors
from e2rank.encoders import Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import CorpusError

COUNT, BATCH = 50, 20
DOCUMENTS = [
    Document(str(n), f"text {n} of word{n % 7} and more", f"title {n}", {"year": 1900 + n})
    for n in range(COUNT)
]
IN_BATCHES = IndexConfig(batch=BATCH)


class Counting(HashingEncoder):
    """Keeps the texts of documents that it is given, and cuts each of them if it is told to."""

    def __init__(self, *, cuts: bool = False) -> None:
        super().__init__(64)
        self.read, self._cuts = list[str](), cuts

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        """As ever."""
        self.read += texts
        made = super().encode_documents(texts)
        return replace(made, truncated=tuple(range(len(texts)))) if self._cuts else made


def vectors_of(documents: Sequence[Document] = DOCUMENTS) -> np.ndarray:
    """What the encoder gives for them."""
    return HashingEncoder(64).encode_documents([each.body for each in documents]).vectors


def bringing(rows: np.ndarray, documents: Sequence[Document] = DOCUMENTS) -> list[Document]:
    """The same documents with these rows for vectors."""
    return [replace(each, vector=row) for each, row in zip(documents, rows, strict=True)]


def built(folder: Path, documents: Any, encoder: Any = None, **options: Any) -> Engine:
    """An index of them in batches of 20."""
    return Engine.build(documents, folder, encoder or Counting(), IN_BATCHES, **options)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of an index."""
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*.*")}


def assert_right(engine: Engine) -> None:
    """Every document has its own vector."""
    ids = [each.id for each in DOCUMENTS]
    np.testing.assert_allclose(engine.vectors(ids), vectors_of(), atol=1e-6)


@pytest.mark.parametrize(
    "as_given",
    [
        np.ndarray.astype,
        lambda rows, _: (rows * 3e30).astype(np.float64),
        lambda rows, _: rows.astype(np.float64) * 1e-200,
        lambda rows, _: np.asfortranarray(rows),
        lambda rows, _: rows.tolist(),
        lambda rows, _: torch.from_numpy(rows),
    ],
    ids=["float32", "long", "short", "columns", "lists", "tensors"],
)
def test_vectors_that_are_brought_make_the_index_that_encoding_makes(
    tmp_path: Path, as_given: Callable[..., Any]
) -> None:
    encoder = Counting()
    with built(tmp_path / "brought", bringing(as_given(vectors_of(), "float32")), encoder) as one:
        assert_right(one)
        one.verify()
    # The longest of each batch, and eight of the others.
    assert len(encoder.read) <= 27
    built(tmp_path / "read", DOCUMENTS).close()
    assert files(tmp_path / "brought").keys() == files(tmp_path / "read").keys()


def test_some_documents_may_bring_vectors_and_others_not(tmp_path: Path) -> None:
    encoder, brought = Counting(), bringing(vectors_of())
    mixed = [brought[n] if n % 3 else each for n, each in enumerate(DOCUMENTS)]
    fields = ("id", "text", "title", "metadata", "vector")
    with built(tmp_path / "mixed", mixed[:30], encoder) as engine:
        engine.add({name: getattr(each, name) for name in fields} for each in mixed[30:])
        assert_right(engine)
    assert {each.body for each in DOCUMENTS[::3]} <= set(encoder.read)
    assert len(set(encoder.read)) < COUNT


def test_a_build_that_was_cut_short_goes_on_with_the_vectors_of_its_rest(tmp_path: Path) -> None:
    def stopping() -> Any:
        yield from bringing(vectors_of())[:45]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "cut", stopping())
    built(tmp_path / "cut", bringing(vectors_of()), resume=True).close()
    built(tmp_path / "whole", bringing(vectors_of())).close()
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_build_does_not_go_on_from_other_vectors(tmp_path: Path) -> None:
    wrong = vectors_of()
    wrong[[6, 27]] = wrong[[7, 28]]
    wrong[-1] = wrong[0]
    with pytest.raises(CorpusError, match="document '49' brings a vector whose cosine"):
        built(tmp_path / "wrong", bringing(wrong))
    for given in (bringing(vectors_of()), DOCUMENTS):
        with pytest.raises(CorpusError, match="the first 40 documents, or vectors that they bring"):
            built(tmp_path / "wrong", given, resume=True)
    assert_right(built(tmp_path / "wrong", bringing(vectors_of()), overwrite=True))


def shifted(rows: np.ndarray) -> np.ndarray:
    """A row is missing in the second batch, all others come too early."""
    return np.vstack([rows[:25], rows[26:], rows[:1]])


def unordered(rows: np.ndarray) -> np.ndarray:
    """All but the first and the last of the first batch are another's."""
    return np.vstack([rows[:1], np.roll(rows[1:19], 1, axis=0), rows[19:]])


def unfilled(rows: np.ndarray) -> np.ndarray:
    """One was left as zeros."""
    rows = rows.copy()
    rows[23] = 0
    return rows


def cut(rows: np.ndarray) -> np.ndarray:
    """The longest was cut somewhere else."""
    longest = max(range(COUNT), key=lambda n: len(DOCUMENTS[n].body))
    rows = rows.copy()
    rows[longest] = HashingEncoder(64).encode_documents([DOCUMENTS[longest].title]).vectors
    return rows


@pytest.mark.parametrize("changed", [shifted, unordered, unfilled, cut])
def test_vectors_of_other_documents_are_found_out(
    tmp_path: Path, changed: Callable[[np.ndarray], np.ndarray]
) -> None:
    with pytest.raises(CorpusError, match=r"brings .* whose cosine .* is -?0\.\d+; expected"):
        built(tmp_path / "i", bringing(changed(vectors_of())))
    assert not (tmp_path / "i" / "manifest.json").exists()


def test_the_longest_document_is_compared_wherever_in_its_batch_it_stands(tmp_path: Path) -> None:
    for place in range(1, 5):
        documents = list(DOCUMENTS[:BATCH])
        documents[place] = replace(documents[place], text="of a wing that is cut " * 9)
        rows = vectors_of(documents)
        rows[place] = HashingEncoder(64).encode_documents([documents[place].title]).vectors
        with pytest.raises(CorpusError, match=f"document '{place}' brings a vector whose cosine"):
            built(tmp_path / "i", bringing(rows, documents), overwrite=True)


def test_zeros_are_a_vector_where_the_encoder_gives_them(tmp_path: Path) -> None:
    documents = [*DOCUMENTS[:2], Document("empty", "")]
    rows = vectors_of(documents)
    assert not rows[2].any()
    with built(tmp_path / "i", bringing(rows, documents)) as engine:
        assert not engine.vectors(["empty"]).any()


def test_what_is_added_again_with_another_vector_gets_it(tmp_path: Path) -> None:
    wrong = vectors_of()
    wrong[[1, 27]] = wrong[[2, 28]]
    with built(tmp_path / "i", bringing(wrong)) as engine:
        before = files(tmp_path / "i")
        engine.add(bringing(wrong))
        assert files(tmp_path / "i") == before
        engine.add(bringing(vectors_of()))
        assert_right(engine)
        assert len(engine) == COUNT
        engine.add([replace(DOCUMENTS[3], metadata={"year": 1}, vector=vectors_of()[3])])
        assert engine.get(["3"])[0].metadata == {"year": 1}
        with pytest.raises(CorpusError, match="document '3' brings a vector of shape"):
            engine.add([replace(DOCUMENTS[3], metadata={"year": 2}, vector=np.ones(3))])
        assert_right(engine)


def test_only_documents_that_were_encoded_to_be_stored_count_as_cut(tmp_path: Path) -> None:
    documents = [*bringing(vectors_of())[:40], *DOCUMENTS[40:]]
    with built(tmp_path / "i", documents, Counting(cuts=True)) as engine:
        assert engine.store.manifest.truncated == 10
        engine.add([replace(each, id=f"more {each.id}") for each in documents])
        assert engine.store.manifest.truncated == 20


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (np.ones(63), r"a vector of shape \(63,\); expected \(64,\), as hashing-64 gives"),
        (np.ones((1, 64)), r"float64 of shape \(1, 64\) for a vector; expected \(dimension,\)"),
        ([float("nan")] * 64, "a vector with a NaN or an infinity"),
        (["0.1"] * 64, r"<U3 of shape \(64,\) for a vector"),
        (np.ones(64) + 1j, "complex128 of shape"),
        (np.ones(64).tobytes(), r"\|S512 of shape \(\)"),
        ([10**400] * 64, "object of shape"),
        ([[1.0], [1.0, 2.0]], "no vector: setting an array element"),
        (torch.ones(64, requires_grad=True), "no vector: Can't call numpy"),
    ],
)
def test_what_is_no_vector_is_refused_by_the_document(
    tmp_path: Path, vector: Any, says: str
) -> None:
    documents = [DOCUMENTS[0], replace(DOCUMENTS[1], vector=vector)]
    with pytest.raises(CorpusError, match=f"document '1' brings {says}") as caught:
        built(tmp_path / "index", documents)
    assert len(str(caught.value)) < 200
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("encoder", "kinds"), [(TokenEncoder(64), "token"), (EveryEncoder(64), "token and sparse")]
)
def test_an_index_of_other_vectors_too_cannot_be_brought_one_kind(
    tmp_path: Path, encoder: Any, kinds: str
) -> None:
    with pytest.raises(CorpusError, match=f"document '0' brings its vector.* {kinds} vectors of"):
        built(tmp_path / "index", bringing(vectors_of()), encoder)


def test_a_line_of_a_corpus_may_hold_its_vector(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "1", "text": "wing", "vector": [0.5, 1], "year": 2}\n')
    (found,) = read_corpus(path)
    assert (found.vector, found.metadata) == ([0.5, 1], {"year": 2})


def test_rows_of_a_file_are_those_of_documents_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", vectors_of())
    given = list(with_vectors(DOCUMENTS, tmp_path / "rows.npy"))
    assert given == DOCUMENTS
    np.testing.assert_array_equal([each.vector for each in given], vectors_of())
    mappings = ({"id": each.id, "text": each.text} for each in DOCUMENTS)
    assert [each.id for each in with_vectors(mappings, tmp_path / "rows.npy")] == [
        each.id for each in DOCUMENTS
    ]


@pytest.mark.parametrize("count", [COUNT - 1, COUNT + 1])
def test_a_file_of_more_or_fewer_rows_than_documents_builds_nothing(
    tmp_path: Path, count: int
) -> None:
    np.save(tmp_path / "rows.npy", np.resize(vectors_of(), (count, 64)))
    with pytest.raises(CorpusError, match=f"holds {count} vectors, and the corpus 50 documents"):
        built(tmp_path / "i", with_vectors(DOCUMENTS, tmp_path / "rows.npy"))
    assert not (tmp_path / "i" / "manifest.json").exists()


def headed(shape: str) -> bytes:
    """A file of an array that says it has this shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no .npy file of vectors"),
        (b"PK\x03\x04 no zip", "is no .npy file"),
        (np.zeros(4), r"holds float64 of shape \(4,\); expected floats of shape"),
        (np.zeros((4, 2), dtype=np.int64), "holds int64"),
        (np.array(["a", None], dtype=object), "is no .npy file"),
        (headed("(100000000000000000000000, 0)"), "is no .npy file of vectors: Python int too"),
        (headed("(True, 4)"), "is no .npy file of vectors"),
        (headed("-" * 3000 + "1"), "is no .npy file of vectors"),
        (headed("{[]: 1}"), "is no .npy file of vectors"),
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
    np.savez(tmp_path / "rows.npz", rows=vectors_of())
    for name in ("rows.npz", "missing.npy"):
        with pytest.raises(CorpusError, match=f"{name}"):
            list(with_vectors(DOCUMENTS, tmp_path / name))


def archived(folder: Path, **arrays: Any) -> Path:
    """The vectors and ids of the documents, last first, or other arrays in their place."""
    usual = {"ids": np.array([each.id for each in DOCUMENTS])[::-1], "vectors": vectors_of()[::-1]}
    np.savez(folder / "rows.npz", **usual | arrays)
    return folder / "rows.npz"


@pytest.mark.parametrize("saved", [np.savez, np.savez_compressed])
def test_rows_of_an_archive_are_those_of_documents_by_id(
    tmp_path: Path, saved: Callable[..., None]
) -> None:
    with np.load(archived(tmp_path)) as arrays:
        saved(tmp_path / "rows.npz", **arrays)
    with built(tmp_path / "i", with_vectors(DOCUMENTS, tmp_path / "rows.npz")) as engine:
        assert_right(engine)


def test_an_archive_of_other_ids_than_the_corpus_builds_nothing(tmp_path: Path) -> None:
    file = archived(tmp_path)
    extra, twice = Document("50", "a wing"), [*DOCUMENTS[:3], DOCUMENTS[1]]
    for given, says in (
        (DOCUMENTS[:-1], "a vector of '49', which is no document"),
        ([*DOCUMENTS, extra], "no vector of '50', or"),
        (twice, "no vector of '1', or the corpus has it twice"),
    ):
        with pytest.raises(CorpusError, match=rf"rows\.npz holds {says}"):
            built(tmp_path / "i", with_vectors(given, file), overwrite=True)
        assert not (tmp_path / "i" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.arange(COUNT), r"holds ids of int64 and shape \(50,\); expected 50 strings"),
        (np.array(["a"]), r"shape \(1,\); expected 50 strings"),
        (np.array(["7"] * COUNT), "holds two vectors of '7'"),
        (np.array(["a", None] * 25, dtype=object), "is no .npz file.* Object arrays cannot"),
    ],
)
def test_an_archive_whose_ids_name_no_rows_is_refused(
    tmp_path: Path, ids: np.ndarray, says: str
) -> None:
    with pytest.raises(CorpusError, match=says):
        list(with_vectors(DOCUMENTS, archived(tmp_path, ids=ids)))
    with pytest.raises(CorpusError, match=r"holds float32 of shape \(64,\); expected floats"):
        list(with_vectors(DOCUMENTS, archived(tmp_path, vectors=vectors_of()[0])))


def test_a_damaged_archive_is_refused_by_name(tmp_path: Path) -> None:
    whole = archived(tmp_path).read_bytes()
    flipped = bytes([*whole[:900], whole[900] ^ 1, *whole[901:]])
    for content in (b"", b"PK no zip", whole[: len(whole) // 2], flipped):
        (tmp_path / "rows.npz").write_bytes(content)
        with pytest.raises(CorpusError, match=r"rows\.npz is no \.npz file of 'ids' and 'vectors'"):
            list(with_vectors(DOCUMENTS, tmp_path / "rows.npz"))
