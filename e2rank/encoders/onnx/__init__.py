"""Encoders exported to ONNX: `export_onnx` writes a bundle, `OnnxEncoder` runs it without torch."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from e2rank.encoders.onnx.bundle import BundleError, is_bundle
from e2rank.encoders.onnx.runtime import OnnxEncoder
from e2rank.errors import MissingExtra

if TYPE_CHECKING:
    from e2rank.encoders.onnx.export import export_onnx

__all__ = ["BundleError", "OnnxEncoder", "export_onnx", "is_bundle"]


def __getattr__(name: str) -> Any:
    # The half that writes needs torch, the half that runs must not.
    if name == "export_onnx":
        for module, extra in (("torch", "torch"), ("onnx", "export"), ("onnxscript", "export")):
            if find_spec(module) is None:
                raise MissingExtra(module, extra=extra)
        from e2rank.encoders.onnx.export import export_onnx

        return export_onnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
