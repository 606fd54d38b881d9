"""One encoder of several models: dense vectors of one, sparse and token vectors of others."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast

import numpy as np

from e2rank.contract import Contract
from e2rank.documents import SparseVectors
from e2rank.encoders import (
    Encoder,
    Encoding,
    Want,
    check_wanted,
    encode_sparse_queries,
    sparse_fingerprint,
    token_fingerprint,
)

JOIN = "+"


class SparseModel(Protocol):
    """Gives sparse vectors: `SpladeEncoder`, or any `Encoder` that has them."""

    @property
    def name(self) -> str: ...

    @property
    def contract(self) -> Contract: ...

    @property
    def sparse_fingerprint(self) -> str: ...

    def encode_documents(self, texts: Sequence[str]) -> Encoding: ...

    def sparse_queries(self, texts: Sequence[str]) -> SparseVectors: ...


class TokenModel(Protocol):
    """Gives token vectors: `ColbertEncoder`, or any `Encoder` that has them."""

    @property
    def name(self) -> str: ...

    @property
    def contract(self) -> Contract: ...

    @property
    def token_fingerprint(self) -> str: ...

    def blend(self) -> tuple[float, float]: ...

    def encode_documents(self, texts: Sequence[str]) -> Encoding: ...

    def encode_queries(self, texts: Sequence[str]) -> Encoding: ...


class Combined:
    """An encoder whose sparse or token vectors are those of separate models.

    Dense vectors, prompts and the fingerprint that dense vectors are reused by are the dense
    encoder's; so are sparse and token vectors where no model is given for them and it has some.
    With a separate model for token vectors, `rerank=True` means late interaction.

    The name is the parts' names joined by "+", in the order dense, sparse, tokens, with nothing
    where there is none: "minilm+splade-tiny", "minilm++colbert-small". `load_encoder` reads it.
    """

    def __init__(
        self, dense: Encoder, sparse: SparseModel | None = None, tokens: TokenModel | None = None
    ) -> None:
        """Put models together.

        Args:
            dense: an encoder of any kind.
            sparse: whose sparse vectors to give instead of the dense encoder's.
            tokens: whose token vectors to give instead of the dense encoder's.
        Raises:
            ValueError: if a part's name holds a "+": the whole could not be loaded by its name.
        """
        names = [each.name if each else "" for each in (dense, sparse, tokens)]
        for name in names:
            if JOIN in name:
                raise ValueError(
                    f"the model {name!r} has {JOIN!r} in its name, which joins the names of "
                    "models; give it another name, or rename its folder"
                )
        self.name = JOIN.join(names).rstrip(JOIN)
        self.dense = dense
        self.sparse: Any = sparse or dense
        self.tokens: Any = tokens or dense
        self.fingerprint = dense.fingerprint
        self.sparse_fingerprint = sparse_fingerprint(cast(Encoder, self.sparse))
        self.token_fingerprint = token_fingerprint(cast(Encoder, self.tokens))
        fields: dict[str, Any] = {}
        if sparse:
            given = sparse.contract
            fields |= {"sparse_dim": given.sparse_dim, "sparse_terms": given.sparse_terms}
        if tokens:
            fields |= {"token_dim": tokens.contract.token_dim, "rerank": "tokens"}
            if dense.contract.rerank != "tokens":
                # Its weight is that of its listwise prompts.
                fields["fusion_weight"] = tokens.contract.weight_of("tokens")
        self.contract = dataclasses.replace(dense.contract, **fields)

    @property
    def document_budgets(self) -> tuple[int, ...]:
        """How many tokens of a document its models read, each number once, ascending."""
        budgets = {
            budget
            for part in (self.dense, self.sparse, self.tokens)
            for budget in getattr(part, "document_budgets", (part.contract.document_tokens,))
        }
        return tuple(sorted(budgets))

    @property
    def words(self) -> Any:
        """The dense encoder's tokenizer, by which documents are split; None if it has none."""
        return getattr(self.dense, "words", None)

    @property
    def adapted(self) -> bool:
        """Whether its dense part was adapted to an index."""
        return bool(getattr(self.dense, "adapted", False))

    @property
    def adapter_fingerprint(self) -> str:
        """What identifies the dense encoder's adapter; "" without one."""
        return str(getattr(self.dense, "adapter_fingerprint", ""))

    def blend(self) -> tuple[float, float]:
        """What MaxSim and cosine are multiplied with in a late-interaction score.

        Raises:
            ValueError: if there are no token vectors.
        """
        check_wanted(self, ["tokens"])
        return cast(TokenModel, self.tokens).blend()

    def encode_documents(
        self, texts: Sequence[str], want: Collection[Want] | None = None
    ) -> Encoding:
        """The vectors of n documents.

        Args:
            texts: n documents.
            want: which of "dense", "sparse" and "tokens" to make; None for all. A model that
                nothing is wanted of does not run; without its dense vectors, `vectors` is (n, 0).
        Raises:
            ValueError: if the encoder does not give what is wanted.
            EncodingError: if a model gives a NaN or an infinity.
        """
        check_wanted(self, want)
        wanted = _kinds(self.contract) if want is None else set(want)
        kinds: dict[Want, Any] = {
            "dense": self.dense,
            "sparse": self.sparse,
            "tokens": self.tokens,
        }
        own: set[Want] = {kind for kind in wanted if kinds[kind] is self.dense}
        others: set[Want] = wanted - own
        read: dict[Want, Encoding] = {
            kind: kinds[kind].encode_documents(texts) for kind in sorted(others)
        }
        if own:
            read |= dict.fromkeys(own, self._of_dense(texts, own))
        return _merged(len(texts), read)

    def encode_queries(
        self, texts: Sequence[str], want: Collection[Want] | None = None
    ) -> Encoding:
        """The vectors of n queries, with token vectors where there are any.

        Args:
            texts: n queries.
            want: "dense", "tokens" or both; None for all there is. See `encode_documents`.
        Raises:
            ValueError: if the encoder does not give what is wanted; `sparse_queries` gives the
                sparse vectors of queries.
            EncodingError: if a model gives a NaN or an infinity.
        """
        check_wanted(self, want)
        if want is not None and "sparse" in want:
            raise ValueError("queries have their sparse vectors of sparse_queries; leave it out")
        wanted = _kinds(self.contract) - {"sparse"} if want is None else set(want)
        read: dict[Want, Encoding] = {}
        if "dense" in wanted or self.tokens is self.dense:
            read["dense"] = self.dense.encode_queries(texts)
        if "tokens" in wanted:
            separate = self.tokens is not self.dense
            read["tokens"] = self.tokens.encode_queries(texts) if separate else read["dense"]
        return _merged(len(texts), {kind: read[kind] for kind in wanted})

    def sparse_queries(self, texts: Sequence[str]) -> SparseVectors:
        """The sparse vectors of n queries.

        Raises:
            ValueError: if there are no sparse vectors.
            EncodingError: if the model gives a NaN or an infinity.
        """
        check_wanted(self, ["sparse"])
        return cast(SparseModel, self.sparse).sparse_queries(texts)

    def encode_sparse_queries(self, texts: Sequence[str]) -> Encoding:
        """The same beside vectors of (n, 0), and what reading them took.

        Raises:
            ValueError: if there are no sparse vectors.
            EncodingError: if the model gives a NaN or an infinity.
        """
        check_wanted(self, ["sparse"])
        return encode_sparse_queries(self.sparse, texts)

    def encode_prompts(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]]
    ) -> Encoding:
        """As the dense encoder does."""
        return self.dense.encode_prompts(queries, documents)

    def encode_vector_prompts(
        self, queries: Sequence[str], asked: np.ndarray, vectors: Sequence[np.ndarray]
    ) -> Encoding:
        """As the dense encoder does, if it was trained to: its contract says so."""
        dense: Any = self.dense
        return cast(Encoding, dense.encode_vector_prompts(queries, asked, vectors))

    def _of_dense(self, texts: Sequence[str], own: set[Want]) -> Encoding:
        """Only an encoder that gives more than one kind has to know what is wanted."""
        if own == _kinds(self.dense.contract):
            return self.dense.encode_documents(texts)
        dense: Any = self.dense
        return cast(Encoding, dense.encode_documents(texts, want=own))


def _kinds(contract: Contract) -> set[Want]:
    dims: dict[Want, int] = {
        "dense": contract.dim,
        "sparse": contract.sparse_dim,
        "tokens": contract.token_dim,
    }
    return {kind for kind, dim in dims.items() if dim}


def _merged(count: int, read: dict[Want, Encoding]) -> Encoding:
    """One encoding of what each kind was read from; a model read once is counted once."""
    once = {id(each): each for each in read.values()}.values()
    return Encoding(
        read["dense"].vectors if "dense" in read else np.zeros((count, 0), dtype=np.float32),
        tokens=sum(each.tokens for each in once),
        truncated=tuple(sorted({place for each in once for place in each.truncated})),
        token_vectors=read["tokens"].token_vectors if "tokens" in read else (),
        sparse=read["sparse"].sparse if "sparse" in read else None,
        calls=sum(each.calls for each in once),
    )
