"""An exported encoder on onnxruntime: numpy, tokenizers and no torch."""

import logging
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from e2rank.contract import Contract
from e2rank.documents import SparseVectors
from e2rank.encoders import Encoding, Want, check_wanted
from e2rank.encoders.batching import with_progress
from e2rank.encoders.directions import Directions
from e2rank.encoders.judged import Judged
from e2rank.encoders.onnx.bundle import (
    DIRECTIONS,
    PARITY,
    SPARSE_QUERIES,
    TOKENIZER,
    Bundle,
    BundleError,
    kept_in_words,
    load_contract,
    load_report,
    reading,
)
from e2rank.encoders.onnx.cores import checked_threads
from e2rank.encoders.onnx.sessions import CPU, Sessions
from e2rank.encoders.onnx.sparse import Row, SparseGraph
from e2rank.encoders.onnx.transformer import Graph, Soft
from e2rank.encoders.terms import sparse_queries
from e2rank.encoders.tokens import Tokens, Wording
from e2rank.errors import EncodingError

_log = logging.getLogger("e2rank.onnx")


class OnnxEncoder:
    """A bundle behind the methods of `TorchEncoder`, with the fingerprint of what was exported.

    On a CPU a batch holds texts of one length and so no padding, and batches run beside each
    other, a thread each: a text's vectors are the same alone and in any company.
    """

    compared = True
    """Whether only a bundle that was compared with its model is opened."""

    def __init__(
        self, folder: str | Path, *, provider: str = CPU, threads: int | None = None
    ) -> None:
        """Open a bundle.

        Args:
            folder: what `export_onnx` wrote; every file is compared with its hash.
            provider: onnxruntime's name of what runs the graphs; never another in its stead.
            threads: threads of a CPU; None takes one for each core this process may use: the
                least of its affinity, a container's quota and OMP_NUM_THREADS. Several answer a
                query sooner, and spin for a while after it: a service that saves time of its cores
                rather than a millisecond takes 1.
        Raises:
            BundleError: if the bundle is damaged or was never compared with its model, or gives
                other vectors on this machine than those it was exported with.
            ValueError: if onnxruntime here does not have the provider, or threads is out of range.
            MissingExtra: if onnxruntime is not installed.
        """
        if not isinstance(provider, str):
            raise ValueError(f"provider is {provider!r}; expected one name, such as {CPU!r}")
        threads = None if threads is None else checked_threads(threads)
        # As it is now: a link may lead elsewhere when a graph is first needed, or the process.
        self._folder = Path(folder).resolve()
        self.bundle = Bundle.load(self._folder)
        if self.compared and PARITY not in self.bundle.files:
            raise BundleError(
                f"{folder} was left by an export that was cut short and never compared with its "
                "model: remove it and export again"
            )
        self.contract: Contract = load_contract(self._folder)
        # The whole path, so that an index made here opens elsewhere on this machine.
        self.name = str(self._folder)
        self.precision = self.bundle.precision
        self.fingerprint = self.bundle.fingerprint
        self.token_fingerprint = self.bundle.token_fingerprint
        self.sparse_fingerprint = self.bundle.sparse_fingerprint
        self.adapter_fingerprint = self.bundle.adapter_fingerprint
        self.adapted = DIRECTIONS in self.bundle.files
        with reading(self._folder / TOKENIZER):
            tokenizer = Tokenizer.from_file(str(self._folder / TOKENIZER))
        self.words = Wording(tokenizer, self.contract)
        padding = self.bundle.padding
        self._start = partial(Sessions, provider=provider, threads=threads)
        graphs = {
            name: Graph(self._started(name), padding)
            for name in {self.bundle.documents, self.bundle.queries}
        }
        self._documents, self._queries = graphs[self.bundle.documents], graphs[self.bundle.queries]
        self._query_weights = _query_weights(self._folder, self.bundle)
        self._directions = _directions(self._folder, self.bundle)
        if self.compared:
            self._check_model()

    @cached_property
    def _sparse(self) -> SparseGraph | None:
        """Started when documents are first to have sparse vectors: queries never need it."""
        if not self.bundle.sparse:
            return None
        sessions = self._started(self.bundle.sparse)
        return SparseGraph(sessions, self.bundle.padding, self.words.special())

    def _started(self, graph: str) -> Sessions:
        check = partial(self.bundle.check_unchanged, self._folder, graph)
        return self._start(self._folder / graph, check=check)

    def blend(self) -> tuple[float, float]:
        """What MaxSim and cosine are multiplied with in a late-interaction score.

        Raises:
            ValueError: if the encoder gives no token vectors.
        """
        check_wanted(self, ["tokens"])
        maxsim, cosine = self.bundle.blend
        return maxsim, cosine

    def encode_queries(self, texts: Sequence[str]) -> Encoding:
        """(n, dim) float32 unit vectors of queries, with token vectors where it gives them.

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        names = ["queries" if "queries" in self._queries.gives else "vectors"]
        names += ["query_tokens"] if self.contract.token_dim else []
        words = self.words.queries(texts)
        read = self._encode(self._queries, words, names, "encoding queries")
        if self._directions is None:
            return read
        return replace(read, vectors=self._directions.moved(self.words, texts, read.vectors))

    def encode_documents(
        self, texts: Sequence[str], want: Collection[Want] | None = None
    ) -> Encoding:
        """(n, dim) float32 unit vectors of documents and, from the same pass, the rest it gives.

        Args:
            texts: n documents.
            want: which of "dense", "sparse" and "tokens" to make; None for all that the encoder
                gives. The dense vectors always come, as the others are made on their way.
        Raises:
            ValueError: if the encoder does not give what is wanted.
            EncodingError: if the model gives a NaN or an infinity.
        """
        check_wanted(self, want)
        tokens = self.contract.token_dim and (want is None or "tokens" in want)
        sparse = self._sparse if want is None or "sparse" in want else None
        names = ["vectors", *(["document_tokens"] if tokens else [])]
        names += ["states"] if sparse else []
        words = self.words.documents(texts)
        return self._encode(self._documents, words, names, "encoding documents", sparse=sparse)

    def sparse_queries(self, texts: Sequence[str]) -> SparseVectors:
        """The sparse vectors of n queries, read from a table: no graph is run.

        Raises:
            ValueError: if the encoder gives no sparse vectors.
        """
        check_wanted(self, ["sparse"])
        return sparse_queries(self.words, texts, self._query_weights)

    def encode_prompts(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]]
    ) -> Encoding:
        """(n, dim) float32 unit vectors of listwise prompts, one a query, in one space with both.

        Raises:
            ValueError: if a prompt cannot hold its query and a token of every document.
            EncodingError: if the model gives a NaN or an infinity.
        """
        prompts = self.words.prompts(queries, documents)
        return self._encode(self._queries, prompts, ["vectors"], "encoding prompts")

    def encode_vector_prompts(
        self, queries: Sequence[str], asked: np.ndarray, vectors: Sequence[np.ndarray]
    ) -> Encoding:
        """(n, dim) float32 unit vectors of prompts that show vectors of documents, one a query.

        Args:
            queries: n texts.
            asked: (n, dim) float32, what `encode_queries` gives for them.
            vectors: for each query, (m, dim) float32 stored vectors of the documents to show.
        Raises:
            ValueError: if the encoder was not trained for it, a query has no vector or one of
                another length, or a prompt cannot hold its query and its soft tokens.
            EncodingError: if the model gives a NaN or an infinity.
        """
        if self.contract.prompt != "vectors":
            raise ValueError(
                f"{self.name} was not trained to read prompts of vectors; use prompt='text', or "
                "an adapter that was"
            )
        shapes = {each.shape[1:] for each in (asked, *vectors)}
        if shapes != {(self.contract.dim,)} or len(asked) != len(queries):
            raise ValueError(
                f"{len(queries)} queries came with {len(asked)} vectors, and rows of "
                f"{sorted(shapes)}; expected a vector a query, and rows of {self.contract.dim}"
            )
        words = self.words.vector_prompts(queries, [len(each) for each in vectors])
        soft = Soft(asked, vectors)
        return self._encode(self._queries, words, ["prompts"], "encoding prompts", soft)

    def _encode(
        self,
        graph: Graph,
        texts: Sequence[Tokens],
        names: Sequence[str],
        what: str,
        soft: Soft | None = None,
        sparse: SparseGraph | None = None,
    ) -> Encoding:
        """Vectors of the first name, token vectors of one that ends so, and sparse vectors."""
        vectors = np.zeros((len(texts), self.contract.dim), dtype=np.float32)
        place_of_tokens = [place for place, name in enumerate(names) if name.endswith("_tokens")]
        tokens = [np.zeros((0, 0), dtype=np.float32)] * len(texts) if place_of_tokens else []
        rows: dict[int, Row] = {}
        groups = graph.groups(texts)
        words = [[texts[place] for place in group] for group in groups]
        shown = [_chosen(soft, group) for group in groups]
        # Closed, it reads no more batches where an error ends this.
        with closing(graph.run(names, words, shown, sparse)) as read:
            for arrays, group in zip(read, with_progress(groups, what), strict=True):
                vectors[group] = arrays[0]
                for each in place_of_tokens:
                    self._place(tokens, arrays[each], texts, group)
                if sparse is not None:
                    rows.update(zip(group, arrays[-1], strict=True))
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise EncodingError(
                f"{self.name} gave a NaN or an infinity for text {int(bad.argmax())}; export it "
                "again, in fp32"
            )
        return Encoding(
            vectors=vectors,
            tokens=sum(len(each.ids) for each in texts),
            truncated=tuple(place for place, each in enumerate(texts) if each.cut),
            token_vectors=tuple(tokens),
            sparse=SparseVectors.of([rows[each] for each in range(len(texts))]) if sparse else None,
        )

    def _place(
        self,
        tokens: list[np.ndarray],
        rows: np.ndarray,
        texts: Sequence[Tokens],
        group: Sequence[int],
    ) -> None:
        """Each text's own rows of a batch: the pooled span, without padding."""
        for row, place in zip(rows, group, strict=True):
            length, pooled = len(texts[place].ids), texts[place].pooled
            start = len(row) - length if self.bundle.padding == "left" else 0
            # A copy, so that a batch's padding is not held in memory.
            tokens[place] = row[start : start + pooled].copy()

    def _check_model(self) -> None:
        """Compare a few texts with the vectors they had where the bundle was made, and say so.

        Raises:
            BundleError: if they differ: some processors multiply int8 with another rounding.
        """
        report = load_report(self._folder)
        with reading(self._folder / PARITY):
            texts = [str(each["text"]) for each in report["probes"]]
            known = np.array([each["vector"] for each in report["probes"]], dtype=np.float32)
            known = known.reshape(len(texts), self.contract.dim)
            least = float(report["bounds"]["cosine"])
            kept = f": {kept_in_words(report)}" if self.precision != "fp32" else ""
            judged = f"; {Judged.of(report['judged']).in_words()}" if "judged" in report else ""
        found = self.encode_documents(texts, want=["dense"]).vectors
        # Of no probes nothing is known.
        worst = float((found * known).sum(1).min()) if texts else -1.0
        if worst < least:
            raise BundleError(
                f"{self._folder} gives other vectors here than where it was exported: cosine "
                f"{worst:.6f}, expected at least {least}; export it on this machine, or in fp32"
            )
        _log.info("%s: %s in %s%s%s", self.name, self.bundle.name, self.precision, kept, judged)


def _query_weights(folder: Path, bundle: Bundle) -> np.ndarray:
    """(terms,) float32 of sparse queries; none without sparse vectors."""
    if not bundle.sparse:
        return np.zeros(0, dtype=np.float32)
    with reading(folder / SPARSE_QUERIES):
        weights: np.ndarray = np.lib.format.open_memmap(folder / SPARSE_QUERIES, mode="r")
        return np.array(weights, dtype=np.float32)


def _directions(folder: Path, bundle: Bundle) -> Directions | None:
    if DIRECTIONS not in bundle.files:
        return None
    with reading(folder / DIRECTIONS):
        return Directions.load(folder / DIRECTIONS)


def _chosen(soft: Soft | None, group: Sequence[int]) -> Soft | None:
    """The vectors of one batch."""
    if soft is None:
        return None
    return Soft(soft.asked[list(group)], [soft.shown[place] for place in group])
