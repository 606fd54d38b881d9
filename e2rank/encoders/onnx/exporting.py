"""A module to a graph, by torch's exporter: arrays of any length, no talk."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx
import torch

OPSET = 20


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
    """
    free = {name: torch.export.Dim.DYNAMIC for each in axes.values() for name in each}
    shapes = [{place: free[axis] for place, axis in enumerate(axes[name])} for name in examples]
    fixed, rest = tuple(shapes[:named]), tuple(shapes[named:]) if named is not None else ()
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
    assert program is not None  # noqa: S101
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk of its own insides; what it gives is compared with the model."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
