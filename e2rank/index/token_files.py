"""The last steps of a segment's token vectors: codes where those are asked for, and their index."""

import logging
from pathlib import Path

import numpy as np

from e2rank.config import IndexConfig
from e2rank.durable import sync
from e2rank.index import codec, token_search
from e2rank.index.codec import Codebook
from e2rank.index.mapped import mapped
from e2rank.index.staging import Staging
from e2rank.index.tokens import CODEBOOK, CODES, ROWS, Tokens, floats_of, kind_of, names_of

_log = logging.getLogger("e2rank")


def finish_tokens(staging: Staging, config: IndexConfig, book: Codebook | None) -> list[str]:
    """Make the files of staged token vectors, whose arrays have their headers.

    Args:
        staging: what was staged: rows, or codes of its own codebook.
        config: `tokens` "pq" makes codes of rows, if there are enough to learn them from.
        book: what those are to be codes of; None learns it.
    Returns:
        The names of the files, none where there are no token vectors.
    Raises:
        ValueError: if there are too few to train `config.token_factory` on.
        OSError: if the disk is full.
    """
    if "tokens" not in staging.arrays:
        return []
    folder, shape = staging.folder, (staging.progress.done, staging.encoder.token_dim)
    kind = kind_of([staging.arrays["tokens"].path.name], config)
    if staging.book is not None:
        kind = "pq"
        write_codebook(folder, staging.book)
    elif config.tokens == "pq" and (book := book or learned(folder)) is not None:
        kind = "pq"
        write_codes(folder, book)
        write_codebook(folder, book)
    names = names_of(kind)
    if config.token_factory:
        tokens = Tokens(folder, *shape, kind)
        token_search.build(folder / token_search.NAME, tokens, config.of_tokens)
        names.append(token_search.NAME)
    return names


def learned(segment: Path) -> Codebook | None:
    """A codebook of the int8 rows of a staged segment, or None where they are too few.

    At most `codec.SAMPLE` of them are read, taken evenly.
    """
    rows = mapped(segment / ROWS, np.int8, 2)
    if len(rows) < codec.LEAST:
        _log.warning(
            "%d token vectors are too few to learn 'pq' from, which needs %d: they are kept in "
            "eight bits until they are merged with others",
            len(rows),
            codec.LEAST,
        )
        return None
    taken = np.linspace(0, len(rows) - 1, min(len(rows), codec.SAMPLE)).astype(np.int64)
    return codec.train(floats_of(rows[taken]))


def write_codes(segment: Path, book: Codebook) -> None:
    """Write the int8 rows of a staged segment as codes, beside them.

    Raises:
        OSError: if the disk is full.
    """
    rows, step = mapped(segment / ROWS, np.int8, 2), codec.SAMPLE
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), book.width)}
    with (segment / CODES).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), step):
            file.write(codec.encode(floats_of(rows[start : start + step]), book).tobytes())
    sync(segment / CODES)


def write_codebook(segment: Path, book: Codebook) -> None:
    """Write what the codes of a segment stand for.

    Raises:
        OSError: if the disk is full.
    """
    np.save(segment / CODEBOOK, book.to_array())
    sync(segment / CODEBOOK)
