"""What several commands take: the same option, the same words, everywhere."""

import enum
from typing import Annotated

import typer


class Ranker(enum.StrEnum):
    """The rerankers that have a name on the command line."""

    TOKENS = "tokens"
    LISTWISE = "listwise"
    PRF = "prf"
    CROSS_ENCODER = "cross-encoder"
    COSINE = "cosine"
    NONE = "none"


class Kind(enum.StrEnum):
    """What a listwise prompt may be made of."""

    TEXT = "text"
    VECTORS = "vectors"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Rerank = Annotated[
    list[Ranker] | None, typer.Option(help="How to rerank; give it several times to compare.")
]
Depth = Annotated[int, typer.Option(help="Candidates to rerank.")]
Shown = Annotated[int, typer.Option(help="Candidates in the listwise prompt, if it is of texts.")]
Prompt = Annotated[
    Kind | None,
    typer.Option(help="What a listwise prompt is made of; the model's own kind if not given."),
]
Fuse = Annotated[
    float | None, typer.Option(help="Weight of the rerank, 0 to 1; the model's own if not given.")
]
Split = Annotated[str, typer.Option(help="Whose judgments to use: the qrels file's name.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many queries.")]
CrossEncoder = Annotated[
    str | None,
    typer.Option(help="Cross-encoder name or folder; the one of `make models` if not given."),
]
RunOut = Annotated[
    str | None,
    typer.Option(help="Write each ranker's TREC run here; {ranker} stands for its name."),
]
