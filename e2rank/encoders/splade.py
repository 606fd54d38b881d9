"""A separate model for sparse vectors: any sentence-transformers SparseEncoder, such as SPLADE."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

from e2rank.documents import SparseVectors
from e2rank.encoders import Encoding
from e2rank.encoders.digest import text_digest
from e2rank.encoders.pipeline import Features, Pipeline, contract_of, pipelines
from e2rank.encoders.saved import load_model
from e2rank.encoders.terms import sparse_queries
from e2rank.errors import EncodingError

TABLE = "query_weights.npy"
"""In the folder of a model: the table that its queries are read from."""

TERMS = 128
"""Terms of a document that are kept unless another number is asked for."""

Row = tuple[np.ndarray, np.ndarray]


class SpladeEncoder:
    """Documents and queries as weighted terms of a vocabulary: the sparse half of a `Combined`.

    Of a document the `contract.sparse_terms` terms of largest weight are kept. That bounds the
    index and cuts no text, so it is not counted as a cut. Weights of 0 or less are no terms.
    Queries keep all their terms.

    Where the model has a table for its queries (SparseStaticEmbedding), or is given one, a query
    is the distinct tokens of its text, special ones left out, with their weights in the table:
    no model reads it, and nothing of it is cut.

    Source: SPLADE, arXiv 2109.10086; queries without a model, arXiv 2411.04403.
    """

    def __init__(
        self,
        name: str,
        model: SparseEncoder,
        *,
        sparse_terms: int = TERMS,
        query_weights: np.ndarray | None = None,
        device: str | None = None,
    ) -> None:
        """Wrap a loaded model; it is moved to the device, in float32.

        Args:
            name: what messages and indexes call it.
            model: in the dtype of its file.
            sparse_terms: most terms of a document.
            query_weights: (terms,) float, what each term counts in a query; None takes what the
                model has for queries.
            device: a torch device; None takes the GPU when there is one.
        Raises:
            ValueError: if the model reads no documents, or the table is of another vocabulary.
        """
        self.name = name
        self._asked, self._shown = pipelines(model)
        if isinstance(self._shown.modules[0], SparseStaticEmbedding):
            raise ValueError(f"{name} looks documents up in a table; expected a model to read them")
        weights = self._shown.digest()
        model.float().to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        # The vocabulary is scored at every token: a quarter of a gigabyte for 30,000 terms.
        self.batch_tokens = 2048 if model.device.type == "cpu" else 16_384
        self._most: int | None = model.max_active_dims
        self._table, self._prefix = _table(self._asked), self._asked.prefix
        if query_weights is not None:
            # A prompt is for a model to read: its words are no terms of the query.
            self._table, self._prefix = np.asarray(query_weights, dtype=np.float32), ""
        for route in (self._asked, self._shown):
            route.modules = [_quick(each) for each in route.modules]
        self.contract = contract_of(
            self._asked,
            self._shown,
            sparse_dim=self._shown.read([""], _widths, self.batch_tokens).rows[0],
            sparse_terms=min(sparse_terms, self._most or sparse_terms),
        )
        _check_table(name, self._table, self.contract.sparse_dim)
        tokenizer = self._shown.words.identity()
        self.sparse_fingerprint = f"{weights}-{text_digest(tokenizer)}-{self.contract.digest()}"

    @classmethod
    def load(
        cls, name: str, source: str, *, sparse_terms: int = TERMS, device: str | None = None
    ) -> "SpladeEncoder":
        """The model in a folder or on a hub, with the query_weights.npy that a folder may hold.

        Raises:
            ValueError: if there is no such model, it is no trained SparseEncoder, or the table is
                of another vocabulary.
        """
        path = Path(source) / TABLE
        table = np.load(path, allow_pickle=False) if path.is_file() else None
        model = load_model(SparseEncoder, name, source)
        return cls(name, model, sparse_terms=sparse_terms, query_weights=table, device=device)

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        """The sparse vectors of n documents, beside vectors of (n, 0).

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        read = self._shown.read(
            texts, self._rows(self.contract.sparse_terms), self.batch_tokens, **self._options()
        )
        return Encoding(
            np.zeros((len(texts), 0), dtype=np.float32),
            tokens=read.tokens,
            truncated=read.truncated,
            sparse=SparseVectors.of(read.rows),
        )

    def sparse_queries(self, texts: Sequence[str]) -> SparseVectors:
        """The sparse vectors of n queries.

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        return cast(SparseVectors, self.encode_sparse_queries(texts).sparse)

    def encode_sparse_queries(self, texts: Sequence[str]) -> Encoding:
        """The same beside vectors of (n, 0), and what reading them took: nothing with a table.

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        none = np.zeros((len(texts), 0), dtype=np.float32)
        if self._table is not None:
            prefixed = [f"{self._prefix}{text}" for text in texts]
            sparse = sparse_queries(self._asked.words, prefixed, self._table)
            return Encoding(none, sparse=sparse, calls=0)
        read = self._asked.read(texts, self._rows(self._most), self.batch_tokens, **self._options())
        sparse = SparseVectors.of(read.rows)
        return Encoding(none, tokens=read.tokens, truncated=read.truncated, sparse=sparse)

    def _options(self) -> dict[str, Any]:
        return {"max_active_dims": self._most} if self._most else {}

    def _rows(self, most: int | None) -> Callable[[Features], list[Row]]:
        def rows(features: Features) -> list[Row]:
            weights = features["sentence_embedding"].float().cpu().numpy()
            if not np.isfinite(weights).all():
                raise EncodingError(
                    f"{self.name} gave a NaN or an infinity; check the weights, or run in float32"
                )
            return [_largest(each, most) for each in weights]

        return rows


def idf(documents: SparseVectors, terms: int) -> np.ndarray:
    """(terms,) float32 inverse document frequencies, all above 0: a table of query weights.

    log(1 + (n - f + 0.5) / (f + 0.5)) of a term that f of the n documents hold, as in BM25.
    """
    held = np.bincount(documents.terms, minlength=terms)
    return np.log1p((len(documents) - held + 0.5) / (held + 0.5)).astype(np.float32)


class _QuickPooling(torch.nn.Module):
    """What SpladePooling gives by "max", whose logarithm it takes of every token's scores.

    The logarithm grows with its argument, so that of the largest score is the largest.
    """

    def __init__(self, slow: SpladePooling) -> None:
        super().__init__()
        self._slow = slow

    def forward(self, features: Features) -> Features:
        if "cu_seq_lens_q" in features:  # texts laid end to end, without padding
            return self._slow(features)
        padding = features["attention_mask"].unsqueeze(-1) == 0
        best = features["token_embeddings"].masked_fill_(padding, 0.0).amax(1)
        weights = best.float().relu().log1p()
        if self._slow.activation_function == "log1p_relu":
            weights = weights.log1p()
        return features | {"sentence_embedding": weights}


def _quick(module: Any) -> Any:
    by_max = isinstance(module, SpladePooling) and module.pooling_strategy == "max"
    return _QuickPooling(module) if by_max else module


def _table(route: Pipeline) -> np.ndarray | None:
    """The weights of a route that only looks them up, one a term."""
    if [type(each) for each in route.modules] != [SparseStaticEmbedding]:
        return None
    weights: np.ndarray = route.modules[0].weight.detach().float().cpu().numpy()
    return weights


def _check_table(name: str, table: np.ndarray | None, terms: int) -> None:
    if table is None:
        return
    if table.shape != (terms,) or not np.isfinite(table).all():
        what = "with a NaN or an infinity" if table.shape == (terms,) else f"{table.shape}"
        raise ValueError(
            f"the table of query weights is {what}, expected a number for each of the {terms} "
            f"terms of {name}"
        )


def _widths(features: Features) -> list[int]:
    return [len(row) for row in features["sentence_embedding"]]


def _largest(weights: np.ndarray, most: int | None) -> Row:
    """The terms above 0, at most so many: those of largest weight, lower ids first."""
    terms = np.flatnonzero(weights > 0)
    if most is not None and len(terms) > most:
        terms = np.sort(terms[np.argsort(-weights[terms], kind="stable")[:most]])
    return terms.astype(np.int32), weights[terms]
