"""Training token vectors: a head on the frozen model's states learns the order of a teacher."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from e2rank.encoders.adapter import TOKENS
from e2rank.encoders.heads import TokenHead
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.torch import TorchEncoder
from e2rank.train.examples import Example, read_lists
from e2rank.train.finite import check_weights
from e2rank.train.lists import check_order
from e2rank.train.losses import soft_kl
from e2rank.train.ranges import as_tuple, check_ranges, check_strings
from e2rank.train.states import (
    check_transformer,
    descend,
    forever,
    make_new,
    read_texts,
    recipe_of,
    with_head,
)

_log = logging.getLogger("e2rank")


@dataclass(frozen=True, kw_only=True, slots=True)
class LateConfig:
    """How a token head is trained on a model that stays as it is.

    loss = KL(softmax(teacher / temperature) || softmax(score)) over the documents of a list, with
    the score of late interaction (see `TokenHead`). States of every text are computed once and
    held in float16: 2 * token_layers * hidden bytes a token.

    Args:
        data: JSONL files of examples, labels being a teacher's scores.
        corpora: JSONL corpora with the texts of examples that name documents by id.
        out: folder of the adapter.
        base: the encoder; its vectors of documents and queries do not change.
        token_dim: length of a token vector.
        token_layers: how many last layers its states come from.
        fusion_weight: share of late interaction against the first stage, for the contract.
        lists: lists a step.
        steps: steps of the optimizer.
        learning_rate: what it falls from, over all steps to zero; over the first `warmup` it is
            multiplied by a share that rises to 1, so its peak is below.
        warmup: steps.
        weight_decay: of AdamW.
        temperature: the teacher's scores are divided by it.
        seed: of order and initial weights.
        threads: torch threads; None leaves them.
    """

    data: tuple[str, ...]
    out: str
    corpora: tuple[str, ...] = ()
    base: str = "minilm-base"
    token_dim: int = 96
    token_layers: int = 2
    fusion_weight: float = 1.0
    lists: int = 12
    steps: int = 400
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.01
    temperature: float = 2.0
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could not train.

        Raises:
            ValueError: naming the field, its value and what it must be.
        """
        check_strings(self, ("out", "base"))
        for name in ("data", "corpora"):
            as_tuple(self, name, str)
        if not self.data:
            raise ValueError("data is empty; name at least one file of examples")
        counts = dict.fromkeys(("token_dim", "token_layers", "lists", "steps", "threads"), 1)
        rest = dict.fromkeys(("fusion_weight", "warmup", "weight_decay", "seed"), 0)
        check_ranges(
            self, counts | rest, ("learning_rate", "temperature"), most={"fusion_weight": 1}
        )


@dataclass(frozen=True, slots=True)
class Lists:
    """Examples with the states of their texts.

    Args:
        examples: the lists.
        queries: (t, width) float16 states of each query.
        documents: (t, width) float16 states of each distinct document.
        places: for each list, where its documents are.
        cosines: for each list, (n,) cosines of its query with its documents.
    """

    examples: Sequence[Example]
    queries: Sequence[torch.Tensor]
    documents: Sequence[torch.Tensor]
    places: Sequence[Sequence[int]]
    cosines: Sequence[torch.Tensor]


def train_tokens(config: LateConfig, *, progress: Callable[[int], None] | None = None) -> Path:
    """Train a token head and write it as an adapter, beside what the base's holds; its folder.

    Raises:
        ValueError: if `out` is taken, or the base is no transformer, or too small for the head.
        CorpusError: for an example that cannot be used, or where none has anything to teach.
        EncodingError: if the loss, or a weight of the result, is a NaN or an infinity.
    """
    out = Path(config.out)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    base = check_transformer(load_encoder(config.base), config.base)
    _check_room(base, config)
    examples = read_lists(config.data, config.corpora)
    check_order(examples, config.data)
    make_new(out)
    lists = read_states(base, examples, config.token_layers)
    head = fit(lists, config, progress)
    contract = dataclasses.replace(
        base.contract,
        token_dim=config.token_dim,
        token_layers=config.token_layers,
        fusion_weight=config.fusion_weight,
        rerank="tokens",
    )
    about: dict[str, Any] = {"recipe": recipe_of(config), "lists": len(examples)}
    with_head(base, TOKENS, head, contract, about).save(out)
    return out


def read_states(encoder: TorchEncoder, examples: Sequence[Example], layers: int) -> Lists:
    """Read every query and every distinct document once."""
    distinct = list(dict.fromkeys(text for each in examples for text in each.documents))
    place_of = {text: place for place, text in enumerate(distinct)}
    queries = encoder.words.queries([each.query for each in examples])
    asked = read_texts(encoder, queries, layers, asked=True)
    found = read_texts(encoder, encoder.words.documents(distinct), layers)
    places = [[place_of[text] for text in each.documents] for each in examples]
    vectors = torch.stack([vector for vector, _ in found])
    return Lists(
        examples=examples,
        queries=[states for _, states in asked],
        documents=[states for _, states in found],
        places=places,
        cosines=[vectors[own] @ asked[i][0] for i, own in enumerate(places)],
    )


def fit(
    lists: Lists, config: LateConfig, progress: Callable[[int], None] | None = None
) -> TokenHead:
    """A head trained on the lists.

    Raises:
        EncodingError: if the loss, or a weight of the head, is a NaN or an infinity.
    """
    torch.manual_seed(config.seed)
    width = lists.documents[0].shape[1]
    head = TokenHead(width, config.token_dim)
    head.project.weight.data.copy_(principal_axes(lists.documents, config.token_dim))
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    order = forever(len(lists.examples), config.seed)

    def loss_at(_: int) -> torch.Tensor:
        return list_loss(head, lists, [next(order) for _ in range(config.lists)], config)

    descend(config, optimizer, loss_at, progress)
    check_weights([*head.state_dict().values(), torch.tensor(head.blend())])
    return head


def list_loss(
    head: TokenHead, lists: Lists, batch: Sequence[int], config: LateConfig
) -> torch.Tensor:
    """The mean loss of some lists."""
    used = sorted({place for i in batch for place in lists.places[i]})
    rows = head.documents(torch.cat([lists.documents[place] for place in used]).float())
    parts = rows.split([len(lists.documents[place]) for place in used])
    tokens = dict(zip(used, parts, strict=True))
    losses = []
    for i in batch:
        asked = head.queries(lists.queries[i].float())
        late = maxsim(asked, [tokens[place] for place in lists.places[i]])
        scores = head.log_maxsim.exp() * late + head.log_cosine.exp() * lists.cosines[i]
        labels = torch.tensor(lists.examples[i].labels, dtype=torch.float64)
        mask = torch.ones(1, len(labels), dtype=torch.bool)
        losses.append(
            soft_kl(scores[None], labels[None], mask, teacher_temperature=config.temperature)
        )
    return torch.stack(losses).mean()


def maxsim(query: torch.Tensor, documents: Sequence[torch.Tensor]) -> torch.Tensor:
    """(n,) sums over the query's (t, p) rows of the best dot product in each document's rows.

    Source: ColBERT, arXiv 2004.12832.
    """
    lengths = torch.tensor([len(each) for each in documents])
    owner = torch.repeat_interleave(torch.arange(len(documents)), lengths)
    dots = query @ torch.cat(list(documents)).T
    best = torch.full((len(query), len(documents)), -1e4)
    best = best.scatter_reduce(1, owner.expand(len(query), -1), dots, "amax")
    return best.sum(0)


def principal_axes(states: Sequence[torch.Tensor], dim: int, most: int = 200_000) -> torch.Tensor:
    """(dim, width) directions in which token states differ most: where training begins."""
    rows = torch.cat(list(states[:: max(1, len(states) // 2000)]))[:most].float()
    _, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return vectors.flip(1)[:, :dim].T.contiguous()


def _check_room(base: TorchEncoder, config: LateConfig) -> None:
    shape: Any = base.tower.model.config
    most = shape.num_hidden_layers + 1
    if config.token_layers > most:
        raise ValueError(
            f"token_layers is {config.token_layers}; {base.name} has {most}, its embeddings counted"
        )
    if config.token_dim > (width := config.token_layers * shape.hidden_size):
        raise ValueError(
            f"token_dim is {config.token_dim}; the states it is made from are {width} long"
        )
    own = base.contract
    if own.sparse_dim and config.token_layers != own.token_layers:
        raise ValueError(
            f"token_layers is {config.token_layers}; expected {own.token_layers}, which the sparse "
            f"head of {base.name} reads"
        )
