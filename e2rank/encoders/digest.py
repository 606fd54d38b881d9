"""What identifies a model: hashes of its weights, of what is done with them, and of texts."""

from collections.abc import Mapping
from typing import Any

import torch
import xxhash

from e2rank.encoders.tower import position_offset

# Fields of a config that change what is computed and leave no trace in the weights.
_SHAPE = (
    "model_type",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "layer_norm_eps",
    "rms_norm_eps",
)

# Of the other kinds that leave out the first positions, indexes were made without leaving them out.
_ALWAYS_OFFSET = ("roberta", "xlm-roberta", "mpnet", "camembert")


def model_digest(model: torch.nn.Module, head: torch.nn.Module | None) -> str:
    """Of every weight, in the dtype of its file, so that it is the same on every device.

    And of what is done with them: the same weights under another activation are another model.
    """
    config: Any = model.config
    weights = dict(model.state_dict())
    if head is not None:
        weights |= {f"head.{name}": each for name, each in head.state_dict().items()}
    shape = [f"{name}={getattr(config, name, None)}" for name in _SHAPE]
    if (offset := position_offset(model)) and config.model_type not in _ALWAYS_OFFSET:
        shape.append(f"first_position={offset}")
    return weights_digest(weights, f"{shape} {head}")


def weights_digest(weights: Mapping[str, torch.Tensor], about: str = "") -> str:
    """Of named tensors, whatever their order, and of a text."""
    state = xxhash.xxh3_64(about.encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def text_digest(text: str) -> str:
    """Of a text."""
    return xxhash.xxh3_64_hexdigest(text.encode())
