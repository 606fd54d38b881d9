"""An index as one file: the same bytes for the same index, and nothing else ever unpacked."""

import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
import zstandard
from typer.testing import CliRunner

from e2rank import Engine
from e2rank.cli.ship import app
from e2rank.errors import IndexFormatError
from e2rank.index import shipping, tar
from e2rank.index.manifest import NAME, Manifest
from e2rank.index.pack import pack, unpack
from e2rank.index.shipping import MAX_MANIFEST

SAMPLE = Path(__file__).parents[1] / "indexes" / "sample"
CONTENT = {"a.npy": b"vectors" * 200, "segments/000001/b.sqlite": b"", "z.json": b"{}"}
ALL = sorted(CONTENT)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing cuts the power here, so nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A copy of the sample index."""
    return shutil.copytree(SAMPLE, tmp_path / "index")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def packed(folder: Path, archive: Path) -> bytes:
    pack(folder, archive)
    return archive.read_bytes()


def manifest_of(files: dict[str, Any]) -> bytes:
    """The sample's manifest, but for the files."""
    with tempfile.TemporaryDirectory() as folder:
        dataclasses.replace(Manifest.load(SAMPLE), files=files).save(Path(folder))
        return (Path(folder) / NAME).read_bytes()


def entries(content: dict[str, bytes]) -> dict[str, Any]:
    return {
        name: {"bytes": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)}
        for name, data in content.items()
    }


def member(name: str, data: bytes) -> bytes:
    return tar.header(name, len(data)) + data + tar.padding(len(data))


def special(name: str, kind: bytes, link: str = "") -> bytes:
    """A member that is no plain file."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry.tobuf(tarfile.USTAR_FORMAT)


HONEST = manifest_of(entries(CONTENT))
MEMBERS = [member(NAME, HONEST), *(member(name, CONTENT[name]) for name in ALL)]
FIRST, A, B, Z = MEMBERS


def compressed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def archive_of(*members: bytes) -> bytes:
    return compressed(b"".join(members) + tar.END)


def with_files(files: dict[str, Any]) -> bytes:
    """An archive whose manifest names these."""
    return archive_of(member(NAME, manifest_of(files)))


def test_an_index_comes_back_byte_for_byte(index: Path, tmp_path: Path) -> None:
    pack(index, tmp_path / "index.tar.zst")
    manifest = unpack(tmp_path / "index.tar.zst", tmp_path / "new" / "folder")
    assert content(tmp_path / "new" / "folder") == content(SAMPLE)
    assert manifest == Manifest.load(SAMPLE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "index.tar.zst", "new"]


def test_an_unpacked_index_answers_as_the_one_that_was_packed(
    engine: Engine, tmp_path: Path
) -> None:
    pack(engine.store.folder, tmp_path / "x")
    unpack(tmp_path / "x", tmp_path / "new")
    with Engine.open(tmp_path / "new") as other:
        for query in ("flutter of thin panels", "heat of a boundary layer"):
            found, expected = other.search(query), engine.search(query)
            assert [(hit.id, hit.score) for hit in found] == [
                (hit.id, hit.score) for hit in expected
            ]


def test_the_archive_is_a_tar_file_of_the_manifest_and_then_the_files_by_name(
    index: Path, tmp_path: Path
) -> None:
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name in (NAME, *sorted(Manifest.load(index).files)):
            entry = tarfile.TarInfo(name)
            entry.size = (index / name).stat().st_size
            file.addfile(entry, io.BytesIO((index / name).read_bytes()))
    data = zstandard.ZstdDecompressor().decompress(packed(index, tmp_path / "x"))
    # The library fills up to twenty blocks.
    assert expected.getvalue() == data.ljust(len(expected.getvalue()), b"\0")


def test_the_hash_is_sha256_of_the_archive(index: Path, tmp_path: Path) -> None:
    digest = pack(index, tmp_path / "x")
    assert digest == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()


def test_the_same_index_packs_to_the_same_bytes(index: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for path in sorted((path for path in index.rglob("*") if path.is_file()), reverse=True):
        copy = other / path.relative_to(index)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        copy.chmod(0o600)
        os.utime(copy, (1, 2))
    assert packed(other, tmp_path / "a") == packed(index, tmp_path / "b")


def test_only_what_the_manifest_names_is_packed(index: Path, tmp_path: Path) -> None:
    before = packed(index, tmp_path / "a")
    for name in (".lock", "manifest.json.part", "segments/000002.partial/x", "segments/000007/x"):
        (index / name).parent.mkdir(exist_ok=True)
        (index / name).write_text("of no index")
    assert packed(index, tmp_path / "b") == before


def test_progress_counts_the_bytes_of_the_index(index: Path, tmp_path: Path) -> None:
    total = sum(len(data) for name, data in content(index).items() if name != NAME)
    told: list[int] = []
    pack(index, tmp_path / "x", progress=told.append)
    assert told == sorted(told)
    assert told[-1] == total
    unpack(tmp_path / "x", tmp_path / "new", progress=told.append)
    assert told[-1] == total + (index / NAME).stat().st_size


@pytest.mark.parametrize("size", [0, 1, 8**11 - 1, 8**11, 2**50])
def test_a_file_of_any_size_has_a_header_that_the_tar_library_reads(size: int) -> None:
    entry = tarfile.TarInfo.frombuf(tar.header("segments/1/x.npy", size), "ascii", "strict")
    assert (entry.name, entry.size, entry.isreg()) == ("segments/1/x.npy", size, True)
    assert (entry.mode, entry.mtime, entry.uid, entry.gid) == (0o644, 0, 0, 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (flip, "is damaged: it differs from the manifest's hash"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes, expected"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes, expected"),
    "gone": (Path.unlink, "is missing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_not_packed(tmp_path: Path, damage: str) -> None:
    strike, reason = DAMAGES[damage]
    for name in Manifest.load(SAMPLE).files:
        index = shutil.copytree(SAMPLE, tmp_path / "index")
        strike(index / name)
        with pytest.raises(IndexFormatError, match=f"{re.escape(str(index / name))} .*{reason}"):
            pack(index, tmp_path / "x")
        shutil.rmtree(index)
    assert os.listdir(tmp_path) == []


def test_a_manifest_that_could_not_be_unpacked_is_not_packed(index: Path) -> None:
    (index / NAME).write_bytes(manifest_of(entries({"a b": b"x"})))
    with pytest.raises(IndexFormatError, match="expected a path"):
        pack(index, index.parent / "x")
    assert os.listdir(index.parent) == ["index"]


def test_an_index_that_changes_under_the_packer_is_refused(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Manifest.load

    def changed(folder: Path) -> Manifest:
        manifest = load(folder)
        (index / NAME).write_bytes(HONEST)
        return manifest

    monkeypatch.setattr(Manifest, "load", changed)
    with pytest.raises(IndexFormatError, match="was changed just now"):
        pack(index, tmp_path / "x")


def test_an_index_that_is_changed_while_it_is_packed_is_not_called_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"id": str(number), "text": "wing " * 50_000} for number in range(5)]
    with Engine.build(records, tmp_path / "index", "hashing") as engine:
        engine.delete(["0"])
        with pytest.raises(IndexFormatError, match="was changed just now: try again"):
            pack(tmp_path / "index", tmp_path / "x", progress=lambda _: engine.compact())
        assert "ships the texts of 1 deleted documents: compact it first" in caplog.text
    assert not (tmp_path / "x").exists()
    pack(tmp_path / "index", tmp_path / "x")


def test_an_archive_that_is_there_is_not_replaced(index: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"precious")
    with pytest.raises(ValueError, match="is there already"):
        pack(index, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"precious"


@pytest.mark.parametrize("what", ["a file", "a folder with a file", "a link", "a dangling link"])
def test_what_is_in_the_way_of_an_unpacked_index_stays(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    target = tmp_path / "target"
    if what == "a file":
        target.write_bytes(b"precious")
    elif what == "a folder with a file":
        target.mkdir()
        (target / "precious").write_bytes(b"precious")
    else:
        target.symlink_to(tmp_path / ("empty" if what == "a link" else "nowhere"))
    before = content(tmp_path)
    (tmp_path / "x").write_bytes(archive_of(*MEMBERS))
    with pytest.raises(ValueError, match="is there already"):
        unpack(tmp_path / "x", target)
    assert content(tmp_path) == before | {"x": archive_of(*MEMBERS)}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "x").write_bytes(archive_of(*MEMBERS))
    unpack(tmp_path / "x", tmp_path / "target")
    assert content(tmp_path / "target") == CONTENT | {NAME: HONEST}


@pytest.mark.parametrize("level", [1, 19])
def test_an_archive_may_be_compressed_again(index: Path, tmp_path: Path, level: int) -> None:
    data = zstandard.ZstdDecompressor().decompress(packed(index, tmp_path / "x"))
    again = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=False)
    (tmp_path / "x").write_bytes(again.compress(data))
    unpack(tmp_path / "x", tmp_path / "new")
    assert content(tmp_path / "new") == content(SAMPLE)


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00data"
WIDE = zstandard.FRAME_HEADER + b"\x00" + bytes([18 << 3]) + b"\x01\x00\x00"
"""A frame that wants 256 MiB of memory for nothing."""
RESERVED = zstandard.FRAME_HEADER + b"\x00\x00" + b"\x07\x00\x00"
OTHER = "is no packed index: expected"

ATTACKS: dict[str, tuple[bytes, str]] = {
    # What a manifest may name.
    "the manifest itself": (with_files(entries({NAME: b"x"})), "twice"),
    "the manifest in capitals": (with_files(entries({"Manifest.JSON": b"x"})), "twice"),
    "case collision": (with_files(entries({"a/b": b"x", "A/b": b"x"})), "twice, but for"),
    "file and folder": (with_files(entries({"a/b/c": b"x", "A": b"x"})), "both as a file"),
    "less than nothing": (with_files({"a": {"bytes": -1, "xxh3": ""}}), "no file can have"),
    "more than everything": (with_files({"a": {"bytes": 10**99, "xxh3": ""}}), "no file can have"),
    "more than the disk": (with_files({"a": {"bytes": 10**18, "xxh3": ""}}), "are left for it"),
    "no size": (with_files({"a": {"xxh3": ""}}), "/x/manifest.json is damaged"),
    # What a manifest may be.
    "no JSON": (archive_of(member(NAME, b"[")), "/x/manifest.json is damaged"),
    "deep JSON": (archive_of(member(NAME, b"[" * 10**6)), "damaged"),
    "of something else": (archive_of(member(NAME, b"{}")), "not the manifest of an e2rank index"),
    "too long": (compressed(tar.header(NAME, MAX_MANIFEST + 1)), "67,108,865 bytes"),
    "far too long": (compressed(tar.header(NAME, 1 << 40)), OTHER),
    "not the first": (archive_of(A, FIRST, B, Z), r"expected manifest.json, found 'a.npy'"),
    "no manifest": (archive_of(), "expected manifest.json, found the end"),
    # What may follow.
    "path": (archive_of(FIRST, member("../../a.npy", CONTENT["a.npy"])), r"found '../../a.npy'"),
    "absolute": (archive_of(FIRST, member("/a.npy", CONTENT["a.npy"])), "found '/a.npy'"),
    "symbolic link": (archive_of(FIRST, special("a.npy", tarfile.SYMTYPE, "/etc")), "a link"),
    "hard link": (archive_of(FIRST, special("a.npy", tarfile.LNKTYPE, "/etc/x")), "a link"),
    "device": (archive_of(FIRST, special("a.npy", tarfile.CHRTYPE)), "no plain file"),
    "pipe": (archive_of(FIRST, special("a.npy", tarfile.FIFOTYPE)), "no plain file"),
    "folder": (archive_of(FIRST, special("a.npy", tarfile.DIRTYPE)), "no plain file"),
    "pax header": (archive_of(FIRST, special("a.npy", tarfile.XHDTYPE), A, B, Z), OTHER),
    "long name": (archive_of(FIRST, special("a.npy", tarfile.GNUTYPE_LONGNAME), A, B, Z), OTHER),
    "sparse": (archive_of(FIRST, special("a.npy", tarfile.GNUTYPE_SPARSE), A, B, Z), OTHER),
    "twice": (archive_of(FIRST, A, A, B, Z), "found 'a.npy'"),
    "twice at the end": (archive_of(*MEMBERS, A), "expected the end"),
    "another order": (archive_of(FIRST, B, A, Z), r"expected a.npy \(1,400 bytes\), found 'segm"),
    "missing": (archive_of(FIRST, A, Z), "found 'z.json'"),
    "missing at the end": (archive_of(FIRST, A, B), "expected z.json .* found the end"),
    "not named": (archive_of(FIRST, member("Z", b""), A, B, Z), "found 'Z'"),
    "too short": (archive_of(FIRST, member("a.npy", CONTENT["a.npy"][:-1]), B, Z), "1,399 bytes"),
    "too long a file": (archive_of(FIRST, member("a.npy", b"v" * 9999), B, Z), "9,999 bytes"),
    "wrong hash": (archive_of(FIRST, member("a.npy", b"V" * 1400), B, Z), "differs from its hash"),
    "data in the padding": (archive_of(FIRST, A[:-1] + b"x", B, Z), "zeros after a file"),
    "no header": (archive_of(FIRST, b"x" * 512), "found something else"),
    "no end": (compressed(b"".join(MEMBERS)), "its content is cut short"),
    "half an end": (compressed(b"".join(MEMBERS) + bytes(512)), "its content is cut short"),
    "more after the end": (archive_of(*MEMBERS, tar.END), "goes on"),
    # What may be around it.
    "nothing": (b"", "does not begin as a zstd file"),
    "five bytes": (zstandard.FRAME_HEADER, "does not begin as a zstd file"),
    "plain tar": (b"".join(MEMBERS) + tar.END, "does not begin as a zstd file"),
    "no tar": (compressed(b"hello"), "its content is cut short"),
    "no tar, but long": (compressed(b"hello" * 1000), "expected manifest.json, found something"),
    "a skippable frame before": (SKIPPABLE + archive_of(*MEMBERS), "does not begin"),
    "a skippable frame after": (archive_of(*MEMBERS) + SKIPPABLE, "something follows"),
    "another frame": (archive_of(*MEMBERS) * 2, "something follows"),
    "another empty frame": (archive_of(*MEMBERS) + compressed(b""), "something follows"),
    "garbage": (archive_of(*MEMBERS) + b"\0", "something follows"),
    "a wide window": (WIDE, "damaged: .*memory"),
    "a reserved block": (RESERVED, "damaged"),
    "a wrong checksum": (archive_of(*MEMBERS)[:-1] + b"\x99", "damaged: .*checksum"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_no_packed_index_is_refused_and_leaves_nothing(tmp_path: Path, attack: str) -> None:
    data, reason = ATTACKS[attack]
    place = tmp_path / "here"
    place.mkdir()
    (place / "x").write_bytes(data)
    with pytest.raises(IndexFormatError, match=reason) as refused:
        unpack(place / "x", place / "new" / "index")
    assert len(str(refused.value).splitlines()) == 1
    assert str(place / "x") in str(refused.value)
    assert list(content(tmp_path)) == ["here/x"]
    assert os.listdir(place) == ["x"]


@pytest.mark.parametrize(
    "names",
    [
        ("", "/", "/abs", "..", "../x", "a/../x", "a/..", "./a", "a//b", "a/"),
        ("a\\b", "..\\x", "C:x", "C:/x", "a\0b", "a\nb", "a b", "é", ".lock", "a" * 101),
    ],
)
def test_a_manifest_may_name_only_safe_paths(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / "x").write_bytes(with_files(entries({name: b"x"})))
        with pytest.raises(IndexFormatError, match=r"expected a path|names the file") as refused:
            unpack(tmp_path / "x", tmp_path / "new")
        assert len(str(refused.value).splitlines()) == 1
    assert os.listdir(tmp_path) == ["x"]


def test_a_manifest_may_not_name_files_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(archive_of(*MEMBERS))
    monkeypatch.setattr(shipping, "MAX_FILES", len(CONTENT) - 1)
    with pytest.raises(IndexFormatError, match="names 3 files; expected 2 at most"):
        unpack(tmp_path / "x", tmp_path / "new")
    assert os.listdir(tmp_path) == ["x"]


def test_a_bomb_is_stopped_before_it_unfolds(tmp_path: Path) -> None:
    zeros = zstandard.ZstdCompressor().compressobj()
    data = zeros.compress(b"".join(MEMBERS) + tar.END)
    data += b"".join(zeros.compress(bytes(1 << 22)) for _ in range(64)) + zeros.flush()
    assert len(data) < 1 << 16
    (tmp_path / "x").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(IndexFormatError, match="goes on"):
        unpack(tmp_path / "x", tmp_path / "new")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert os.listdir(tmp_path) == ["x"]


def test_the_files_may_not_take_more_than_allowed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(archive_of(*MEMBERS))
    total = sum(map(len, CONTENT.values()))
    with pytest.raises(IndexFormatError, match=r"needs 1,402 bytes, and 1,401 are left"):
        unpack(tmp_path / "x", tmp_path / "new", max_bytes=total - 1)
    assert os.listdir(tmp_path) == ["x"]
    unpack(tmp_path / "x", tmp_path / "new", max_bytes=total)


def test_an_archive_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    data = archive_of(*MEMBERS)
    cuts = {*range(0, len(data), 29), *range(len(data) - 6, len(data))}
    for size in cuts:
        (tmp_path / "x").write_bytes(data[:size])
        with pytest.raises(IndexFormatError, match=r"cut short|does not begin"):
            unpack(tmp_path / "x", tmp_path / "new")
    assert os.listdir(tmp_path) == ["x"]


def test_an_archive_with_a_damaged_byte_gives_the_same_index_or_none(tmp_path: Path) -> None:
    data, given = archive_of(*MEMBERS), 0
    for place, bits in itertools.product({*range(14), *range(14, len(data), 41)}, (0x01, 0xFF)):
        damaged = bytearray(data)
        damaged[place] ^= bits
        (tmp_path / "x").write_bytes(damaged)
        try:
            unpack(tmp_path / "x", tmp_path / "new")
        except IndexFormatError:
            continue
        assert content(tmp_path / "new") == CONTENT | {NAME: HONEST}
        shutil.rmtree(tmp_path / "new")
        given += 1
    # Hints of the frame's header that its reader may ignore; any other byte counts.
    assert given <= 2
    assert os.listdir(tmp_path) == ["x"]


def full_disk(patch: pytest.MonkeyPatch, moment: int) -> None:
    """A disk that is full from the `moment`-th time on that something is made durable."""
    calls = itertools.count()

    def fsync(handle: int) -> None:
        if next(calls) >= moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", fsync)


def test_a_full_disk_leaves_no_archive(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, 0)
    with pytest.raises(OSError, match=r"no space left for .*x; nothing was written"):
        pack(index, tmp_path / "x")
    assert os.listdir(tmp_path) == ["index"]


@pytest.mark.parametrize("moment", range(7))
def test_a_full_disk_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    (tmp_path / "x").write_bytes(archive_of(*MEMBERS))
    full_disk(monkeypatch, moment)
    with pytest.raises(OSError, match=r"no space left for .*new; nothing was written"):
        unpack(tmp_path / "x", tmp_path / "new")
    assert os.listdir(tmp_path) == ["x"]


def test_an_unpacked_index_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: durable.append(os.fstat(handle).st_ino))
    (tmp_path / "x").write_bytes(archive_of(*MEMBERS))
    unpack(tmp_path / "x", tmp_path / "new")
    made = {path.stat().st_ino for path in (tmp_path / "new", *(tmp_path / "new").rglob("*"))}
    assert made == set(durable[:-1])
    # The rename itself, after everything that it shows.
    assert durable[-1] == tmp_path.stat().st_ino


def test_what_a_killed_pack_left_is_removed_and_nothing_that_is_being_made(
    index: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from e2rank.index.shipping import beside\n"
        "with beside(Path(sys.argv[1])) as side:\n"
        "    side.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    archives = [tmp_path / f"{name}.tar.zst" for name in ("i", "other")]
    for archive in archives:
        subprocess.run([sys.executable, "-c", code, archive], check=False)
    (left,) = tmp_path.glob(".i.tar.zst.*.partial")
    assert (left / "i.tar.zst").read_bytes() == b"half"
    with shipping.beside(archives[0]) as side:
        assert caplog.messages == [f"{left} was left by a process that was killed, and is removed"]
        side.write_bytes(b"half")
        assert packed(index, archives[0])
        assert side.read_bytes() == b"half"
    (others,) = tmp_path.glob(".*.partial")
    assert others.name.startswith(".other")


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(archive_of(*MEMBERS))

    def stop(done: int) -> None:
        if done > len(HONEST):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "x", tmp_path / "new", progress=stop)
    assert os.listdir(tmp_path) == ["x"]


def test_the_commands_pack_and_unpack(index: Path, tmp_path: Path) -> None:
    archive, runner = tmp_path / "x", CliRunner()
    done = runner.invoke(app, ["pack", str(index), str(archive), "--json"])
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    size = archive.stat().st_size
    assert json.loads(done.stdout) == {"archive": str(archive), "bytes": size, "sha256": sha256}
    done = runner.invoke(app, ["unpack", str(archive), str(tmp_path / "new")])
    assert "40 documents by 'minilm', every file verified" in done.stdout
    assert content(tmp_path / "new") == content(SAMPLE)
