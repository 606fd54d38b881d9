"""A transformer under a contract: token sequences to unit vectors, with gradients where asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from e2rank.contract import Contract
from e2rank.encoders.batching import filled, pad
from e2rank.encoders.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Read:
    """What a transformer made of a batch of n sequences.

    Args:
        vectors: (n, dim) float32 unit rows.
        states: one (t, layers * hidden) float32 tensor a sequence: the states of its pooled span
            in the last `layers` layers, each layer's part of unit length; empty unless asked for.
    """

    vectors: torch.Tensor
    states: tuple[torch.Tensor, ...] = ()


class Tower(torch.nn.Module):
    """Pads, runs, pools and normalises; knows nothing of devices, precision or batches."""

    def __init__(
        self,
        model: torch.nn.Module,
        contract: Contract,
        *,
        head: torch.nn.Module | None = None,
        side: str = "right",
    ) -> None:
        """Wrap a transformers model; `head` stands between pooling and normalisation."""
        super().__init__()
        self.model, self.head = model, head
        self.contract, self.side = contract, side
        self.offset = position_offset(model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def forward(
        self,
        texts: Sequence[Tokens],
        layers: int = 0,
        soft: Sequence[torch.Tensor] = (),
        side: str = "",
    ) -> Read:
        """Read n sequences in one batch.

        Args:
            texts: n sequences.
            layers: how many last layers to give the states of.
            soft: for each sequence, (k, width) embeddings of its k soft tokens; () where no
                sequence has any.
            side: where shorter sequences are padded; "" for the tower's own side.
        """
        side = side or self.side
        inputs = self._inputs(texts, side)
        if side == "right" and self._needs_no_mask(texts):
            del inputs["attention_mask"], inputs["position_ids"]
        starts, stops = _spans(inputs["input_ids"].shape[1], texts, side)
        if soft:
            ids = inputs.pop("input_ids")
            inputs["inputs_embeds"] = self._embedded(ids, texts, soft, starts)
        given = self.model(**inputs, return_dict=True, output_hidden_states=layers > 0)
        # The last layer's is the one that some models normalise once more at the end.
        shown = [*given.hidden_states[-layers:-1], given.last_hidden_state] if layers else []
        parts = [torch.nn.functional.normalize(each.float(), dim=-1) for each in shown]
        pooled = self._pool(given.last_hidden_state, starts, stops)
        if self.head is not None:
            pooled = self.head(pooled)
        vectors = torch.nn.functional.normalize(pooled.float(), dim=1)
        if not parts:
            return Read(vectors)
        spans = zip(torch.cat(parts, -1), starts, stops, strict=True)
        return Read(vectors, tuple(each[start:stop] for each, start, stop in spans))

    @torch.no_grad()
    def counts_as_told(self) -> bool:
        """Whether the model, told no positions, counts those that it would be told here.

        The positions of a prompt are not those that a model counts itself, so it has to be told
        where a text starts, and that is known of the usual kinds of models alone.
        """
        ids = self._few_ids()
        inputs = self._inputs([Tokens(ids, range(len(ids)), len(ids), cut=False)], self.side)
        told = self.model(**inputs, return_dict=True).last_hidden_state
        del inputs["position_ids"]
        own = self.model(**inputs, return_dict=True).last_hidden_state
        apart = (told - own).float().norm(dim=-1)
        # More than bfloat16 rounds away; a NaN is left to the first text that is read.
        return not bool((apart > 0.1 * own.float().norm(dim=-1)).any())

    def _few_ids(self) -> list[int]:
        """A few ids that are no padding, for a model to be asked by."""
        config: Any = self.model.config
        return [each for each in range(8) if each != config.pad_token_id]

    def _needs_no_mask(self, texts: Sequence[Tokens]) -> bool:
        """Whether nothing but padding would attend to padding behind the texts.

        Without a mask a decoder runs on kernels that leave out the other half of attention, and
        counts positions as it would be told.
        """
        counted = all(each.positions == range(len(each.ids)) for each in texts)
        return counted and self.contract.family == "decoder" and self._looks_back

    @cached_property
    @torch.no_grad()
    def _looks_back(self) -> bool:
        """Whether a token sees those before it alone, by what the model gives of some.

        Asked of float32 weights only: of others it cannot be told from rounding.
        """
        modes = [(each, each.training) for each in self.model.modules()]
        self.model.eval()
        ids = torch.tensor([self._few_ids()], device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            whole, part = (
                self.model(input_ids=each, return_dict=True).last_hidden_state[0, :4]
                for each in (ids, ids[:, :4])
            )
        for each, mode in modes:
            each.training = mode
        apart = (whole - part).norm(dim=-1) / part.norm(dim=-1)
        return whole.dtype == torch.float32 and bool((apart <= 1e-4).all())

    def _inputs(self, texts: Sequence[Tokens], side: str) -> dict[str, torch.Tensor]:
        config: Any = self.model.config
        mask = filled([len(each.ids) for each in texts], side)
        arrays = {
            "input_ids": pad([each.ids for each in texts], config.pad_token_id or 0, side),
            "attention_mask": mask,
            "position_ids": pad([each.positions for each in texts], 0, side) + self.offset * mask,
        }
        if getattr(config, "type_vocab_size", 0):
            # Given outright: the buffer a BERT would use ends at its 512th position.
            arrays["token_type_ids"] = np.zeros_like(mask)
        return {name: torch.from_numpy(each).to(self.device) for name, each in arrays.items()}

    def _embedded(
        self,
        ids: torch.Tensor,
        texts: Sequence[Tokens],
        soft: Sequence[torch.Tensor],
        starts: Sequence[int],
    ) -> torch.Tensor:
        model: Any = self.model
        words = model.get_input_embeddings()(ids)
        places = [
            (row, start + place)
            for row, (start, each) in enumerate(zip(starts, texts, strict=True))
            for place in each.soft
        ]
        where = torch.tensor(places, dtype=torch.long, device=ids.device).view(-1, 2)
        # Not in place: the words' embeddings may need a gradient of their own.
        return words.index_put(tuple(where.T), torch.cat(list(soft)).to(words))

    def _pool(self, hidden: torch.Tensor, starts: list[int], stops: list[int]) -> torch.Tensor:
        rows = torch.arange(len(starts), device=hidden.device)
        first, last = (torch.tensor(each, device=hidden.device) for each in (starts, stops))
        if self.contract.pooling == "cls":
            return hidden[rows, first]
        if self.contract.pooling == "last":
            return hidden[rows, last - 1]
        places = torch.arange(hidden.shape[1], device=hidden.device)
        mask = ((places >= first[:, None]) & (places < last[:, None])).unsqueeze(-1)
        return (hidden.float() * mask).sum(1).to(hidden.dtype) / mask.sum(1)


def _spans(width: int, texts: Sequence[Tokens], side: str) -> tuple[list[int], list[int]]:
    starts = [width - len(each.ids) if side == "left" else 0 for each in texts]
    return starts, [start + each.pooled for start, each in zip(starts, texts, strict=True)]


def position_offset(model: torch.nn.Module) -> int:
    """The id of a text's first position: RoBERTa and its kin leave out those up to the padding's.

    They reserve a row of their table of positions for padding, and count from the one after it;
    BERT's table has no such row, and other models no such table.
    """
    table = position_table(model)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def position_table(model: torch.nn.Module) -> Any:
    """The learned embeddings of positions that a BERT or one of its kin has, or None."""
    named = (getattr(each, "position_embeddings", None) for each in model.modules())
    # By what it has: I-BERT's, for one, is no torch.nn.Embedding.
    return next((each for each in named if hasattr(each, "padding_idx")), None)
