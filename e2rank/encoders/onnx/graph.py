"""From an encoder on PyTorch to ONNX graphs that hold the whole path, from token ids to vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch

from e2rank.encoders.heads import TokenHead
from e2rank.encoders.onnx.attention import one_node_attention
from e2rank.encoders.onnx.exporting import exported
from e2rank.encoders.soft import SoftPrompt
from e2rank.encoders.sparse import SparseHead
from e2rank.encoders.torch import TorchEncoder
from e2rank.encoders.tower import Tower

_N, _T, _K = "n", "t", "k"
_AXES: dict[str, tuple[str, ...]] = {
    "input_ids": (_N, _T),
    "attention_mask": (_N, _T),
    "position_ids": (_N, _T),
    "starts": (_N,),
    "stops": (_N,),
    "shown": (_K,),
    "rows": (_K,),
    "columns": (_K,),
    "asked": (_N,),
}

_FIXED = 5
"""Inputs that every graph takes; the others are those of soft prompts."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an encoder is made of, its adapter merged into the weights.

    Args:
        documents: reads documents.
        asking: reads queries and prompts; `documents` itself where nothing differs.
        tokens: makes token vectors, if it gives any.
        moved: (dim, dim) W of a query's q + W q, if it has one.
        soft: makes prompts of vectors, if it was trained to read them.
        sparse: makes sparse vectors of documents, if it gives any.
        layers: how many last layers both heads read.
    """

    documents: Tower
    asking: Tower
    tokens: TokenHead | None = None
    moved: torch.Tensor | None = None
    soft: SoftPrompt | None = None
    sparse: SparseHead | None = None
    layers: int = 0

    @classmethod
    def of(cls, encoder: TorchEncoder) -> "Parts":
        """The parts of an encoder and of its adapter."""
        tower, adapter = encoder.tower, encoder.adapter
        if adapter is None:
            return cls(tower, tower)
        return cls(
            tower,
            adapter.on(tower),
            adapter.token_head(tower),
            adapter.query_map(),
            adapter.soft_prompt(tower),
            adapter.sparse_head(tower),
            encoder.contract.token_layers,
        )


class Whole(torch.nn.Module):
    """A tower with its pooling, its heads and every normalisation, from arrays to arrays.

    It gives, by name: `vectors` (n, dim), pooled as documents and prompts are; `queries` (n, dim)
    where queries are moved; `document_tokens` and `query_tokens` (n, t, p)
    with a token head; `states` (n, t, width), what the sparse head reads, where there is one and
    the tower reads documents; `prompts` (n, dim) with a soft prompt.
    """

    moved: torch.Tensor | None

    def __init__(self, tower: Tower, parts: Parts) -> None:
        """Put a tower and the heads on it together."""
        super().__init__()
        self.model, self.head, self.contract = tower.model, tower.head, tower.contract
        self.tokens, self.soft = parts.tokens, parts.soft
        self.gives_states = parts.sparse is not None and tower is parts.documents
        reads = self.gives_states or self.tokens is not None
        self.layers = parts.layers if reads else 0
        self.register_buffer("moved", parts.moved)
        config: Any = tower.model.config
        self.first_position = tower.offset
        self.has_types = bool(getattr(config, "type_vocab_size", 0))

    def inputs(self) -> list[str]:
        """Names of the arrays it takes, in their order."""
        names = list(_AXES)
        return names if self.soft is not None else names[: names.index("shown")]

    def outputs(self) -> list[str]:
        """Names of the arrays it gives, in their order."""
        names = ["vectors"]
        if self.moved is not None:
            names.append("queries")
        if self.tokens is not None:
            names += ["document_tokens", "query_tokens"]
        names += ["states"] if self.gives_states else []
        return names + (["prompts"] if self.soft is not None else [])

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        starts: torch.Tensor,
        stops: torch.Tensor,
        *soft: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """The arrays of `outputs`, of those of `inputs`."""
        given = self._read(input_ids, attention_mask, position_ids, soft)
        hidden = given.last_hidden_state.float()
        places = torch.arange(hidden.shape[1])
        span = (places >= starts[:, None]) & (places < stops[:, None])
        counted = span.unsqueeze(-1).float()
        vectors = self._unit(self._pool(hidden, starts, stops, counted))
        made = {"vectors": vectors}
        if self.layers:
            made["states"] = self._states(given)
        if self.tokens is not None:
            states = made["states"]
            counts = self.tokens.counts(states) * counted
            made["document_tokens"] = self.tokens.documents(states)
            made["query_tokens"] = made["document_tokens"] * (counts / counts.sum(1, keepdim=True))
        if self.moved is not None:
            moved = vectors + vectors @ self.moved.T
            made["queries"] = torch.nn.functional.normalize(moved, dim=1)
        if self.soft is not None:
            made["prompts"] = self.soft.prompts(soft[-1], vectors)
        return tuple(made[name] for name in self.outputs())

    def _read(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        soft: Sequence[torch.Tensor],
    ) -> Any:
        model: Any = self.model
        inputs: dict[str, Any] = {
            "attention_mask": attention_mask,
            "position_ids": position_ids + self.first_position,
        }
        if self.has_types:
            inputs["token_type_ids"] = torch.zeros_like(input_ids)
        if self.soft is None:
            inputs["input_ids"] = input_ids
        else:
            shown, rows, columns, _ = soft
            words = model.get_input_embeddings()(input_ids)
            made = self.soft.tokens(shown).to(words)
            inputs["inputs_embeds"] = words.index_put((rows, columns), made)
        return model(**inputs, return_dict=True, output_hidden_states=self.layers > 0)

    def _states(self, given: Any) -> torch.Tensor:
        shown = [*given.hidden_states[-self.layers : -1], given.last_hidden_state]
        unit = [torch.nn.functional.normalize(each.float(), dim=-1) for each in shown]
        return torch.cat(unit, -1)

    def _pool(
        self, hidden: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor, counted: torch.Tensor
    ) -> torch.Tensor:
        if self.contract.pooling == "mean":
            # A product takes a quarter of the time of a sum of products.
            return (counted.mT @ hidden)[:, 0] / counted.sum(1)
        place = starts if self.contract.pooling == "cls" else stops - 1
        wide = place[:, None, None].expand(-1, 1, hidden.shape[2])
        return torch.gather(hidden, 1, wide)[:, 0]

    def _unit(self, pooled: torch.Tensor) -> torch.Tensor:
        if self.head is not None:
            pooled = self.head(pooled)
        return torch.nn.functional.normalize(pooled, dim=1)


def graph_of(tower: Tower, parts: Parts) -> onnx.ModelProto:
    """The float32 graph of a tower, of any number of sequences of any length."""
    whole = Whole(tower, parts).eval()
    names, dim = whole.inputs(), tower.contract.dim
    examples: dict[str, torch.Tensor] = {
        "input_ids": torch.ones(3, 7, dtype=torch.long),
        "attention_mask": torch.ones(3, 7, dtype=torch.long),
        "position_ids": torch.arange(7).repeat(3, 1),
        "starts": torch.zeros(3, dtype=torch.long),
        "stops": torch.tensor([7, 5, 2]),
        "shown": torch.eye(4, dim),
        "rows": torch.tensor([0, 1, 1, 2]),
        "columns": torch.tensor([6, 5, 6, 6]),
        "asked": torch.eye(3, dim),
    }
    examples = {name: examples[name] for name in names}
    with one_node_attention(tower.model):
        return exported(whole, examples, _AXES, whole.outputs(), named=_FIXED)
