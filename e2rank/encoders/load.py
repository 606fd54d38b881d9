"""Weights from disk or hub into a `TorchEncoder`."""

import json
import logging
import re
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError

from e2rank.contract import Contract, Family, Pooling
from e2rank.encoders import DType
from e2rank.encoders.backend import backend
from e2rank.encoders.torch import TorchEncoder
from e2rank.encoders.tower import position_offset, position_table

_log = logging.getLogger("e2rank")

_DECODERS = ("qwen", "llama", "mistral", "gemma", "smollm", "phi")


def load_transformer(
    name: str,
    source: str,
    contract: Contract,
    *,
    device: str | None = None,
    dtype: DType | None = None,
) -> TorchEncoder:
    """A transformers model under a known contract; see `TorchEncoder` for device and dtype.

    Raises:
        ValueError: if `source` cannot be loaded, or is not of the contract's dimension.
    """
    _quiet()
    try:
        model = transformers.AutoModel.from_pretrained(source, dtype="auto")
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"cannot load {name} from {source}: {_first_line(error)}") from error
    if model.config.hidden_size != contract.dim:
        raise ValueError(f"{source} has dimension {model.config.hidden_size}, not {contract.dim}")
    return TorchEncoder(
        name,
        model,
        backend(tokenizer),
        contract,
        device=device,
        dtype=dtype,
        padding_side=tokenizer.padding_side,
    )


def load_trained(
    folder: Path, *, device: str | None = None, dtype: DType | None = None
) -> TorchEncoder:
    """A model folder that training wrote: weights, tokenizer and contract.

    Raises:
        ValueError: if a file is missing or damaged, or they do not fit together.
    """
    try:
        fields = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no trained model: {_first_line(error)}") from error
    # The whole path, so that an index made here opens elsewhere on this machine.
    name = str(folder.resolve())
    return load_transformer(name, name, Contract.from_dict(fields), device=device, dtype=dtype)


def load_sentence_transformer(
    name: str, *, device: str | None = None, dtype: DType | None = None
) -> TorchEncoder:
    """Any sentence-transformers model; its wording, pooling and budget are read off the model.

    Its prompts named "query", and "document" or "passage", are the contract's; a line of the log
    says which they are.

    Raises:
        ValueError: if there is no such model, it gives other than dense vectors, or its pipeline
            cannot be pooled over a span or reads texts otherwise than they are read here.
    """
    loaded = _loaded(name)
    head = _head(name, loaded)
    tokenizer = loaded.tokenizer
    if getattr(tokenizer, "truncation_side", "right") != "right":
        raise ValueError(
            f"{name} cuts long texts on the {tokenizer.truncation_side}, and texts lose their end "
            "here; set truncation_side to 'right' in its tokenizer_config.json if that will do"
        )
    encoder = TorchEncoder(
        name,
        cast(torch.nn.Module, loaded[0].auto_model),
        backend(tokenizer),
        _contract(name, loaded),
        head=head,
        device=device,
        dtype=dtype,
        padding_side=tokenizer.padding_side,
    )
    _check_positions(encoder)
    _log_prompts(encoder, dict(loaded.prompts))
    _warn_of_similarity(name, loaded)
    return encoder


def _loaded(name: str) -> Any:
    import sentence_transformers

    from e2rank.encoders.saved import check_dense, has_modules, masked_language_model

    _quiet()
    try:
        check_dense(name)
        loaded = sentence_transformers.SentenceTransformer(
            name, device="cpu", model_kwargs={"dtype": "auto"}
        )
        bare = not has_modules(name)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"cannot load {name!r} as a sentence-transformers model: {_first_line(error)}"
        ) from error
    if bare:
        pooling = _pooling(name, loaded)
        _log.warning(
            "%s holds no modules.json: read as a dense model, with %s pooling and no prompts%s",
            name,
            pooling,
            f"; a SPLADE is loaded as 'minilm+{name}'" if masked_language_model(name) else "",
        )
    return loaded


def _check_positions(encoder: TorchEncoder) -> None:
    """Refuse a model that counts positions from elsewhere than is known here."""
    if not encoder.tower.counts_as_told():
        kind = cast(Any, encoder.tower.model).config.model_type
        raise ValueError(
            f"{encoder.name} is of the kind {kind!r}, which counts the positions of a text in a "
            "way that is not known here; take a model of another kind"
        )


def _log_prompts(encoder: TorchEncoder, prompts: dict[str, str | None]) -> None:
    taken = (encoder.contract.query_prefix, encoder.contract.document_prefix)
    unused = sorted(key for key, text in prompts.items() if text and text not in taken)
    level = logging.WARNING if unused and not any(taken) else logging.INFO
    _log.log(
        level,
        "%s: its prompt named query, %r, stands before queries, the one named document or passage, "
        "%r, before documents; not used: %s",
        encoder.name,
        *taken,
        ", ".join(unused) or "none",
    )


def _warn_of_similarity(name: str, loaded: Any) -> None:
    """Say where a model's own similarity may rank otherwise than cosines do."""
    similarity = str(loaded.similarity_fn_name)
    # Of unit vectors these two rank as cosines.
    unit = any(type(each).__name__ == "Normalize" for each in loaded)
    if similarity != "cosine" and not (unit and similarity in ("dot", "euclidean")):
        _log.warning(
            "%s was made for %s similarity of vectors as they are, and is searched here by cosine, "
            "which may rank otherwise: measure it, or take a model that is made for cosine",
            name,
            similarity,
        )


def _contract(name: str, loaded: Any) -> Contract:
    kind = loaded[0].auto_model.config.model_type
    family: Family = "decoder" if kind.startswith(_DECODERS) else "bidirectional"
    prompts = dict(loaded.prompts)
    budget = min(loaded.max_seq_length or 512, 8192, _positions(loaded[0].auto_model))
    return Contract(
        family=family,
        pooling=_pooling(name, loaded),
        dim=loaded.get_embedding_dimension(),
        query_prefix=prompts.get("query", ""),
        document_prefix=prompts.get("document", "") or prompts.get("passage", ""),
        query_tokens=budget,
        document_tokens=budget,
        prompt_tokens=max(budget, 2048),
    )


def _positions(model: torch.nn.Module) -> int:
    """How many tokens a model has positions for; 8192 where they are in no table."""
    table = position_table(model)
    return 8192 if table is None else table.weight.shape[0] - position_offset(model)


def _pooling(name: str, loaded: Any) -> Pooling:
    if any(not getattr(each, "include_prompt", True) for each in loaded):
        raise ValueError(f"{name} pools without its prompt, which is not supported")
    known: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
    mode = next((each.pooling_mode for each in loaded if hasattr(each, "pooling_mode")), None)
    if mode not in known:
        raise ValueError(
            f"{name} pools by {mode!r}, and e2rank by {', '.join(known)} only: take a model that "
            "pools by one of these, or pass an Encoder of your own that runs this one"
        )
    return known[mode]


def _head(name: str, loaded: Any) -> torch.nn.Module | None:
    """What stands between pooling and normalisation: nothing, or Dense layers and a cut."""
    modules = list(loaded)
    kinds = [type(each).__name__ for each in modules]
    if not re.fullmatch(r"Transformer Pooling( Dense)*( Normalize)*", " ".join(kinds)):
        raise ValueError(
            f"{name} has the modules {kinds}; expected Transformer, Pooling, any number of Dense, "
            "and Normalize at the end, if at all"
        )
    for each in modules[2:]:
        names = (each.module_input_name, each.module_output_name)
        if set(names) != {"sentence_embedding"}:
            raise ValueError(
                f"{name} has a {type(each).__name__} from {names[0]!r} to {names[1]!r}; expected "
                "it to read and write 'sentence_embedding'"
            )
    if any(getattr(each, "use_residual", False) for each in modules):
        raise ValueError(f"{name} has a Dense layer with a residual, which is not supported")
    if "message" in modules[0].modality_config:
        raise ValueError(
            f"{name} is read through a chat template by sentence-transformers; expected a model "
            "that reads plain text"
        )
    layers: list[torch.nn.Module] = [
        torch.nn.Sequential(each.linear, each.activation_function)
        for each in modules
        if type(each).__name__ == "Dense"
    ]
    with loaded.truncate_embeddings(None):
        width = loaded.get_embedding_dimension()
    if (dim := loaded.get_embedding_dimension()) < width:
        layers.append(FirstComponents(dim))
    return torch.nn.Sequential(*layers) if layers else None


class FirstComponents(torch.nn.Module):
    """The first components of a vector: those that a model trained for it can do with."""

    def __init__(self, dim: int) -> None:
        """Keep the first `dim`."""
        super().__init__()
        self.dim = dim

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(n, dim) of (n, width)."""
        return vectors[:, : self.dim]

    def extra_repr(self) -> str:
        """Shown by the module, and so part of a model's digest."""
        return str(self.dim)


def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
