"""An index folder opened for reading: one snapshot of its segments, and the searches over it."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from e2rank.documents import Document, SparseVectors
from e2rank.errors import IndexFormatError
from e2rank.index.exact import Found, ordered
from e2rank.index.files import check_file
from e2rank.index.manifest import Manifest, SegmentInfo
from e2rank.index.rows import Rows
from e2rank.index.segment import Segment, stamps, warn_of_unknown
from e2rank.index.terms import fault
from e2rank.scores import unit
from e2rank.where import Condition, fields_of

_TRIES = 10
"""Times to open an index while commit after commit takes its files away."""


_WARNED = 10_000
"""Fields of filters that are remembered, by their hashes: a name may be of any length."""


class _Replaced(IndexFormatError):
    """Files that were opened are of two indexes."""


class Store(Rows):
    """One open index as of one commit; make it with `Store.open`."""

    def __init__(self, folder: Path, manifest: Manifest, segments: Sequence[Segment]) -> None:
        """Join opened segments, those of `manifest` in its order."""
        super().__init__(folder, manifest, segments)
        self._allowed, self._warned = self._live, set[int]()
        self._count = manifest.count

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Self:
        """Open an index folder: its manifest, sizes, headers, and what steers a search.

        The rows are mapped, not read. A FAISS index is read once, for its hash.

        Args:
            folder: the index.
            verify: whether to read every other byte too, and compare hashes.
        Raises:
            IndexFormatError: if it is no whole index of a known format.
        """
        # It stays this folder wherever the process goes.
        folder = folder.absolute()
        return cls._opened(folder, Manifest.load(folder), {}, verify=verify)

    def refreshed(self) -> Self:
        """The newest commit, opened, or this very store where there is no newer one.

        Segments that both have are shared. What is running on this store goes on undisturbed.

        Raises:
            IndexFormatError: if it is no whole index of a known format.
        """
        manifest = Manifest.load(self.folder)
        if manifest == self.manifest:
            return self
        return self._opened(self.folder, manifest, {each.name: each for each in self._segments})

    @classmethod
    def _opened(
        cls, folder: Path, manifest: Manifest, known: dict[str, Segment], *, verify: bool = False
    ) -> Self:
        """Open a commit, or what is there since, where its files were taken away or replaced."""
        for _ in range(_TRIES):
            opened: list[Segment] = []
            try:
                _check_files(folder, manifest, verify=verify)
                for info in manifest.segments:
                    old = known.get(info.name)
                    # A repaired file has the hash that it had, and is another file.
                    if old is None or not _same(old, folder, info, manifest):
                        opened.append(Segment(folder, info, manifest))
                        known = known | {info.name: opened[-1]}
                segments = [known[each.name] for each in manifest.segments]
                store = cls(folder, manifest, segments)
                _check_whole(folder, manifest, segments)
                return store
            except (IndexFormatError, OSError) as error:
                for each in opened:
                    each.close()
                known = {name: each for name, each in known.items() if each not in opened}
                newer = Manifest.load(folder)
                if newer == manifest and not isinstance(error, _Replaced):
                    raise
                manifest = newer
        raise IndexFormatError(f"{folder} is being changed all the time; try again later")

    def where(self, condition: Condition) -> Self:
        """This snapshot as if it held only the documents whose metadata meet a condition.

        Rows stay what they are. A field that has to hold some value and that no document has is
        warned of, once a snapshot: it may be misspelt.
        """
        new = {name for name in fields_of(condition) if hash(name) not in self._warned}
        if len(self._warned) > _WARNED:
            self._warned.clear()
        self._warned.update(map(hash, new))
        warn_of_unknown(self.folder, self._segments, new)
        view = copy.copy(self)
        found = [each.matching(condition) for each in self._segments]
        masks = [
            mask if alive is None else mask & alive
            for mask, alive in zip(found, self._live, strict=True)
        ]
        view._allowed, view._count = tuple(masks), sum(map(np.count_nonzero, masks))
        return view

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def filtered(self) -> bool:
        """Whether this is a view by `where`."""
        return self._allowed is not self._live

    @property
    def rows(self) -> np.ndarray:
        """The rows that hold a document, ascending int64."""
        parts = zip(self._starts.tolist(), self._segments, self._allowed, strict=False)
        return np.concatenate(
            [
                start + (np.arange(each.count) if mask is None else np.flatnonzero(mask))
                for start, each, mask in parts
            ]
        )

    def search(self, queries: np.ndarray, k: int) -> Found:
        """The best rows of each query by cosine; rows of equal cosine come in row order.

        An approximate factory decides which rows are found; their scores are exact cosines.

        Args:
            queries: (q, d) float32; normalised here.
            k: rows to find.
        Returns:
            Scores (q, m) float32, best first, and rows (q, m) int64; m is k, or the index's size
            if it holds fewer.
        Raises:
            ValueError: for the wrong shape, a NaN or an infinity, or k < 1.
        """
        queries = np.asarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"expected (q, {self.dim}) query vectors, got {queries.shape}")
        if not np.isfinite(queries).all():
            raise ValueError("a query vector holds a NaN or an infinity")
        _check_k(k)
        queries = unit(queries)
        found = [
            each.search(queries, k, allowed)
            for each, allowed in zip(self._segments, self._allowed, strict=True)
        ]
        return self._joined(found, k)

    def search_sparse(self, queries: SparseVectors, k: int) -> Found:
        """The best rows of each query by dot product of sparse vectors; equals in row order.

        A row that shares no term with a query is not found. The configuration's `sparse` decides
        which rows are; their scores are exact.

        Args:
            queries: q sparse vectors of the index's vocabulary.
            k: rows to find.
        Returns:
            Scores (q, m) float32, best first, and rows (q, m) int64; m is k, or the index's size
            if it holds fewer. Places that are left have row -1 and score -inf.
        Raises:
            ValueError: if the index holds no sparse vectors, a query's cannot be, or k < 1.
        """
        self._needs(self.sparse_dim, "sparse")
        _check_k(k)
        if found := fault(queries, self.sparse_dim):
            raise ValueError(f"query {found[0]} holds {found[1]}")
        weights = np.asarray(queries.weights, dtype=np.float32)
        queries = SparseVectors(np.asarray(queries.terms), weights, np.asarray(queries.ends))
        return self._joined(
            [
                each.sparse.search(queries, k, allowed)
                for each, allowed in zip(self._segments, self._allowed, strict=True)
                if each.sparse is not None
            ],
            k,
        )

    def search_tokens(self, queries: Sequence[np.ndarray], k: int) -> Found:
        """The best rows of each query by MaxSim of token vectors; equals in row order.

        Every document is scored, or with a `token_factory` those that own the tokens nearest to
        each of the query's; scores are exact.

        Args:
            queries: q (t, p) float32 arrays, t of its own and perhaps 0; of any length.
            k: rows to find.
        Returns:
            Scores (q, m) float32, best first, and rows (q, m) int64; m is k, or the index's size
            if it holds fewer. Documents without tokens come last.
        Raises:
            ValueError: if the index holds no token vectors, a query's are of the wrong shape, or
                hold a NaN or an infinity, or k < 1.
        """
        self._needs(self.token_dim, "token")
        _check_k(k)
        asked = [np.asarray(each, dtype=np.float32) for each in queries]
        for place, each in enumerate(asked):
            if each.ndim != 2 or each.shape[1] != self.token_dim:
                raise ValueError(
                    f"query {place} has token vectors of shape {each.shape}, expected "
                    f"(t, {self.token_dim})"
                )
            if not np.isfinite(each).all():
                raise ValueError(f"query {place} holds a NaN or an infinity")
        return self._joined(
            [
                each.search_tokens(asked, k, allowed)
                for each, allowed in zip(self._segments, self._allowed, strict=True)
            ],
            k,
        )

    def _joined(self, found: Sequence[Found], k: int) -> Found:
        """The best k of what was found in every segment, whose rows get their own numbers."""
        starts = self._starts.tolist()
        scores = np.concatenate([each[0] for each in found], axis=1)
        rows = [
            np.where(each[1] < 0, -1, each[1] + start)
            for start, each in zip(starts, found, strict=False)
        ]
        return ordered(scores, np.concatenate(rows, axis=1), k)

    def __iter__(self) -> Iterator[Document]:
        """Every document, in row order, streamed."""
        rows = self.rows
        for start in range(0, len(rows), 500):
            yield from self.documents(rows[start : start + 500])

    def verify(self) -> None:
        """Read every byte and compare it with the manifest.

        Raises:
            IndexFormatError: naming the first file that differs; or if a commit since this was
                opened has taken files away.
        """
        try:
            for name, entry in self.manifest.files.items():
                check_file(self.folder / name, entry)
        except (IndexFormatError, OSError) as error:
            newest = Manifest.load(self.folder)
            if newest == self.manifest:
                raise
            if _another(self.manifest, newest):
                raise IndexFormatError(
                    f"{self.folder} holds another index than the one that is open, put in its "
                    "place: open it anew"
                ) from error
            raise IndexFormatError(
                f"{self.folder} has a newer commit than the one that is open: refresh it first"
            ) from error


def _another(old: Manifest, new: Manifest) -> bool:
    """Whether a manifest is no later commit of an index: files never change, nor counts go back."""
    differ = any(old.files[name] != new.files[name] for name in old.files.keys() & new.files.keys())
    return differ or new.commit <= old.commit


def _same(old: Segment, folder: Path, info: SegmentInfo, manifest: Manifest) -> bool:
    files = manifest.inside(info.folder)
    known = old.made == manifest.config and old.files == files
    return known and old.stamps == stamps(folder, files)


def _check_whole(folder: Path, manifest: Manifest, segments: Sequence[Segment]) -> None:
    """Refuse what was opened while another index was put in the place of this.

    Sizes would not tell: two builds of the same documents have rows and texts of the same number.

    Raises:
        _Replaced: if the manifest, or a file, is another's by now.
    """
    newest = Manifest.load(folder)
    replaced = newest != manifest and _another(manifest, newest)
    for each in segments:
        # A later commit may have taken some away.
        names = each.files.keys() & newest.files.keys()
        replaced |= stamps(folder, names) != {name: each.stamps[name] for name in names}
    if replaced:
        raise _Replaced(f"{folder} was replaced while it was being opened")


def _check_files(folder: Path, manifest: Manifest, *, verify: bool) -> None:
    """Read what is to be read whole before anything is opened: all files, or the adapter's."""
    entries = manifest.files if verify else manifest.inside(manifest.adapter)
    for name, entry in entries.items():
        check_file(folder / name, entry)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
