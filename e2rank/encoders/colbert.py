"""A separate model for token vectors: any sentence-transformers MultiVectorEncoder, or ColBERT."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder

from e2rank.encoders import Encoding
from e2rank.encoders.digest import text_digest
from e2rank.encoders.pipeline import Features, Pipeline, contract_of, pipelines
from e2rank.encoders.saved import load_model
from e2rank.errors import EncodingError
from e2rank.scores import unit


class ColbertEncoder:
    """Token vectors of documents and queries: the late-interaction half of a `Combined`.

    A document has unit rows. The t rows of a query are 1 / t long each, so that MaxSim is the
    mean over them of the largest cosine: it orders documents as the sum does, and lies in -1 to 1.

    Source: ColBERT, arXiv 2004.12832.
    """

    def __init__(self, name: str, model: MultiVectorEncoder, *, device: str | None = None) -> None:
        """Wrap a loaded model; it is moved to the device, in float32.

        Args:
            name: what messages and indexes call it.
            model: in the dtype of its file.
            device: a torch device; None takes the GPU when there is one.
        """
        self.name = name
        self._asked, self._shown = pipelines(model)
        weights = self._shown.digest()
        model.float().to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        self.batch_tokens = 4096 if model.device.type == "cpu" else 65_536
        self.contract = contract_of(
            self._asked,
            self._shown,
            token_dim=self._shown.read([""], _widths, self.batch_tokens).rows[0],
        )
        tokenizer = self._shown.words.identity()
        self.token_fingerprint = f"{weights}-{text_digest(tokenizer)}-{self.contract.digest()}"

    @classmethod
    def load(cls, name: str, source: str, *, device: str | None = None) -> "ColbertEncoder":
        """The model in a folder or on a hub.

        Raises:
            ValueError: if there is no such model, or it is no trained MultiVectorEncoder.
        """
        return cls(name, load_model(MultiVectorEncoder, name, source), device=device)

    def blend(self) -> tuple[float, float]:
        """What MaxSim and cosine are multiplied with in a late-interaction score: MaxSim alone."""
        return 1.0, 0.0

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        """A (t, token_dim) float32 matrix of unit rows a document, beside vectors of (n, 0).

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        return self._encode(self._shown, texts)

    def encode_queries(self, texts: Sequence[str]) -> Encoding:
        """A (t, token_dim) float32 matrix of rows 1 / t long a query, beside vectors of (n, 0).

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        read = self._encode(self._asked, texts)
        shares = tuple(rows / np.float32(max(len(rows), 1)) for rows in read.token_vectors)
        return replace(read, token_vectors=shares)

    def _encode(self, route: Pipeline, texts: Sequence[str]) -> Encoding:
        read = route.read(texts, self._matrices, self.batch_tokens)
        return Encoding(
            np.zeros((len(texts), 0), dtype=np.float32),
            tokens=read.tokens,
            truncated=read.truncated,
            token_vectors=tuple(read.rows),
        )

    def _matrices(self, features: Features) -> list[np.ndarray]:
        masks = features["attention_mask"].bool().cpu().numpy()
        states = features["token_embeddings"].float().cpu().numpy()
        rows = [unit(each[mask]) for each, mask in zip(states, masks, strict=True)]
        if not all(np.isfinite(each).all() for each in rows):
            raise EncodingError(
                f"{self.name} gave a NaN or an infinity; check the weights, or run in float32"
            )
        return rows


def _widths(features: Features) -> list[int]:
    return [each.shape[-1] for each in features["token_embeddings"]]
