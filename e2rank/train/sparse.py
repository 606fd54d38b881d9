"""Training sparse vectors: a head on the frozen model's states, and a table for queries."""

import dataclasses
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from e2rank.encoders.adapter import SPARSE
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.soft import word_embeddings
from e2rank.encoders.sparse import SparseHead
from e2rank.train.examples import read_lists
from e2rank.train.finite import check_weights
from e2rank.train.lists import check_order
from e2rank.train.losses import soft_kl
from e2rank.train.material import Asked, Material, read_material
from e2rank.train.ranges import as_tuple, check_ranges, check_strings
from e2rank.train.states import check_transformer, descend, forever, make_new, recipe_of, with_head

_log = logging.getLogger("e2rank")

_COMMON_ROWS = 1000
"""The first ids of a BERT vocabulary: special, unused and single characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig:
    """How a sparse head is trained on a model that stays as it is.

    With s(q, d) = exp(a) * sum of the query's weights times the document's (see `SparseHead`):

    loss = KL(softmax(teacher / temperature) || softmax(s)) over the documents of a list
         + InfoNCE(s; a pair's document against those of other queries' pairs)
         + regularisation * (sum over terms of (mean weight over the batch's documents)^2
                             + 0.3 * mean over documents of the sum of their weights)

    The last, FLOPS and L1 (arXiv 2004.05665), which keeps vectors short, is estimated on `columns`
    terms drawn anew for every step, and rises quadratically over the first half of the training.
    So a step scores the terms of its own queries and some others, not the whole vocabulary.

    The query table starts at the inverse document frequencies of the training texts.

    Args:
        data: JSONL files of examples, labels being a teacher's scores.
        pairs: JSONL files of examples whose best-labelled document answers the query; a step
            takes its pairs from one file.
        corpora: JSONL corpora with the texts of examples that name documents by id.
        out: folder of the adapter, which keeps what the base's adapter holds.
        base: the encoder; its other vectors do not change.
        sparse_terms: most terms that a document keeps.
        lists: lists a step.
        pairs_a_step: pairs a step.
        steps: steps of the optimizer.
        learning_rate: what it falls from, over all steps to zero; over the first `warmup` it is
            multiplied by a share that rises to 1, so its peak is below.
        table_rate: what the learning rate of the query table and the biases is multiplied with.
        warmup: steps.
        weight_decay: of AdamW; none for the table and the biases.
        temperature: the teacher's scores are divided by it.
        regularisation: weight of what keeps vectors short.
        columns: terms drawn for it.
        seed: of order, draws and initial weights.
        threads: torch threads; None leaves them.
    """

    data: tuple[str, ...]
    out: str
    pairs: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    base: str = "minilm"
    sparse_terms: int = 128
    lists: int = 8
    pairs_a_step: int = 48
    steps: int = 900
    learning_rate: float = 2e-3
    table_rate: float = 2.0
    warmup: int = 50
    weight_decay: float = 0.01
    temperature: float = 2.0
    regularisation: float = 3e-4
    columns: int = 1500
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could not train.

        Raises:
            ValueError: naming the field, its value and what it must be.
        """
        check_strings(self, ("out", "base"))
        for name in ("data", "pairs", "corpora"):
            as_tuple(self, name, str)
        if not self.data:
            raise ValueError("data is empty; name at least one file of examples")
        counts = dict.fromkeys(("sparse_terms", "lists", "steps", "columns", "threads"), 1)
        rest = dict.fromkeys(("warmup", "weight_decay", "regularisation", "seed"), 0)
        least = counts | {"pairs_a_step": 2} | rest
        check_ranges(self, least, ("learning_rate", "table_rate", "temperature"))


def train_sparse(config: SparseConfig, *, progress: Callable[[int], None] | None = None) -> Path:
    """Train a sparse head and write it as an adapter, beside what the base's holds; its folder.

    Raises:
        ValueError: if `out` is taken, or the base is no transformer.
        CorpusError: for an example that cannot be used, or where none has anything to teach.
        EncodingError: if the loss, or a weight of the result, is a NaN or an infinity.
    """
    out = Path(config.out)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    base = check_transformer(load_encoder(config.base), config.base)
    lists = read_lists(config.data, config.corpora)
    pairs = [read_lists((name,), config.corpora) for name in config.pairs]
    # Two queries of one file are enough for InfoNCE, whatever the lists say.
    asked = [len({each.query for each in file}) for file in pairs]
    check_order(lists, config.data, others=any(count > 1 for count in asked))
    make_new(out)
    material = read_material(base, lists, pairs)
    torch.manual_seed(config.seed)
    head = SparseHead(word_embeddings(base.tower).cpu(), material.states[0].shape[1])
    fit(head, material, config, progress)
    contract = dataclasses.replace(
        base.contract, sparse_dim=len(head.bias), sparse_terms=config.sparse_terms
    )
    with_head(base, SPARSE, head, contract, {"sparse": recipe_of(config)}).save(out)
    return out


def fit(
    head: SparseHead,
    material: Material,
    config: SparseConfig,
    progress: Callable[[int], None] | None = None,
) -> SparseHead:
    """The head, trained where the material is: on the CPU.

    Raises:
        EncodingError: if the loss, or a weight of the head, is a NaN or an infinity.
    """
    head.log_query.data.copy_(log_idf(material.ids, len(head.bias)))
    scale = torch.nn.Parameter(torch.tensor(3.0).log())
    slow = [head.log_query, head.bias, head.gain, *head.own.parameters(), scale]
    fast = [*head.transform.parameters(), *head.norm.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": fast, "weight_decay": config.weight_decay},
            {"params": slow, "weight_decay": 0.0, "lr": config.learning_rate * config.table_rate},
        ],
        lr=config.learning_rate,
    )
    draw = _Drawn(material, config, len(head.bias))

    def loss_at(step: int) -> torch.Tensor:
        pressure = config.regularisation * min(1.0, 2 * (step + 1) / config.steps) ** 2
        return batch_loss(head, scale.exp(), material, *draw.step(), config, pressure)

    descend(config, optimizer, loss_at, progress)
    check_weights([*head.state_dict().values(), torch.from_numpy(head.query_weights())])
    return head


def batch_loss(  # noqa: PLR0913 - the parts of one formula
    head: SparseHead,
    scale: torch.Tensor,
    material: Material,
    lists: Sequence[Asked],
    pairs: Sequence[Asked],
    drawn: Sequence[int],
    config: SparseConfig,
    pressure: float,
) -> torch.Tensor:
    """The loss of one step; `drawn` are the terms that its regularisation is estimated on."""
    used = sorted({place for each in (*lists, *pairs) for place in each.places})
    row = {place: number for number, place in enumerate(used)}
    terms = sorted({term for each in (*lists, *pairs) for term in each.terms})
    known = set(terms)
    columns = torch.tensor([*terms, *(each for each in drawn if each not in known)])
    states = [material.states[place].float() for place in used]
    weights = head.votes(states, [material.ids[place] for place in used], columns).log1p()
    column = {term: number for number, term in enumerate(terms)}
    asked = torch.zeros(len(lists) + len(pairs), len(terms))
    for number, each in enumerate((*lists, *pairs)):
        asked[number, [column[term] for term in each.terms]] = 1.0
    counted = asked * head.log_query[columns[: len(terms)]].exp()
    scores = scale * counted @ weights[:, : len(terms)].T
    loss = regulariser(weights[:, len(terms) :], len(head.bias)) * pressure
    for number, each in enumerate(lists):
        own = scores[number, [row[place] for place in each.places]][None]
        labels = torch.tensor([each.labels], dtype=torch.float64)
        mask = torch.ones(1, len(each.labels)).bool()
        kl = soft_kl(own, labels, mask, teacher_temperature=config.temperature)
        loss = loss + kl / len(lists)
    if pairs:
        answers = [row[each.places[0]] for each in pairs]
        others = sorted(set(answers))
        right = torch.tensor([others.index(each) for each in answers])
        # What else answers the same query is no negative of it.
        also = torch.tensor([[used[each] in own for each in others] for own in _answers(pairs)])
        also[torch.arange(len(pairs)), right] = False
        given = scores[len(lists) :, others].masked_fill(also, -torch.inf)
        loss = loss + torch.nn.functional.cross_entropy(given, right)
    return loss


def _answers(pairs: Sequence[Asked]) -> list[set[int]]:
    """For each pair, where the answers to its query lie, its own and those of other pairs."""
    found: dict[tuple[int, ...], set[int]] = {}
    for each in pairs:
        found.setdefault(tuple(each.terms), set()).add(each.places[0])
    # Of queries without a term nobody can say that they are one.
    return [found[tuple(each.terms)] if each.terms else {each.places[0]} for each in pairs]


def regulariser(weights: torch.Tensor, terms: int) -> torch.Tensor:
    """FLOPS + 0.3 * L1 of (n, c) document weights on c terms drawn out of `terms`.

    Source: FLOPS is of arXiv 2004.05665.
    """
    share = terms / max(1, weights.shape[1])
    flops = weights.mean(0).square().sum()
    return share * (flops + 0.3 * weights.sum(1).mean())


def log_idf(ids: Sequence[torch.Tensor], terms: int) -> torch.Tensor:
    """(terms,) logarithm of log(1 + (n - df + .5) / (df + .5)), divided by the largest of them."""
    found = torch.zeros(terms)
    for each in ids:
        found[each.unique()] += 1
    idf = (1 + (len(ids) - found + 0.5) / (found + 0.5)).log()
    return (idf / idf.max()).clamp(min=1e-3).log()


class _Drawn:
    """What each step learns from, by the seed."""

    def __init__(self, material: Material, config: SparseConfig, terms: int) -> None:
        self._material, self._config, self._terms = material, config, terms
        self._random = random.Random(config.seed)
        self._order: Iterator[int] = forever(len(material.lists), config.seed)
        self._files = [each for each in material.pairs if each]

    def step(self) -> tuple[list[Asked], list[Asked], list[int]]:
        """Lists, pairs of one file, and terms."""
        lists = [self._material.lists[next(self._order)] for _ in range(self._config.lists)]
        pairs: list[Asked] = []
        if self._files:
            some = self._random.choice(self._files)
            pairs = self._random.sample(some, min(self._config.pairs_a_step, len(some)))
        least = min(_COMMON_ROWS, self._terms // 2)
        count = min(self._config.columns, self._terms - least)
        return lists, pairs, self._random.sample(range(least, self._terms), count)
