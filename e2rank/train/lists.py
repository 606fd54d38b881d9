"""What is asked of lists before a training of them begins: that they teach something, and fit."""

import heapq
import logging
from collections.abc import Sequence

from e2rank.errors import CorpusError
from e2rank.train.config import TrainConfig
from e2rank.train.examples import Example
from e2rank.train.model import Trainee

_log = logging.getLogger("e2rank")

_TRIED = 1000
"""Queries whose prompts are tried before a training begins."""


def check_order(examples: Sequence[Example], data: Sequence[str], *, others: bool = False) -> None:
    """Refuse lists of which none says that one document is better than another.

    Where some say so, how many do not is logged.

    Args:
        examples: the lists.
        data: names of the files that they are from.
        others: whether something else is learned, so that they need not say it.
    Raises:
        CorpusError: if nothing would be learned.
    """
    names = ", ".join(data)
    if not examples:
        raise CorpusError(f"{names}: there is no example to learn from")
    level = sum(min(each.labels) == max(each.labels) for each in examples)
    if level == len(examples) and not others:
        raise CorpusError(
            f"{names}: none of the {level:,} lists has two documents with different labels, so "
            "there is nothing to learn; expected labels that are higher for the better document"
        )
    if 0 < level < len(examples):
        _log.warning(
            "%d of %d lists have no two documents with different labels: nothing to order",
            level,
            len(examples),
        )


def contrasted(examples: Sequence[Example], config: TrainConfig) -> bool:
    """Whether InfoNCE learns from lists without an order.

    It does of a single document, the answer to its query, beside another one that a list of
    another query of the same data set holds, which may be in the same batch.
    """
    sources: dict[str, list[Example]] = {}
    for each in examples:
        sources.setdefault(each.source, []).append(each)
    among = min(config.lists, config.negatives_among or config.lists)
    return among > 1 and any(map(_contrasts, sources.values()))


def _contrasts(examples: Sequence[Example]) -> bool:
    queries = {each.query for each in examples}
    texts = {text for each in examples for text in each.documents}
    return min(map(len, examples)) == 1 and len(queries) > 1 and len(texts) > 1


def check_sources(examples: Sequence[Example], config: TrainConfig) -> None:
    """Refuse a wording for lists that there are none of: its source may be misspelt.

    Raises:
        ValueError: naming it, and the sources that there are.
    """
    held = sorted({each.source for each in examples})
    if strange := sorted((config.wordings or {}).keys() - set(held)):
        raise ValueError(
            f"wordings names {strange[0]!r}, and no list is from there; the sources are "
            f"{', '.join(map(repr, held))}"
        )


def check_room(trainee: Trainee, config: TrainConfig, examples: Sequence[Example]) -> None:
    """Refuse a query whose prompt has no room for as many documents as it may have to show.

    A letter stands for each document, as one token of each is the least that is shown. The longest
    queries alone are tried: of a hundred thousand lists all prompts would take a minute.

    Raises:
        CorpusError: naming the query and its data set.
    """
    if config.prompt == "none":
        return
    most = max(config.list_sizes)
    for each in heapq.nlargest(_TRIED, examples, key=lambda each: len(each.query)):
        count, words = min(len(each), most), trainee.words_of(each.source)
        try:
            if config.prompt == "text":
                words.prompts([each.query], [["a"] * count])
            else:
                words.vector_prompts([each.query], [count])
        except ValueError as error:
            raise CorpusError(
                f"{each.source}: the prompt of the query {each.query[:60]!r}: {error}"
            ) from None
