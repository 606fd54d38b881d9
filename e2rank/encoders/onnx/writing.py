"""A graph to a file, its weights beside it where they do not fit in."""

from pathlib import Path

import onnx

from e2rank.durable import naming

# Protocol buffers end at 2 GB: above this the weights lie in a file of their own.
_INSIDE = 1_500_000_000


def write_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph; `model` may have lost its weights to the file beside it.

    Raises:
        OSError: if it was not written.
    """
    size = sum(_bytes(each) for each in model.graph.initializer)
    with naming(path):
        onnx.save_model(
            model,
            path,
            save_as_external_data=size > _INSIDE,
            all_tensors_to_one_file=True,
            location=f"{path.name}.data",
        )
    if not path.is_file():
        raise OSError(f"{path} was not written")


def _bytes(tensor: onnx.TensorProto) -> int:
    each = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    count = 1
    for length in tensor.dims:
        count *= length
    return count * each
