"""An index's own adapter: committed with the index, or taken away."""

import dataclasses
from pathlib import Path

from e2rank.encoders.adapter import Adapter
from e2rank.index import Writer
from e2rank.index.files import one_writer
from e2rank.index.manifest import Manifest
from e2rank.index.target import clean, unfinished


def put_adapter(writer: Writer, adapter: Adapter) -> Path:
    """Commit an adapter to the index that is being written, in the place of any before.

    Returns:
        The adapter's folder.
    """
    writer.put_adapter(adapter.save)
    return writer.folder / writer.commit().manifest.adapter


def remove_adapter(folder: str | Path) -> bool:
    """Take an index's own adapter away, damaged or not; gives whether there was one.

    Raises:
        IndexFormatError: if the folder is no index, or is being written.
    """
    where = Path(folder)
    Manifest.load(where)
    # Not through a writer, which opens the index: one whose adapter is damaged does not open.
    with one_writer(where):
        manifest = Manifest.load(where)
        if not manifest.adapter:
            return False
        own = manifest.inside(manifest.adapter)
        files = {name: entry for name, entry in manifest.files.items() if name not in own}
        without = dataclasses.replace(manifest, files=files, adapter="", commit=manifest.commit + 1)
        without.save(where)
        clean(where, without, [str(path.relative_to(where)) for path in unfinished(where, without)])
    return True
