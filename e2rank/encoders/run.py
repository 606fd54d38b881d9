"""One call's batches through one tower: read, checked, put in their places."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from e2rank.documents import SparseVectors
from e2rank.encoders import Encoding
from e2rank.encoders.batching import batches, halves, with_progress
from e2rank.encoders.soft import SoftPrompt
from e2rank.encoders.tokens import Tokens
from e2rank.encoders.tower import Read, Tower
from e2rank.errors import EncodingError

MakeTokens = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
Row = tuple[np.ndarray, np.ndarray]
MakeSparse = Callable[[Sequence[torch.Tensor], Sequence[Tokens]], list[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How texts are read, and what is made of the states they leave.

    Args:
        name: of the encoder, for messages.
        tower: reads them.
        layers: last layers whose states are kept; 0 where nothing is made of them.
        tokens: (t, width) states of each text to its token vectors.
        sparse: states of several texts to their terms and weights.
        soft: makes soft tokens of the vectors in `shown`, one matrix a text.
        shown: see `soft`.
    """

    name: str
    tower: Tower
    layers: int = 0
    tokens: MakeTokens | None = None
    sparse: MakeSparse | None = None
    soft: SoftPrompt | None = None
    shown: Sequence[np.ndarray] = ()

    def encoding(self, texts: Sequence[Tokens], budget: int, what: str) -> Encoding:
        """Read all texts, in batches of at most `budget` tokens.

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        places = _Places(np.zeros((len(texts), self.tower.contract.dim), dtype=np.float32))
        for group in with_progress(batches([len(each.ids) for each in texts], budget), what):
            self._fill(places, texts, group)
        ordered = range(len(texts))
        return Encoding(
            vectors=places.vectors,
            tokens=sum(len(each.ids) for each in texts),
            truncated=tuple(i for i, each in enumerate(texts) if each.cut),
            token_vectors=tuple(places.tokens[i] for i in ordered) if self.tokens else (),
            sparse=SparseVectors.of([places.sparse[i] for i in ordered]) if self.sparse else None,
        )

    def _fill(self, places: "_Places", texts: Sequence[Tokens], group: Sequence[int]) -> None:
        """Read a batch into its places; one that does not fit into memory is halved."""
        try:
            shown = [self.shown[place] for place in group] if self.shown else []
            self._read([texts[place] for place in group], shown, places, group)
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            torch.cuda.empty_cache()
            for half in halves(group):
                self._fill(places, texts, half)

    @torch.inference_mode()
    def _read(
        self,
        texts: Sequence[Tokens],
        shown: Sequence[np.ndarray],
        places: "_Places",
        group: Sequence[int],
    ) -> None:
        read: Read = self.tower(texts, self.layers, self._soft_tokens(shown))
        vectors = read.vectors.cpu().numpy()
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise EncodingError(
                f"{self.name} gave a NaN or an infinity for text {group[int(bad.argmax())]}; "
                "check the weights, or load it with dtype='float32'"
            )
        places.vectors[list(group)] = vectors
        if self.tokens is not None:
            # Copies, as a part of a batch would keep all of it in memory.
            made = [each.cpu().numpy().copy() for each in self.tokens(read.states)]
            places.tokens.update(zip(group, made, strict=True))
        if self.sparse is not None:
            places.sparse.update(zip(group, self.sparse(read.states, texts), strict=True))

    def _soft_tokens(self, shown: Sequence[np.ndarray]) -> list[torch.Tensor]:
        if self.soft is None:
            return []
        device = self.tower.device
        return [self.soft.tokens(torch.tensor(each, device=device).float()) for each in shown]


@dataclass(frozen=True, slots=True)
class _Places:
    """What was made so far, by the place of its text."""

    vectors: np.ndarray
    tokens: dict[int, Any] = field(default_factory=dict)
    sparse: dict[int, Row] = field(default_factory=dict)
