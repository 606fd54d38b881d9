"""Attention as one node of onnxruntime's, instead of the dozen that an exporter writes for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

_NAME = "e2rank-onnx"

# Models whose attention is softmax(scale * q k + mask) v over all tokens, or all before.
_PLAIN = ("bert", "roberta", "xlm-roberta", "camembert", "llama", "qwen2", "qwen3")

# What another kind of attention would be asked for through.
_OTHER = ("sliding_window", "softcap", "s_aux", "head_mask")


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """(n, heads, t, d) queries, keys and values, (n, t) mask, to (n, t, heads, d)."""
    if strange := [name for name in _OTHER if options.get(name) is not None]:
        raise ValueError(f"the model's attention has {strange[0]}, which the export does not know")
    n, heads, _, d = query.shape
    each = heads // key.shape[1]
    if each > 1:
        key, value = key.repeat_interleave(each, 1), value.repeat_interleave(each, 1)
    rows = [part.transpose(1, 2).reshape(n, -1, heads * d) for part in (query, key, value)]
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    out = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [*rows, None, attention_mask.to(torch.int32)],
        {
            "num_heads": heads,
            "scale": float(d**-0.5 if scaling is None else scaling),
            "unidirectional": int(bool(causal)),
        },
        dtype=query.dtype,
        shape=rows[0].shape,
        version=1,
    )
    return out.view(n, -1, heads, d), None


def _mask(*_: Any, attention_mask: torch.Tensor, **__: Any) -> torch.Tensor:
    """The mask as it was given: (n, t)."""
    return attention_mask


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)


@contextmanager
def one_node_attention(model: Any) -> Iterator[None]:
    """A transformers model whose attention is exported as one node, where its kind is known."""
    config, before = model.config, model.config._attn_implementation
    sliding = {"full_attention"} != set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.model_type not in _PLAIN or sliding:
        yield
        return
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
