"""The folder a build writes into: what may be there before, and what is removed after."""

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from e2rank.errors import IndexFormatError
from e2rank.index.files import LOCK
from e2rank.index.manifest import NAME, Manifest

PARTIAL = ".partial"
"""Ends the folder of a segment that a build has begun, and may resume."""

ADDING = ".adding"
"""Ends the folder of a segment that a writer has begun, and nobody resumes."""

DELETED = "deleted"
_SEGMENT = re.compile(rf"\d{{6,}}({re.escape(PARTIAL)}|{re.escape(ADDING)})?")
_DELETIONS = re.compile(r"\d{6,}-\d+\.npy(\.part)?")
_MAKING = re.compile(
    r"progress\.json|documents\.jsonl|dense\.faiss|sparse\.seismic|tokens\.(npy|faiss)|.*\.part"
)
_ADAPTER = re.compile(rf"adapter-\d{{6,}}({re.escape(PARTIAL)})?")


def check_folder(folder: Path, *, replace: bool) -> None:
    """Refuse a folder that a build may not write into.

    Raises:
        ValueError: if it holds an index that is not to be replaced.
        IndexFormatError: if it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise IndexFormatError(f"{folder} is a file; an index is a folder")
    if (folder / NAME).exists():
        manifest = Manifest.load(folder)
        if not replace:
            raise taken(folder, manifest)
    elif folder.is_dir() and (strange := _strange(folder)):
        raise IndexFormatError(
            f"{folder} is not empty and no index: it holds {strange[0]!r}; choose a new folder"
        )


def taken(folder: Path, manifest: Manifest) -> ValueError:
    """The error for an index that is not to be replaced."""
    return ValueError(
        f"{folder} already holds an index of {manifest.count} documents: pass overwrite=True to "
        "replace it, or choose another folder"
    )


def clean(folder: Path, manifest: Manifest | None, keep: Collection[str] = ()) -> None:
    """Remove what builds and commits leave when they are killed, or when others replace it.

    Args:
        folder: of the index, whose lock is held.
        manifest: what the index is made of now, if there is one.
        keep: further paths inside the folder.
    """
    named = set(keep)
    for file in manifest.files if manifest else ():
        parts = file.split("/")
        named |= {"/".join(parts[:length]) for length in range(1, len(parts) + 1)}
    places = [(folder / "segments", _SEGMENT), (folder / DELETED, _DELETIONS), (folder, _ADAPTER)]
    places += [(folder / each.folder, _MAKING) for each in (manifest.segments if manifest else ())]
    for parent, ours in places:
        for path in parent.iterdir() if parent.is_dir() else ():
            name = path.relative_to(folder).as_posix()
            if name not in named and ours.fullmatch(path.name):
                remove(path)


def unfinished(folder: Path, manifest: Manifest) -> list[Path]:
    """The segments of builds that were killed, even after the last rename, and can be resumed."""
    named = {segment.name for segment in manifest.segments}
    return [
        path
        for path in (folder / "segments").iterdir()
        if path.name not in named
        and not path.name.endswith(ADDING)
        and (path / "progress.json").exists()
    ]


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_empty(folder: Path) -> None:
    """Remove a folder that a build made and put nothing into."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _strange(folder: Path) -> list[str]:
    """What is there that no build of ours has left."""
    segments = folder / "segments"
    names = {path.name for path in folder.iterdir()} - {LOCK, NAME + ".part"}
    if "segments" in names and segments.is_dir():
        names.remove("segments")
        names |= {f"segments/{path.name}" for path in segments.iterdir() if not _is_segment(path)}
    return sorted(names)


def _is_segment(path: Path) -> bool:
    return path.is_dir() and _SEGMENT.fullmatch(path.name) is not None
