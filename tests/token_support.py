"""Indexes whose token vectors are random rows, known by their document's text."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.config import IndexConfig
from e2rank.documents import Document
from e2rank.encoders.hashing import HashingEncoder
from e2rank.index import BatchEncoder, EncoderInfo, Store, build_index
from e2rank.index.writer import Writer
from e2rank.scores import unit

P = 6
INFO = EncoderInfo(name="head-6", fingerprint="made", dim=16, token_dim=P, tokens="head")


def rows_of(text: str) -> np.ndarray:
    """The token vectors of a document: of any number, of some none at all."""
    number = int(re.sub(r"\D", "", text))
    rng = np.random.default_rng(number)
    return unit(rng.normal(size=(0 if number % 7 == 3 else 1 + number % 5, P)))


def documents(numbers: Iterable[int]) -> list[Document]:
    """Documents of these numbers."""
    return [Document(str(n), f"text {n}", metadata={"n": n, "odd": n % 2}) for n in numbers]


def encoder(texts: list[str]) -> tuple[Callable[[Sequence[str]], Any], Callable[[], Any]]:
    """What gives vectors, and token vectors of the texts that it was given last."""

    def encode(given: Sequence[str]) -> np.ndarray:
        texts[:] = given
        return HashingEncoder(16).encode_documents(given).vectors

    return encode, lambda: [rows_of(text) for text in texts]


def build(folder: Path, numbers: Iterable[int], config: IndexConfig, **changes: Any) -> Path:
    """An index of documents of these numbers."""
    encode, tokens = encoder([])
    options: dict[str, Any] = {
        "encode": encode,
        "tokens": tokens,
        "encoder": INFO,
        "contract": {},
        "config": config,
    }
    build_index(documents(numbers), folder, **(options | changes))
    return folder


def changed(
    folder: Path,
    *,
    add: Sequence[Iterable[int]] = (),
    delete: Iterable[int] = (),
    compact: bool = False,
) -> None:
    """Add documents, each group a segment, delete some, merge all, and commit."""
    encode, tokens = encoder([])
    with Writer(Store.open(folder)) as writer:
        for numbers in add:
            writer.add(documents(numbers), BatchEncoder(INFO, encode, lambda: 0, tokens))
        writer.delete(map(str, delete))
        if compact:
            writer.compact()
        writer.commit()
