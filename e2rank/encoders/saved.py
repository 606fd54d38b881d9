"""Of which kind a checkpoint of sentence-transformers is, and those of other than dense vectors."""

import json
from pathlib import Path
from typing import Any, cast

import transformers
from safetensors import SafetensorError
from sentence_transformers.util import load_file_path

# What a model of a kind was saved as; where that was not kept, how its architecture's name ends.
_SAVED = {
    "SparseEncoder": ("SparseEncoder",),
    "MultiVectorEncoder": ("MultiVectorEncoder", "ColBERT"),
}
_ENDS = {"SparseEncoder": ("ForMaskedLM",), "MultiVectorEncoder": ("HF_ColBERT", "ForRetrieval")}

# The same for a model that reads a query and a document at once.
_PAIRS = "CrossEncoder"
_PAIRS_END = "ForSequenceClassification"

# How each kind is opened here.
_DOORS = {
    "SparseEncoder": "joined to a dense encoder, load_encoder('minilm+{name}')",
    "MultiVectorEncoder": "joined to a dense encoder, load_encoder('minilm++{name}')",
    _PAIRS: "as a reranker, CrossEncoderReranker('{name}')",
}

# Modules that cannot be made without their folder.
_STORED = ("Pooling", "Dense")


def load_model(kind: type, name: str, source: str) -> Any:
    """A SparseEncoder or a MultiVectorEncoder on the CPU, in the dtype of its file.

    Raises:
        ValueError: if there is no such model, or it was not trained as one of this kind:
            sentence-transformers would put a layer of random weights on it.
    """
    transformers.utils.logging.disable_progress_bar()
    what = kind.__name__
    try:
        model = kind(source, device="cpu", model_kwargs={"dtype": "auto"})
        found = _model_type(source)
    except (OSError, ValueError, SafetensorError) as error:
        reason = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise ValueError(f"cannot load {name} as a {what}: {reason}") from error
    if found is None:
        config = getattr(getattr(model[0], "auto_model", None), "config", None)
        architectures = getattr(config, "architectures", None) or [""]
        trained = str(architectures[0]).endswith(_ENDS[what])
    else:
        trained = found in _SAVED[what]
    if not trained:
        raise ValueError(
            f"{name} is no {what}{f' but a {found}' if found else ''}: "
            "expected a model that was trained as one"
        )
    return model


def has_modules(source: str) -> bool:
    """Whether sentence-transformers saved the model, or it is one of transformers alone."""
    return load_file_path(source, "modules.json") is not None


def masked_language_model(source: str) -> bool:
    """Whether a model of transformers alone ends in what SPLADE is made of."""
    return _architecture(source).endswith(_ENDS["SparseEncoder"])


def check_dense(source: str) -> None:
    """Refuse what sentence-transformers would make a mean-pooled dense model of without a word.

    Args:
        source: a folder or a name on a hub.
    Raises:
        ValueError: if the model was trained to give other than one dense vector a text, naming
            how it is loaded; or a file of its modules is missing or damaged.
    """
    if kind := _kind(source):
        door = _DOORS[kind].format(name=source)
        raise ValueError(f"it is {_named(source, kind)}; load it {door}")
    for module in _file(source, "modules.json", []):
        if module["type"].rsplit(".", 1)[-1] in _STORED:
            part = module["path"]
            if load_file_path(source, "config.json", subfolder=part) is None:
                raise ValueError(f"{part}/config.json is missing; copy the whole model again")


def _kind(source: str) -> str | None:
    """Which of `_DOORS` a model needs; None for a dense one, and for one that does not say."""
    saved = _model_type(source)
    if saved is not None or has_modules(source):
        kinds = _SAVED | {_PAIRS: (_PAIRS,)}
        return next((kind for kind, names in kinds.items() if saved in names), None)
    # Not those of SPLADE: any language model that was trained no further has them, too.
    ends = {"MultiVectorEncoder": _ENDS["MultiVectorEncoder"], _PAIRS: (_PAIRS_END,)}
    architecture = _architecture(source)
    return next((kind for kind, end in ends.items() if architecture.endswith(end)), None)


def _model_type(source: str) -> str | None:
    """What a model says it was saved as; None where it does not.

    Early versions of PyLate did not say, and are known by their modules or their settings.
    """
    saved = _file(source, "config_sentence_transformers.json", {})
    types = [str(module["type"]) for module in _file(source, "modules.json", [])]
    by_modules = any(each.startswith("pylate.models.") for each in types)
    by_settings = {"query_prefix", "query_length"} <= saved.keys()
    if "model_type" not in saved and (
        by_modules or (by_settings and any(each.endswith(".Dense") for each in types))
    ):
        return "ColBERT"
    return cast(str | None, saved.get("model_type"))


def _named(source: str, kind: str) -> str:
    if has_modules(source):
        return f"a {kind}"
    # Of transformers alone, whose name says what it ends in.
    return (
        f"{_architecture(source)}, as a {kind} is (to take its body for a dense model, save it by "
        "SentenceTransformer first)"
    )


def _architecture(source: str) -> str:
    return str((_file(source, "config.json", {}).get("architectures") or [""])[0])


def _file(source: str, name: str, otherwise: Any) -> Any:
    """What a JSON file of a model holds, or what stands for it where there is none."""
    path = load_file_path(source, name)
    return otherwise if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
