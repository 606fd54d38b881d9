"""A module to a graph, by torch's exporter: arrays of any length, no talk."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx
import torch

OPSET = 20

_TALKING = ("torch.onnx", "onnxscript", "onnx_ir")


def exported(
    module: torch.nn.Module,
    examples: Mapping[str, torch.Tensor],
    axes: Mapping[str, tuple[str, ...]],
    outputs: Sequence[str],
    *,
    named: int | None = None,
) -> onnx.ModelProto:
    """The float32 graph of a module.

    Args:
        module: in evaluation.
        examples: its inputs by name, in their order.
        axes: for each input, the names of its first axes, which may have any length.
        outputs: names of what it gives.
        named: how many inputs its `forward` names, the others being `*rest`; None for all.
    Raises:
        ValueError: for a model that the exporter cannot take.
    """
    free = {name: torch.export.Dim.DYNAMIC for each in axes.values() for name in each}
    shapes = [{place: free[axis] for place, axis in enumerate(axes[name])} for name in examples]
    fixed, rest = tuple(shapes[:named]), tuple(shapes[named:]) if named is not None else ()
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(examples.values()),
                None,
                input_names=list(examples),
                output_names=list(outputs),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(*fixed, rest) if rest else fixed,
                verbose=False,
            )
    except Exception as error:
        # Its errors have no class in common, and hold the whole graph.
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ValueError(
            f"torch {torch.__version__} cannot export this model to ONNX, use it on PyTorch: "
            f"{type(error).__name__}: {said.strip()[:200]}"
        ) from error
    assert program is not None  # noqa: S101
    return _named_axes(program.model_proto, axes)


def _named_axes(model: onnx.ModelProto, axes: Mapping[str, tuple[str, ...]]) -> onnx.ModelProto:
    """`model` itself, its axes of any length named as asked, where the exporter numbers them."""
    graph = model.graph
    names = {
        axis.dim_param: name
        for given in graph.input
        for axis, name in zip(_axes_of(given), axes[given.name], strict=False)
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in _axes_of(value):
            if axis.dim_param:
                # It may be made of several, such as their product.
                named = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), axis.dim_param)
                axis.dim_param = named
    return model


def _axes_of(value: onnx.ValueInfoProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk of its own insides; what it gives is compared with the model."""
    logs = [logging.getLogger(name) for name in _TALKING]
    before = [each.level for each in logs]
    for each in logs:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(logs, before, strict=True):
            each.setLevel(level)
