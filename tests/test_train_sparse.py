"""Training a sparse head: words learn what they stand for, alike every time, beside other heads."""

import copy
import dataclasses
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_support import BERT, assert_close, made
from train_support import OTHERS, WORDS, bert_base, write_lists

from e2rank.cli import main
from e2rank.encoders.adapter import Adapter
from e2rank.encoders.heads import TokenHead
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.soft import word_embeddings
from e2rank.encoders.sparse import SparseHead
from e2rank.encoders.torch import TorchEncoder
from e2rank.errors import CorpusError, EncodingError
from e2rank.train import SparseConfig, sparse, train_sparse
from e2rank.train.examples import Example
from e2rank.train.material import Asked, Material, read_material
from e2rank.train.sparse import batch_loss, fit, log_idf, regulariser

TERMS = 30522
LAYER = "encoder.layer.1.attention.self.query"


def planted(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Queries of a word that no document holds; labels: whether there is the word it stands for."""
    rows = []
    for number in range(start, start + count):
        rng = np.random.default_rng(number)
        key, *rest = rng.permutation(len(WORDS))
        meant, one, two, three = (OTHERS[place] for place in (key, *rest[:3]))
        documents = [f"{one} {two}", f"{meant} {three}", f"{three} {two} {one}", f"{one} {meant}"]
        rows.append(
            {"query": f"the {WORDS[key]}", "documents": documents, "labels": [0.0, 8.0, 0.0, 8.0]}
        )
    return rows


def examples(rows: list[dict[str, Any]]) -> list[Example]:
    """The rows as examples."""
    return [Example(row["query"], tuple(row["documents"]), tuple(row["labels"])) for row in rows]


def settings(data: str = "unused", out: Path | str = "unused", **changes: Any) -> SparseConfig:
    """A short run under which a head of a tiny model learns."""
    fields: dict[str, Any] = {
        "data": (data,),
        "out": str(out),
        "lists": 8,
        "pairs_a_step": 8,
        "steps": 80,
        "warmup": 5,
        "learning_rate": 2e-2,
        "columns": 300,
    }
    return SparseConfig(**fields | changes)


def words() -> torch.Tensor:
    """The embeddings of the tiny model."""
    return word_embeddings(made().tower)


def new() -> SparseHead:
    """A head of the tiny model that is not trained; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SparseHead(words(), 64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random BERT."""
    return bert_base(tmp_path_factory.mktemp("sparse") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Lists to learn from."""
    return write_lists(tmp_path_factory.mktemp("lists") / "lists.jsonl", planted(48))


@pytest.fixture(scope="module")
def material() -> Material:
    """Those lists, and two files of pairs, with their states."""
    pairs = [examples(planted(24, start=200)), examples(planted(9, start=300))]
    return read_material(made(), examples(planted(48)), pairs)


@pytest.fixture(scope="module")
def headed(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter of that BERT with a token head and changes to queries."""
    folder, plain = tmp_path_factory.mktemp("headed"), load_encoder(base, device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        head = TokenHead(64, 8).state_dict() | {"log_maxsim": torch.tensor(2.0)}
    Adapter(
        base=plain.fingerprint,
        base_name=base,
        contract=dataclasses.replace(plain.contract, token_dim=8, rerank="tokens"),
        weights={f"tokens.{name}": each for name, each in head.items()}
        | {"query.weight": 0.1 * torch.eye(32).roll(1, 0)}
        | {f"lora.{LAYER}.A": torch.ones(1, 32), f"lora.{LAYER}.B": torch.ones(32, 1)},
        lora_scale=0.1,
        about={"recipe": {"token_dim": 8}},
    ).save(folder)
    return folder


@pytest.fixture(scope="module")
def trained(headed: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sparse head that was trained on top of it."""
    out = tmp_path_factory.mktemp("trained") / "adapter"
    return train_sparse(settings(data, out, base=str(headed), pairs=(data,)))


def loaded(folder: Path | str) -> TorchEncoder:
    """The encoder of a folder."""
    encoder = load_encoder(folder, device="cpu")
    assert isinstance(encoder, TorchEncoder)
    return encoder


def random_head() -> SparseHead:
    """A head of random weights under which terms other than a text's own have some weight."""
    torch.manual_seed(4)
    head = SparseHead(words(), 64)
    for name, each in head.named_parameters():
        each.data += {"gain": 0.3, "bias": 0.5}.get(name, 0.5) * torch.randn_like(each)
    return head


def every_weight(head: SparseHead, material: Material) -> np.ndarray:
    """(documents, terms) weights."""
    with torch.no_grad():
        votes = head.votes([each.float() for each in material.states], material.ids)
    weights: np.ndarray = votes.log1p().double().numpy()
    return weights


def scores(head: SparseHead, material: Material) -> list[list[float]]:
    """The score of each document of each list, in loops and without a scale."""
    weights, table = every_weight(head, material), head.query_weights()
    return [
        [sum(float(table[term] * weights[place, term]) for term in each.terms) for place in own]
        for each in material.lists
        for own in [each.places]
    ]


def agreement(head: SparseHead, material: Material) -> float:
    """Share of the pairs with different labels that the scores put in the labels' order."""
    right = total = 0
    for own, each in zip(scores(head, material), material.lists, strict=True):
        for a, b in itertools.permutations(range(len(own)), 2):
            if each.labels[a] > each.labels[b]:
                right, total = right + (own[a] > own[b]), total + 1
    return right / total


def test_words_learn_what_they_stand_for_also_in_unseen_lists(material: Material) -> None:
    unseen = read_material(made(), examples(planted(40, start=1000)), [])
    start = new()
    # A term that weighs nothing in any text has no gradient: here all begin with some weight.
    start.bias.data.fill_(1.0)
    head = fit(copy.deepcopy(start), material, settings(learning_rate=1e-2, steps=120))
    assert agreement(start, unseen) < 0.75
    assert agreement(head, unseen) > 0.88


def test_regularisation_leaves_fewer_and_smaller_weights(material: Material) -> None:
    free, pressed = (
        every_weight(fit(new(), material, settings(steps=30, regularisation=each)), material)
        for each in (0.0, 1e-2)
    )
    assert (pressed > 0).sum() < 0.8 * (free > 0).sum()
    assert pressed.sum() < 0.5 * free.sum()


def test_the_table_starts_at_the_inverse_document_frequencies(material: Material) -> None:
    texts = [torch.tensor(each) for each in ([1, 2, 2], [2], [2, 3], [2])]
    idf = []
    for term in range(5):
        df = sum(term in each.tolist() for each in texts)
        idf.append(math.log(1 + (4 - df + 0.5) / (df + 0.5)))
    expected = [math.log(each / max(idf)) for each in idf]
    assert_close(log_idf(texts, 5).numpy(), expected)
    assert log_idf([*texts] * 500, 5)[2].item() == pytest.approx(math.log(1e-3))
    head = fit(new(), material, settings(steps=1, learning_rate=1e-12))
    assert_close(head.log_query.detach().numpy(), log_idf(material.ids, TERMS).numpy())


def test_the_regulariser_is_flops_and_a_share_of_the_sums() -> None:
    weights = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    flops = sum((sum(weights[i, v].item() for i in range(3)) / 3) ** 2 for v in range(6))
    sums = sum(sum(weights[i].tolist()) for i in range(3)) / 3
    assert regulariser(weights, 6).item() == pytest.approx(flops + 0.3 * sums, rel=1e-5)


@pytest.mark.parametrize("drawn", [1, 2, 5])
def test_the_regulariser_of_drawn_terms_is_that_of_all_on_average(drawn: int) -> None:
    weights = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    draws = [
        regulariser(weights[:, list(each)], 6).item()
        for each in itertools.combinations(range(6), drawn)
    ]
    assert sum(draws) / len(draws) == pytest.approx(regulariser(weights, 6).item(), rel=1e-5)


def test_no_drawn_term_presses_nothing() -> None:
    assert regulariser(torch.zeros(3, 0), 6).item() == 0.0


def loss_by_loops(
    head: SparseHead,
    material: Material,
    lists: list[Asked],
    pairs: list[Asked],
    drawn: list[int],
    pressure: float,
) -> float:
    """The formula of SparseConfig, with a scale of 2.5 and a temperature of 3."""
    weights, table = every_weight(head, material), head.query_weights()

    def score(each: Asked, place: int) -> float:
        return 2.5 * sum(float(table[term]) * float(weights[place, term]) for term in each.terms)

    def softmax(values: list[float]) -> list[float]:
        total = sum(math.exp(each) for each in values)
        return [math.exp(each) / total for each in values]

    kls = []
    for each in lists:
        p = softmax([label / 3.0 for label in each.labels])
        q = softmax([score(each, place) for place in each.places])
        kls.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    loss = sum(kls) / len(lists)
    answers = sorted({each.places[0] for each in pairs})
    nces = []
    for each in pairs:
        same = {other.places[0] for other in pairs if other.terms == each.terms}
        against = [place for place in answers if place == each.places[0] or place not in same]
        share = softmax([score(each, place) for place in against])
        nces.append(-math.log(share[against.index(each.places[0])]))
    loss += sum(nces) / len(nces) if nces else 0.0
    read = sorted({place for each in [*lists, *pairs] for place in each.places})
    asked = {term for each in [*lists, *pairs] for term in each.terms}
    others = [term for term in drawn if term not in asked]
    flops = sum((sum(weights[i, v] for i in read) / len(read)) ** 2 for v in others)
    sums = sum(weights[i, v] for i in read for v in others) / len(read)
    return loss + pressure * TERMS / len(others) * (flops + 0.3 * sums)


@pytest.mark.parametrize("pairs", [0, 1, 8])
def test_the_loss_of_a_step_is_that_of_the_formula(material: Material, pairs: int) -> None:
    head, lists, asked = random_head(), material.lists[3:7], list(material.pairs[0][:pairs])
    # Two queries with one answer, which is no negative of itself.
    asked += [dataclasses.replace(asked[0], terms=lists[0].terms)] if pairs > 1 else []
    # One query with two answers, neither of which is a negative of it.
    asked += [dataclasses.replace(asked[1], terms=asked[2].terms)] if pairs > 1 else []
    drawn = [lists[0].terms[0], 5, 4000, 412, lists[1].terms[1], 30000, 7777]
    config, pressure = settings(temperature=3.0), 1e-2
    scale = torch.tensor(2.5)
    found = batch_loss(head, scale, material, lists, asked, drawn, config, pressure)
    expected = loss_by_loops(head, material, list(lists), asked, drawn, pressure)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    without = batch_loss(head, scale, material, lists, asked, drawn, config, 0.0)
    assert found.item() > without.item() + 0.01


def test_labels_that_float32_would_make_equal_are_ordered(material: Material) -> None:
    def loss(start: float) -> float:
        labels = [start + label for label in (2.0, 1.0, 0.0, 3.0)]
        lists = [dataclasses.replace(each, labels=labels) for each in material.lists[:2]]
        scale, config = torch.tensor(2.5), settings()
        return batch_loss(random_head(), scale, material, lists, [], [5, 9], config, 0.0).item()

    assert loss(1_700_000_000.0) == pytest.approx(loss(0.0), rel=1e-5)


def test_a_query_that_has_no_term_is_a_query_too(material: Material) -> None:
    blank = dataclasses.replace(material.lists[0], terms=[])
    lists, config = [blank, material.lists[1]], settings(temperature=3.0)
    head = random_head()
    found = batch_loss(head, torch.tensor(2.5), material, lists, [], [5, 9], config, 0.0)
    assert found.item() == pytest.approx(
        loss_by_loops(head, material, lists, [], [5, 9], 0.0), rel=1e-4
    )


def test_each_step_has_its_lists_pairs_of_one_file_other_terms_and_a_rising_pressure(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[Any, ...]] = []

    def recorded(head: SparseHead, scale: torch.Tensor, *rest: Any) -> torch.Tensor:
        steps.append(rest)
        return 0.0 * (head.bias.sum() + scale)

    monkeypatch.setattr(sparse, "batch_loss", recorded)
    config = settings(steps=12, lists=8, regularisation=3.0, columns=50)
    fit(new(), material, config)
    shown = [id(each) for _, lists, *_ in steps[:6] for each in lists]
    assert len(shown) == 48
    assert set(shown) == {id(each) for each in material.lists}
    files = [{id(each) for each in some} for some in material.pairs]
    own = [{id(each) for each in pairs} for _, _, pairs, *_ in steps]
    assert [len(each) for each in own] == [8] * 12
    assert {next(i for i, some in enumerate(files) if each <= some) for each in own} == {0, 1}
    drawn = [columns for _, _, _, columns, *_ in steps]
    assert all(len(set(each)) == 50 and min(each) >= 1000 and max(each) < TERMS for each in drawn)
    assert len({tuple(each) for each in drawn}) == 12
    pressures = [each[-1] for each in steps]
    assert pressures == pytest.approx([3.0 * min(1.0, n / 6) ** 2 for n in range(1, 13)])


def test_more_columns_and_pairs_than_there_are_take_all_there_are(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[Any, ...]] = []

    def recorded(head: SparseHead, scale: torch.Tensor, *rest: Any) -> torch.Tensor:
        steps.append(rest)
        return 0.0 * (head.bias.sum() + scale)

    monkeypatch.setattr(sparse, "batch_loss", recorded)
    few = dataclasses.replace(material, pairs=[[], material.pairs[1]])
    fit(new(), few, settings(steps=3, columns=40_000, pairs_a_step=100))
    for _, _, pairs, columns, *_ in steps:
        assert sorted(columns) == list(range(1000, TERMS))
        assert len(pairs) == 9


def test_the_material_holds_every_distinct_document_once_and_as_the_model_reads_it() -> None:
    encoder = made()
    lists = [
        Example("the \N{SNOWMAN} jet jet", ("a panel", "", "a jet"), (1.0, 0.0, 2.0)),
        Example("heat", ("a jet", "wing [SEP] wing"), (1.0, 0.0)),
    ]
    pairs = [[Example("wake", ("a panel", "a wake", "a jet"), (0.0, 2.0, 1.0))], []]
    material = read_material(encoder, lists, pairs)
    texts = ["a panel", "", "a jet", "wing [SEP] wing", "a wake"]
    assert [each.places for each in material.lists] == [[0, 1, 2], [2, 3]]
    assert [each.labels for each in material.lists] == [[1.0, 0.0, 2.0], [1.0, 0.0]]
    assert [[each.places for each in some] for some in material.pairs] == [[[4]], []]
    asked = [material.lists[0].terms, material.lists[1].terms, material.pairs[0][0].terms]
    bare = encoder.words.terms(["the jet", "heat", "wake"])
    assert asked == [sorted(each) for each in bare]
    for text, ids, states in zip(texts, material.ids, material.states, strict=True):
        (tokens,) = encoder.words.documents([text])
        with torch.inference_mode():
            (read,) = encoder.tower([tokens], 2).states
        own = [i for i, id_ in enumerate(tokens.ids) if id_ not in encoder.words.special()]
        assert (ids.dtype, states.dtype) == (torch.int64, torch.float16)
        assert ids.tolist() == [tokens.ids[i] for i in own]
        assert_close(states.float().numpy(), read[own].numpy(), 1e-3)


def test_a_document_without_tokens_can_be_learned_from() -> None:
    rows = examples(planted(8))
    rows[0] = dataclasses.replace(rows[0], documents=("", *rows[0].documents[1:]))
    head = fit(new(), read_material(made(), rows, []), settings(steps=3))
    assert all(torch.isfinite(each).all() for each in head.state_dict().values())


def test_one_seed_gives_the_same_weights_and_another_others(
    base: str, data: str, tmp_path: Path
) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        # What was drawn before in the process makes no difference.
        torch.rand(len(name))
        config = settings(data, tmp_path / name, base=base, pairs=(data,), steps=4, seed=seed)
        return Adapter.load(train_sparse(config)).weights

    one, same, other = weights("one", 0), weights("the same", 0), weights("other", 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_every_weight_of_a_head_is_trained() -> None:
    rows = [
        Example(f"a {key}", (f"{key} {key} of", "jet", "of a jet"), (2.0, 0.0, 1.0))
        for key in WORDS
    ]
    material = read_material(made(), rows, [])
    start = fit(new(), material, settings(steps=1, learning_rate=1e-12)).state_dict()
    found = fit(new(), material, settings(steps=8)).state_dict()
    moved = {name for name in found if (found[name] - start[name]).abs().max() > 1e-3}
    assert moved == found.keys()


def test_the_adapter_scores_as_the_head_that_was_trained(trained: Path) -> None:
    encoder, rows = loaded(trained), examples(planted(6, start=500))
    assert encoder.adapter is not None
    head = encoder.adapter.sparse_head(encoder.tower)
    assert head is not None
    material = read_material(encoder, rows, [])
    encoder = encoder.adapt(
        dataclasses.replace(
            encoder.adapter, contract=dataclasses.replace(encoder.contract, sparse_terms=TERMS)
        )
    )
    for expected, row in zip(scores(head, material), rows, strict=True):
        query = dict(zip(*encoder.sparse_queries([row.query]).row(0), strict=True))
        read = encoder.encode_documents(row.documents).sparse
        assert read is not None
        found = [
            sum(query.get(term, 0.0) * weight for term, weight in zip(*read.row(i), strict=True))
            for i in range(len(row))
        ]
        # States are held in half precision while a head learns.
        assert_close(np.array(found), expected, 0.02)


def test_the_adapter_keeps_what_its_base_holds_and_says_how_it_was_made(
    trained: Path, headed: Path, base: str, data: str
) -> None:
    found, old = Adapter.load(trained), Adapter.load(headed)
    assert (found.base, found.base_name) == (loaded(base).fingerprint, base)
    assert found.contract == dataclasses.replace(
        old.contract, sparse_dim=TERMS, sparse_terms=settings().sparse_terms
    )
    assert all(torch.equal(found.weights[name], each) for name, each in old.weights.items())
    added = {name for name in found.weights if name not in old.weights}
    assert added == {f"sparse.{name}" for name in SparseHead(words(), 64).state_dict()}
    assert (found.token_fingerprint, found.lora_scale) == (old.token_fingerprint, 0.1)
    assert found.about["recipe"] == old.about["recipe"]
    recipe = found.about["sparse"]
    assert (recipe["data"], recipe["steps"], recipe["seed"]) == ([data], 80, 0)
    assert not {"out", "threads"} & recipe.keys()


def test_the_other_vectors_of_the_base_do_not_change(trained: Path, headed: Path) -> None:
    one, other, texts = loaded(trained), loaded(headed), ["wing", "a panel in a jet", ""]
    assert (one.fingerprint, one.blend()) == (other.fingerprint, other.blend())
    for name in ("encode_queries", "encode_documents"):
        mine, theirs = (getattr(each, name)(texts) for each in (one, other))
        assert_close(mine.vectors, theirs.vectors, 1e-6)
        for rows, expected in zip(mine.token_vectors, theirs.token_vectors, strict=True):
            assert_close(rows, expected)


def test_a_sparse_head_takes_the_place_of_the_bases(
    trained: Path, data: str, tmp_path: Path
) -> None:
    config = settings(data, tmp_path / "out", base=str(trained), sparse_terms=5, steps=2)
    old, found = Adapter.load(trained), Adapter.load(train_sparse(config))
    assert found.weights.keys() == old.weights.keys()
    assert found.sparse_fingerprint != old.sparse_fingerprint
    assert found.contract == dataclasses.replace(old.contract, sparse_terms=5)


@pytest.mark.parametrize(
    ("rate", "steps", "message"),
    # The loss of the last step is of the weights before it: only the result shows what came of it.
    [(1e8, 2, "the trained weights hold a NaN or an infinity"), (1e8, 3, "the loss is nan")],
)
def test_a_head_that_left_the_finite_numbers_is_not_saved(
    base: str, data: str, tmp_path: Path, rate: float, steps: int, message: str
) -> None:
    changes = {"base": base, "learning_rate": rate, "warmup": 0, "steps": steps}
    with pytest.raises(EncodingError, match=message):
        train_sparse(settings(data, tmp_path / "out", **changes))
    assert not any((tmp_path / "out").iterdir())


def test_progress_reaches_the_steps_through_training(base: str, data: str, tmp_path: Path) -> None:
    done: list[int] = []
    train_sparse(settings(data, tmp_path / "out", base=base, steps=3), progress=done.append)
    assert done == [1, 2, 3]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data", (), "data is empty"),
        ("data", "lists.jsonl", "data is 'lists.jsonl'; it must be a list of str"),
        ("pairs", "pairs.jsonl", "pairs is 'pairs.jsonl'; it must be a list of str"),
        ("base", 1, "base is 1; it must be a string"),
        ("sparse_terms", 0, "sparse_terms is 0; it must be a whole number, at least 1"),
        ("lists", 0, "lists is 0; it must be a whole number, at least 1"),
        ("pairs_a_step", 1, "pairs_a_step is 1; it must be a whole number, at least 2"),
        ("steps", 0, "steps is 0; it must be a whole number, at least 1"),
        ("steps", 1.5, "steps is 1.5; it must be a whole number, at least 1"),
        ("columns", 0, "columns is 0; it must be a whole number, at least 1"),
        ("seed", "x", "seed is 'x'; it must be a whole number, at least 0"),
        ("warmup", -1, "warmup is -1; it must be a whole number, at least 0"),
        ("weight_decay", -0.1, "weight_decay is -0.1; it must be a number, at least 0"),
        ("regularisation", -1e-9, "regularisation is -1e-09; it must be a number, at least 0"),
        ("regularisation", math.nan, "regularisation is nan; it must be a number, at least 0"),
        ("learning_rate", 0.0, "learning_rate is 0.0; it must be a number, above 0"),
        ("learning_rate", math.inf, "learning_rate is inf; it must be a number, above 0"),
        ("table_rate", 0.0, "table_rate is 0.0; it must be a number, above 0"),
        ("temperature", -1.0, "temperature is -1.0; it must be a number, above 0"),
    ],
)
def test_settings_that_cannot_train_are_refused_before_anything_is_read(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SparseConfig(**{"data": ("nowhere.jsonl",), "out": "unused"} | {field: value})


def test_what_does_not_fit_is_refused_and_nothing_is_written(
    base: str, data: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="hashing is no transformer"):
        train_sparse(settings(data, out, base="hashing"))
    with pytest.raises(CorpusError, match=r"nowhere\.jsonl does not exist"):
        train_sparse(settings("nowhere.jsonl", out, base=base))
    with pytest.raises(CorpusError, match=r"nowhere\.jsonl does not exist"):
        train_sparse(settings(data, out, base=base, pairs=("nowhere.jsonl",)))
    empty = write_lists(tmp_path / "empty.jsonl", [])
    with pytest.raises(CorpusError, match=r"empty\.jsonl: there is no example to learn from"):
        train_sparse(settings(empty, out, base=base))
    assert not out.exists()


def test_lists_of_which_none_has_an_order_are_refused_unless_pairs_teach(
    base: str, data: str, tmp_path: Path
) -> None:
    rows = [row | {"labels": [1.0] * 4} for row in planted(3)]
    flat, out = write_lists(tmp_path / "flat.jsonl", rows), tmp_path / "out"
    one = write_lists(tmp_path / "one.jsonl", planted(1))
    for pairs in ((), (one,)):
        with pytest.raises(
            CorpusError, match=r"flat\.jsonl: none of the 3 lists has two documents"
        ):
            train_sparse(settings(flat, out, base=base, pairs=pairs))
    assert not out.exists()
    train_sparse(settings(flat, out, base=base, pairs=(one, data), steps=1))


def test_a_folder_that_is_taken_is_left_as_it_is(base: str, data: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="is not empty; choose a new folder"):
            train_sparse(settings(data, taken, base=base))
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_recipe_with_sparse_terms_trains_a_sparse_head(
    base: str,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, recipe = tmp_path / "out", tmp_path / "head.toml"
    recipe.write_text(
        f'base = "{base}"\ndata = ["{data}"]\nout = "{out}"\nsparse_terms = 9\nsteps = 3\n'
        "lists = 2\n"
    )

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["e2rank", "train", str(recipe), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    status, _, said = run("--resume")
    assert status == 1
    assert said.startswith("error: a sparse head has nothing to resume: leave --resume out")
    assert not out.exists()
    status, said, err = run("--set", "steps=2")
    assert (status, err) == (0, "")
    assert "can be named wherever an encoder can" in said
    assert Adapter.load(out).about["sparse"]["steps"] == 2
    found = loaded(out).encode_documents(["a wing in a jet"]).sparse
    assert found is not None
    assert 0 < len(found.terms) <= 9
    assert loaded(out).contract == dataclasses.replace(BERT, sparse_dim=TERMS, sparse_terms=9)
    assert run()[2] == f"error: {out} is not empty; choose a new folder\n"
    assert "SparseConfig has no field 'stepz'; did you mean 'steps'" in run("--set", "stepz=1")[2]
