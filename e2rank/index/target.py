"""The folder a build writes into: what may be there before, and what is removed after."""

import re
import shutil
from pathlib import Path

from e2rank.errors import IndexFormatError
from e2rank.index.files import LOCK
from e2rank.index.manifest import NAME, Manifest

PARTIAL = ".partial"
_SEGMENT = re.compile(rf"\d{{6}}({re.escape(PARTIAL)})?")


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


def clean(segments: Path, keep: set[str]) -> None:
    """Remove segments that no manifest names: left by a build killed at its very end."""
    for path in segments.iterdir() if segments.is_dir() else ():
        if path.name not in keep and _is_segment(path):
            shutil.rmtree(path)


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
