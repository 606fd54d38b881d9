"""Two encoders compared: an export that gives other vectors than its model is refused."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from e2rank.encoders import Encoder, Encoding
from e2rank.encoders.judged import Judged
from e2rank.encoders.onnx.overlap import cosines, kept10, table

PROBES = (
    "What is a boundary layer?",
    "lift",
    "A plate of glass; ein Flügel, 翼 und 🪽 in the air.",
)

_ALONE = 40
"""Texts read alone and among longer ones, besides in one call."""

_SHOWN = 5
"""Documents in a prompt of texts."""


class ExportRefused(ValueError):
    """An export whose vectors are not those of its model."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an export must keep.

    Args:
        cosine: least cosine of a text's two vectors.
        tokens: most that the token vectors of a text differ, as a share of their length.
        sparse: least cosine of a document's two sparse vectors.
        alone: most that a component differs between a text alone and the same text in a batch.
        top10: least mean share of each query's ten nearest documents that stay, by the vectors
            and by the sparse vectors.
        loss: most that a measure of rankings may fall on judged queries, where it is measured.
    """

    cosine: float
    tokens: float
    sparse: float
    alone: float
    top10: float
    loss: float


BOUNDS = {
    "fp32": Bounds(
        cosine=1 - 1e-5, tokens=1e-3, sparse=1 - 1e-3, alone=1e-5, top10=0.99, loss=1e-3
    ),
    "fp16": Bounds(cosine=1 - 1e-3, tokens=0.05, sparse=0.98, alone=2e-3, top10=0.95, loss=3e-3),
    "int8": Bounds(cosine=0.96, tokens=0.3, sparse=0.9, alone=1e-5, top10=0.8, loss=0.01),
}
"""For each precision."""


def compare(
    model: Encoder, export: Encoder, texts: Sequence[str], bounds: Bounds
) -> dict[str, Any]:
    """How far an export is from its model, over queries, documents and prompts of all lengths.

    Args:
        model: the encoder that was exported.
        export: the same, exported.
        texts: any number; read whole as documents, their beginnings as queries.
        bounds: what it must keep.
    Returns:
        The parity report, JSON-able.
    Raises:
        ExportRefused: naming what is out of bounds, and the text it is worst for.
    """
    if model.fingerprint != export.fingerprint:
        raise ExportRefused("the export has another fingerprint than its model: export it again")
    queries = [text[: 20 + 13 * (place % 12)] for place, text in enumerate(texts)]
    kinds = {
        "documents": _Kind(list(texts), lambda each, some: each.encode_documents(some)),
        "queries": _Kind(queries, lambda each, some: each.encode_queries(some)),
    } | _prompts(model, queries, texts)
    report: dict[str, Any] = {"texts": len(texts), "bounds": dataclasses.asdict(bounds)}
    read = {}
    for name, kind in kinds.items():
        read[name], report[name] = _compared(name, kind, model, export, bounds)
    asked, shown = ([each.vectors for each in read[name]] for name in ("queries", "documents"))
    report["top10"] = kept10(asked, shown)
    if terms := model.contract.sparse_dim:
        shown = [_sparse(each, terms) for each in read["documents"]]
        report["sparse_top10"] = kept10(_sparse_queries(model, export, queries), shown)
    if (kept := min(report["top10"], report.get("sparse_top10", 1.0))) < bounds.top10:
        raise ExportRefused(
            f"the export keeps {kept:.3f} of the ten nearest documents of a query, "
            f"expected {bounds.top10}; nothing was written"
        )
    known = model.encode_documents(PROBES).vectors
    report["probes"] = [
        {"text": text, "vector": [round(float(x), 7) for x in vector]}
        for text, vector in zip(PROBES, known, strict=True)
    ]
    return report


def check_judged(judged: Judged, bounds: Bounds) -> None:
    """Refuse an export that ranks documents worse, by its queries or by all its vectors.

    Raises:
        ExportRefused: with both values of the measure.
    """
    changes = {"its queries": judged.queries, "all its vectors": judged.whole}
    for what, each in changes.items():
        # A NaN is refused, too.
        if not each.change >= -bounds.loss:
            raise ExportRefused(
                f"the export is refused: on {judged.count} queries of {judged.collection} "
                f"{judged.measure} is {judged.before:.4f} by the model and {each.after:.4f} with "
                f"{what}; expected a loss of at most {bounds.loss}"
            )


@dataclass(frozen=True, slots=True)
class _Kind:
    """Inputs of one kind, and how an encoder reads some of them; `texts` is for messages."""

    texts: list[Any]
    encode: Callable[[Any, list[Any]], Encoding]


def _prompts(model: Encoder, queries: list[str], texts: Sequence[str]) -> dict[str, _Kind]:
    lists = [
        (query, tuple(texts[(place + step) % len(texts)] for step in range(place % (_SHOWN + 1))))
        for place, query in enumerate(queries)
    ]
    kinds = {"prompts": _Kind(lists, _encode_prompts)}
    try:
        model.encode_prompts(["a"], [["b"]])
    except ValueError:
        # A tokenizer without a separator: there are no such prompts to compare.
        kinds = {}
    if model.contract.prompt == "vectors":
        shown = model.encode_documents(texts).vectors
        asked = model.encode_queries(queries).vectors
        most = model.contract.prompt_tokens - model.contract.query_tokens
        sizes = [min(1 + place % 30, len(texts), max(most, 1)) for place in range(len(queries))]
        rows = [
            (query, vector, shown[np.arange(place, place + size) % len(shown)])
            for place, (query, vector, size) in enumerate(zip(queries, asked, sizes, strict=True))
        ]
        kinds["vector_prompts"] = _Kind(rows, _encode_vector_prompts)
    return kinds


def _encode_prompts(encoder: Encoder, some: list[Any]) -> Encoding:
    return encoder.encode_prompts([each[0] for each in some], [each[1] for each in some])


def _encode_vector_prompts(encoder: Any, some: list[Any]) -> Encoding:
    queries, asked, shown = zip(*some, strict=True)
    return cast(Encoding, encoder.encode_vector_prompts(queries, np.stack(asked), shown))


def _compared(
    name: str, kind: _Kind, model: Encoder, export: Encoder, bounds: Bounds
) -> tuple[tuple[Encoding, Encoding], dict[str, float]]:
    known, found = kind.encode(model, kind.texts), kind.encode(export, kind.texts)
    near = cosines(known.vectors, found.vectors)
    lengths = np.abs(np.linalg.norm(found.vectors, axis=1) - 1)
    values = {
        "cosine": float(near.min()),
        "mean_cosine": float(near.mean()),
        "difference": float(np.abs(known.vectors - found.vectors).max()),
    }
    _refuse(name, kind, int(near.argmin()), "cosine", values["cosine"], bounds.cosine)
    if lengths.max() > 1e-4:
        raise ExportRefused(f"the export's vectors of {name} are not of unit length")
    if known.token_vectors:
        far = _token_differences(known, found)
        values["tokens"] = float(far.max())
        _refuse(name, kind, int(far.argmax()), "tokens", values["tokens"], bounds.tokens)
    if known.sparse is not None:
        near = cosines(*(_sparse(each, model.contract.sparse_dim) for each in (known, found)))
        values["sparse"] = float(near.min())
        _refuse(name, kind, int(near.argmin()), "sparse", values["sparse"], bounds.sparse)
    apart = _alone(kind, export, found)
    values["alone"] = float(apart.max(initial=0.0))
    _refuse(name, kind, int(apart.argmax()), "alone", values["alone"], bounds.alone)
    return (known, found), values


def _token_differences(known: Encoding, found: Encoding) -> np.ndarray:
    pairs = list(zip(known.token_vectors, found.token_vectors, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        raise ExportRefused("the export gives another number of token vectors than its model")
    return np.array(
        [np.linalg.norm(one - other) / np.linalg.norm(one) for one, other in pairs],
        dtype=np.float64,
    )


def _sparse(encoding: Encoding, terms: int) -> np.ndarray:
    if encoding.sparse is None:
        raise ExportRefused("the export gives no sparse vectors, its model does: export it again")
    return table(encoding.sparse, terms)


def _sparse_queries(model: Any, export: Any, queries: list[str]) -> list[np.ndarray]:
    """Both tables of the queries' sparse vectors, which are looked up and so are equal."""
    terms = model.contract.sparse_dim
    known, found = (table(each.sparse_queries(queries), terms) for each in (model, export))
    if (apart := np.abs(known - found).max(axis=1)).any():
        raise ExportRefused(
            "the export is refused: its table of query terms is another than the model's for "
            f"{queries[int(apart.argmax())]!r}"
        )
    return [known, found]


def _alone(kind: _Kind, export: Encoder, found: Encoding) -> np.ndarray:
    """For some texts, how far what they give alone, and among the longest, is from that above."""
    count = len(kind.texts)
    by_size = sorted(range(count), key=lambda place: len(str(kind.texts[place])))
    longest = by_size[-3:]
    apart = np.zeros(count)
    for place in by_size[:: max(1, count // _ALONE)]:
        for company in ([], longest):
            read = kind.encode(export, [kind.texts[each] for each in (place, *company)])
            away = float(np.abs(read.vectors[0] - found.vectors[place]).max())
            apart[place] = max(apart[place], away)
    return apart


def _refuse(name: str, kind: _Kind, place: int, what: str, value: float, bound: float) -> None:
    """Refuse a value that is out of bounds; of cosines the small ones, else the large."""
    kept = value >= bound if what in ("cosine", "sparse") else value <= bound
    if kept:
        return
    words = {
        "cosine": "has a cosine of {} to the model's, expected at least {}",
        "tokens": "has token vectors {} away from the model's, expected at most {}",
        "sparse": "has a sparse vector of cosine {} to the model's, expected at least {}",
        "alone": "is {} away from its vector in a batch, expected at most {}",
    }[what].format(f"{value:.6g}", bound)
    text = " ".join(str(kind.texts[place]).split())[:80]
    raise ExportRefused(f"the export is refused: of {name} number {place} {words}; it is {text!r}")
