"""How an export comes into place: whole and at once, or not at all."""

import contextlib
import glob
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from e2rank.durable import sync

_log = logging.getLogger("e2rank.onnx")


@contextlib.contextmanager
def in_place_when_whole(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, renamed to it at the end; an error leaves nothing behind.

    A link is followed: what it leads to comes into place. What killed exports left is named.

    Raises:
        FileExistsError: if `folder` is there and not empty.
        ValueError: if it is there and cannot be replaced: what is mounted, or where one works; or
            if nothing can be written beside it.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; export into a new folder")
    if folder == Path.cwd() or folder.is_mount():
        what = "is mounted" if folder.is_mount() else "is the working directory"
        raise ValueError(f"{folder} {what} and cannot be replaced; export into a new folder in it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        left = _left_by_others(folder)
        side = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise ValueError(
            f"no folder can be made in {folder.parent} ({error.strerror}: {error.filename}); "
            "export to where folders may be written"
        ) from error
    for each in left:
        _log.warning("%s was left by an export that was killed, unless one runs: remove it", each)
    try:
        yield side
        for each in side.iterdir():
            sync(each)
        side.chmod(0o755)
        side.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(side, ignore_errors=True)


def _left_by_others(folder: Path) -> list[Path]:
    """Folders beside `folder` that are named as those of its exports under way."""
    # As many characters as tempfile adds.
    pattern = f".{glob.escape(folder.name)}.????????"
    return sorted(each for each in folder.parent.glob(pattern) if each.is_dir())
