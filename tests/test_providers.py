"""What runs a graph is what was asked for, whatever onnxruntime does of itself."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from e2rank.encoders.onnx import sessions
from e2rank.encoders.onnx.sessions import CPU, Sessions

CUDA = "CUDAExecutionProvider"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph that gives back what it is fed with."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    made = helper.make_graph([node], "same", ends[:1], ends[1:])
    opset = helper.make_opsetid("", 18)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(made, opset_imports=[opset], ir_version=10), path)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """An onnxruntime that lists CUDA and then starts on the CPU; the providers it was asked for."""
    sessions._loaded.cache_clear()
    real, found = onnxruntime.InferenceSession, []

    def start(*given: Any, providers: list[Any], **options: Any) -> Any:
        found.append(providers)
        return real(*given, providers=[CPU], **options)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    return found


def test_a_provider_that_does_not_start_is_refused(graph: Path, asked: list[list[Any]]) -> None:
    with pytest.raises(ValueError, match=rf"{CUDA} did not start .* fell back to {CPU}"):
        Sessions(graph, provider=CUDA, threads=None)
    # Without TF32: a bundle of float32 keeps its word on a GPU, too.
    assert asked == [[(CUDA, {"use_tf32": "0"})]]


def test_a_processor_that_is_asked_for_gets_no_other_provider(
    graph: Path, asked: list[list[Any]]
) -> None:
    started = Sessions(graph, provider=CPU, threads=2)
    assert (started.on_cpu, started.takes, started.gives) == (True, {"x": ("n",)}, ("y",))
    assert started.bulk is not None
    assert asked == [[(CPU, {})], [(CPU, {})]]


@pytest.mark.parametrize(("provider", "times"), [(CUDA, 1), (CPU, 0)])
def test_libraries_of_cuda_that_wheels_bring_are_loaded_for_it_alone(
    provider: str,
    times: int,
    graph: Path,
    asked: list[list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = []

    def preload_dlls() -> None:
        loaded.append(provider)
        sys.stdout.write("Failed to load libcudnn.so.9\n")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls, raising=False)
    expected = pytest.raises(ValueError, match=r"gpu\[cuda,cudnn\].* Failed to load libcudnn.so.9")
    with expected if provider == CUDA else nullcontext():
        Sessions(graph, provider=provider, threads=1)
    assert loaded == [provider] * times
    assert capsys.readouterr().out == ""
