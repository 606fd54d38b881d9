"""A transformer on PyTorch as an encoder: documents, queries and listwise prompts to vectors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from tokenizers import Tokenizer

from e2rank.contract import Contract
from e2rank.encoders import Encoding
from e2rank.encoders.batching import batches, halves, pad, with_progress
from e2rank.encoders.tokens import Tokens, Wording
from e2rank.errors import EncodingError

# Fields of a config that change what is computed and leave no trace in the weights.
_SHAPE = (
    "model_type",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "layer_norm_eps",
    "rms_norm_eps",
)


class TorchEncoder:
    """One transformer behind `encode_queries`, `encode_documents` and `encode_prompts`.

    Batches are sorted by length and bounded in tokens. A text's vector does not depend on the
    batch it is in: on CPU in float32 the components differ by at most 1e-5, with padding on
    either side. On a GPU the model runs in bfloat16 (never float16, whose range overflows in some
    encoders) where the GPU has it, and out of memory halves the batch and goes on.
    """

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        tokenizer: Tokenizer,
        contract: Contract,
        *,
        head: torch.nn.Module | None = None,
        device: str | None = None,
        padding_side: str = "right",
    ) -> None:
        """Wrap a loaded model.

        Args:
            name: what messages call this encoder.
            model: a transformers model giving `last_hidden_state`, in the dtype of its file.
            tokenizer: its tokenizer.
            contract: its wording, budgets and pooling.
            head: applied to the pooled (n, hidden) vectors before normalisation, or None.
            device: a torch device; None takes the GPU when there is one.
            padding_side: "left" or "right".
        """
        self.name = name
        self.contract = contract
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._words = Wording(tokenizer, contract)
        self.fingerprint = "-".join(
            [_digest(model, head), _text_digest(self._words.identity()), contract.digest()]
        )
        dtype = _compute_dtype(self.device)
        config: Any = model.config
        if getattr(config, "use_cache", False):
            # Every text is read once, whole: keys and values for a next token are dead weight.
            config.use_cache = False
        self._model = model.to(self.device, dtype).eval()
        self._head = head.to(self.device, dtype).eval() if head is not None else None
        self._side = padding_side
        self.batch_tokens = 4096 if self.device.type == "cpu" else 65_536

    def encode_queries(self, texts: Sequence[str]) -> Encoding:
        """(n, dim) float32 unit vectors of queries.

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        return self._encode(self._words.queries(texts), "encoding queries")

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        """(n, dim) float32 unit vectors of documents; an empty text is a text too.

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        return self._encode(self._words.documents(texts), "encoding documents")

    def encode_prompts(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]]
    ) -> Encoding:
        """(n, dim) float32 unit vectors of listwise prompts, one a query, in one space with both.

        Raises:
            ValueError: if a prompt cannot hold its query and a token of every document.
            EncodingError: if the model gives a NaN or an infinity.
        Source: E2Rank, arXiv 2510.22733.
        """
        return self._encode(self._words.prompts(queries, documents), "encoding prompts")

    def _encode(self, texts: Sequence[Tokens], what: str) -> Encoding:
        out = np.zeros((len(texts), self.contract.dim), dtype=np.float32)
        groups = batches([len(each.ids) for each in texts], self.batch_tokens)
        for group in with_progress(groups, what):
            self._fill(out, texts, group)
        return Encoding(
            vectors=out,
            tokens=sum(len(each.ids) for each in texts),
            truncated=tuple(i for i, each in enumerate(texts) if each.cut),
        )

    def _fill(self, out: np.ndarray, texts: Sequence[Tokens], group: Sequence[int]) -> None:
        try:
            vectors = self._forward([texts[position] for position in group])
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            torch.cuda.empty_cache()
            for half in halves(group):
                self._fill(out, texts, half)
            return
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise EncodingError(
                f"{self.name} gave a NaN or an infinity for text {group[int(bad.argmax())]}; "
                "check the weights, or run in float32"
            )
        out[list(group)] = vectors

    @torch.inference_mode()
    def _forward(self, texts: Sequence[Tokens]) -> np.ndarray:
        inputs = self._inputs(texts)
        hidden = self._model(**inputs, return_dict=True).last_hidden_state
        vectors = self._pool(hidden, texts)
        if self._head is not None:
            vectors = self._head(vectors)
        return torch.nn.functional.normalize(vectors.float(), dim=1).cpu().numpy()

    def _inputs(self, texts: Sequence[Tokens]) -> dict[str, torch.Tensor]:
        config: Any = self._model.config
        offset = _first_position(config)
        arrays = {
            "input_ids": pad([each.ids for each in texts], config.pad_token_id or 0, self._side),
            "attention_mask": pad([[1] * len(each.ids) for each in texts], 0, self._side),
            "position_ids": pad(
                [[offset + place for place in each.positions] for each in texts], 0, self._side
            ),
        }
        if getattr(config, "type_vocab_size", 0):
            # Given outright: the buffer a BERT would use ends at its 512th position.
            arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
        return {name: torch.from_numpy(each).to(self.device) for name, each in arrays.items()}

    def _pool(self, hidden: torch.Tensor, texts: Sequence[Tokens]) -> torch.Tensor:
        width = hidden.shape[1]
        starts = [width - len(each.ids) if self._side == "left" else 0 for each in texts]
        stops = [start + each.pooled for start, each in zip(starts, texts, strict=True)]
        rows = torch.arange(len(texts), device=self.device)
        if self.contract.pooling == "cls":
            return hidden[rows, torch.tensor(starts, device=self.device)]
        if self.contract.pooling == "last":
            return hidden[rows, torch.tensor(stops, device=self.device) - 1]
        places = torch.arange(width, device=self.device)
        first, last = (torch.tensor(each, device=self.device)[:, None] for each in (starts, stops))
        mask = ((places >= first) & (places < last)).unsqueeze(-1)
        return (hidden.float() * mask).sum(1).to(hidden.dtype) / mask.sum(1)


def _compute_dtype(device: torch.device) -> torch.dtype:
    bfloat = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bfloat else torch.float32


def _first_position(config: Any) -> int:
    """RoBERTa and its kin count positions from the one after the padding token's."""
    family = ("roberta", "xlm-roberta", "mpnet", "camembert")
    return config.pad_token_id + 1 if config.model_type in family else 0


def _digest(model: torch.nn.Module, head: torch.nn.Module | None) -> str:
    """Of every weight, in the dtype of its file, so that it is the same on every device.

    And of what is done with them: the same weights under another activation are another model.
    """
    weights = dict(model.state_dict())
    if head is not None:
        weights |= {f"head.{name}": each for name, each in head.state_dict().items()}
    shape = [f"{name}={getattr(model.config, name, None)}" for name in _SHAPE]
    return _weights_digest(weights, f"{shape} {head}")


def _weights_digest(weights: Mapping[str, torch.Tensor], shape: str) -> str:
    state = xxhash.xxh3_64(shape.encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _text_digest(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())
