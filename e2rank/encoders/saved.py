"""Checkpoints of sentence-transformers that give other than one dense vector a text."""

import json
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from sentence_transformers.util import load_file_path

# What a model of a kind was saved as; where that was not kept, how its architecture's name ends.
_SAVED = {
    "SparseEncoder": ("SparseEncoder",),
    "MultiVectorEncoder": ("MultiVectorEncoder", "ColBERT"),
}
_ENDS = {"SparseEncoder": ("ForMaskedLM",), "MultiVectorEncoder": ("HF_ColBERT", "ForRetrieval")}


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
        path = load_file_path(source, "config_sentence_transformers.json")
        saved = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, SafetensorError) as error:
        reason = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise ValueError(f"cannot load {name} as a {what}: {reason}") from error
    found = saved.get("model_type")
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
