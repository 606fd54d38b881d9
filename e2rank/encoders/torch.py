"""A transformer on PyTorch as an encoder: documents, queries and listwise prompts to vectors."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import xxhash
from tokenizers import Tokenizer

from e2rank.contract import Contract
from e2rank.encoders import Encoding
from e2rank.encoders.adapter import Adapter
from e2rank.encoders.batching import batches, halves, with_progress
from e2rank.encoders.heads import TokenHead
from e2rank.encoders.soft import SoftPrompt
from e2rank.encoders.tokens import Tokens, Wording
from e2rank.encoders.tower import Tower
from e2rank.errors import AdapterError, EncodingError
from e2rank.scores import unit

MakeTokens = Callable[[torch.Tensor], torch.Tensor]
Counts = Callable[[torch.Tensor], torch.Tensor]

# Fields of a config that change what is computed and leave no trace in the weights.
_SHAPE = (
    "model_type",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "layer_norm_eps",
    "rms_norm_eps",
)

# Fields of a contract that document vectors depend on.
_DOCUMENTS = (
    "family",
    "pooling",
    "dim",
    "document_prefix",
    "document_suffix",
    "document_tokens",
)


class TorchEncoder:
    """One transformer behind `encode_queries`, `encode_documents` and `encode_prompts`.

    Batches are sorted by length and bounded in tokens. A text's vector does not depend on the
    batch it is in: on CPU in float32 the components differ by at most 1e-5, with padding on
    either side. On a GPU the model runs in bfloat16 (never float16, whose range overflows in some
    encoders) where the GPU has it, and out of memory halves the batch and goes on.

    An adapter changes how queries and prompts are read, never how documents are: their vectors,
    and so the fingerprint, stay those of the model without it.
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
        self.words = Wording(tokenizer, contract)
        self.fingerprint = "-".join(
            [_digest(model, head), _text_digest(self.words.identity()), contract.digest()]
        )
        dtype = _compute_dtype(self.device)
        config: Any = model.config
        if getattr(config, "use_cache", False):
            # Every text is read once, whole: keys and values for a next token are dead weight.
            config.use_cache = False
        self.tower = Tower(model, contract, head=head, side=padding_side)
        self.tower.to(self.device, dtype).eval()
        self.batch_tokens = 4096 if self.device.type == "cpu" else 65_536
        self._asking = self.tower
        self._tokens: TokenHead | None = None
        self._soft: SoftPrompt | None = None
        self.token_fingerprint = ""
        self.adapter: Adapter | None = None
        self._moved: torch.Tensor | None = None
        self._counts: Counts | None = None

    def adapt(self, adapter: Adapter, *, name: str | None = None) -> Self:
        """This encoder with queries and prompts read as the adapter was trained; self is as before.

        Args:
            adapter: trained on this encoder.
            name: what messages and indexes call the result; this encoder's name unless given.
        Raises:
            EncoderMismatch: if the adapter was trained on another model.
            AdapterError: if its contract would change the vectors of documents.
        """
        adapter.check(self.fingerprint, self.name)
        for field in _DOCUMENTS:
            if getattr(adapter.contract, field) != getattr(self.contract, field):
                raise AdapterError(
                    f"the adapter's contract has another {field} than {self.name!r}: an adapter "
                    "leaves document vectors as they are; load it with the contract it was "
                    "trained under"
                )
        adapted = copy.copy(self)
        adapted.name = name or self.name
        adapted.contract = adapter.contract
        adapted.words = self.words.under(adapter.contract)
        adapted.adapter = adapter
        adapted._moved = adapter.query_map()
        adapted._asking = adapter.on(self.tower)
        adapted._tokens = adapter.token_head(self.tower)
        adapted._counts = adapted._tokens.counts if adapter.by_shares and adapted._tokens else None
        adapted._soft = adapter.soft_prompt(self.tower)
        adapted.token_fingerprint = adapter.token_fingerprint if adapted._tokens else ""
        return adapted

    @property
    def adapter_fingerprint(self) -> str:
        """What identifies the adapter; "" without one."""
        return self.adapter.fingerprint if self.adapter else ""

    def blend(self) -> tuple[float, float]:
        """What MaxSim and cosine are multiplied with in a late-interaction score.

        Raises:
            ValueError: if the encoder gives no token vectors.
        """
        if self._tokens is None:
            raise ValueError(f"{self.name} gives no token vectors; use another rerank")
        return self._tokens.blend()

    def encode_queries(self, texts: Sequence[str]) -> Encoding:
        """(n, dim) float32 unit vectors of queries, with token vectors where it gives them.

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        make = self._tokens.queries if self._tokens else None
        asked = self.words.queries(texts)
        read = self._encode(self._asking, asked, "encoding queries", make, counts=self._counts)
        if self._moved is None:
            return read
        weight = self._moved.numpy()
        return replace(read, vectors=unit(read.vectors + read.vectors @ weight.T))

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        """(n, dim) float32 unit vectors of documents, with token vectors where it gives them.

        An empty text is a text too.

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        make = self._tokens.documents if self._tokens else None
        return self._encode(self.tower, self.words.documents(texts), "encoding documents", make)

    def encode_prompts(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]]
    ) -> Encoding:
        """(n, dim) float32 unit vectors of listwise prompts, one a query, in one space with both.

        Raises:
            ValueError: if a prompt cannot hold its query and a token of every document.
            EncodingError: if the model gives a NaN or an infinity.
        Source: E2Rank, arXiv 2510.22733.
        """
        prompts = self.words.prompts(queries, documents)
        return self._encode(self._asking, prompts, "encoding prompts", None)

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
        Source: PE-Rank, arXiv 2406.14848, its soft tokens under a cosine.
        """
        if self._soft is None:
            raise ValueError(
                f"{self.name} was not trained to read prompts of vectors; use prompt='text', or "
                "an adapter that was"
            )
        dim = self.contract.dim
        shapes = {each.shape[1:] for each in (asked, *vectors)}
        if shapes != {(dim,)} or len(asked) != len(queries):
            raise ValueError(
                f"{len(queries)} queries came with {len(asked)} vectors, and rows of "
                f"{sorted(shapes)}; expected a vector a query, and rows of {dim}"
            )
        texts = self.words.vector_prompts(queries, [len(each) for each in vectors])
        read = self._encode(self._asking, texts, "encoding prompts", None, vectors)
        with torch.inference_mode():
            given = [torch.tensor(each, device=self.device) for each in (asked, read.vectors)]
            prompts = self._soft.prompts(*given).cpu().numpy()
        return replace(read, vectors=prompts)

    def _encode(
        self,
        tower: Tower,
        texts: Sequence[Tokens],
        what: str,
        make: MakeTokens | None,
        shown: Sequence[np.ndarray] = (),
        counts: Counts | None = None,
    ) -> Encoding:
        out = _Out(
            np.zeros((len(texts), self.contract.dim), dtype=np.float32),
            [np.zeros((0, 0), dtype=np.float32)] * len(texts) if make else [],
        )
        layers = self.contract.token_layers if make else 0
        run = _Run(self.name, tower, make, layers, self._soft, shown, counts)
        for group in with_progress(
            batches([len(each.ids) for each in texts], self.batch_tokens), what
        ):
            run.fill(out, texts, group)
        return Encoding(
            vectors=out.vectors,
            tokens=sum(len(each.ids) for each in texts),
            truncated=tuple(i for i, each in enumerate(texts) if each.cut),
            token_vectors=tuple(out.token_vectors),
        )


@dataclass(frozen=True, slots=True)
class _Out:
    vectors: np.ndarray
    token_vectors: list[np.ndarray]


@dataclass(frozen=True, slots=True)
class _Run:
    """One call's batches through one tower."""

    name: str
    tower: Tower
    make: MakeTokens | None
    layers: int
    soft: SoftPrompt | None
    shown: Sequence[np.ndarray]
    counts: Counts | None

    def fill(self, out: _Out, texts: Sequence[Tokens], group: Sequence[int]) -> None:
        """Read a batch into its places; one that does not fit into memory is halved."""
        try:
            shown = [self.shown[place] for place in group] if self.shown else []
            vectors, token_vectors = self._read([texts[place] for place in group], shown)
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            torch.cuda.empty_cache()
            for half in halves(group):
                self.fill(out, texts, half)
            return
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise EncodingError(
                f"{self.name} gave a NaN or an infinity for text {group[int(bad.argmax())]}; "
                "check the weights, or run in float32"
            )
        out.vectors[list(group)] = vectors
        for place, each in zip(group, token_vectors, strict=False):
            out.token_vectors[place] = each

    @torch.inference_mode()
    def _read(
        self, texts: Sequence[Tokens], shown: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        read = self.tower(texts, self.layers, self._soft_tokens(shown), self.counts)
        vectors = read.vectors.cpu().numpy()
        if self.make is None:
            return vectors, []
        return vectors, [self.make(each).cpu().numpy() for each in read.states]

    def _soft_tokens(self, shown: Sequence[np.ndarray]) -> list[torch.Tensor]:
        if self.soft is None:
            return []
        device = self.tower.device
        return [self.soft.tokens(torch.tensor(each, device=device).float()) for each in shown]


def _compute_dtype(device: torch.device) -> torch.dtype:
    bfloat = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bfloat else torch.float32


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
