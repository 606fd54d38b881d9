"""What the folder of a bundle says of itself to a reader, and how it runs without this package."""

import json
from collections.abc import Mapping
from typing import Any

from e2rank.contract import Contract
from e2rank.encoders.judged import Judged
from e2rank.encoders.onnx.bundle import DIRECTIONS, TOKENIZER, Bundle

_MEANING = {
    "input_ids": "(n, t) int64: token ids, padded on the {side}",
    "attention_mask": "(n, t) int64: 1 for a token, 0 for padding",
    "position_ids": "(n, t) int64: 0, 1, 2 ... from a text's first token",
    "starts": "(n,) int64: the place of a text's first token",
    "stops": "(n,) int64: the place behind its last token that is pooled",
    "shown": "(k, {dim}) float32: vectors that prompts show; none for texts",
    "rows": "(k,) int64: the row of each of those",
    "columns": "(k,) int64: and its place in the row",
    "asked": "(n, {dim}) float32: the vectors of the prompts' queries; any for texts",
    "heads": "() bool: whether other outputs than `vectors` are asked for",
}
"""What the inputs of a graph are."""

_GIVEN = {
    "input_ids": "np.array([ids])",
    "attention_mask": "np.ones((1, len(ids)), np.int64)",
    "position_ids": "np.arange(len(ids))[None]",
    "starts": "np.array([0])",
    "stops": "np.array([len(ids)])",
    "shown": "np.zeros((0, {dim}), np.float32)",
    "rows": "np.zeros(0, np.int64)",
    "columns": "np.zeros(0, np.int64)",
    "asked": "np.ones((1, {dim}), np.float32)",
    "heads": "np.array(False)",
}
"""And what they are of one text that is read by itself."""

_PROVIDERS = {"fp16": ["CUDAExecutionProvider", "CPUExecutionProvider"]}

# A tokenizer cuts what stands last: it may do so where that is the text's own.
_CUT_AT_THE_END = """\
tokenizer.enable_truncation({budget})


def vector(text):
    ids = tokenizer.encode({shown}).ids
"""
_CUT_BEFORE_A_SUFFIX = """\
before, after = {before}, {after}


def vector(text):
    read, end = tokenizer.encode(before + text + after), len(before + text)
    # The places of the text's own tokens: what is over the budget goes from their end.
    own = [i for i, (a, b) in enumerate(read.offsets) if len(before) <= a <= b <= end]
    own = [i for i in own if not read.special_tokens_mask[i]]
    cut = own[len(own) - max(0, len(read.ids) - {budget}) :]
    ids = [id for i, id in enumerate(read.ids) if i not in cut]
"""


def card_of(
    bundle: Bundle, contract: Contract, inputs: Mapping[str, Any], report: Mapping[str, Any]
) -> str:
    """The card of a bundle.

    Args:
        bundle: what bundle.json says.
        contract: its encoder's.
        inputs: of the graph that reads documents, by name.
        report: how near it is to its model.
    """
    lines = [
        f"# {bundle.name}, {bundle.precision}",
        "",
        "An encoder exported by e2rank to ONNX: token ids in, unit vectors out, with pooling and",
        "normalisation in the graph. It runs on onnxruntime, without PyTorch:",
        "",
        "```python",
        "from e2rank import Engine",
        "from e2rank.encoders.onnx import OnnxEncoder",
        "",
        'engine = Engine.open("my-index", encoder=OnnxEncoder("this-folder"))',
        "```",
        "",
        f"Opset {bundle.opset}; fingerprint `{bundle.fingerprint}`, that of the encoder",
        "on PyTorch: indexes made by either open with both. Compared with it before this folder",
        f"was written, on {report['texts']} texts:",
        "",
        "| | least cosine | largest difference | alone or in a batch |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name.replace('_', ' ')} | {report[name]['cosine']:.6f} | "
        f"{report[name]['difference']:.1e} | {report[name]['alone']:.1e} |"
        for name in ("documents", "queries", "prompts", "vector_prompts")
        if name in report
    ]
    kept = f"{report['top10']:.1%}"
    lines += ["", f"Of each query's ten nearest documents {kept} are the same.", ""]
    if bundle.sparse:
        least, kept = report["documents"]["sparse"], f"{report['sparse_top10']:.1%}"
        lines += [f"Sparse vectors: least cosine {least:.6f}; of the ten nearest {kept}.", ""]
    if judged := report.get("judged"):
        lines += [f"{Judged.of(judged).in_words()}.", ""]
    if bundle.precision == "int8":
        lines += ["Scales and rounding were set by some of the same texts.", ""]
    return "\n".join([*lines, *_without_e2rank(bundle, contract, inputs)])


def _without_e2rank(bundle: Bundle, contract: Contract, inputs: Mapping[str, Any]) -> list[str]:
    """How the vectors of documents are made, and what makes those of queries others."""
    about = {"side": bundle.padding, "dim": contract.dim}
    return [
        "## Without e2rank",
        "",
        "The vectors of documents, by numpy, onnxruntime and tokenizers alone, run in this folder:",
        "",
        "```python",
        *_code(bundle, contract, inputs),
        "```",
        "",
        "A document with a title is read as the title, a blank and the text. What the graph takes",
        "of n texts, the longest of t tokens:",
        "",
        *(f"- `{name}` {_MEANING[name].format(**about)}" for name in inputs),
        "",
        *_of_queries(bundle, contract),
        "",
    ]


def _code(bundle: Bundle, contract: Contract, inputs: Mapping[str, Any]) -> list[str]:
    providers = _PROVIDERS.get(bundle.precision, ["CPUExecutionProvider"])
    before, after = _quoted(contract.document_prefix), _quoted(contract.document_suffix)
    reading = _CUT_BEFORE_A_SUFFIX if contract.document_suffix else _CUT_AT_THE_END
    reading = reading.format(
        before=before,
        after=after,
        shown=f"{before} + text" if contract.document_prefix else "text",
        budget=contract.document_tokens,
    )
    return [
        "import numpy as np",
        "import onnxruntime",
        "from tokenizers import Tokenizer",
        "",
        f'tokenizer = Tokenizer.from_file("{TOKENIZER}")',
        f"providers = {json.dumps(providers)}",
        f'session = onnxruntime.InferenceSession("{bundle.documents}", providers=providers)',
        *reading.splitlines(),
        "    feed = {",
        *(f'        "{name}": {_GIVEN[name].format(dim=contract.dim)},' for name in inputs),
        "    }",
        '    return session.run(["vectors"], feed)[0][0]',
        "",
        "",
        'print(vector("the text of a document").shape)',
    ]


def _of_queries(bundle: Bundle, contract: Contract) -> list[str]:
    lines = [
        f"A query is read by `{bundle.queries}`, up to {contract.query_tokens} tokens of it. Its",
        "vector is the output `queries` where there is one, with `heads` true, else `vectors`.",
    ]
    if before := contract.query_prefix:
        lines += [f"Before it stands `{_quoted(before)}`."]
    if after := contract.query_suffix:
        lines += [f"Behind it stands `{_quoted(after)}`."]
    if DIRECTIONS in bundle.files:
        lines += [f"What its terms add to that is in `{DIRECTIONS}`, which `OnnxEncoder` reads."]
    return lines


def _quoted(text: str) -> str:
    """A text as Python writes it, on one line."""
    return json.dumps(text, ensure_ascii=False)
