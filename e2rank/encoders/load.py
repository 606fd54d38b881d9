"""Weights from disk or hub into a `TorchEncoder`."""

import json
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError

from e2rank.contract import Contract, Family, Pooling
from e2rank.encoders.torch import TorchEncoder

_DECODERS = ("qwen", "llama", "mistral", "gemma", "smollm", "phi")


def load_transformer(
    name: str, source: str, contract: Contract, *, device: str | None = None
) -> TorchEncoder:
    """A transformers model under a known contract.

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
        tokenizer.backend_tokenizer,
        contract,
        device=device,
        padding_side=tokenizer.padding_side,
    )


def load_trained(folder: Path, *, device: str | None = None) -> TorchEncoder:
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
    return load_transformer(name, name, Contract.from_dict(fields), device=device)


def load_sentence_transformer(name: str, *, device: str | None = None) -> TorchEncoder:
    """Any sentence-transformers model; its wording, pooling and budget are read off the model.

    Raises:
        ValueError: if there is no such model, or its pipeline cannot be pooled over a span.
    """
    import sentence_transformers

    _quiet()
    try:
        loaded = sentence_transformers.SentenceTransformer(
            name, device="cpu", model_kwargs={"dtype": "auto"}
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"cannot load {name!r} as a sentence-transformers model: {_first_line(error)}"
        ) from error
    head = _head(name, loaded)
    tokenizer = loaded.tokenizer
    return TorchEncoder(
        name,
        cast(torch.nn.Module, loaded[0].auto_model),
        tokenizer.backend_tokenizer,
        _contract(name, loaded),
        head=head,
        device=device,
        padding_side=tokenizer.padding_side,
    )


def _contract(name: str, loaded: Any) -> Contract:
    kind = loaded[0].auto_model.config.model_type
    family: Family = "decoder" if kind.startswith(_DECODERS) else "bidirectional"
    prompts = dict(loaded.prompts)
    budget = min(loaded.max_seq_length or 512, 8192)
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


def _pooling(name: str, loaded: Any) -> Pooling:
    if any(not getattr(each, "include_prompt", True) for each in loaded):
        raise ValueError(f"{name} pools without its prompt, which is not supported")
    known: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
    mode = next((each.pooling_mode for each in loaded if hasattr(each, "pooling_mode")), None)
    if mode not in known:
        raise ValueError(
            f"{name} pools by {mode!r}; a listwise prompt needs one of {', '.join(known)}"
        )
    return known[mode]


def _head(name: str, loaded: Any) -> torch.nn.Module | None:
    """What stands between pooling and normalisation: nothing, or Dense layers."""
    kinds = [type(each).__name__ for each in loaded]
    strange = [kind for kind in kinds[1:] if kind not in ("Pooling", "Dense", "Normalize")]
    if kinds[0] != "Transformer" or strange:
        raise ValueError(f"{name} has the modules {kinds}; expected Transformer, Pooling, Dense")
    if any(getattr(each, "use_residual", False) for each in loaded):
        raise ValueError(f"{name} has a Dense layer with a residual, which is not supported")
    if "message" in loaded[0].modality_config:
        raise ValueError(
            f"{name} is read through a chat template by sentence-transformers; expected a model "
            "that reads plain text"
        )
    dense = [
        torch.nn.Sequential(each.linear, each.activation_function)
        for each in loaded
        if type(each).__name__ == "Dense"
    ]
    return torch.nn.Sequential(*dense) if dense else None


def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
