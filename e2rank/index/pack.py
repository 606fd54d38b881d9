"""An index as one file, index.tar.zst: packed to the same bytes everywhere, unpacked with care."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash
import zstandard

from e2rank.durable import sync
from e2rank.errors import IndexFormatError
from e2rank.index import tar
from e2rank.index.frame import OneFrame
from e2rank.index.manifest import NAME, Manifest
from e2rank.index.shipping import (
    CHUNK,
    MAX_MANIFEST,
    beside,
    check_free,
    load_from_elsewhere,
    put_in_place,
    read_checked,
    snapshot,
    unchanged,
)

LEVEL = 3
"""Of zstd. More hardly helps: nearly all of an index is vectors, which look like noise."""

Progress = Callable[[int], None]


def pack(folder: str | Path, archive: str | Path, *, progress: Progress | None = None) -> str:
    """Pack an index into one file, which any tar that knows zstd can read.

    The same index gives the same bytes, whatever the machine and whatever the dates, owners and
    permissions of its files, as long as the release of zstd is the same. Only files that the
    manifest names go in, each compared with its size and hash on the way.

    Args:
        folder: an index.
        archive: a file that is not there yet; it appears when it is whole.
        progress: called with the bytes of the index done, once a mebibyte.
    Returns:
        The sha256 of the archive, in hexadecimal: what `sha256sum` prints, to be published with it.
    Raises:
        IndexFormatError: if the index is damaged, naming the file.
        ValueError: if the archive is there already.
    """
    folder, archive = Path(folder), Path(archive).absolute()
    if os.path.lexists(archive):
        raise ValueError(f"{archive} is there already: remove it, or choose another name")
    if not archive.parent.is_dir():
        raise FileNotFoundError(f"{archive.parent} is no folder: {archive.name} has no place there")
    manifest, text = snapshot(folder)
    sizes = [len(text), *(entry["bytes"] for entry in manifest.files.values())]
    compressor = zstandard.ZstdCompressor(
        level=LEVEL, write_checksum=True, write_content_size=True, threads=0
    ).compressobj(size=tar.length(sizes))
    sha256 = hashlib.sha256()
    with unchanged(folder, manifest), beside(archive) as side, side.open("xb") as file:
        for piece in _pieces(folder, manifest, text, _counter(progress)):
            packed = compressor.compress(piece)
            sha256.update(packed)
            file.write(packed)
        packed = compressor.flush()
        sha256.update(packed)
        file.write(packed)
        file.flush()
        os.fsync(file.fileno())
        side.rename(archive)
    sync(archive.parent)
    return sha256.hexdigest()


def unpack(
    archive: str | Path,
    folder: str | Path,
    *,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Unpack what `pack` packed, and refuse everything else, whoever made it.

    The manifest comes first and decides what follows: the content has to be, byte for byte, the tar
    file that `pack` makes of that manifest and of files with those sizes and hashes. So no link, no
    device, no path out of the folder and no second copy can be in it. It may have been compressed
    again, at another level. The folder appears when it is whole, or not at all.

    Args:
        archive: the file.
        folder: a new or empty folder.
        max_bytes: what the files may take together; the free space of the disk if not given. The
            manifest may have 64 MiB and name 100,000 files.
        progress: called with the bytes of the index done, once a mebibyte or less.
    Returns:
        The manifest of the index.
    Raises:
        IndexFormatError: if the archive is damaged, or anything but a packed index.
        ValueError: if the folder is not free.
    """
    archive, folder = Path(archive), Path(folder)
    check_free(folder)
    with beside(folder) as side, archive.open("rb") as file:
        reader = _Reader(OneFrame(file, str(archive)), str(archive), _counter(progress))
        room = shutil.disk_usage(side.parent).free if max_bytes is None else max_bytes
        side.mkdir()
        reader.manifest(side / NAME)
        manifest = load_from_elsewhere(side, str(archive), room)
        for name, entry in sorted(manifest.files.items()):
            reader.expect(tar.header(name, entry["bytes"]), f"{name} ({entry['bytes']:,} bytes)")
            (side / name).parent.mkdir(parents=True, exist_ok=True)
            if reader.write(side / name, entry["bytes"]) != entry["xxh3"]:
                raise IndexFormatError(f"{archive} is damaged: {name} differs from its hash")
        reader.end()
        put_in_place(side, folder, manifest)
    return manifest


def _pieces(folder: Path, manifest: Manifest, text: bytes, tell: Progress) -> Iterator[bytes]:
    """The tar file: the manifest, then the files it names, sorted."""
    yield tar.header(NAME, len(text)) + text + tar.padding(len(text))
    for name, entry in sorted(manifest.files.items()):
        yield tar.header(name, entry["bytes"])
        for chunk in read_checked(folder / name, entry):
            yield chunk
            tell(len(chunk))
        yield tar.padding(entry["bytes"])
    yield tar.END


class _Reader:
    """A tar file that is read with an exact idea of what has to come next."""

    def __init__(self, frame: OneFrame, name: str, tell: Progress) -> None:
        self._frame, self._name, self._tell = frame, name, tell

    def manifest(self, path: Path) -> None:
        """Write the first file, which is the only one whose size is not known."""
        block = self._take(tar.BLOCK)
        size = tar.size_of(block)
        if block != tar.header(NAME, size):
            raise self._unexpected(NAME, block)
        if size > MAX_MANIFEST:
            raise IndexFormatError(
                f"{self._name} has a manifest of {size:,} bytes; expected {MAX_MANIFEST:,} at most"
            )
        self.write(path, size)

    def expect(self, wanted: bytes, what: str) -> None:
        """Read as many bytes, and refuse any other."""
        if (block := self._take(len(wanted))) != wanted:
            raise self._unexpected(what, block)

    def write(self, path: Path, size: int) -> str:
        """Write the next `size` bytes into a new file; gives their xxh3."""
        state, left = xxhash.xxh3_64(), size
        with path.open("xb") as file:
            while left:
                chunk = self._take(min(left, CHUNK))
                state.update(chunk)
                file.write(chunk)
                left -= len(chunk)
                self._tell(len(chunk))
        self.expect(tar.padding(size), "zeros after a file")
        return state.hexdigest()

    def end(self) -> None:
        """Read the end, and refuse anything that follows."""
        self.expect(tar.END, "the end")
        if self._frame.read(1):
            raise IndexFormatError(f"{self._name} is no packed index: its content goes on")

    def _take(self, size: int) -> bytes:
        parts = []
        while size and (part := self._frame.read(size)):
            parts.append(part)
            size -= len(part)
        if size:
            raise IndexFormatError(f"{self._name} is no packed index: its content is cut short")
        return b"".join(parts)

    def _unexpected(self, what: str, block: bytes) -> IndexFormatError:
        return IndexFormatError(
            f"{self._name} is no packed index: expected {what}, found {tar.described(block)}"
        )


def _counter(progress: Progress | None) -> Progress:
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done)

    return tell
