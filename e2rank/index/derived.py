"""Files of a segment that are made from others of it, and so can be made again."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from e2rank.config import IndexConfig
from e2rank.index import dense, postings, seismic, token_search
from e2rank.index.finish import DENSE, SEISMIC
from e2rank.index.manifest import Manifest, SegmentInfo
from e2rank.index.tokens import Kind, Tokens, kind_of, names_of


class Make(Protocol):
    """Makes files in a folder from those in another."""

    def __call__(self, source: Path, folder: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Derived:
    """Files that are made together.

    Args:
        names: theirs.
        sources: the names of those they are made from.
        make: makes them; None for files that are not needed.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]
    make: Make | None


def derived(manifest: Manifest, info: SegmentInfo) -> Iterator[Derived]:
    """What can be made again of a segment."""
    config = dataclasses.replace(manifest.index_config, factory=info.factory)
    # Formats 1 and 2 have a FAISS index for "Flat" too, which nothing reads.
    make = None if info.factory == "Flat" else partial(_dense, config)
    yield Derived((DENSE,), ("vectors.npy",), make)
    if manifest.encoder.token_dim:
        kind = kind_of([Path(name).name for name in manifest.inside(info.folder)], config)
        shape = (info.count, manifest.encoder.token_dim)
        make = partial(_tokens, config, shape, kind)
        yield Derived((token_search.NAME,), tuple(names_of(kind)), make)
    if dim := manifest.encoder.sparse_dim:
        sources = tuple(f"{name}.npy" for name in postings.FORWARD)
        names = tuple(f"{name}.npy" for name in postings.POSTINGS)
        yield Derived(names, sources, partial(postings.build, dim=dim))
        yield Derived((SEISMIC,), sources, partial(_seismic, dim))


def _dense(config: IndexConfig, source: Path, folder: Path) -> None:
    vectors = np.load(source / "vectors.npy", mmap_mode="r", allow_pickle=False)
    dense.build(folder / DENSE, vectors, config)


def _tokens(
    config: IndexConfig, shape: tuple[int, int], kind: Kind, source: Path, folder: Path
) -> None:
    tokens = Tokens(source, *shape, kind)
    token_search.build(folder / token_search.NAME, tokens, config.of_tokens)


def _seismic(dim: int, source: Path, folder: Path) -> None:
    seismic.build(folder / SEISMIC, postings.read(source), dim)
