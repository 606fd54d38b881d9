"""The last steps of every segment, first or merged: its files, durable, and their hashes."""

import json
from collections.abc import Mapping
from typing import Any

from e2rank.config import IndexConfig
from e2rank.index import dense
from e2rank.index.files import file_entry, sync_file, write_atomically
from e2rank.index.staging import Staging
from e2rank.index.table import write_table

TABLE, DENSE, CONTRACT = "documents.sqlite", "dense.faiss", "contract.json"


def finish(
    staging: Staging, contract: Mapping[str, Any], config: IndexConfig
) -> dict[str, dict[str, Any]]:
    """Make what was staged into a segment's files; each is made anew, so it can be repeated.

    `config.factory` "Flat" needs no FAISS index: the raw rows are searched themselves.

    Returns:
        Each file's entry for the manifest, by name.
    Raises:
        ValueError: if there are too few rows to train the factory on.
        OSError: if the disk is full.
    """
    folder = staging.folder
    vectors = staging.finish_arrays()
    for name in (TABLE, DENSE):
        (folder / name).unlink(missing_ok=True)
    write_table(folder / TABLE, staging.read_spool())
    sync_file(folder / TABLE)
    names = [CONTRACT, TABLE, *(array.path.name for array in staging.arrays.values())]
    if config.factory != "Flat":
        dense.build(folder / DENSE, vectors, config)
        names.append(DENSE)
    text = json.dumps(contract, indent=2, sort_keys=True, ensure_ascii=False)
    # The last of them: it makes the folder's names durable too.
    write_atomically(folder / CONTRACT, text.encode())
    return {name: file_entry(folder / name) for name in sorted(names)}
