"""Files of a segment that are made from others of it, and so can be made again."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from e2rank.config import IndexConfig
from e2rank.index import dense, postings, seismic, token_search
from e2rank.index.files import damaged
from e2rank.index.finish import DENSE, SEISMIC
from e2rank.index.manifest import Manifest, SegmentInfo
from e2rank.index.mapped import mapped
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
        read: reads them in the segment's folder. It raises an IndexFormatError if they cannot be
            what their sources give.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]
    make: Make | None
    read: Callable[[Path], None]


def derived(manifest: Manifest, info: SegmentInfo) -> Iterator[Derived]:
    """What can be made again of a segment."""
    config = dataclasses.replace(manifest.index_config, factory=info.factory)
    encoder = manifest.encoder
    if info.factory == "Flat":
        # Formats 1 and 2 have a FAISS index for it too, which nothing reads.
        yield Derived((DENSE,), ("vectors.npy",), None, lambda _: None)
    else:
        shape = (info.count, encoder.dim)
        make, read = partial(_dense, config), partial(_read_dense, config, shape)
        yield Derived((DENSE,), ("vectors.npy",), make, read)
    if encoder.token_dim:
        kind = kind_of([Path(name).name for name in manifest.inside(info.folder)], config)
        given = (config, (info.count, encoder.token_dim), kind)
        make, read = partial(_tokens, *given), partial(_read_tokens, *given)
        yield Derived((token_search.NAME,), tuple(names_of(kind)), make, read)
    if dim := encoder.sparse_dim:
        sources = tuple(f"{name}.npy" for name in postings.FORWARD)
        names = tuple(f"{name}.npy" for name in postings.POSTINGS)
        make, read = partial(postings.build, dim=dim), partial(_read_postings, dim)
        yield Derived(names, sources, make, read)
        read = partial(_read_seismic, config, (info.count, dim))
        yield Derived((SEISMIC,), sources, partial(_seismic, dim), read)


def _dense(config: IndexConfig, source: Path, folder: Path) -> None:
    vectors = np.load(source / "vectors.npy", mmap_mode="r", allow_pickle=False)
    dense.build(folder / DENSE, vectors, config)


def _read_dense(config: IndexConfig, shape: tuple[int, int], folder: Path) -> None:
    index = dense.opened(folder / DENSE, config, shape)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
    dense.check_rows(folder / DENSE, index, vectors)


def _tokens(
    config: IndexConfig, shape: tuple[int, int], kind: Kind, source: Path, folder: Path
) -> None:
    tokens = Tokens(source, *shape, kind)
    token_search.build(folder / token_search.NAME, tokens, config.of_tokens)


def _read_tokens(config: IndexConfig, shape: tuple[int, int], kind: Kind, folder: Path) -> None:
    tokens, path = Tokens(folder, *shape, kind), folder / token_search.NAME
    dense.check_rows(path, dense.opened(path, config.of_tokens, tokens.shape), tokens)


def _read_postings(dim: int, folder: Path) -> None:
    rows, weights, ends = (
        mapped(folder / f"{name}.npy", np.dtype(kind).type, 1)
        for name, kind in postings.POSTINGS.items()
    )
    held = rows, weights, ends
    if name := postings.differs(postings.read(folder), held, dim):
        raise damaged(folder / f"{name}.npy", "it is not what the sparse vectors give")


def _seismic(dim: int, source: Path, folder: Path) -> None:
    seismic.build(folder / SEISMIC, postings.read(source), dim)


def _read_seismic(config: IndexConfig, shape: tuple[int, int], folder: Path) -> None:
    seismic.Seismic(folder / SEISMIC, shape, config)
