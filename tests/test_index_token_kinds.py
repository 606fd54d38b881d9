"""Token vectors in sixteen bits and as codes, in segments that come, go and are merged."""

import logging
from pathlib import Path

import numpy as np
import pytest
from test_index_build import content, quick_disk  # noqa: F401 - every test here uses it
from test_index_faults import full_disk
from token_support import INFO, P, build, changed, documents, encoder, rows_of

from e2rank.config import IndexConfig
from e2rank.errors import IndexFormatError
from e2rank.index import EncoderInfo, Manifest, Store, build_index, codec, making
from e2rank.index.tokens import Kind
from e2rank.index.verify import check

MANY = range(300)
CODED = {"token_codes.npy", "token_codebook.npy", "token_ends.npy"}
PLAIN = {"tokens.npy", "token_ends.npy"}
PQ = IndexConfig(tokens="pq", batch=64)


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codebook is learned from few rows, and small segments are smaller."""
    monkeypatch.setattr(codec, "LEAST", 300)
    monkeypatch.setattr(making, "SMALL", 100)


def names(folder: Path) -> list[set[str]]:
    """The files of token vectors of each segment."""
    manifest = Manifest.load(folder)
    return [
        {Path(name).name for name in manifest.inside(each.folder) if "/token" in name}
        for each in manifest.segments
    ]


def holds(folder: Path, numbers: list[int], most: float) -> None:
    """The index is whole, and its token vectors are as near as that to those given."""
    with Store.open(folder, verify=True) as store:
        check(store)
        rows = [store.row_of(str(number)) for number in numbers]
        assert None not in rows
        found = store.tokens(np.array(rows))
        for number, each in zip(numbers, found, strict=True):
            given = rows_of(str(number))
            assert (each.shape, each.dtype) == (given.shape, np.float32)
            assert np.linalg.norm(each - given, axis=1).max(initial=0.0) < most
    files = {path.name for path in folder.rglob("*") if path.is_file()} - {".lock"}
    assert files == {Path(name).name for name in Manifest.load(folder).files} | {"manifest.json"}


NEAR: dict[Kind, float] = {"int8": 0.02, "float16": 0.002, "pq": 0.5}


@pytest.mark.parametrize("kind", NEAR)
def test_token_vectors_come_back_as_near_as_their_kind_allows(tmp_path: Path, kind: Kind) -> None:
    folder = build(tmp_path / "index", MANY, IndexConfig(tokens=kind, batch=64))
    assert names(folder) == [CODED if kind == "pq" else PLAIN]
    holds(folder, list(MANY), NEAR[kind])
    with Store.open(folder) as store:
        held = store.token_vectors(np.arange(300))
        assert held.rows.dtype == {"int8": np.int8, "float16": np.float16, "pq": np.float32}[kind]
        floats, whole = held.rows.astype(np.float32) * np.float32(held.scale), store.tokens(MANY)
        np.testing.assert_allclose(floats, np.concatenate(whole), atol=1e-7)
        assert held.ends.tolist() == np.cumsum([0, *map(len, whole)]).tolist()


def test_a_code_takes_a_byte_for_three_numbers_and_two_more(tmp_path: Path) -> None:
    folder = build(tmp_path / "index", MANY, PQ) / "segments/000001"
    codes = np.load(folder / "token_codes.npy")
    assert codes.dtype == np.uint8
    assert codes.shape == (sum(len(rows_of(str(n))) for n in MANY), 2 + P // 3)


def test_an_index_of_eight_bits_says_nothing_of_kinds(tmp_path: Path) -> None:
    folder = build(tmp_path / "index", range(20), IndexConfig(batch=64))
    manifest = Manifest.load(folder)
    assert not any(name.startswith("token") for name in manifest.config)
    assert '"format": 3' in (folder / "manifest.json").read_text()
    assert (
        '"format": 4'
        in (
            build(tmp_path / "other", range(20), IndexConfig(tokens="float16")) / "manifest.json"
        ).read_text()
    )


@pytest.mark.parametrize("kind", ["float16", "pq"])
def test_the_same_documents_give_the_same_bytes(tmp_path: Path, kind: Kind) -> None:
    one, other = (
        content(build(tmp_path / each, MANY, IndexConfig(tokens=kind, batch=64))) for each in "ab"
    )
    assert one == other


def test_too_few_token_vectors_wait_in_eight_bits_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "e2rank"):
        folder = build(tmp_path / "index", range(50), PQ)
    assert names(folder) == [PLAIN]
    assert "token vectors are too few to learn 'pq' from" in caplog.text
    holds(folder, list(range(50)), NEAR["int8"])
    changed(folder, add=[range(50, 300)], compact=True)
    assert names(folder) == [CODED]
    holds(folder, list(MANY), NEAR["pq"])


def test_small_segments_wait_in_eight_bits_until_they_are_merged_into_a_large_one(
    tmp_path: Path,
) -> None:
    folder = build(tmp_path / "index", MANY, PQ)
    first = content(folder / "segments/000001")
    changed(folder, add=[range(300, 320)])
    changed(folder, add=[range(320, 340)])
    assert names(folder) == [CODED, PLAIN]
    holds(folder, list(range(340)), NEAR["pq"])
    with Store.open(folder) as store:
        small = store.tokens([store.row_of("310") or 0])[0]
    np.testing.assert_allclose(small, rows_of("310"), atol=0.005)
    changed(folder, compact=True)
    assert names(folder) == [CODED]
    holds(folder, list(range(340)), NEAR["pq"])
    (segment,) = Manifest.load(folder).segments
    merged = content(folder / segment.folder)
    assert merged["token_codebook.npy"] == first["token_codebook.npy"]
    # Nothing is coded twice: the codes of the first segment are at the beginning, byte for byte.
    codes = np.load(folder / segment.folder / "token_codes.npy")
    book = codec.Codebook.from_array(np.load(folder / segment.folder / "token_codebook.npy"))
    before = first["token_codes.npy"][128:]
    assert codes.tobytes().startswith(before)
    eight = np.concatenate([rows_of(str(n)) for n in range(300, 340)])
    floats = np.rint(127 * eight).astype(np.float32) * np.float32(1 / 127)
    assert codes.tobytes() == before + codec.encode(floats, book).tobytes()


def test_a_large_segment_takes_the_codebook_that_is_there(tmp_path: Path) -> None:
    folder = build(tmp_path / "index", MANY, PQ)
    changed(folder, add=[range(1000, 1150)])
    assert names(folder) == [CODED, CODED]
    first, second = (folder / each.folder for each in Manifest.load(folder).segments)
    name = "token_codebook.npy"
    assert (first / name).read_bytes() == (second / name).read_bytes()
    holds(folder, [*MANY, *range(1000, 1150)], 0.8)
    with Store.open(folder) as store:
        before = {n: store.tokens([store.row_of(str(n)) or 0])[0] for n in (5, 1000, 1149)}
    changed(folder, delete=range(0, 290, 2), compact=True)
    with Store.open(folder) as store:
        for number, rows in before.items():
            assert store.tokens([store.row_of(str(number)) or 0])[0].tolist() == rows.tolist()


def test_large_segments_of_one_commit_share_the_codebook_of_the_first(tmp_path: Path) -> None:
    folder = build(tmp_path / "index", range(20), PQ)
    changed(folder, add=[range(100, 400), range(400, 700)])
    assert names(folder) == [PLAIN, CODED, CODED]
    books = [
        (folder / each.folder / "token_codebook.npy").read_bytes()
        for each in Manifest.load(folder).segments[1:]
    ]
    assert books[0] == books[1]
    changed(folder, compact=True)
    assert names(folder) == [CODED]
    holds(folder, [*range(20), *range(100, 700)], 0.8)


def test_codes_left_by_deletions_stay_codes_in_a_small_segment(tmp_path: Path) -> None:
    folder = build(tmp_path / "index", MANY, PQ)
    changed(folder, delete=range(5, 300))
    with Store.open(folder) as store:
        before = store.tokens(range(5))
    changed(folder, add=[range(300, 305)])
    assert names(folder) == [CODED]
    with Store.open(folder) as store:
        assert [each.tolist() for each in store.tokens(range(5))] == [e.tolist() for e in before]
    holds(folder, [*range(5), *range(300, 305)], 0.8)


@pytest.mark.parametrize("kind", NEAR)
def test_rows_of_several_segments_come_in_the_order_asked(tmp_path: Path, kind: Kind) -> None:
    folder = build(tmp_path / "index", MANY, IndexConfig(tokens=kind, batch=64))
    changed(folder, add=[range(300, 340)], delete=[3, 305])
    wanted = [339, 0, 150, 0, 301, 299, 10]
    with Store.open(folder) as store:
        assert len(store.segments) == 2
        together = store.tokens(wanted)
        for row, each in zip(wanted, together, strict=True):
            assert each.tolist() == store.tokens([row])[0].tolist()
        held = store.token_vectors(wanted)
        floats = held.rows.astype(np.float32) * np.float32(held.scale)
        np.testing.assert_allclose(floats, np.concatenate(together), atol=1e-7)
        assert store.token_vectors([]).ends.tolist() == [0]
        with pytest.raises(IndexError, match="no row 3: its document is deleted"):
            store.token_vectors([0, 3])


@pytest.mark.parametrize(
    ("config", "coded"),
    [
        (PQ, CODED),
        (IndexConfig(tokens="pq", token_factory="Flat", batch=64), CODED | {"tokens.faiss"}),
    ],
    ids=["codes", "codes and FAISS"],
)
def test_a_segment_that_waits_alone_is_coded_when_all_are_merged(
    tmp_path: Path, config: IndexConfig, coded: set[str]
) -> None:
    folder = build(tmp_path / "index", range(1), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "SMALL", 1000)
        changed(folder, add=[MANY])
    assert names(folder) == [PLAIN]
    changed(folder, compact=True)
    assert names(folder) == [coded]
    holds(folder, list(MANY), NEAR["pq"])
    before = Manifest.load(folder)
    changed(folder, compact=True)
    assert Manifest.load(folder).segments == before.segments


# Of each of five batches, four files and their record; then three headers and five files.
BATCHES, MOMENTS = 5 * 5, 5 * 5 + 3 + 5


@pytest.mark.parametrize("moment", range(BATCHES - 1, MOMENTS))
def test_a_disk_full_while_codes_are_written_loses_no_byte(tmp_path: Path, moment: int) -> None:
    whole = content(build(tmp_path / "whole", MANY, PQ))
    with pytest.MonkeyPatch.context() as patch:
        full_disk(moment)(patch)
        with pytest.raises(OSError, match="no space left"):
            build(tmp_path / "index", MANY, PQ)
    build(tmp_path / "index", MANY, PQ, resume=True)
    assert content(tmp_path / "index") == whole


def test_no_moment_of_a_build_is_left_out_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(MOMENTS)(monkeypatch)
    build(tmp_path / "index", MANY, PQ)
    assert names(tmp_path / "index") == [CODED]


@pytest.mark.parametrize(
    ("config", "info", "message"),
    [
        (IndexConfig(tokens="pq"), {"token_dim": 4}, "length 4 cannot be kept as 'pq'"),
        (IndexConfig(tokens="pq"), {"token_dim": 0, "tokens": ""}, "tokens is 'pq', and .* no"),
        (
            IndexConfig(token_factory="Flat"),
            {"token_dim": 0, "tokens": ""},
            "token_factory is 'Flat', and .* no token vectors",
        ),
        (IndexConfig(token_factory="Nonsense"), {}, "FAISS cannot build the factory 'Nonsense'"),
        (IndexConfig(factory="BFlat"), {}, "for a bit a number take 'RaBitQ'"),
        (IndexConfig(factory="BIVF8"), {}, "or 'IVF256,RaBitQ', and rescore=10"),
        (IndexConfig(factory="IVF8,LSH"), {}, "for a bit a number take 'RaBitQ'"),
        (
            IndexConfig(token_factory="Flat", token_nprobe=4),
            {},
            "nprobe does not apply to the factory 'Flat'",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_document_is_encoded(
    tmp_path: Path, config: IndexConfig, info: dict[str, object], message: str
) -> None:
    texts: list[str] = []
    encode, tokens = encoder(texts)
    made = {"name": "head", "fingerprint": "made", "dim": 16, "token_dim": P, "tokens": "head"}
    with pytest.raises(ValueError, match=message):
        build_index(
            documents(range(5)),
            tmp_path / "index",
            encode=encode,
            tokens=tokens if info.get("token_dim", P) else None,
            encoder=EncoderInfo(**(made | info)),  # type: ignore[arg-type]
            contract={},
            config=config,
        )
    assert texts == []
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": "int4"}, "tokens is 'int4'; it must be 'int8', 'float16' or 'pq'"),
        ({"token_factory": None}, "token_factory is None"),
        ({"token_nprobe": 0}, "token_nprobe is 0; it must be a whole number, at least 1"),
        ({"token_nearest": 0}, "token_nearest is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IndexConfig(**changes)  # type: ignore[arg-type]


def test_a_manifest_of_another_kind_than_the_files_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path / "index", range(20), IndexConfig(tokens="float16"))
    manifest = Manifest.load(folder)
    manifest.config["tokens"] = "int8"
    manifest.save(folder)
    with pytest.raises(IndexFormatError, match=r"tokens\.npy is damaged: .* expected .* int8"):
        Store.open(folder)
    assert INFO.token_dim == P
