"""Sessions of onnxruntime: started as asked, or not at all."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache, cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.encoders.onnx.bundle import BundleError
from e2rank.encoders.onnx.cores import usable_cores
from e2rank.encoders.onnx.exiting import RUNS
from e2rank.errors import MissingExtra

_log = logging.getLogger("e2rank")

CPU = "CPUExecutionProvider"

# Where arrays lie for a provider that is not the CPU; of the others onnxruntime is fed from memory.
_DEVICES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
}

# Matrices of float32 would be rounded to TF32: eleven bits, and other vectors in other batches.
_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}

# A second session reads batches beside each other, where its weights are cheap to hold twice.
_TWICE = 500_000_000

# What most of a transformer's time goes into. Shapes are worked out on the CPU beside any GPU.
_WORK = ("MatMul", "Attention", "Gemm", "LayerNormalization", "Softmax", "elu")

# Two additions and a normalisation take less time than the one node made of them.
_SLOWER_ON_CPU = ["SkipLayerNormFusion"]


class Sessions:
    """One graph of a bundle on this machine: a session of all threads, and one of one thread."""

    def __init__(
        self,
        path: Path,
        *,
        provider: str,
        threads: int | None,
        check: Callable[[], object] | None = None,
    ) -> None:
        """Start it.

        Args:
            path: the graph, perhaps with a file of weights beside it.
            provider: onnxruntime's name of what runs it.
            threads: of a CPU; None takes what `usable_cores` counts.
            check: raises unless the files are what they should be; called with every start, as
                the second is perhaps hours after the first.
        Raises:
            ValueError: if onnxruntime here does not have the provider.
            BundleError: if onnxruntime does not read the graph.
            MissingExtra: if onnxruntime is not installed.
        """
        self._path, self._provider, self._check = path, provider, check
        self.threads = threads or usable_cores()
        self.on_cpu, self._device = provider == CPU, _DEVICES.get(provider)
        files = [path, path.with_name(f"{path.name}.data")]
        self._size = sum(each.stat().st_size for each in files if each.exists())
        self._one = self._session(self.threads)
        self.takes = {each.name: tuple(each.shape) for each in self._one.get_inputs()}
        """Names and shapes of the inputs; an axis of any length has a name."""
        self.gives = tuple(each.name for each in self._one.get_outputs())

    @cached_property
    def bulk(self) -> Any:
        """A session of one thread for several callers at once; None where one session will do."""
        if not self.on_cpu or self.threads == 1 or self._size > _TWICE:
            return None
        return self._session(1)

    def run(
        self, names: Sequence[str], feed: Mapping[str, Any], *, beside: bool, keep: str = ""
    ) -> list[Any]:
        """The arrays of these names.

        Args:
            names: of outputs.
            feed: arrays by the names of inputs, or what `keep` left of another graph's.
            beside: whether other calls run at the same time, with one thread for each.
            keep: an output that is only fed to another graph: on a GPU it is left there.
        """
        session = (self.bulk if beside else None) or self._one
        with RUNS.one():
            return self._run(session, names, feed, keep)

    def _run(
        self, session: Any, names: Sequence[str], feed: Mapping[str, Any], keep: str
    ) -> list[Any]:
        if self._device is None:
            return [np.asarray(each) for each in session.run(list(names), feed)]
        binding = session.io_binding()
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, self._device if name == keep else "cpu")
        session.run_with_iobinding(binding)
        made = zip(names, binding.get_outputs(), strict=True)
        return [value if name == keep else value.numpy() for name, value in made]

    def _session(self, threads: int) -> Any:
        try:
            with RUNS.one():
                return self._started(threads)
        finally:
            # Afterwards, so that it was these bytes that were read; of a start that failed, too,
            # this is the better reason.
            if self._check is not None:
                self._check()

    def _started(self, threads: int) -> Any:
        runtime = _onnxruntime(self._provider)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if self.on_cpu:
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        else:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = runtime.InferenceSession(
                str(self._path),
                options,
                providers=[(self._provider, _OPTIONS.get(self._provider, {}))],
                disabled_optimizers=_SLOWER_ON_CPU if self.on_cpu else [],
            )
        except Exception as error:
            # The library's errors have no common class of their own.
            raise BundleError(
                f"onnxruntime {runtime.__version__} cannot start {self._path}: "
                f"{' '.join(str(error).split())}"
            ) from error
        if (found := session.get_providers()[0]) != self._provider:
            raise ValueError(
                f"{self._provider} did not start and onnxruntime fell back to {found}; check its "
                "drivers and libraries (of CUDA: pip install 'onnxruntime-gpu[cuda,cudnn]'), or "
                f"pass provider='CPUExecutionProvider'. {_loaded()}".rstrip()
            )
        if not self.on_cpu and (left := left_to_cpu(session)):
            _log.warning(
                "%s: %s does not run all of it, and the CPU is left with %s; export it in another "
                "precision, or pass provider='CPUExecutionProvider'",
                self._path,
                self._provider,
                ", ".join(left),
            )
        return session


def left_to_cpu(session: Any) -> list[str]:
    """The kinds of nodes that take time and that a session runs on the CPU.

    It is known where the session was told to record it; older versions of onnxruntime cannot.
    """
    assigned: Sequence[Any] = getattr(session, "get_provider_graph_assignment_info", tuple)()
    nodes = [node for part in assigned if part.ep_name == CPU for node in part.get_nodes()]
    return sorted({each.op_type for each in nodes if any(work in each.op_type for work in _WORK)})


def _onnxruntime(provider: str) -> Any:
    """The library, which must have the provider."""
    try:
        import onnxruntime
    except ImportError:
        extra = "cpu" if provider == CPU else "gpu"
        raise MissingExtra("onnxruntime", extra=extra) from None
    found = onnxruntime.get_available_providers()
    if provider not in found:
        hint = (
            ""
            if provider not in _DEVICES
            else (
                "; uninstall onnxruntime and install 'e2rank[gpu]': the packages onnxruntime and "
                "onnxruntime-gpu overwrite each other"
            )
        )
        raise ValueError(
            f"onnxruntime {onnxruntime.__version__} here has no provider {provider!r}, it has "
            f"{', '.join(found)}{hint}"
        )
    if provider in _DEVICES:
        _loaded()
    return onnxruntime


@cache
def _loaded() -> str:
    """Load CUDA's libraries where wheels put them, as the system's loader does not look there.

    Returns:
        What onnxruntime prints of those that it misses.
    """
    import onnxruntime

    said = StringIO()
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(said):
            onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())
