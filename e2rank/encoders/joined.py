"""Encoders of several models by name: "minilm+splade-tiny+colbert-small"."""

import logging
from importlib.util import find_spec
from pathlib import Path

from e2rank.encoders import DType
from e2rank.encoders.combined import JOIN, Combined, SparseModel, TokenModel
from e2rank.encoders.presets import load_encoder, local_model, split_terms
from e2rank.errors import MissingExtra

_log = logging.getLogger("e2rank")

# Names of models that `make models` writes, and their folders.
_SPARSE = {"splade-tiny": "splade-tiny"}
_TOKENS = {"colbert-small": "answerai-colbert-small-v1"}


def load_combined(name: str, *, device: str | None = None, dtype: DType | None = None) -> Combined:
    """The encoder of a name such as "minilm+splade-tiny+colbert-small".

    Args:
        name: names of a dense, a sparse and a token model, joined by "+"; the last two may be
            empty. See `sparse_model`, which takes a number of terms too, and `token_model`.
        device: a torch device; None takes the GPU when there is one.
        dtype: of the dense model, see `load_encoder`; the others compute in float32.
    Raises:
        ValueError: if there are more than three, no dense one, or one cannot be loaded.
        MissingExtra: if the package that runs a model is not installed.
    """
    dense, *rest = name.split(JOIN)
    if not dense or len(rest) > 2:
        raise ValueError(
            f"{name!r} is no name of joined models; expected DENSE+SPARSE, DENSE+SPARSE+TOKENS or "
            "DENSE++TOKENS"
        )
    sparse, tokens = [*rest, ""][:2]
    return Combined(
        load_encoder(dense, device=device, dtype=dtype),
        sparse_model(sparse, device=device) if sparse else None,
        token_model(tokens, device=device) if tokens else None,
    )


def sparse_model(name: str, *, device: str | None = None) -> SparseModel:
    """`splade-tiny` (see `make models`), or a SparseEncoder's folder or name on a hub.

    A number behind a colon is how many terms of a document are kept at most, those of largest
    weight: "splade-tiny:1000". Without one it is 128, which a line of the log says.
    """
    _need_sentence_transformers()
    from e2rank.encoders.splade import SpladeEncoder

    alone, terms = split_terms(name)
    called, source = _named(alone, _SPARSE)
    if terms is not None:
        return SpladeEncoder.load(f"{called}:{terms}", source, sparse_terms=terms, device=device)
    made = SpladeEncoder.load(called, source, device=device)
    _log.info(
        "%s: of a document the %d terms of largest weight are kept; %s:1000 would keep 1000",
        *(called, made.contract.sparse_terms, called),
    )
    return made


def token_model(name: str, *, device: str | None = None) -> TokenModel:
    """`colbert-small` (see `make models`), or a MultiVectorEncoder's folder or name on a hub."""
    _need_sentence_transformers()
    from e2rank.encoders.colbert import ColbertEncoder

    return ColbertEncoder.load(*_named(name, _TOKENS), device=device)


def _need_sentence_transformers() -> None:
    for module in ("torch", "sentence_transformers"):
        if find_spec(module) is None:
            raise MissingExtra(module, extra="torch")


def _named(name: str, known: dict[str, str]) -> tuple[str, str]:
    """The name that an index keeps, and where the model is."""
    if name in known:
        return name, str(local_model(known[name]))
    if Path(name).is_dir():
        # The whole path, so that an index made here opens elsewhere on this machine.
        whole = str(Path(name).resolve())
        return whole, whole
    # A bare word is a misspelt name far more often than a model: say so before any download.
    if "/" not in name:
        raise ValueError(
            f"unknown model {name!r}: known here are {', '.join(known)}; anything else is a "
            "folder, or the owner/name of a sentence-transformers model"
        )
    return name, name
