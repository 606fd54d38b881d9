"""Arrays of an index that are mapped, not read: opened by type and dimensions."""

from pathlib import Path

import numpy as np

from e2rank.index.files import damaged


def mapped(path: Path, kind: type[np.generic], dimensions: int) -> np.ndarray:
    """The array of a .npy file, which stays on disk until it is looked at.

    Raises:
        IndexFormatError: if it is no such array.
    """
    try:
        # Not np.load, which opens archives of arrays too.
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises what it likes
        reason = [*str(error).splitlines(), type(error).__name__][0]
        raise damaged(path, f"it holds no array ({reason})") from error
    if array.dtype != kind or array.ndim != dimensions:
        raise damaged(
            path,
            f"it holds {array.shape} {array.dtype}, expected {dimensions} dimensions of "
            f"{kind.__name__}",
        )
    # A plain view of the map: slicing a memmap costs more.
    return np.asarray(array)
