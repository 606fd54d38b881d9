"""What a sparse head learns from: states of documents, and the terms of queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from e2rank.encoders.tokens import Wording
from e2rank.encoders.torch import TorchEncoder
from e2rank.train.examples import Example
from e2rank.train.states import read_texts


@dataclass(frozen=True, slots=True)
class Asked:
    """One query: the ids of its distinct terms, where its documents are, and their labels."""

    terms: list[int]
    places: list[int]
    labels: list[float]


@dataclass(frozen=True, slots=True)
class Material:
    """What is learned from.

    Args:
        states: (t, width) float16 states of each distinct document, special tokens left out.
        ids: (t,) term ids of each.
        lists: labelled lists.
        pairs: of each file, queries with the one document that answers them.
    """

    states: Sequence[torch.Tensor]
    ids: Sequence[torch.Tensor]
    lists: Sequence[Asked]
    pairs: Sequence[Sequence[Asked]]


def read_material(
    encoder: TorchEncoder, lists: Sequence[Example], pairs: Sequence[Sequence[Example]]
) -> Material:
    """Read every distinct document once; of a pair only the best-labelled one."""
    answers = [[_answer(each) for each in some] for some in pairs]
    texts = dict.fromkeys(text for each in lists for text in each.documents)
    texts |= dict.fromkeys(text for some in answers for _, text in some)
    place = {text: number for number, text in enumerate(texts)}
    words, special = encoder.words, encoder.words.special()
    tokens = words.documents(list(texts))
    read = read_texts(encoder, tokens, encoder.contract.token_layers)
    kept = [[i for i, id_ in enumerate(each.ids) if id_ not in special] for each in tokens]
    asked = _terms(words, [each.query for each in lists])
    return Material(
        states=[states[own] for (_, states), own in zip(read, kept, strict=True)],
        ids=[
            torch.tensor([each.ids[i] for i in own], dtype=torch.long)
            for each, own in zip(tokens, kept, strict=True)
        ],
        lists=[
            Asked(terms, [place[text] for text in each.documents], list(each.labels))
            for terms, each in zip(asked, lists, strict=True)
        ],
        pairs=[
            [
                Asked(terms, [place[text]], [1.0])
                for terms, (_, text) in zip(
                    _terms(words, [query for query, _ in some]), some, strict=True
                )
            ]
            for some in answers
        ],
    )


def _answer(example: Example) -> tuple[str, str]:
    best = max(range(len(example)), key=lambda i: example.labels[i])
    return example.query, example.documents[best]


def _terms(words: Wording, queries: Sequence[str]) -> list[list[int]]:
    special = words.special()
    return [sorted(set(ids) - special) for ids in words.terms(queries)]
