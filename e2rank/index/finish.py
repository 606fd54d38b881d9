"""The last steps of every segment, first or merged: its files, durable, and their hashes."""

import json
from collections.abc import Mapping
from typing import Any

from e2rank.config import IndexConfig
from e2rank.durable import file_entry, sync, write_atomically
from e2rank.index import dense, postings, seismic
from e2rank.index.codec import Codebook
from e2rank.index.staging import Staging
from e2rank.index.table import write_table
from e2rank.index.token_files import finish_tokens

TABLE, DENSE, CONTRACT = "documents.sqlite", "dense.faiss", "contract.json"
SEISMIC = "sparse.seismic"


def finish(
    staging: Staging,
    contract: Mapping[str, Any],
    config: IndexConfig,
    book: Codebook | None = None,
) -> dict[str, dict[str, Any]]:
    """Make what was staged into a segment's files; each is made anew, so it can be repeated.

    `config.factory` "Flat" needs no FAISS index: the raw rows are searched themselves; and
    `config.sparse` "exact" nothing but the postings. `book` is the codebook that the index's
    token vectors have, if they have one.

    Returns:
        Each file's entry for the manifest, by name.
    Raises:
        ValueError: if there are too few rows to train the factory on.
        OSError: if the disk is full.
    """
    folder, sparse_dim = staging.folder, staging.encoder.sparse_dim
    vectors = staging.finish_arrays()
    for name in (TABLE, DENSE, SEISMIC):
        (folder / name).unlink(missing_ok=True)
    write_table(folder / TABLE, staging.read_spool())
    sync(folder / TABLE)
    others = staging.arrays.keys() - {"tokens", "token_ends"}
    names = [CONTRACT, TABLE, *(staging.arrays[each].path.name for each in others)]
    names += finish_tokens(staging, config, book)
    if config.factory != "Flat":
        dense.build(folder / DENSE, vectors, config)
        names.append(DENSE)
    if sparse_dim:
        postings.build(folder, folder, sparse_dim)
        names += [f"{name}.npy" for name in postings.POSTINGS]
    if sparse_dim and config.sparse == "seismic":
        seismic.build(folder / SEISMIC, postings.read(folder), sparse_dim)
        names.append(SEISMIC)
    text = json.dumps(contract, indent=2, sort_keys=True, ensure_ascii=False)
    # The last of them: it makes the folder's names durable too.
    write_atomically(folder / CONTRACT, text.encode())
    return {name: file_entry(folder / name) for name in sorted(names)}
