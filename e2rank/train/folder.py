"""The folder of a run: claimed when it begins or goes on, tidied when it ends."""

import logging
from pathlib import Path

from e2rank.train import checkpoint
from e2rank.train.checkpoint import Checkpoint
from e2rank.train.distributed import World
from e2rank.train.log import NAME as LOG

FROZEN = "documents-*"
"""Vectors of documents that stay as they are."""

_log = logging.getLogger("e2rank")


def claim(out: Path, resume: bool, world: World) -> Checkpoint | None:
    """Make the folder, or find where the run in it stands.

    Args:
        out: the folder.
        resume: whether the run in it is to go on.
        world: of its processes the main one alone makes the folder.
    Returns:
        The last checkpoint of the run that goes on; None for one that begins, or begins anew,
        which is logged, as it was ended before its first checkpoint.
    Raises:
        ValueError: if the folder is taken, or holds no run to resume.
    """
    # Vectors of documents that stay as they are come before the log.
    begun = (out / LOG).is_file() or any(out.glob(FROZEN))
    finished = any((out / name).is_file() for name in ("adapter.json", "contract.json"))
    if resume:
        if finished:
            raise ValueError(f"{out} holds a finished run; there is nothing to resume")
        if (out / checkpoint.NAME).is_file():
            return Checkpoint.load(out)
        if not begun:
            raise ValueError(f"{out} holds no run to resume; leave out resume=True")
        if world.main:
            _log.warning(
                "%s has no checkpoint yet: there is nothing to resume, it starts anew", out
            )
        return None
    if not world.main:
        return None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = "" if finished or not begun else ", or resume=True to go on with it"
        raise ValueError(f"{out} is not empty; name a new folder{hint}")
    out.mkdir(parents=True, exist_ok=True)
    return None


def tidy(out: Path) -> None:
    """Remove what only a resumed run would need."""
    for file in (out / checkpoint.NAME, *out.glob(FROZEN)):
        file.unlink(missing_ok=True)
