"""The shapes of requests and answers that clients of this field know, over one engine."""

import base64
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from e2rank.ranking import Ordered
from e2rank.serve.fields import Fields
from e2rank.serve.refused import Refused
from e2rank.serve.service import Caller
from e2rank.serve.work import SIDES, Side

Json = dict[str, Any] | list[Any]

MOST_HITS = 1000
"""The most hits of a query, and the deepest list of its candidates."""

MOST_TOGETHER = 10_000
"""The most hits of all queries of a request."""

_ANY = 1 << 31
_RERANKS = (True, False, "tokens", "listwise", "prf", "cosine", "none")
_INPUTS: dict[str, Side] = {
    "query": "query",
    "document": "document",
    "search_query": "query",
    "search_document": "document",
    "retrieval.query": "query",
    "retrieval.passage": "document",
}


async def search(body: Fields, caller: Caller) -> Json:
    """`Engine.search` for "query", "queries" or a "vector", with its options by their names.

    "query" and "vector" give an object of hits, "queries" a list of such under "results".
    """
    given = [name for name in ("query", "queries", "vector") if name in body]
    if len(given) > 1:
        raise Refused(400, f"{given[0]!r} and {given[1]!r} exclude each other")
    name = given[0] if given else "query"
    dim = caller.service.engine.encoder.contract.dim
    read: dict[str, Callable[[], Any]] = {
        "query": lambda: [body.query("query")],
        "queries": lambda: body.texts("queries"),
        "vector": lambda: [body.vector("vector", dim)],
    }
    asked, options = read[name](), _options(body)
    body.end()
    if len(asked) * options.get("k", 10) > MOST_TOGETHER:
        raise Refused(
            413,
            f"{len(asked):,} queries ask for {options.get('k', 10):,} hits each; expected at most "
            f"{MOST_TOGETHER:,} hits in all",
        )
    answers = []
    for found in await caller.search(asked, options):
        # What it says may name files; the log has it.
        failed = found.rerank_error and "the rerank failed; the server's log says why"
        answers.append(found.to_dict() | {"rerank_error": failed})
    return {"results": answers} if name == "queries" else answers[0]


def _options(body: Fields) -> Mapping[str, Any]:
    """Keywords of `Engine.search_many`, those that were given."""
    given = {
        "k": body.whole("k", None, least=1, most=MOST_HITS),
        "depth": body.whole("depth", None, least=1, most=MOST_HITS),
        "shown": body.whole("shown", None, least=1, most=MOST_HITS),
        "feedback_rounds": body.whole("feedback_rounds", None, least=0, most=10),
        "gather": body.name("gather"),
        "refine": body.one_of("refine", ("maxsim",), None),
        "rerank": body.one_of("rerank", _RERANKS, None),
        "prompt": body.one_of("prompt", ("text", "vectors"), None),
        "fuse": body.share("fuse", None),
        "where": body.filter("where"),
        "collapse": body.name_or_off("collapse"),
    }
    return {name: value for name, value in given.items() if value is not None}


async def openai_embeddings(body: Fields, caller: Caller) -> Json:
    """POST /v1/embeddings as OpenAI has it.

    Texts are documents, unless the model's name ends in ":query" or "input_type" (or Jina's
    "task") is "query".
    """
    asked = caller.side_of(body.name("model"))
    texts = _some(body.texts("input"), "input")
    side = _input_type(body, asked)
    packed = body.one_of("encoding_format", ("float", "base64"), "float") == "base64"
    _check_dimensions(body, caller)
    body.passed_over("user", "truncation", "modality")
    body.end()
    made = await caller.embed(texts, side)
    rows = map(_packed, made.vectors) if packed else made.vectors.tolist()
    data = [
        {"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": made.tokens, "total_tokens": made.tokens}
    answer: dict[str, Any] = {"object": "list", "data": data, "model": caller.service.name}
    return answer | {"usage": usage, "truncated": list(made.truncated)}


async def cohere_embed(body: Fields, caller: Caller) -> Json:
    """POST /v2/embed as Cohere has it, for texts and floats."""
    asked = caller.side_of(body.name("model"))
    texts = _some(body.texts("texts"), "texts")
    side = _input_type(body, asked)
    if body.strings("embedding_types", ["float"]) != ["float"]:
        raise Refused(400, "'embedding_types' may only be [\"float\"] here")
    truncate = body.one_of("truncate", ("NONE", "END"), "END") == "END"
    body.passed_over("priority")
    body.end()
    made = await caller.embed(texts, side)
    if made.truncated and not truncate:
        raise Refused(400, f"text {made.truncated[0]} is longer than the model reads")
    answer = {"id": str(uuid.uuid4()), "embeddings": {"float": made.vectors.tolist()}}
    return answer | {"texts": texts, "meta": _meta(), "response_type": "embeddings_by_type"}


async def tei_embed(body: Fields, caller: Caller) -> Json:
    """POST /embed as text-embeddings-inference has it; "prompt_name" is the side of the search.

    Vectors are of length 1, whether "normalize" asks for it or not.
    """
    texts = _some(body.texts("inputs"), "inputs")
    side: Side = body.one_of("prompt_name", SIDES, "document")
    truncate = _tei_truncation(body)
    body.flag("normalize", True)
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
    """A list of {"index", "score"}, best first: similarities, with "raw_scores" or without."""
    query, texts = body.query("query"), body.texts("texts")
    shown = body.flag("return_text", False)
    truncate = _tei_truncation(body)
    body.flag("raw_scores", False)
    body.end()
    found = await caller.rank(query, texts, True)
    if found.cut and not truncate:
        raise Refused(413, f"{found.cut} of the texts are longer than the model reads")
    return [
        {"index": place, "score": score} | ({"text": texts[place]} if shown else {})
        for place, score in _ranked(found)
    ]


async def jina_rerank(body: Fields, caller: Caller) -> Json:
    """POST /v1/rerank as Jina has it, and vLLM and infinity after it."""
    shown = body.flag("return_documents", True)
    body.passed_over("truncation", "raw_scores")
    documents, found, top = await _reranked(body, caller)
    results = [
        {"index": place, "relevance_score": score}
        | ({"document": {"text": documents[place]}} if shown else {})
        for place, score in _ranked(found)[:top]
    ]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    answer: dict[str, Any] = {"model": caller.service.name, "results": results}
    return answer | {"usage": usage, "truncated": found.cut}


async def cohere_rerank(body: Fields, caller: Caller) -> Json:
    """POST /v2/rerank as Cohere has it; documents are read whole, as passages if they are long."""
    body.passed_over("priority")
    reads = caller.service.engine.encoder.contract.document_tokens
    body.whole("max_tokens_per_doc", None, least=reads, most=_ANY)
    _, found, top = await _reranked(body, caller)
    results = [{"index": place, "relevance_score": score} for place, score in _ranked(found)[:top]]
    return {"id": str(uuid.uuid4()), "results": results, "meta": _meta()}


async def _reranked(body: Fields, caller: Caller) -> tuple[list[str], Ordered, int]:
    """The documents, how they are ranked, and how many are asked for."""
    caller.side_of(body.name("model"))
    query, documents = body.query("query"), body.documents("documents")
    top = body.whole("top_n", _ANY, least=1, most=_ANY)
    how = body.one_of("rerank", _RERANKS, True)
    body.end()
    return documents, await caller.rank(query, documents, how), top


def _ranked(found: Ordered) -> list[tuple[int, float]]:
    """Positions and scores, best first."""
    return [(int(place), float(found.scores[place])) for place in found.order]


def _some(texts: list[str], name: str) -> list[str]:
    if not texts:
        raise Refused(400, f"{name!r} is empty; expected at least one text")
    return texts


def _input_type(body: Fields, side: Side | None) -> Side:
    """The side that "input_type" or "task" names, else the model's name, else documents."""
    named = [body.one_of(name, tuple(_INPUTS), None) for name in ("input_type", "task")]
    sides: set[Side] = {_INPUTS[each] for each in named if each is not None}
    if side is not None:
        sides.add(side)
    if len(sides) > 1:
        raise Refused(400, "'model', 'input_type' and 'task' name both sides of a search")
    return sides.pop() if sides else "document"


def _tei_truncation(body: Fields) -> bool:
    """Whether texts may be cut, at their end."""
    sides = ("left", "right", "Left", "Right")
    if body.one_of("truncation_direction", sides, "right").lower() == "left":
        raise Refused(400, "'truncation_direction' is left; texts are cut at their end here")
    return body.flag("truncate", True)


def _check_dimensions(body: Fields, caller: Caller) -> None:
    dim = caller.service.engine.encoder.contract.dim
    asked = body.whole("dimensions", dim, least=0, most=_ANY)
    if asked not in (0, dim):
        raise Refused(400, f"'dimensions' is {asked}; the model's vectors have {dim} numbers")


def _meta() -> dict[str, Any]:
    return {"api_version": {"version": "2"}, "billed_units": {}}


def _packed(row: np.ndarray) -> str:
    """float32, little-endian, in base64."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
