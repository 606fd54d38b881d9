"""The shapes of requests and answers that clients of this field know, over one engine."""

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from e2rank.search import Ordered
from e2rank.serve.fields import MOST_TEXTS, Fields
from e2rank.serve.refused import Refused
from e2rank.serve.service import Caller
from e2rank.serve.work import Side

Json = dict[str, Any] | list[Any]

MOST_HITS = 10_000
"""The most hits of a search, and the deepest list of candidates."""

_RERANKS = (True, False, "tokens", "listwise", "prf", "cosine", "none")
_SIDES: dict[str, Side] = {
    "query": "query",
    "document": "document",
    "search_query": "query",
    "search_document": "document",
}


async def search(body: Fields, caller: Caller) -> Json:
    """`Engine.search` for "query", "queries" or a "vector", with its options by their names.

    "query" and "vector" give an object of hits, "queries" a list of such under "results".
    """
    given = [name for name in ("query", "queries", "vector") if name in body]
    if len(given) > 1:
        raise Refused(400, f"{given[0]!r} and {given[1]!r} exclude each other")
    name = given[0] if given else "query"
    read: dict[str, Callable[[str], Any]] = {
        "query": body.query,
        "queries": body.texts,
        "vector": body.vector,
    }
    asked = read[name](name)
    options = _options(body)
    body.end()
    several = name == "queries"
    found = await caller.search(asked if several else [asked], options)
    answers = [each.to_dict() for each in found]
    return {"results": answers} if several else answers[0]


def _options(body: Fields) -> Mapping[str, Any]:
    """Keywords of `Engine.search_many`, those that were given."""
    given = {
        "k": body.whole("k", None, least=1, most=MOST_HITS),
        "depth": body.whole("depth", None, least=1, most=MOST_HITS),
        "shown": body.whole("shown", None, least=1, most=MOST_HITS),
        "feedback_rounds": body.whole("feedback_rounds", None, least=0, most=10),
        "gather": body.string("gather", None),
        "refine": body.one_of("refine", ("maxsim",), None),
        "rerank": body.one_of("rerank", _RERANKS, None),
        "prompt": body.one_of("prompt", ("text", "vectors"), None),
        "fuse": body.share("fuse", None),
        "where": body.filter("where"),
    }
    return {name: value for name, value in given.items() if value is not None}


async def openai_embeddings(body: Fields, caller: Caller) -> Json:
    """POST /v1/embeddings as OpenAI has it, and "input_type" for the side of the search."""
    caller.check_model(body.string("model", None))
    texts = body.texts("input")
    side = _SIDES[body.one_of("input_type", tuple(_SIDES), "document")]
    packed = body.one_of("encoding_format", ("float", "base64"), "float") == "base64"
    _check_dimensions(body, caller)
    body.passed_over("user")
    body.end()
    made = await caller.embed(texts, side)
    data = [
        {
            "object": "embedding",
            "index": place,
            "embedding": _packed(row) if packed else row.tolist(),
        }
        for place, row in enumerate(made.vectors)
    ]
    usage = {"prompt_tokens": made.tokens, "total_tokens": made.tokens}
    answer: dict[str, Any] = {"object": "list", "data": data, "model": caller.service.name}
    return answer | {"usage": usage, "truncated": list(made.truncated)}


async def tei_embed(body: Fields, caller: Caller) -> Json:
    """POST /embed as text-embeddings-inference has it; "prompt_name" is the side of the search."""
    texts = body.texts("inputs")
    side: Side = body.one_of("prompt_name", ("query", "document"), "document")
    truncate = _tei_truncation(body)
    if not body.flag("normalize", True):
        raise Refused(400, "'normalize' is false; vectors here are of length 1")
    _check_dimensions(body, caller)
    body.end()
    made = await caller.embed(texts, side)
    if made.truncated and not truncate:
        raise Refused(413, f"text {made.truncated[0]} is longer than the model reads")
    return made.vectors.tolist()


async def rerank(body: Fields, caller: Caller) -> Json:
    """POST /rerank, by the fields that came: "texts" as text-embeddings-inference, else Jina's."""
    return await (tei_rerank if "texts" in body else jina_rerank)(body, caller)


async def tei_rerank(body: Fields, caller: Caller) -> Json:
    """A list of {"index", "score"}, best first; the scores are the same with "raw_scores"."""
    query, texts = body.query("query"), body.texts("texts")
    shown = body.flag("return_text", False)
    truncate = _tei_truncation(body)
    body.passed_over("raw_scores")
    body.end()
    found = await caller.rank(query, texts, True)
    if found.cut.cut and not truncate:
        raise Refused(413, f"{found.cut.cut} of the texts are longer than the model reads")
    return [
        {"index": place, "score": score} | ({"text": texts[place]} if shown else {})
        for place, score in _ranked(found)
    ]


async def jina_rerank(body: Fields, caller: Caller) -> Json:
    """POST /v1/rerank as Jina has it, and vLLM and infinity after it."""
    caller.check_model(body.string("model", None))
    shown = body.flag("return_documents", True)
    documents, found, top = await _reranked(body, caller)
    results = [
        {"index": place, "relevance_score": score}
        | ({"document": {"text": documents[place]}} if shown else {})
        for place, score in _ranked(found)[:top]
    ]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    answer: dict[str, Any] = {"model": caller.service.name, "results": results}
    return answer | {"usage": usage, "truncated": found.cut.cut}


async def cohere_rerank(body: Fields, caller: Caller) -> Json:
    """POST /v2/rerank as Cohere has it."""
    caller.check_model(body.string("model", None))
    body.passed_over("priority")
    _, found, top = await _reranked(body, caller)
    results = [{"index": place, "relevance_score": score} for place, score in _ranked(found)[:top]]
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 0}}
    return {"results": results, "meta": meta}


async def _reranked(body: Fields, caller: Caller) -> tuple[list[str], Ordered, int]:
    """The documents, how they are ranked, and how many are asked for."""
    query, documents = body.query("query"), body.documents("documents")
    top = body.whole("top_n", MOST_TEXTS, least=1, most=MOST_TEXTS)
    how = body.one_of("rerank", _RERANKS, True)
    body.end()
    return documents, await caller.rank(query, documents, how), top


def _ranked(found: Ordered) -> list[tuple[int, float]]:
    """Positions and scores, best first."""
    return [(int(place), float(found.scores[place])) for place in found.order]


def _tei_truncation(body: Fields) -> bool:
    """Whether texts may be cut, at their end."""
    if body.one_of("truncation_direction", ("left", "right", "Left", "Right"), "right") in (
        "left",
        "Left",
    ):
        raise Refused(400, "'truncation_direction' is left; texts are cut at their end here")
    return body.flag("truncate", True)


def _check_dimensions(body: Fields, caller: Caller) -> None:
    dim = caller.service.engine.encoder.contract.dim
    asked = body.whole("dimensions", dim, least=1, most=1 << 20)
    if asked != dim:
        raise Refused(400, f"'dimensions' is {asked}; the model's vectors have {dim} numbers")


def _packed(row: np.ndarray) -> str:
    """float32, little-endian, in base64."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
