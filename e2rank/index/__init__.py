"""Where documents and vectors live on disk: immutable files, and a manifest that is written last.

An index knows rows (0, 1, 2, ... in the order given) and documents; it never sees a model.
"""

from e2rank.index.batches import BatchEncoder
from e2rank.index.build import build_index
from e2rank.index.manifest import EncoderInfo, Manifest
from e2rank.index.store import Store
from e2rank.index.writer import Writer

__all__ = ["BatchEncoder", "EncoderInfo", "Manifest", "Store", "Writer", "build_index"]
