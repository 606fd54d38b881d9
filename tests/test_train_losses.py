"""Each loss against its definition in loops, and what all of them promise."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from e2rank.train.contrastive import contrastive, infonce
from e2rank.train.losses import (
    LISTWISE,
    distil,
    irpo,
    listmle,
    listnet,
    ranknet,
    ranks,
    skip_at,
    skip_ranknet,
    soft_kl,
    weighted_ranknet,
)

Numbers = Sequence[float]
Loss = Callable[..., Tensor]

# ---- The definitions: one list of real documents, its scores s, labels y and reference r. ----


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def softmax(values: Numbers, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def pairs(y: Numbers) -> list[tuple[int, int]]:
    n = len(y)
    return [(i, j) for i in range(n) for j in range(n) if y[i] > y[j]]


def rank_of(y: Numbers, i: int) -> int:
    return 1 + sum(other > y[i] for other in y)


def gold(y: Numbers) -> list[int]:
    return sorted(range(len(y)), key=lambda i: (-y[i], i))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def ranknet_of(s: Numbers, y: Numbers, r: Numbers) -> float:
    return mean([softplus(s[j] - s[i]) for i, j in pairs(y)])


def soft_ranknet_of(s: Numbers, y: Numbers, r: Numbers) -> float:
    losses = []
    for i, j in pairs(y):
        target = 1 / (1 + math.exp(y[j] - y[i]))
        losses.append(target * softplus(s[j] - s[i]) + (1 - target) * softplus(s[i] - s[j]))
    return mean(losses)


def weighted_ranknet_of(s: Numbers, y: Numbers, r: Numbers) -> float:
    return mean([softplus(s[j] - s[i]) / (rank_of(y, i) + rank_of(y, j)) for i, j in pairs(y)])


def skip_ranknet_of(
    s: Numbers,
    y: Numbers,
    r: Numbers,
    most: int = 1,
    gap: float = 0.0,
    margin: float = 0.0,
) -> float:
    order, losses = gold(y), []
    for k in range(1, most + 1):
        for i, j in zip(order, order[k:], strict=False):
            if y[i] > y[j] and y[i] - y[j] >= gap:
                losses.append(softplus(s[j] - s[i] + margin))
    return mean(losses)


def kl(p: Numbers, q: Numbers) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def listnet_of(s: Numbers, y: Numbers, r: Numbers) -> float:
    return -sum(p * math.log(q) for p, q in zip(softmax(y), softmax(s), strict=True))


def forward_of(s: Numbers, y: Numbers, r: Numbers, t: float = 1, u: float = 1) -> float:
    return kl(softmax(y, u), softmax(s, t))


def reverse_of(s: Numbers, y: Numbers, r: Numbers, t: float = 1, u: float = 1) -> float:
    return kl(softmax(s, t), softmax(y, u))


def symmetric_of(s: Numbers, y: Numbers, r: Numbers, t: float = 1, u: float = 1) -> float:
    return (forward_of(s, y, r, t, u) + reverse_of(s, y, r, t, u)) / 2


def distil_of(s: Numbers, y: Numbers, r: Numbers) -> float:
    return 0.7 * ranknet_of(s, y, r) + 0.3 * 3**2 * forward_of(s, y, r, 3, 3)


def listmle_of(s: Numbers, y: Numbers, r: Numbers) -> float:
    left, total = gold(y), 0.0
    while left:
        total += math.log(sum(math.exp(s[j]) for j in left)) - s[left[0]]
        left = left[1:]
    return total


def irpo_of(
    s: Numbers,
    y: Numbers,
    r: Numbers,
    beta: float = 1.0,
    graded: bool = False,
) -> float:
    n, total = len(s), 0.0
    for i in range(n):
        weight = (2 ** y[i] - 1 if graded else 1) / math.log2(1 + rank_of(y, i))
        rivals = [math.exp(beta * ((s[j] - r[j]) - (s[i] - r[i]))) for j in range(n) if j != i]
        total += weight * softplus(math.log(sum(rivals)) - math.log(n - 1))
    return total / n


DEFINITIONS: dict[str, tuple[Loss, Callable[..., float]]] = {
    "ranknet": (ranknet, ranknet_of),
    "soft ranknet": (partial(ranknet, soft=True), soft_ranknet_of),
    "weighted ranknet": (weighted_ranknet, weighted_ranknet_of),
    "skip ranknet": (skip_ranknet, skip_ranknet_of),
    "skip ranknet with all options": (
        partial(skip_ranknet, max_skip=3, min_gap=2, margin=0.4),
        partial(skip_ranknet_of, most=3, gap=2, margin=0.4),
    ),
    "listnet": (listnet, listnet_of),
    "forward kl": (
        partial(soft_kl, student_temperature=0.5, teacher_temperature=2.0),
        partial(forward_of, t=0.5, u=2.0),
    ),
    "reverse kl": (
        partial(soft_kl, kind="reverse", student_temperature=0.5, teacher_temperature=2.0),
        partial(reverse_of, t=0.5, u=2.0),
    ),
    "symmetric kl": (
        partial(soft_kl, kind="symmetric", student_temperature=0.5, teacher_temperature=2.0),
        partial(symmetric_of, t=0.5, u=2.0),
    ),
    "listmle": (listmle, listmle_of),
    "irpo with beta": (partial(irpo, beta=1.5), partial(irpo_of, beta=1.5)),
    "graded irpo": (partial(irpo, gain="exponential"), partial(irpo_of, graded=True)),
    "distil": (partial(distil, temperature=3.0, alpha=0.3), distil_of),
}
EVERY: dict[str, Loss] = {name: loss for name, (loss, _) in DEFINITIONS.items()} | LISTWISE
every = pytest.mark.parametrize("name", EVERY)
defined = pytest.mark.parametrize("name", DEFINITIONS)


def batch(seed: int, junk: float = math.nan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, labels, mask and reference of 6 lists of up to 7, with ties; junk where masked.

    The last three lists have equal labels, one document and none.
    """
    draw = torch.Generator().manual_seed(seed)
    scores, reference = torch.randn(2, 6, 7, generator=draw, dtype=torch.float64) * 2
    labels = torch.randint(0, 4, (6, 7), generator=draw).double()
    mask = torch.rand(6, 7, generator=draw) < 0.7
    labels[:3, 0], labels[:3, 1], mask[:3, :2] = 3, 0, True
    labels[3] = 2
    mask[4:] = False
    mask[4, 5] = True
    return *(torch.where(mask, each, junk) for each in (scores, labels)), mask, reference


def with_reference(name: str, reference: Tensor) -> Loss:
    return partial(EVERY[name], reference=reference) if "irpo" in name else EVERY[name]


def gradient(loss: Callable[[Tensor], Tensor], scores: Tensor) -> tuple[Tensor, Tensor]:
    """The value at the scores, and the gradient there; no NaN on the way back either."""
    leaf = scores.clone().requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        value = loss(leaf)
        value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def by_definition(of: Callable[..., float], lists: tuple[Tensor, ...], weights: Numbers) -> float:
    losses = []
    for s, y, m, r, weight in zip(*lists, weights, strict=True):
        if len(set(y[m].tolist())) > 1:
            losses.append(weight * of(s[m].tolist(), y[m].tolist(), r[m].tolist()))
    return mean(losses)


# ---- Listwise losses ----


@pytest.mark.parametrize("seed", range(5))
@defined
def test_loss_equals_its_definition_in_loops(name: str, seed: int) -> None:
    scores, labels, mask, reference = batch(seed)
    found = with_reference(name, reference)(scores, labels, mask)
    wanted = by_definition(DEFINITIONS[name][1], (scores, labels, mask, reference), [1.0] * 6)
    assert found.item() == pytest.approx(wanted, rel=1e-9)
    assert wanted > 0


@pytest.mark.parametrize("name", [name for name in DEFINITIONS if name != "distil"])
def test_weights_multiply_the_losses_of_lists_and_not_their_number(name: str) -> None:
    scores, labels, mask, reference = batch(9)
    # Whatever the weight of a list that teaches nothing.
    weights = [0.5, 2.0, 0.0, 7.0, math.nan, math.nan]
    loss = partial(with_reference(name, reference), labels=labels, mask=mask)
    found, slope = gradient(partial(loss, weights=torch.tensor(weights)), scores)
    wanted = by_definition(DEFINITIONS[name][1], (scores, labels, mask, reference), weights)
    assert found.item() == pytest.approx(wanted, rel=1e-9)
    assert slope[:2].abs().sum() > 0
    assert slope[2:].abs().sum() == 0


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@every
def test_masked_places_change_neither_value_nor_gradient(name: str, junk: float) -> None:
    scores, labels, mask, reference = batch(3, junk)
    reference = torch.where(mask, reference, junk)
    loss = with_reference(name, reference)
    found, slope = gradient(lambda leaf: loss(leaf, labels, mask), scores)
    clean, clean_labels, _, _ = batch(3, 0.0)
    clean_loss = with_reference(name, torch.where(mask, reference, 0.0))
    wanted, wanted_slope = gradient(lambda leaf: clean_loss(leaf, clean_labels, mask), clean)
    assert torch.equal(found, wanted)
    assert torch.equal(slope, wanted_slope)
    assert slope[~mask].abs().sum() == 0
    assert slope[:3].abs().sum() > 0


@every
def test_padding_a_list_changes_nothing(name: str) -> None:
    scores, labels, _, _ = batch(4, 0.0)
    short = torch.ones(6, 4, dtype=torch.bool)
    wanted = EVERY[name](scores[:, :4], labels[:, :4], short)
    found = EVERY[name](scores, labels, torch.arange(7).expand(6, 7) < 4)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)


@every
def test_lists_with_nothing_to_learn_give_zero_and_a_zero_gradient(name: str) -> None:
    scores, labels, mask, _ = batch(0)
    value, slope = gradient(lambda leaf: EVERY[name](leaf, labels[3:], mask[3:]), scores[3:])
    assert value == 0
    assert torch.equal(slope, torch.zeros(3, 7, dtype=torch.float64))


@every
def test_lists_with_nothing_to_learn_are_not_counted(name: str) -> None:
    scores, labels, mask, _ = batch(0)
    alone = EVERY[name](scores[:3], labels[:3], mask[:3])
    assert EVERY[name](scores, labels, mask).item() == pytest.approx(alone.item(), rel=1e-12)


@every
def test_gradient_descent_recovers_a_planted_order_of_eight_from_zeros(name: str) -> None:
    labels = torch.randperm(8, generator=torch.Generator().manual_seed(5))[None].double()
    scores = torch.zeros(1, 8, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([scores], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        EVERY[name](scores, labels, torch.ones(1, 8, dtype=torch.bool)).backward()
        optimiser.step()
    assert scores[0].argsort().tolist() == labels[0].argsort().tolist()


@pytest.mark.parametrize("size", [1e4, 1e30])
@every
def test_extreme_scores_give_finite_values_and_gradients(name: str, size: float) -> None:
    scores, labels, mask, _ = batch(1, 0.0)
    extreme = (scores.sign() * size).float()
    value, slope = gradient(lambda leaf: EVERY[name](leaf, labels, mask), extreme)
    assert value.isfinite()
    assert slope.isfinite().all()


@every
def test_order_of_the_documents_in_a_list_does_not_matter_when_no_labels_tie(name: str) -> None:
    draw = torch.Generator().manual_seed(2)
    scores, mask = torch.randn(1, 9, generator=draw).double(), torch.arange(9)[None] < 7
    labels = torch.randperm(9, generator=draw)[None].double()
    shuffled = torch.randperm(9, generator=draw)
    moved = [each[:, shuffled] for each in (scores, labels, mask)]
    wanted = EVERY[name](scores, labels, mask).item()
    assert EVERY[name](*moved).item() == pytest.approx(wanted, rel=1e-12)


@every
def test_half_precision_scores_are_read_as_float32(name: str) -> None:
    scores, labels, mask, _ = batch(1, 0.0)
    half = scores.to(torch.bfloat16)
    found = EVERY[name](half, labels, mask)
    assert found.dtype == torch.float32
    assert torch.equal(found, EVERY[name](half.float(), labels, mask))


@every
def test_integer_labels_count_as_their_values(name: str) -> None:
    scores, labels, mask, _ = batch(1, 0.0)
    assert torch.equal(EVERY[name](scores, labels.long(), mask), EVERY[name](scores, labels, mask))


@every
def test_labels_are_constants(name: str) -> None:
    scores, labels, mask, _ = batch(1, 0.0)
    labels.requires_grad_()
    EVERY[name](scores.requires_grad_(), labels, mask).backward()
    assert labels.grad is None


@every
def test_labels_of_another_shape_are_refused(name: str) -> None:
    scores, labels, mask, _ = batch(1, 0.0)
    with pytest.raises(ValueError, match=r"scores are \(6, 7\), labels \(1, 7\) and mask"):
        EVERY[name](scores, labels[:1], mask)


@every
def test_mask_that_is_not_bool_is_refused(name: str) -> None:
    scores, labels, mask, _ = batch(1, 0.0)
    with pytest.raises(ValueError, match=r"mask is torch\.int64; it must be bool"):
        EVERY[name](scores, labels, mask.long())


def test_listwise_losses_go_by_their_names_in_configurations() -> None:
    assert set(LISTWISE) == {
        *("ranknet", "weighted_ranknet", "listnet", "kl", "reverse_kl", "symmetric_kl"),
        *("listmle", "skip_ranknet", "irpo"),
    }


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("ranknet", ranknet_of),
        ("weighted_ranknet", weighted_ranknet_of),
        ("listnet", listnet_of),
        ("kl", forward_of),
        ("reverse_kl", reverse_of),
        ("symmetric_kl", symmetric_of),
        ("listmle", listmle_of),
        ("skip_ranknet", skip_ranknet_of),
        ("irpo", irpo_of),
    ],
)
def test_name_in_configurations_is_the_loss_it_says(name: str, of: Callable[..., float]) -> None:
    scores, labels, mask, _ = batch(2)
    lists = (scores, labels, mask, torch.zeros_like(scores))
    wanted = by_definition(of, lists, [1.0] * 6)
    assert LISTWISE[name](scores, labels, mask).item() == pytest.approx(wanted, rel=1e-9)


def test_ranks_share_the_better_rank_and_leave_masked_places_zero() -> None:
    labels = torch.tensor([[1.0, 3.0, 9.0, 3.0, math.nan]])
    mask = torch.tensor([[True, True, False, True, False]])
    assert ranks(labels, mask).tolist() == [[3, 1, 0, 1, 0]]


# ---- Identities ----


def distinct(seed: int, n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """One list of n whose labels do not tie."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randperm(n, generator=draw)[None].double()
    scores = torch.randn(1, n, generator=draw).double()
    return scores, labels, torch.ones(1, n, dtype=torch.bool)


def test_skip_of_one_is_ranknet_of_neighbours() -> None:
    scores, labels, mask = distinct(1)
    sorted_scores = scores[0, labels[0].argsort(descending=True)].tolist()
    neighbours = itertools.pairwise(sorted_scores)
    wanted = mean([softplus(lower - upper) for upper, lower in neighbours])
    assert skip_ranknet(scores, labels, mask).item() == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(3))
def test_skip_of_all_places_is_ranknet(seed: int) -> None:
    scores, labels, mask, _ = batch(seed)
    found = skip_ranknet(scores, labels, mask, max_skip=6)
    assert found.item() == pytest.approx(ranknet(scores, labels, mask).item(), rel=1e-12)


def test_skip_grows_from_neighbours_to_every_pair() -> None:
    grown = [skip_at(step / 100, 16) for step in range(101)]
    assert (grown[0], grown[-1]) == (1, 15)
    assert grown == sorted(grown)
    assert set(grown) == set(range(1, 16))
    assert skip_at(1.0, 1) == 1


def test_listmle_is_ranknet_with_the_sum_of_all_later_documents_inside_the_logarithm() -> None:
    scores, labels, mask = distinct(4)
    z = scores[0, labels[0].argsort(descending=True)].tolist()
    wanted = sum(
        math.log(1 + sum(math.exp(later - z[i]) for later in z[i + 1 :])) for i in range(len(z))
    )
    assert listmle(scores, labels, mask).item() == pytest.approx(wanted)


def test_listmle_takes_equal_labels_in_the_order_of_the_list() -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    tied = listmle(scores, torch.tensor([[5.0, 5.0, 1.0]]), mask)
    assert torch.equal(tied, listmle(scores, torch.tensor([[3.0, 2.0, 1.0]]), mask))


@pytest.mark.parametrize("gain", ["rank", "exponential"])
def test_irpo_at_its_reference_is_the_sum_of_weights_times_ln_2_over_n(gain: Any) -> None:
    scores, labels, mask = distinct(6)
    found = irpo(scores, labels, mask, reference=scores, gain=gain)
    weights = [
        (2**label - 1 if gain == "exponential" else 1) / math.log2(1 + 8 - label)
        for label in labels[0].tolist()
    ]
    assert found.item() == pytest.approx(sum(weights) * math.log(2) / 8)


def test_irpo_without_a_reference_is_that_of_zeros_and_moves_no_reference() -> None:
    scores, labels, mask = distinct(6)
    zeros = torch.zeros_like(scores, requires_grad=True)
    found = irpo(scores.requires_grad_(), labels, mask, reference=zeros)
    assert torch.equal(found, irpo(scores, labels, mask))
    found.backward()
    assert zeros.grad is None


@pytest.mark.parametrize("kind", ["forward", "reverse", "symmetric"])
def test_kl_is_zero_where_the_distributions_are_equal_and_nowhere_else(kind: Any) -> None:
    _, labels, mask = distinct(7)
    temperatures: Any = {"student_temperature": 0.5, "teacher_temperature": 2.0}
    same = labels * 0.5 / 2.0 + 3.0
    equal, slope = gradient(
        lambda leaf: soft_kl(leaf, labels, mask, kind=kind, **temperatures), same
    )
    assert equal.item() == pytest.approx(0, abs=1e-12)
    assert slope.abs().max() < 1e-12
    for place in range(8):
        other = same.clone()
        other[0, place] += 0.01
        assert soft_kl(other, labels, mask, kind=kind, **temperatures) > 1e-9


def test_listnet_is_kl_plus_the_entropy_of_the_teacher() -> None:
    scores, labels, mask = distinct(8)
    entropy = -sum(p * math.log(p) for p in softmax(labels[0].tolist()))
    found = listnet(scores, labels, mask) - soft_kl(scores, labels, mask)
    assert found.item() == pytest.approx(entropy)


def test_soft_ranknet_is_least_where_the_scores_differ_as_the_labels_do() -> None:
    scores, labels, mask = distinct(9)
    _, slope = gradient(lambda leaf: ranknet(leaf, labels, mask, soft=True), labels - 100)
    assert slope.abs().max() < 1e-12
    _, slope = gradient(lambda leaf: ranknet(leaf, labels, mask, soft=True), scores)
    assert slope.abs().max() > 1e-3


def test_distillation_goes_from_the_main_loss_at_alpha_0_to_the_teacher_at_alpha_1() -> None:
    scores, labels, mask = distinct(10)
    main = distil(scores, labels, mask, alpha=0.0, main=listmle)
    assert torch.equal(main, listmle(scores, labels, mask))
    teacher = distil(scores, labels, mask, temperature=3.0, alpha=1.0, main=listmle)
    wanted = 9 * kl(softmax(labels[0].tolist(), 3.0), softmax(scores[0].tolist(), 3.0))
    assert teacher.item() == pytest.approx(wanted)


def test_gradient_of_distillation_keeps_its_size_at_any_high_temperature() -> None:
    scores, labels, mask = distinct(11)

    def size(temperature: float) -> float:
        loss = partial(distil, temperature=temperature, alpha=1.0)
        return gradient(lambda leaf: loss(leaf, labels, mask), scores)[1].norm().item()

    assert size(400) == pytest.approx(size(100), rel=0.05)


# ---- Contrastive losses ----


def unit_rows(seed: int, *shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(*shape, generator=draw, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def retrieval(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """4 queries, 7 documents, positives, and a mask; the last query has no negative."""
    queries, documents = unit_rows(seed, 4, 5), unit_rows(seed + 100, 7, 5)
    mask = torch.rand(4, 7, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[:3, 5], mask[3] = True, False
    return queries, documents, torch.tensor([0, 2, 2, 6]), mask


def cosines(queries: Tensor, documents: Tensor, temperature: float) -> list[list[float]]:
    return [
        [sum(a * b for a, b in zip(q, d, strict=True)) / temperature for d in documents.tolist()]
        for q in queries.tolist()
    ]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_infonce_equals_its_definition_in_loops(seed: int, masked: bool) -> None:
    queries, documents, positives, mask = retrieval(seed)
    losses = []
    for row, z in enumerate(cosines(queries, documents, 0.2)):
        positive = int(positives[row])
        others = [j for j in range(7) if j != positive and (mask[row, j] or not masked)]
        if others:
            total = sum(math.exp(z[j]) for j in [positive, *others])
            losses.append(-math.log(math.exp(z[positive]) / total))
    found = infonce(queries, documents, positives, 0.2, mask if masked else None)
    assert len(losses) == (3 if masked else 4)
    assert found.item() == pytest.approx(mean(losses), rel=1e-9)


def weights_in_loops(weight: str, z: Numbers, positive: int, others: list[int]) -> dict[int, float]:
    """How much each document of a query is pulled: below 0 is towards it."""
    if weight == "softmax":
        total = sum(math.exp(z[j]) for j in [positive, *others])
        return {j: math.exp(z[j]) / total for j in others} | {
            positive: -sum(math.exp(z[j]) for j in others) / total
        }
    if weight == "sigmoid":
        return {j: 1 / (1 + math.exp(-z[j])) / len(others) for j in others} | {
            positive: -1 / (1 + math.exp(z[positive]))
        }
    return {j: 1 / len(others) for j in others} | {positive: -1.0}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "none"])
def test_contrastive_gradient_is_how_much_times_which_way(weight: Any, seed: int) -> None:
    queries, documents, positives, mask = retrieval(seed)
    leaves = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    contrastive(*leaves, positives, 0.2, mask, weight=weight).backward()
    wanted = torch.zeros_like(queries), torch.zeros_like(documents)
    for row, z in enumerate(cosines(queries, documents, 0.2)):
        positive = int(positives[row])
        others = [j for j in range(7) if j != positive and mask[row, j]]
        if others:
            for j, pull in weights_in_loops(weight, z, positive, others).items():
                # Which way: the gradient of cosine / temperature; three queries are counted.
                wanted[0][row] += pull * documents[j] / 0.2 / 3
                wanted[1][j] += pull * queries[row] / 0.2 / 3
    for leaf, slope in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(leaf.grad, slope)


@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "none"])
def test_contrastive_value_is_the_loss_that_has_this_gradient(weight: Any) -> None:
    queries, documents, positives, mask = retrieval(0)

    def loss(q: Tensor, d: Tensor) -> Tensor:
        return contrastive(q, d, positives, 0.2, mask, weight=weight)

    inputs = queries.requires_grad_(), documents.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)
    values = []
    for row, z in enumerate(cosines(queries, documents, 0.2)[:3]):
        positive = int(positives[row])
        others = [z[j] for j in range(7) if j != positive and mask[row, j]]
        up = z[positive]
        values.append(
            {
                "softmax": math.log(1 + sum(math.exp(other - up) for other in others)),
                "sigmoid": softplus(-up) + mean([softplus(other) for other in others]),
                "none": mean(others) - up,
            }[weight]
        )
    assert loss(*inputs).item() == pytest.approx(mean(values))


@pytest.mark.parametrize("loss", [infonce, contrastive])
def test_document_that_no_query_may_use_changes_nothing(loss: Loss) -> None:
    queries, documents, positives, mask = retrieval(1)
    mask[:, 4] = False
    spoilt = documents.clone()
    spoilt[4] = math.nan
    found = {}
    for name, given in (("clean", documents), ("spoilt", spoilt)):
        leaves = queries.clone().requires_grad_(), given.clone().requires_grad_()
        value = loss(*leaves, positives, 0.05, mask)
        value.backward()
        found[name] = (value.detach(), leaves[0].grad, leaves[1].grad)
    for clean, same in zip(found["clean"], found["spoilt"], strict=True):
        torch.testing.assert_close(same, clean)
    slope = found["spoilt"][2]
    assert slope is not None
    assert slope[4].abs().sum() == 0


@pytest.mark.parametrize("loss", [infonce, contrastive])
def test_queries_without_negatives_give_zero_and_a_zero_gradient(loss: Loss) -> None:
    queries, documents, positives, mask = retrieval(1)
    value, slope = gradient(
        lambda leaf: loss(leaf, documents, positives, 0.05, torch.zeros_like(mask)), queries
    )
    assert value == 0
    assert slope.abs().sum() == 0


@pytest.mark.parametrize("loss", [infonce, contrastive])
def test_weights_multiply_the_losses_of_queries(loss: Loss) -> None:
    queries, documents, positives, mask = retrieval(2)
    weights = torch.tensor([0.5, 0.0, 2.0, 9.0])
    alone = [
        loss(queries[row : row + 1], documents, positives[row : row + 1], 0.1, mask[row : row + 1])
        for row in range(3)
    ]
    found = loss(queries, documents, positives, 0.1, mask, weights=weights)
    assert found.item() == pytest.approx((0.5 * alone[0] + 2 * alone[2]).item() / 3)


@pytest.mark.parametrize("loss", [infonce, contrastive])
def test_tiny_temperatures_give_finite_values_and_gradients(loss: Loss) -> None:
    queries, documents, positives, mask = retrieval(2)
    single = documents.float()
    value, slope = gradient(
        lambda leaf: loss(leaf, single, positives, 1e-30, mask), queries.float()
    )
    assert value.isfinite()
    assert slope.isfinite().all()


# ---- Refusals ----

Q, D, P = torch.eye(2), torch.eye(2), torch.tensor([0, 1])
S, L, M = torch.zeros(1, 2), torch.tensor([[1.0, -2.0]]), torch.ones(1, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: infonce(Q, D, P, 0.0), "temperature is 0.0; it must be above 0"),
        (lambda: infonce(Q, D, P, 1.0, M), r"mask is torch.bool \(1, 2\); for 2 queries and 2"),
        (lambda: infonce(Q, D, P, 1.0, Q), r"mask is torch.float32 \(2, 2\)"),
        (lambda: infonce(Q, D, P + 1, 1.0), r"a positive is outside 0\.\.1"),
        (lambda: contrastive(Q, D, P, 1.0, weight="mask"), "weight is 'mask'; expected 'softmax'"),  # type: ignore[arg-type]
        (lambda: skip_ranknet(S, L, M, max_skip=0), "max_skip is 0; it must be at least 1"),
        (lambda: skip_at(1.2, 8), r"fraction is 1\.2; it must be between 0"),
        (lambda: soft_kl(S, L, M, kind="both"), "kind is 'both'; expected 'forward'"),  # type: ignore[arg-type]
        (lambda: soft_kl(S, L, M, student_temperature=0), "student_temperature is 0"),
        (lambda: soft_kl(S, L, M, teacher_temperature=-1), "teacher_temperature is -1"),
        (lambda: distil(S, L, M, alpha=1.5), r"alpha is 1\.5; it must be between 0"),
        (lambda: irpo(S, L, M, beta=0), "beta is 0; it must be above 0"),
        (lambda: irpo(S, L, M, gain="linear"), "gain is 'linear'; expected 'rank'"),  # type: ignore[arg-type]
        (lambda: irpo(S, L, M, gain="exponential"), "a label is -2; gain='exponential' is for"),
    ],
)
def test_argument_out_of_range_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
