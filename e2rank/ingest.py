"""An encoder as an index asks it for documents."""

import logging
from collections.abc import Sequence
from typing import get_args

import numpy as np

from e2rank.documents import SparseVectors
from e2rank.encoders import (
    CutTexts,
    Encoder,
    Encoding,
    Want,
    difference,
    encode_documents,
    sparse_fingerprint,
    token_fingerprint,
)
from e2rank.errors import EncoderMismatch
from e2rank.index import BatchEncoder, EncoderInfo

_log = logging.getLogger("e2rank")


def info_of(encoder: Encoder) -> EncoderInfo:
    """What an index keeps of its encoder."""
    return EncoderInfo(
        name=encoder.name,
        fingerprint=encoder.fingerprint,
        dim=encoder.contract.dim,
        token_dim=encoder.contract.token_dim,
        tokens=token_fingerprint(encoder),
        sparse_dim=encoder.contract.sparse_dim,
        sparse=sparse_fingerprint(encoder),
    )


def check_same(encoder: Encoder, made: EncoderInfo, what: str) -> None:
    """Refuse an encoder whose vectors do not belong in an index.

    Args:
        encoder: to be used on it.
        made: what made it.
        what: the index, for the message.
    Raises:
        EncoderMismatch: naming both, and where they differ.
    """
    if encoder.fingerprint != made.fingerprint:
        differs = difference(made.fingerprint, encoder.fingerprint)
        raise EncoderMismatch(
            f"{what} was built by {made.name!r}, and {encoder.name!r} is another model "
            f"(different {differs}): open it with {made.name!r}, or build it again"
        )
    # One of one's own may say what it likes.
    if (given := encoder.contract.dim) != made.dim:
        raise EncoderMismatch(
            f"{what} holds vectors of dimension {made.dim}, and {encoder.name!r} makes such of "
            f"{given}: open it with {made.name!r}, or build it again"
        )


def _other(kind: str, stored: str, makes: str) -> str:
    """What vectors are that an encoder of the same name makes otherwise."""
    if kind == "sparse" and difference(stored, makes) == "contract":
        return "made by another contract, such as another number of terms kept of a document"
    return "of another version of its head"


class Ingest:
    """Counts documents that are cut or blank while an encoder fills an index."""

    def __init__(self, encoder: Encoder, made: EncoderInfo | None = None, what: str = "") -> None:
        """Ask `encoder` for what an index holds: one that is there, or a new one.

        Args:
            encoder: reads documents.
            made: what made the index; None for a new one.
            what: the index, for messages.
        Raises:
            EncoderMismatch: if the index is another encoder's, or holds token or sparse vectors
                that this one cannot add to.
        """
        self._encoder = encoder
        self._cut = CutTexts(encoder)
        self._blank = 0
        self._last: Encoding | None = None
        if made is not None:
            check_same(encoder, made, what)
            for kind, holds, stored, makes in (
                ("token", made.token_dim, made.tokens, token_fingerprint(encoder)),
                ("sparse", made.sparse_dim, made.sparse, sparse_fingerprint(encoder)),
            ):
                if holds and stored != makes:
                    how = f"open it with {made.name!r} to add to it"
                    if encoder.name == made.name:
                        how = f"they are {_other(kind, stored, makes)}: migrate the index, or build"
                        how += " it again"
                    raise EncoderMismatch(
                        f"{what} holds {kind} vectors that {encoder.name!r} does not make: {how}"
                    )
        info = made or info_of(encoder)
        given = {"dense": 1, "tokens": info.token_dim, "sparse": info.sparse_dim}
        self._want: list[Want] = [kind for kind in get_args(Want) if given[kind]]
        self.batches = BatchEncoder(
            info,
            self._vectors,
            lambda: self._cut.cut,
            self._tokens if info.token_dim else None,
            self._sparse if info.sparse_dim else None,
        )

    def report(self, told: set[str]) -> None:
        """Log how many documents were longer than a model of the encoder reads, and how many blank.

        What is in `told` is not said again, and what is said is put there.
        """
        if self._cut.cut and "cut" not in told:
            told.add("cut")
            self._cut.report()
        if self._blank and "blank" not in told:
            told.add("blank")
            _log.warning(
                "%d of the documents read have neither title nor text: they are in the index, and "
                "searches may find them, as the encoder gives a vector for no words too",
                self._blank,
            )

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        self._blank += sum(not text or text.isspace() for text in texts)
        self._last = self._cut.counted(encode_documents(self._encoder, texts, self._want))
        return self._last.vectors

    def _tokens(self) -> Sequence[np.ndarray]:
        return self._last.token_vectors if self._last else ()

    def _sparse(self) -> SparseVectors | None:
        return self._last.sparse if self._last else None
