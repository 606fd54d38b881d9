"""From an encoder on PyTorch to a bundle that is refused unless it agrees."""

import dataclasses
import importlib.metadata
import io
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch

from e2rank.durable import naming
from e2rank.encoders.combined import JOIN, Combined
from e2rank.encoders.judged import Judge
from e2rank.encoders.onnx import gate
from e2rank.encoders.onnx.bundle import (
    CARD,
    CONTRACT,
    DIRECTIONS,
    PARITY,
    SPARSE_QUERIES,
    TOKENIZER,
    Bundle,
    save_json,
)
from e2rank.encoders.onnx.card import card_of
from e2rank.encoders.onnx.exporting import OPSET
from e2rank.encoders.onnx.float16 import MOST, largest, to_float16
from e2rank.encoders.onnx.graph import Parts, graph_of
from e2rank.encoders.onnx.layers import layer_inputs
from e2rank.encoders.onnx.observed import observed
from e2rank.encoders.onnx.placing import in_place_when_whole
from e2rank.encoders.onnx.quantise import to_int8
from e2rank.encoders.onnx.reshaping import without_double_reshapes
from e2rank.encoders.onnx.runtime import OnnxEncoder
from e2rank.encoders.onnx.samples import real_texts, sample_texts
from e2rank.encoders.onnx.sparse_graph import sparse_graph_of
from e2rank.encoders.onnx.unpadded import without_mask_where_unpadded
from e2rank.encoders.onnx.wanted import heads_when_wanted
from e2rank.encoders.onnx.writing import write_graph
from e2rank.encoders.tokens import Tokens, Wording
from e2rank.encoders.torch import TorchEncoder

Precision = Literal["fp32", "fp16", "int8"]

_PACKAGES = ("e2rank", "torch", "transformers", "onnx")

# Texts beside the real ones that int8 is set by; each is read as a query too.
_CALIBRATED = 48

# Of those, one in so many shows how far a transformer's tensors reach.
_RANGED = 4


def export_onnx(
    encoder: TorchEncoder,
    folder: str | Path,
    *,
    precision: Precision = "fp32",
    texts: Sequence[str] | None = None,
    judge: Judge | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Write an encoder as a bundle: graphs, tokenizer, contract and parity report.

    The graphs hold the whole path from token ids to unit vectors, with the adapter's weights
    merged in; only what terms add to a query in an adapted index is a table beside them. They are
    compared with the encoder before the folder is there.

    Args:
        encoder: on the CPU, in float32.
        folder: new or empty.
        precision: "fp32"; "int8" for CPUs; "fp16" for GPUs.
        texts: to compare on, at least two that differ and have a token, blanks and repeats left
            out; paragraphs of Wikipedia, questions on them and made-up texts of all lengths unless
            given. int8 is set by the former, and by some of the others.
        judge: measures what the export does to the rankings of a judged collection:
            `judging(load_beir("scifact"))`, of `e2rank.evaluate`.
        name: what the bundle is called, by its card and by a server; the encoder's own, or that of
            its folder, unless given.
    Returns:
        The parity report.
    Raises:
        ExportRefused: if the export gives other vectors than the encoder, or worse rankings, or
            float16 cannot hold what the model makes of texts and of prompts of them.
        FileExistsError: if the folder is not empty.
        ValueError: for an unknown precision, texts that tell nothing, an encoder that cannot be
            exported, or a folder that cannot be replaced.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; expected fp32, fp16 or int8")
    if not isinstance(encoder, TorchEncoder):
        raise ValueError(_why_not(encoder))
    if encoder.device.type != "cpu" or encoder.dtype != torch.float32:
        raise ValueError(
            f"the encoder computes on {encoder.device} in {encoder.dtype}; expected one on the CPU "
            "in float32: load it with device='cpu', dtype='float32'"
        )
    if isinstance(texts, str):
        raise ValueError("texts is one string; expected several")
    if texts is None:
        ours = [*sample_texts(), *chain(*real_texts())]
        given = [each for each in ours if _has_tokens(encoder.words, each)]
    else:
        given = _telling(encoder.words, list(texts))
    with in_place_when_whole(Path(folder)) as side:
        bundle = _write(encoder, side, precision, given, _own_name(name or encoder.name))
        bundle.save(side)
        bounds = gate.BOUNDS[precision]
        export = _Uncompared(side)
        report = gate.compare(encoder, export, given, bounds)
        if judge is not None:
            judged = judge(encoder, export)
            gate.check_judged(judged, bounds)
            report["judged"] = dataclasses.asdict(judged)
        save_json(side, PARITY, report)
        _write_text(side / CARD, card_of(export.bundle, encoder.contract, export.inputs(), report))
        bundle.save(side)
    return report


def _why_not(encoder: object) -> str:
    """Why something else than an encoder on PyTorch is not exported, and what to do."""
    if isinstance(encoder, OnnxEncoder):
        return (
            f"{encoder.name} was exported already: export the model that it was made from, "
            f"{encoder.bundle.name!r}"
        )
    if not isinstance(encoder, Combined):
        return f"{type(encoder).__name__} is no encoder on PyTorch; only those are exported"
    dense, *others = encoder.name.split(JOIN)
    return (
        f"{encoder.name} is of several models, and only the dense one can be exported: export "
        f"{dense!r} alone, then load {JOIN.join(['FOLDER', *others])!r}, FOLDER being the bundle's"
    )


class _Uncompared(OnnxEncoder):
    """A bundle that is being written, which nobody else may open."""

    compared = False

    def inputs(self) -> dict[str, tuple[int | str, ...]]:
        """Names and shapes of what the graph of documents takes."""
        return self._documents.takes


def _own_name(name: str) -> str:
    """A name as it is; of a folder, which is one of this machine, the last part."""
    return Path(name).name if Path(name).is_dir() or Path(name).is_absolute() else name


def _write(
    encoder: TorchEncoder, side: Path, precision: Precision, texts: Sequence[str], name: str
) -> Bundle:
    parts = Parts.of(encoder)
    documents = queries = "model.onnx"
    read = _calibration(encoder.words, texts) if precision != "fp32" else []
    if precision == "fp16":
        read = [*read[::_RANGED], *_prompts(encoder.words)]
    _save_graph(graph_of(parts.documents, parts), side / documents, precision, read)
    if parts.asking is not parts.documents:
        queries = "query.onnx"
        _save_graph(graph_of(parts.asking, parts), side / queries, precision, read)
    sparse = ""
    if parts.sparse is not None:
        sparse, most = "sparse.onnx", encoder.contract.sparse_terms
        graph = sparse_graph_of(parts.sparse, encoder.words.special(), most)
        _save_head(graph, side / sparse, precision)
        _save_array(side / SPARSE_QUERIES, parts.sparse.query_weights())
    directions = encoder.adapter.directions() if encoder.adapter else None
    if directions is not None:
        with naming(side / DIRECTIONS):
            directions.save(side / DIRECTIONS)
    _write_text(side / TOKENIZER, encoder.words.identity())
    save_json(side, CONTRACT, encoder.contract.to_dict())
    return Bundle(
        name=name,
        precision=precision,
        fingerprint=encoder.fingerprint,
        token_fingerprint=encoder.token_fingerprint,
        sparse_fingerprint=encoder.sparse_fingerprint,
        adapter_fingerprint=encoder.adapter_fingerprint,
        blend=encoder.blend() if encoder.contract.token_dim else (),
        padding=encoder.tower.side,
        documents=documents,
        queries=queries,
        sparse=sparse,
        opset=OPSET,
        versions=_versions(),
    )


def _write_text(path: Path, text: str) -> None:
    with naming(path):
        path.write_text(text, encoding="utf-8")


def _save_array(path: Path, array: np.ndarray) -> None:
    # Of a file it writes into numpy's error would not say what the system said.
    written = io.BytesIO()
    np.save(written, array)
    with naming(path):
        path.write_bytes(written.getvalue())


def _versions() -> dict[str, str]:
    import onnxruntime

    # Its package is onnxruntime, onnxruntime-gpu or another.
    found = {each: importlib.metadata.version(each) for each in _PACKAGES}
    return found | {"onnxruntime": onnxruntime.__version__}


def _calibration(words: Wording, texts: Sequence[str]) -> list[Tokens]:
    """What int8 is set by, and float16 tried on: real texts, some given, some of every length."""
    paragraphs, questions = real_texts()
    made_up = [each for each in dict.fromkeys(sample_texts()) if _has_tokens(words, each)]
    ours = {*made_up, *paragraphs, *questions}
    own = [text for text in dict.fromkeys(texts) if text not in ours]
    some = [text for each in (made_up, own) for text in each[:: max(1, len(each) // _CALIBRATED)]]
    return [
        *words.documents([*paragraphs, *some]),
        *words.queries([*questions, *(text[:60] for text in some)]),
    ]


def _telling(words: Wording, texts: Sequence[str]) -> list[str]:
    """The texts that tell one encoder from another: no repeat, none without a token of its own.

    Raises:
        ValueError: if one is no text, or fewer than two are left.
    """
    words.documents(texts)  # refuses, by its place, what is none
    told = dict(zip(texts, words.terms(texts), strict=True))
    left = [text for text, terms in told.items() if terms and text.strip()]
    if len(left) < 2:
        raise ValueError(
            "an export is compared on texts that differ and have a token; expected at least 2, "
            f"got {len(left)} among {len(texts)}"
        )
    return left


def _has_tokens(words: Wording, text: str) -> bool:
    """Whether a text, and the least of it that is compared, is more than nothing to a tokenizer."""
    try:
        words.documents([text])
        words.queries([text[:20]])
    except ValueError:
        return False
    return True


def _prompts(words: Wording) -> list[Tokens]:
    """A few listwise prompts of real texts; none where the tokenizer cannot write them."""
    paragraphs, questions = real_texts()
    some = range(0, 12, 4)
    lists = [paragraphs[place : place + 4] for place in some]
    try:
        return words.prompts([questions[place] for place in some], lists)
    except ValueError:
        return []


def _save_graph(
    model: onnx.ModelProto, path: Path, precision: Precision, read: Sequence[Tokens]
) -> None:
    if precision == "fp16":
        name, most = largest(model, read)
        if not most <= MOST:
            raise gate.ExportRefused(
                f"the export is refused: {name} reaches {most:.6g} and float16 ends at {MOST:.0f}; "
                "export it in fp32"
            )
        model = to_float16(model)
    elif precision == "int8":
        model = to_int8(model, observed(model, layer_inputs(model), read))
    _forget_source(model)
    if precision == "fp16":
        write_graph(without_double_reshapes(model), path)
        return
    model = without_double_reshapes(without_mask_where_unpadded(model))
    write_graph(heads_when_wanted(model), path)


def _save_head(model: onnx.ModelProto, path: Path, precision: Precision) -> None:
    if precision == "int8":
        model = to_int8(model, head=True)
    _forget_source(model)
    write_graph(model, path)


def _forget_source(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes, which hold paths of this machine and lines of source."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for each in (model, graph, *graph.node, *values):
        del each.metadata_props[:]
        each.doc_string = ""
