"""A cached gradient is the plain one: dropout, frozen sides and autocast included."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import transformers
from encoders_support import SMALL, random_model

from e2rank.train import cache
from e2rank.train.cache import Side, cached_backward, plain_backward

BATCH, LISTED, LENGTH = 4, 3, 6
# How many queries, documents and prompts go into each chunk.
CHUNKINGS = [(1, 1, 1), (2, 5, 3), (4, 12, 4), (3, 7, [1, 3]), ([1, 2, 1], [2, 10], 4)]

Backward = Callable[..., tuple[torch.Tensor, list[torch.Tensor]]]


def bert(dropout: float = 0.0) -> torch.nn.Module:
    """A two-layer BERT in float64, so that equal can mean equal; in training mode."""
    config = transformers.BertConfig(
        **SMALL,
        vocab_size=60,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return random_model(transformers.BertModel, config).double().train()


def encoding(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Token ids to mean-pooled unit vectors."""

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        pooled = model(input_ids=tokens).last_hidden_state.mean(1)
        return torch.nn.functional.normalize(pooled, dim=1)

    return encode


class Objective(torch.nn.Module):
    """InfoNCE over the batch and a listwise loss, sharpened by a learned scale; counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(5.0, dtype=torch.float64))
        self.calls = 0

    def forward(
        self, queries: torch.Tensor, documents: torch.Tensor, prompts: torch.Tensor
    ) -> torch.Tensor:
        self.calls += 1
        lists = documents.view(BATCH, LISTED, -1)
        cosines = torch.einsum("bd,bnd->bn", prompts, lists)
        contrast = torch.nn.functional.cross_entropy(
            self.scale * queries @ documents.T, torch.arange(BATCH) * LISTED
        )
        first = torch.zeros(BATCH, dtype=torch.long)
        return contrast + torch.nn.functional.cross_entropy(self.scale * cosines, first)


def texts() -> list[torch.Tensor]:
    """Queries, documents and prompts as token ids."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(BATCH, LENGTH), (BATCH * LISTED, LENGTH), (BATCH, 2 * LENGTH)]
    return [torch.randint(1, 60, shape, generator=generator) for shape in shapes]


def made_sides(
    encode: Callable[[torch.Tensor], torch.Tensor], chunking: Sequence[int | list[int]]
) -> list[Side]:
    return [Side(encode, ids.split(size)) for ids, size in zip(texts(), chunking, strict=True)]


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: each.grad for name, each in module.named_parameters()}


def run(
    backward: Backward, chunking: Sequence[int | list[int]], dropout: float = 0.0
) -> dict[str, Any]:
    """One step of a fresh model from the same seed: everything it leaves behind."""
    model, loss = bert(dropout), Objective()
    torch.manual_seed(7)
    value, vectors = backward(made_sides(encoding(model), chunking), loss)
    return {
        "loss": value,
        "vectors": vectors,
        "model": gradients(model),
        "scale": loss.scale.grad,
        "drawn next": torch.rand(3),
    }


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_a_cached_step_equals_one_pass_over_the_whole_batch(
    chunking: Sequence[int | list[int]],
) -> None:
    expected = run(plain_backward, (BATCH, BATCH * LISTED, BATCH))
    assert all(g is None or g.abs().max() > 0 for g in expected["model"].values())
    assert_equal(run(cached_backward, chunking), expected)


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_dropout_is_that_of_a_plain_pass_and_leaves_the_same_random_numbers(
    chunking: Sequence[int | list[int]],
) -> None:
    assert_equal(run(cached_backward, chunking, 0.3), run(plain_backward, chunking, 0.3))


def test_without_replayed_random_numbers_dropout_gives_another_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = run(plain_backward, (2, 5, 3), 0.3)
    monkeypatch.setattr(cache, "_set_rng", lambda state: None)
    found = run(cached_backward, (2, 5, 3), 0.3)
    assert_equal(found["loss"], expected["loss"])
    with pytest.raises(AssertionError):
        assert_equal(found["model"], expected["model"])
    with pytest.raises(AssertionError):
        assert_equal(found["drawn next"], expected["drawn next"])


def test_random_numbers_of_the_loss_count_once() -> None:
    layer = torch.nn.Linear(LENGTH, 3)
    side = Side(layer, torch.ones(4, LENGTH).split(2))
    left = []
    for backward in (plain_backward, cached_backward):
        torch.manual_seed(3)
        backward([side], lambda vectors: (vectors * torch.rand(4, 3)).sum())
        left.append(torch.rand(2))
    assert_equal(left[1], left[0])


def test_gradients_add_to_those_already_there() -> None:
    model, loss = bert(), Objective()
    sides = made_sides(encoding(model), (2, 5, 3))
    cached_backward(sides, loss)
    once = {name: each.clone() for name, each in gradients(model).items() if each is not None}
    scale = loss.scale.grad
    assert scale is not None
    scale = scale.clone()
    cached_backward(sides, loss)
    twice = {name: each for name, each in gradients(model).items() if each is not None}
    assert_equal(twice, {name: 2 * each for name, each in once.items()})
    assert_equal(loss.scale.grad, 2 * scale)


def test_the_loss_is_computed_once_and_nothing_returned_holds_a_graph() -> None:
    model, loss = bert(), Objective()
    value, vectors = cached_backward(made_sides(encoding(model), (2, 5, 3)), loss)
    assert loss.calls == 1
    assert value.shape == ()
    assert [each.shape for each in vectors] == [(4, 32), (12, 32), (4, 32)]
    assert not any(each.requires_grad for each in (value, *vectors))


def test_a_frozen_side_is_encoded_once_and_the_rest_learns_as_in_a_plain_pass() -> None:
    found = []
    calls: list[int] = []
    for backward in (plain_backward, cached_backward):
        trained, frozen, calls = bert(), bert().requires_grad_(False), []

        def encode_frozen(
            ids: torch.Tensor,
            model: torch.nn.Module = frozen,
            calls: list[int] = calls,
        ) -> torch.Tensor:
            calls.append(len(ids))
            return encoding(model)(ids)

        queries, documents, prompts = made_sides(encoding(trained), (2, 5, 3))
        backward([queries, Side(encode_frozen, documents.chunks), prompts], Objective())
        assert not any(each is not None for each in gradients(frozen).values())
        found.append(gradients(trained))
    assert_equal(found[1], found[0])
    assert calls == [5, 5, 2]


def test_a_side_without_chunks_gives_the_loss_no_rows() -> None:
    model = torch.nn.Linear(LENGTH, 3)
    seen = []

    def loss(vectors: torch.Tensor, none: torch.Tensor) -> torch.Tensor:
        seen.append(none.shape)
        return vectors.sum() + none.sum()

    for backward in (plain_backward, cached_backward):
        backward([Side(model, torch.ones(4, LENGTH).split(2)), Side(model, [])], loss)
    assert seen == [(0, 0), (0, 0)]
    assert_equal(model.bias.grad, torch.full((3,), 8.0))


@pytest.mark.parametrize("backward", [plain_backward, cached_backward])
def test_a_side_the_loss_does_not_use_gets_no_gradient(backward: Backward) -> None:
    used, unused = torch.nn.Linear(LENGTH, 3), torch.nn.Linear(LENGTH, 3)
    chunks = torch.ones(4, LENGTH).split(2)
    backward([Side(used, chunks), Side(unused, chunks)], lambda a, b: a.sum())
    assert used.weight.grad is not None
    assert unused.weight.grad is None


@pytest.mark.parametrize("backward", [plain_backward, cached_backward])
def test_a_step_that_could_train_nothing_is_refused(backward: Backward) -> None:
    frozen = torch.nn.Linear(LENGTH, 3).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        backward([Side(frozen, [torch.ones(2, LENGTH)])], torch.sum)


class Held:
    """A tensor that a graph keeps for its backward pass, and the chunk it belongs to."""

    def __init__(self, tensor: torch.Tensor, chunk: int) -> None:
        # Attached, it would hold the graph that holds it, for ever.
        self.tensor, self.chunk = tensor.detach(), chunk


class Memory:
    """Watches which chunks' activations are alive, at every new activation."""

    def __init__(self) -> None:
        self.held: weakref.WeakSet[Held] = weakref.WeakSet()
        self.calls = self.most_chunks = self.most_tensors = 0

    def watched(
        self, encode: Callable[[torch.Tensor], torch.Tensor]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        def pack(tensor: torch.Tensor) -> Held:
            held = Held(tensor, self.calls)
            self.held.add(held)
            self.most_chunks = max(self.most_chunks, len({each.chunk for each in self.held}))
            self.most_tensors = max(self.most_tensors, len(self.held))
            return held

        def call(ids: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
                return encode(ids)

        return call


def test_one_chunk_of_activations_is_alive_at_a_time() -> None:
    memories = {}
    for backward in (plain_backward, cached_backward):
        memory = memories[backward] = Memory()
        backward(made_sides(memory.watched(encoding(bert(0.1))), (2, 3, 2)), Objective())
        assert not memory.held
    plain, cached = memories[plain_backward], memories[cached_backward]
    assert plain.calls == plain.most_chunks == 2 + 4 + 2
    assert cached.calls == 2 * plain.calls
    assert cached.most_chunks == 1
    assert cached.most_tensors * plain.calls == plain.most_tensors


def test_only_the_last_chunk_that_learns_is_outside_no_sync() -> None:
    model, frozen = torch.nn.Linear(LENGTH, 3), torch.nn.Linear(LENGTH, 3).requires_grad_(False)
    quiet, log = [False], []

    @contextlib.contextmanager
    def no_sync() -> Iterator[None]:
        quiet[0] = True
        yield
        quiet[0] = False

    def encode(chunk: torch.Tensor) -> torch.Tensor:
        vectors = model(chunk)
        if vectors.requires_grad:
            vectors.register_hook(lambda _: log.append(("backward", quiet[0])))
        log.append(("forward", quiet[0]))
        return vectors

    chunks = torch.ones(4, LENGTH).split(2)
    sides = [Side(encode, chunks), Side(encode, chunks), Side(frozen, chunks)]
    cached_backward(sides, lambda *vectors: torch.cat(vectors).sum(), no_sync=no_sync)
    forward, back = ("forward", True), ("backward", True)
    aloud = [("forward", False), ("backward", False)]
    assert log == [forward] * 4 + [forward, back] * 3 + aloud


@pytest.mark.parametrize("around", ["the step", "encode"])
def test_autocast_trains_every_weight_as_in_a_plain_pass(around: str) -> None:
    found = []
    for backward in (plain_backward, cached_backward):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(LENGTH, 8), torch.nn.Tanh())
        head = torch.nn.Linear(8, 3)
        weights = [*model.parameters(), *head.parameters()]

        def encode(
            chunk: torch.Tensor, model: torch.nn.Module = model, head: torch.nn.Module = head
        ) -> torch.Tensor:
            with autocast(around == "encode"):
                return head(model(chunk)).float()

        sides = [Side(encode, torch.randn(6, LENGTH).split(2)) for _ in range(2)]
        with autocast(around == "the step"):
            value, _ = backward(sides, lambda a, b: (a * b).square().sum())
        assert all(each.grad is not None for each in weights)
        found.append([value, *(each.grad for each in weights)])
    for cached, plain in zip(found[1], found[0], strict=True):
        assert (cached - plain).norm() <= 1e-2 * plain.norm()


def test_weights_that_autocast_keeps_never_reach_a_pass_with_a_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Newer torch keeps none without a graph, so what is seen here is that they are dropped."""
    layer, log = torch.nn.Linear(LENGTH, 3), []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: log.append("cleared"))

    def encode(chunk: torch.Tensor) -> torch.Tensor:
        log.append("graph" if torch.is_grad_enabled() else "none")
        return layer(chunk)

    def loss(vectors: torch.Tensor) -> torch.Tensor:
        log.append("loss")
        return vectors.sum()

    cached_backward([Side(encode, torch.ones(4, LENGTH).split(2))], loss)
    assert log == ["cleared", "graph", "none", "cleared", "loss", *["cleared", "graph"] * 2]


def autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def test_gpu_random_numbers_are_replayed_where_a_gpu_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in for a GPU's generator: a number that each pass over a chunk advances."""
    gpu, drawn = [0], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(gpu))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: gpu.__setitem__(0, *states))
    layer = torch.nn.Linear(LENGTH, 3)

    def encode(chunk: torch.Tensor) -> torch.Tensor:
        drawn.append(gpu[0])
        gpu[0] += 1
        return layer(chunk)

    cached_backward([Side(encode, torch.ones(6, LENGTH).split(2))], torch.sum)
    assert drawn == [0, 1, 2, 0, 1, 2]
    assert gpu == [3]
