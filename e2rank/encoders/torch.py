"""A transformer on PyTorch as an encoder: documents, queries and listwise prompts to vectors."""

import copy
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from tokenizers import Tokenizer

from e2rank.contract import Contract
from e2rank.documents import SparseVectors
from e2rank.encoders import DType, Encoding, Want, check_dtype, check_wanted
from e2rank.encoders.adapter import Adapter
from e2rank.encoders.digest import model_digest, text_digest
from e2rank.encoders.directions import Directions
from e2rank.encoders.heads import TokenHead
from e2rank.encoders.run import MakeSparse, Run
from e2rank.encoders.soft import SoftPrompt
from e2rank.encoders.sparse import SparseHead
from e2rank.encoders.terms import sparse_queries
from e2rank.encoders.tokens import Wording
from e2rank.encoders.tower import Tower
from e2rank.errors import AdapterError
from e2rank.scores import unit

_log = logging.getLogger("e2rank")

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
    encoders) where the GPU has it, on a CPU where it is asked for, and on a GPU out of memory
    halves the batch and goes on.

    An adapter changes how queries and prompts are read, never how documents are: their vectors,
    and so the fingerprint, stay those of the model without it.
    """

    def __init__(  # noqa: PLR0913 - one call, every choice by name
        self,
        name: str,
        model: torch.nn.Module,
        tokenizer: Tokenizer,
        contract: Contract,
        *,
        head: torch.nn.Module | None = None,
        device: str | None = None,
        dtype: DType | None = None,
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
            dtype: what the model computes in, "float32" or "bfloat16"; None takes bfloat16 on a
                GPU that has it, else float32. Vectors are float32 in any case.
            padding_side: "left" or "right".
        Raises:
            ValueError: if the dtype is another.
        """
        self.name = name
        self.contract = contract
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.words = Wording(tokenizer, contract)
        self.fingerprint = "-".join(
            [model_digest(model, head), text_digest(self.words.identity()), contract.digest()]
        )
        self.dtype = _compute_dtype(self.device, dtype)
        config: Any = model.config
        if getattr(config, "use_cache", False):
            # Every text is read once, whole: keys and values for a next token are dead weight.
            config.use_cache = False
        self.tower = Tower(model, contract, head=head, side=padding_side)
        self.tower.to(self.device, self.dtype).eval()
        self.batch_tokens = 4096 if self.device.type == "cpu" else 65_536
        self.asking = self.tower
        self._tokens: TokenHead | None = None
        self._soft: SoftPrompt | None = None
        self._sparse: SparseHead | None = None
        self._query_weights = np.zeros(0, dtype=np.float32)
        self.token_fingerprint = ""
        self.sparse_fingerprint = ""
        self.adapter: Adapter | None = None
        self._moved: torch.Tensor | None = None
        self._directions: Directions | None = None

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
        adapted._directions = adapter.directions()
        adapted.asking = adapter.on(self.tower)
        adapted._tokens = adapter.token_head(self.tower)
        adapted._soft = adapter.soft_prompt(self.tower)
        adapted.token_fingerprint = adapter.token_fingerprint if adapted._tokens else ""
        adapted._sparse = adapter.sparse_head(self.tower)
        if adapted._sparse is not None:
            adapted._query_weights = adapted._sparse.query_weights()
        adapted.sparse_fingerprint = adapter.sparse_fingerprint if adapted._sparse else ""
        return adapted

    @property
    def adapted(self) -> bool:
        """Whether it reads queries as is best for the documents of one index."""
        return self._directions is not None or self._moved is not None

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
            ValueError: if a text is none, or has no token.
            EncodingError: if the model gives a NaN or an infinity.
        """
        head = self._tokens
        run = self._run(
            self.asking,
            layers=self.contract.token_layers if head else 0,
            tokens=head.many_queries if head else None,
        )
        read = run.encoding(self.words.queries(texts), self.batch_tokens, "encoding queries")
        if self._moved is not None:
            vectors = unit(read.vectors + read.vectors @ self._moved.numpy().T)
            read = replace(read, vectors=vectors)
        if self._directions is not None:
            moved = self._directions.moved(self.words, texts, read.vectors)
            read = replace(read, vectors=moved)
        return read

    def encode_documents(
        self, texts: Sequence[str], want: Collection[Want] | None = None
    ) -> Encoding:
        """(n, dim) float32 unit vectors of documents and, from the same pass, the rest it gives.

        An empty text is a text too, if the tokenizer or the contract puts a token to it.

        Args:
            texts: n documents.
            want: which of "dense", "sparse" and "tokens" to make; None for all that the encoder
                gives. The dense vectors always come, as the others are made on their way.
        Raises:
            ValueError: if the encoder does not give what is wanted, a text is none, or has no
                token.
            EncodingError: if the model gives a NaN or an infinity.
        """
        check_wanted(self, want)
        tokens = self._tokens if want is None or "tokens" in want else None
        sparse = self._sparse_of_documents() if want is None or "sparse" in want else None
        run = self._run(
            self.tower,
            layers=self.contract.token_layers if tokens or sparse else 0,
            tokens=tokens.many_documents if tokens else None,
            sparse=sparse,
        )
        return run.encoding(self.words.documents(texts), self.batch_tokens, "encoding documents")

    def sparse_queries(self, texts: Sequence[str]) -> SparseVectors:
        """The sparse vectors of n queries, read from a table: the model is not asked.

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
        Source: E2Rank, arXiv 2510.22733.
        """
        prompts = self.words.prompts(queries, documents)
        return self._run(self.asking).encoding(prompts, self.batch_tokens, "encoding prompts")

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
        run = self._run(self.asking, soft=self._soft, shown=vectors)
        read = run.encoding(texts, self.batch_tokens, "encoding prompts")
        with torch.inference_mode():
            given = [torch.tensor(each, device=self.device) for each in (asked, read.vectors)]
            prompts = self._soft.prompts(*given).cpu().numpy()
        return replace(read, vectors=prompts)

    def _run(self, tower: Tower, **how: Any) -> Run:
        return Run(name=self.name, tower=tower, **how)

    def _sparse_of_documents(self) -> MakeSparse | None:
        if self._sparse is None:
            return None
        special, most = self.words.special(), self.contract.sparse_terms
        return partial(self._sparse.documents, special=special, most=most)


def _compute_dtype(device: torch.device, asked: DType | None) -> torch.dtype:
    if asked is None:
        bfloat = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bfloat else torch.float32
    check_dtype(asked)
    if asked == "bfloat16" and device.type == "cpu" and not _multiplies_bfloat16():
        _log.warning(
            "this processor does not multiply matrices of bfloat16 (AMX): torch is slower in it "
            "than in float32"
        )
    return torch.bfloat16 if asked == "bfloat16" else torch.float32


def _multiplies_bfloat16() -> bool:
    """Whether this processor has matrices of it; taken for granted where torch cannot say."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    # AVX-512 BF16 alone is no gain.
    return found.get("architecture") != "x86_64" or bool(found.get("amx_bf16"))
