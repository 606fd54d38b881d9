"""Training a token head: it learns a teacher's order, alike every time, and is kept whole."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_support import assert_close, made
from train_support import OTHERS, WORDS, bert_base, write_lists

from e2rank.encoders.adapter import Adapter
from e2rank.encoders.heads import TokenHead
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.soft import word_embeddings
from e2rank.encoders.sparse import SparseHead
from e2rank.encoders.torch import TorchEncoder
from e2rank.errors import CorpusError, EncodingError
from e2rank.scores import maxsim as maxsim_of_arrays
from e2rank.train import late
from e2rank.train.examples import Example
from e2rank.train.late import (
    LateConfig,
    Lists,
    fit,
    list_loss,
    maxsim,
    principal_axes,
    read_lists,
    read_states,
    train_tokens,
)


def planted(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Queries of a word that counts and two that do not; labels: whether the first is there."""
    rows = []
    for number in range(start, start + count):
        rng = np.random.default_rng(number)
        key, other = rng.permutation(WORDS)[:2]
        one, two, three = rng.permutation(OTHERS)[:3]
        documents = [f"{other} {one} {two}", f"{key} {three}", f"{three} {two} {other}", f"{key}"]
        rows.append(
            {
                "query": f"{one} {key} {two}",
                "documents": documents,
                "labels": [0.0, 8.0, 0.0, 8.0],
            }
        )
    return rows


def settings(data: str, out: Path | str = "unused", **changes: Any) -> LateConfig:
    """A short run under which a head of a tiny model learns."""
    fields: dict[str, Any] = {
        "data": (data,),
        "out": str(out),
        "token_dim": 16,
        "lists": 8,
        "steps": 60,
        "warmup": 5,
        "learning_rate": 2e-2,
        "temperature": 1.0,
    }
    return LateConfig(**fields | changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random BERT."""
    return bert_base(tmp_path_factory.mktemp("late") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Lists to learn from."""
    return write_lists(tmp_path_factory.mktemp("lists") / "lists.jsonl", planted(64))


@pytest.fixture(scope="module")
def states(data: str) -> Lists:
    """Those lists with their states."""
    return read_states(made(), read_lists((data,), ()), 2)


@pytest.fixture(scope="module")
def unseen() -> Lists:
    """Lists of the same rule that nothing is learned from."""
    examples = [
        Example(row["query"], tuple(row["documents"]), tuple(row["labels"]))
        for row in planted(40, start=1000)
    ]
    return read_states(made(), examples, 2)


@pytest.fixture(scope="module")
def trained(base: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter that was trained on them."""
    out = tmp_path_factory.mktemp("trained") / "adapter"
    return train_tokens(settings(data, out, base=base))


def scores(head: TokenHead, lists: Lists, i: int) -> list[float]:
    """The score of late interaction of each document of a list, in loops."""
    of_late, of_cosine = head.blend()
    with torch.no_grad():
        query = head.queries(lists.queries[i].float()).double().numpy()
        rows = [head.documents(lists.documents[at].float()).numpy() for at in lists.places[i]]
    late = [sum(max(float(row @ asked) for row in each) for asked in query) for each in rows]
    cosines = lists.cosines[i].tolist()
    return [of_late * m + of_cosine * c for m, c in zip(late, cosines, strict=True)]


def agreement(head: TokenHead, lists: Lists) -> float:
    """Share of the pairs with different labels that the scores put in the labels' order."""
    right = total = 0
    for i, example in enumerate(lists.examples):
        own = scores(head, lists, i)
        for a, b in itertools.permutations(range(len(example)), 2):
            if example.labels[a] > example.labels[b]:
                right, total = right + (own[a] > own[b]), total + 1
    return right / total


def loss_of(head: TokenHead, lists: Lists, config: LateConfig) -> float:
    """The mean loss of every list."""
    with torch.no_grad():
        return float(list_loss(head, lists, range(len(lists.examples)), config))


def test_a_head_learns_the_order_of_the_teacher_also_on_unseen_lists(
    states: Lists, unseen: Lists
) -> None:
    config = settings("unused")
    start = fit(states, dataclasses.replace(config, steps=1, learning_rate=1e-12))
    head = fit(states, config)
    assert loss_of(head, states, config) < 0.5 * loss_of(start, states, config)
    assert loss_of(head, unseen, config) < 0.7 * loss_of(start, unseen, config)
    assert agreement(start, unseen) < 0.4
    assert agreement(head, unseen) > 0.8


def test_training_begins_at_the_principal_axes_with_equal_shares(states: Lists) -> None:
    head = fit(states, settings("unused", steps=1, learning_rate=1e-12))
    expected = principal_axes(states.documents, 16)
    assert_close(head.project.weight.detach().numpy(), expected.numpy(), 1e-4)
    assert_close(torch.stack([each.detach() for each in head.weigh.parameters()][:1]).numpy(), 0.0)


def test_the_loss_is_the_divergence_of_the_teachers_softmax_from_the_scores(states: Lists) -> None:
    head, config = TokenHead(64, 16), settings("unused", temperature=3.0)
    batch, losses = [5, 0, 9], []
    for i in batch:
        own, labels = scores(head, states, i), states.examples[i].labels
        student = [math.exp(each) for each in own]
        teacher = [math.exp(each / 3.0) for each in labels]
        p = [each / sum(teacher) for each in teacher]
        q = [each / sum(student) for each in student]
        losses.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    found = list_loss(head, states, batch, config)
    assert found.item() == pytest.approx(sum(losses) / 3, rel=1e-3)


def test_labels_that_float32_would_make_equal_are_ordered(states: Lists) -> None:
    def loss(start: float) -> float:
        labels = tuple(start + label for label in (2.0, 1.0, 0.0, 3.0))
        changed = [dataclasses.replace(each, labels=labels) for each in states.examples]
        lists = dataclasses.replace(states, examples=changed)
        return list_loss(TokenHead(64, 16), lists, [0, 1], settings("unused")).item()

    torch.manual_seed(0)
    expected = loss(0.0)
    torch.manual_seed(0)
    assert loss(1_700_000_000.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_maxsim_is_that_of_searches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(4, 6)).astype(np.float32)
    rows = [rng.normal(size=(count, 6)).astype(np.float32) for count in rng.integers(1, 6, 7)]
    ends = np.cumsum([0, *map(len, rows)])
    found = maxsim(torch.tensor(query), [torch.tensor(each) for each in rows])
    assert_close(found.numpy(), maxsim_of_arrays(query, np.concatenate(rows), ends))


def test_maxsim_gives_gradients_to_the_best_row_alone() -> None:
    query = torch.tensor([[1.0, 0.0]])
    document = torch.tensor([[0.2, 5.0], [0.9, 1.0]], requires_grad=True)
    maxsim(query, [document]).sum().backward()
    assert document.grad is not None
    assert document.grad.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_principal_axes_are_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    states = [(rng.normal(size=(count, 6)) * [1, 9, 3, 0.1, 5, 0.5]) for count in (5, 9, 30)]
    found = principal_axes([torch.tensor(each).half() for each in states], 3).numpy()
    assert_close(found @ found.T, np.eye(3))
    _, _, axes = np.linalg.svd(np.concatenate(states))
    assert_close(np.abs(found @ axes[:3].T), np.eye(3), 1e-2)


def test_every_distinct_text_is_read_once_and_as_the_encoder_reads_it() -> None:
    examples = [
        Example("wing", ("a panel", "a jet"), (1.0, 0.0)),
        Example("jet", ("a jet", "a panel", "heat"), (1.0, 0.0, 2.0)),
    ]
    encoder = made()
    lists = read_states(encoder, examples, 2)
    assert lists.places == [[0, 1], [1, 0, 2]]
    texts = ["a panel", "a jet", "heat"]
    vectors = encoder.encode_documents(texts).vectors
    assert [len(each) for each in lists.documents] == [4, 4, 3]
    assert {each.dtype for each in [*lists.documents, *lists.queries]} == {torch.float16}
    for example, cosines in zip(examples, lists.cosines, strict=True):
        asked = encoder.encode_queries([example.query]).vectors[0]
        own = [float(vectors[texts.index(each)] @ asked) for each in example.documents]
        assert_close(cosines.numpy(), own)


def test_one_seed_gives_the_same_weights_and_another_others(states: Lists) -> None:
    config = settings("unused", steps=8)
    one, same, other = (
        fit(states, dataclasses.replace(config, seed=seed)).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_every_weight_of_a_head_is_trained(states: Lists) -> None:
    start = fit(states, settings("unused", steps=1, learning_rate=1e-12)).state_dict()
    found = fit(states, settings("unused", steps=8)).state_dict()
    moved = {name for name in found if (found[name] - start[name]).abs().max() > 1e-3}
    # A bias that every token shares changes shares only where weights differ already.
    assert moved == found.keys()


def test_the_adapter_scores_as_the_head_that_was_trained(
    trained: Path, states: Lists, data: str
) -> None:
    encoder = load_encoder(trained, device="cpu")
    assert isinstance(encoder, TorchEncoder)
    head = fit(states, settings(data))
    assert encoder.blend() == pytest.approx(head.blend(), rel=1e-4)
    of_late, of_cosine = encoder.blend()
    for i, example in enumerate(states.examples[:6]):
        query, read = (
            encoder.encode_queries([example.query]),
            encoder.encode_documents(example.documents),
        )
        ends = np.cumsum([0, *map(len, read.token_vectors)])
        late = maxsim_of_arrays(query.token_vectors[0], np.concatenate(read.token_vectors), ends)
        found = of_late * late + of_cosine * (read.vectors @ query.vectors[0])
        # States are held in half precision while a head learns.
        assert_close(found, scores(head, states, i), 0.05)


def test_the_adapter_is_of_its_base_and_says_how_it_was_made(
    trained: Path, base: str, data: str
) -> None:
    adapter, plain = Adapter.load(trained), load_encoder(base, device="cpu")
    assert (adapter.base, adapter.base_name) == (plain.fingerprint, str(Path(base).resolve()))
    assert adapter.contract == dataclasses.replace(
        plain.contract, token_dim=16, token_layers=2, fusion_weight=1.0, rerank="tokens"
    )
    assert all(name.startswith("tokens.") for name in adapter.weights)
    assert adapter.about["lists"] == 64
    recipe = adapter.about["recipe"]
    assert (recipe["data"], recipe["steps"], recipe["seed"]) == ([data], 60, 0)
    assert not {"out", "threads"} & recipe.keys()
    encoder = load_encoder(trained, device="cpu")
    texts = ["wing", "a panel in a jet"]
    for name in ("encode_queries", "encode_documents"):
        one, other = (getattr(each, name)(texts).vectors for each in (plain, encoder))
        assert_close(one, other, 1e-6)


def test_a_base_named_by_a_relative_path_is_found_from_anywhere(
    base: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(base).parent)
    train_tokens(settings(data, tmp_path / "out", base="base", steps=1))
    monkeypatch.chdir(tmp_path)
    assert load_encoder("out", device="cpu").contract.token_dim == 16


def test_a_trained_head_can_be_the_base_of_another(
    trained: Path, data: str, tmp_path: Path
) -> None:
    out = train_tokens(settings(data, tmp_path / "out", base=str(trained), token_dim=4, steps=2))
    encoder = load_encoder(out, device="cpu")
    assert encoder.encode_documents(["wing"]).token_vectors[0].shape == (3, 4)


def test_a_head_leaves_what_its_base_holds_and_learns_from_the_queries_that_it_serves(
    base: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_encoder(base, device="cpu")
    name = next(name for name, _ in plain.tower.model.named_modules() if name.endswith(".query"))
    draw = torch.Generator().manual_seed(0)
    updates = {f"lora.{name}.{part}": torch.randn(*shape, generator=draw)
               for part, shape in (("A", (2, 32)), ("B", (32, 2)))}  # fmt: skip
    words = SparseHead(word_embeddings(plain.tower), 64)
    sparse = {f"sparse.{name}": each for name, each in words.state_dict().items()}
    contract = dataclasses.replace(plain.contract, sparse_dim=len(words.bias), token_layers=2)
    old = Adapter(base=plain.fingerprint, base_name=base, contract=contract, lora_scale=0.5,
                  weights=updates | sparse, about={"mine": 1})  # fmt: skip
    old.save(tmp_path / "old")
    read: list[Lists] = []
    monkeypatch.setattr(late, "fit", lambda lists, *rest: read.append(lists) or fit(lists, *rest))
    out = train_tokens(settings(data, tmp_path / "out", base=str(tmp_path / "old"), steps=2))
    found = Adapter.load(out)
    assert (found.base_name, found.lora_scale, found.about["mine"]) == (base, 0.5, 1)
    assert all(torch.equal(found.weights[name], each) for name, each in old.weights.items())
    one, other = (load_encoder(each, device="cpu") for each in (tmp_path / "old", out))
    texts = [each.query for each in read[0].examples[:3]]
    mine, theirs = (each.encode_queries(texts).vectors for each in (one, other))
    assert_close(mine, theirs, 1e-6)
    assert np.abs(theirs - plain.encode_queries(texts).vectors).max() > 1e-3
    head = other._tokens
    with torch.no_grad():
        for rows, served in zip(read[0].queries, other.encode_queries(texts).token_vectors,
                                strict=False):  # fmt: skip
            assert_close(head.queries(rows.float()).numpy(), served, 0.02)
    with pytest.raises(ValueError, match="token_layers is 1; expected 2, which the sparse head"):
        train_tokens(settings(data, tmp_path / "b", base=str(tmp_path / "old"), token_layers=1))
    assert not (tmp_path / "b").exists()


def test_progress_is_told_after_every_step(states: Lists) -> None:
    done: list[int] = []
    fit(states, settings("unused", steps=4), done.append)
    assert done == [1, 2, 3, 4]


def test_progress_reaches_the_steps_through_training(base: str, data: str, tmp_path: Path) -> None:
    done: list[int] = []
    train_tokens(settings(data, tmp_path / "out", base=base, steps=3), progress=done.append)
    assert done == [1, 2, 3]


@pytest.mark.parametrize(
    ("rate", "steps", "message"),
    # The loss of the last step is of the weights before it: only the result shows what came of it.
    [(1e36, 2, "the trained weights hold a NaN or an infinity"), (1e8, 3, "the loss is nan")],
)
def test_a_head_that_left_the_finite_numbers_is_not_saved(
    base: str, data: str, tmp_path: Path, rate: float, steps: int, message: str
) -> None:
    changes = {"base": base, "learning_rate": rate, "warmup": 0, "steps": steps}
    with pytest.raises(EncodingError, match=message):
        train_tokens(settings(data, tmp_path / "out", **changes))
    assert not any((tmp_path / "out").iterdir())


def test_a_head_whose_scores_would_be_infinite_is_refused(
    states: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its weights are logarithms: they may be finite where what they stand for is not.
    monkeypatch.setattr(TokenHead, "blend", lambda head: (math.inf, 1.0))
    with pytest.raises(EncodingError, match="the trained weights hold a NaN or an infinity"):
        fit(states, settings("unused", steps=1))


def test_lists_without_a_preference_teach_nothing(unseen: Lists) -> None:
    flat = [dataclasses.replace(each, labels=(1.0,) * len(each)) for each in unseen.examples]
    lists = dataclasses.replace(unseen, examples=flat)
    config = settings("unused", steps=3, weight_decay=0.0)
    head, start = fit(lists, config), fit(lists, dataclasses.replace(config, learning_rate=1e-12))
    assert_close(head.project.weight.detach().numpy(), start.project.weight.detach().numpy())


def test_examples_by_reference_take_their_texts_from_all_corpora(tmp_path: Path) -> None:
    for name, identifier in (("one", "a"), ("two", "b")):
        row = {"_id": identifier, "title": name, "text": f"text of {identifier}"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    rows = [{"query": "wing", "ids": ["b", "a"], "labels": [1.0, 0.0]}]
    lists = write_lists(tmp_path / "lists.jsonl", rows)
    corpora = tuple(str(tmp_path / f"{name}.jsonl") for name in ("one", "two"))
    (example,) = read_lists((lists,), corpora)
    assert example.documents == ("two text of b", "one text of a")
    with pytest.raises(CorpusError, match="no text is known for the document id 'b'"):
        read_lists((lists,), corpora[:1])
    with pytest.raises(CorpusError, match=r"one\.jsonl repeats the id 'a'; ids must be unique"):
        read_lists((lists,), (*corpora, corpora[0]))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data", (), "data is empty"),
        ("data", "lists.jsonl", "data is 'lists.jsonl'; it must be a list of str"),
        ("corpora", (1,), r"corpora is \(1,\); it must be a list of str"),
        ("base", None, "base is None; it must be a string"),
        ("out", 3, "out is 3; it must be a string"),
        ("token_dim", 0, "token_dim is 0; it must be a whole number, at least 1"),
        ("token_layers", 0, "token_layers is 0; it must be a whole number, at least 1"),
        ("lists", 0, "lists is 0; it must be a whole number, at least 1"),
        ("lists", True, "lists is True; it must be a whole number, at least 1"),
        ("steps", 0, "steps is 0; it must be a whole number, at least 1"),
        ("steps", 1.5, "steps is 1.5; it must be a whole number, at least 1"),
        ("steps", "x", "steps is 'x'; it must be a whole number, at least 1"),
        ("steps", None, "steps is None; it must be a whole number, at least 1"),
        ("seed", -1, "seed is -1; it must be a whole number, at least 0"),
        ("threads", 0, "threads is 0; it must be a whole number, at least 1"),
        ("warmup", -1, "warmup is -1; it must be a whole number, at least 0"),
        ("weight_decay", -0.1, "weight_decay is -0.1; it must be a number, at least 0"),
        ("learning_rate", 0.0, "learning_rate is 0.0; it must be a number, above 0"),
        ("learning_rate", math.nan, "learning_rate is nan; it must be a number, above 0"),
        ("learning_rate", math.inf, "learning_rate is inf; it must be a number, above 0"),
        ("temperature", -1.0, "temperature is -1.0; it must be a number, above 0"),
        ("fusion_weight", 1.5, "fusion_weight is 1.5; .* a number, at least 0 and at most 1"),
    ],
)
def test_settings_that_cannot_train_are_refused_before_anything_is_read(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LateConfig(**{"data": ("nowhere.jsonl",), "out": "unused"} | {field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "hashing"}, "hashing is no transformer"),
        ({"token_layers": 4}, "token_layers is 4; .* has 3, its embeddings counted"),
        ({"token_dim": 65}, "token_dim is 65; the states it is made from are 64 long"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    base: str, data: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    fields = {"base": base} | changes
    with pytest.raises(ValueError, match=message):
        train_tokens(settings(data, tmp_path / "out", **fields))
    assert not (tmp_path / "out").exists()


def test_data_without_an_example_is_refused(base: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere\.jsonl does not exist"):
        train_tokens(settings("nowhere.jsonl", tmp_path / "out", base=base))
    empty = write_lists(tmp_path / "empty.jsonl", [])
    with pytest.raises(CorpusError, match=r"empty\.jsonl: there is no example to learn from"):
        train_tokens(settings(empty, tmp_path / "out", base=base))


def test_lists_of_which_none_has_an_order_are_refused(
    base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    level = [row | {"labels": [1.0] * 4} for row in planted(3)]
    flat = write_lists(tmp_path / "flat.jsonl", level)
    with pytest.raises(CorpusError, match=r"flat\.jsonl: none of the 3 lists has two documents"):
        train_tokens(settings(flat, tmp_path / "out", base=base))
    assert not (tmp_path / "out").exists()
    some = write_lists(tmp_path / "some.jsonl", [*level, *planted(5)])
    train_tokens(settings(some, tmp_path / "out", base=base, steps=1))
    assert [each.message for each in caplog.records] == [
        "3 of 8 lists have no two documents with different labels: nothing to order"
    ]


def test_a_folder_that_is_taken_is_left_as_it_is(base: str, data: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="is not empty; choose a new folder"):
            train_tokens(settings(data, taken, base=base))
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"
