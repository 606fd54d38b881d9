"""What several commands take: the same option, the same words, everywhere."""

import enum
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from e2rank.encoders import DType
from e2rank.evaluate.measures import MEASURES


class Ranker(enum.StrEnum):
    """The rerankers that have a name on the command line."""

    TOKENS = "tokens"
    LISTWISE = "listwise"
    PRF = "prf"
    CROSS_ENCODER = "cross-encoder"
    COSINE = "cosine"
    NONE = "none"


class Refine(enum.StrEnum):
    """How candidates may be refined before the rerank."""

    NONE = "none"
    MAXSIM = "maxsim"


class Kind(enum.StrEnum):
    """What a listwise prompt may be made of."""

    TEXT = "text"
    VECTORS = "vectors"


Dtype = Annotated[
    DType | None,
    typer.Option(help="What torch computes in; bfloat16 reads documents faster on CPUs with AMX."),
]
Vectors = Annotated[
    Path | None,
    typer.Option(
        help="An .npy file of what the encoder gave elsewhere, a row a document in order, or an "
        ".npz of such 'vectors' and their 'ids' in any order; for an encoder that gives dense "
        "vectors alone, such as minilm-base."
    ),
]
Passages = Annotated[
    int | None,
    typer.Option(
        help="Split documents into passages of at most so many tokens, 128 say, that overlap by up "
        "to a quarter; what is added later, too."
    ),
]
Collapse = Annotated[
    str | None,
    typer.Option(
        help="Show only the best of documents that hold one value in this metadata field."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE in its place; may come several times."),
]
Rerank = Annotated[
    list[Ranker] | None, typer.Option(help="How to rerank; give it several times to compare.")
]
Gather = Annotated[
    str,
    typer.Option(
        help="The first stage: dense, sparse, multivector, bm25, hybrid, or 2*dense+bm25."
    ),
]
Gathers = Annotated[
    list[str] | None,
    typer.Option("--gather", help="As for `search`; give it several times to compare."),
]
Refines = Annotated[
    list[Refine] | None,
    typer.Option("--refine", help="Refine before the rerank; several times to compare."),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="Refine no candidate that far below the k-th; off if not given."),
]
Beta = Annotated[
    int | None,
    typer.Option(help="Stop refining after so many that change nothing; off if not given."),
]
PrunedFor = Annotated[
    int, typer.Option("-k", help="The length of the top list that --alpha and --beta prune for.")
]
Depth = Annotated[int, typer.Option(help="Candidates to refine and rerank.")]
Shown = Annotated[int, typer.Option(help="Candidates in the listwise prompt, if it is of texts.")]
Prompt = Annotated[
    Kind | None,
    typer.Option(help="What a listwise prompt is made of; the model's own kind if not given."),
]
Fuse = Annotated[
    float | None, typer.Option(help="Weight of the rerank, 0 to 1; the model's own if not given.")
]
Measures = Annotated[
    list[str] | None,
    typer.Option(
        "--measure",
        help="A measure by its name in ir_measures, such as nDCG@20 or 'AP(rel=2)@100'; several "
        "times for several, and the first is tested. If not given: " + ", ".join(MEASURES) + ".",
    ),
]
Split = Annotated[str, typer.Option(help="Whose judgments to use: the qrels file's name.")]
Qrels = Annotated[
    Path | None, typer.Option(help="A file of judgments to use instead, TREC's or BEIR's.")
]
PerQuery = Annotated[
    bool, typer.Option("--per-query", help="As --json, with the values of every query.")
]
Limit = Annotated[int | None, typer.Option(help="Only the first so many queries.")]
CrossEncoder = Annotated[
    str | None,
    typer.Option(help="Cross-encoder name or folder; the one of `make models` if not given."),
]
RunOut = Annotated[
    str | None,
    typer.Option(
        help="Write each ranker's TREC run here; {ranker} stands for its name, without blanks. "
        "Figures count documents of equal score in their worst order, other tools in one of "
        "their own."
    ),
]


def changed(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as TOML reads it; what TOML does not read is a string.

    >>> changed("lists=8"), changed("list_sizes=[5, 10]"), changed("base=minilm-base")
    (('lists', 8), ('list_sizes', [5, 10]), ('base', 'minilm-base'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {text!r} is no KEY=VALUE, such as --set lists=8")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
