"""Runs: they learn, go on where they were interrupted, and say what they did."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_support as support
from safetensors.torch import load_file, save_file
from train_support import Killed, killed_after
from transformers import AutoModel

from e2rank.cli import main
from e2rank.config import load_recipe
from e2rank.encoders.presets import load_encoder
from e2rank.errors import CorpusError, EncodingError
from e2rank.evaluate.collection import load_beir
from e2rank.evaluate.measures import per_query
from e2rank.train import TrainConfig, log, loop, model, train
from e2rank.train.checkpoint import Checkpoint
from e2rank.train.distributed import World
from e2rank.train.examples import Example
from e2rank.train.log import read_log
from e2rank.train.objective import objective, targets
from e2rank.train.sampling import ListBatch
from e2rank.train.step import freeze, learn

ROOT = Path(__file__).parents[1]
bert, uncurved = support.bert, support.uncurved


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "lists.jsonl"
    return support.write_lists(path, [*support.lists(8), *support.lists(8, "kitchen")])


def test_the_committed_recipe_trains_a_tiny_qwen_from_start_to_end(
    data: str, tmp_path: Path
) -> None:
    changes = {
        "base": support.qwen_base(tmp_path / "base"),
        "data": [data],
        "out": str(tmp_path / "out"),
        "lists": 4,
        "steps": 20,
        "learning_rate": 1e-3,
        "chunk_tokens": 512,
    }
    done: list[int] = []
    recipe = load_recipe(TrainConfig, ROOT / "training" / "e2rank-0.6b.toml", changes)
    out = train(recipe, progress=done.append)
    assert done == list(range(1, 21))
    losses = support.losses(out)
    assert len(losses) == 20
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])

    encoder = load_encoder(str(out), device="cpu")
    query, shown = "wing shock", ["a wing here", "coffee"]
    (tokens,) = encoder.words.prompts([query], [shown])
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(out)(input_ids=torch.tensor([tokens.ids]))
    last = hidden.last_hidden_state[0, -1].float().numpy()
    found = encoder.encode_prompts([query], [shown]).vectors[0]
    np.testing.assert_allclose(found, last / np.linalg.norm(last), rtol=0, atol=1e-5)
    assert encoder.contract.list_sizes == (3,)


@pytest.mark.parametrize("prompt", ["text", "none"])
def test_updates_beside_frozen_documents_learn(bert: str, data: str, tmp_path: Path,
                                               prompt: str) -> None:  # fmt: skip
    settings = {"prompt": prompt, "steps": 24, "warmup": 0.0, "learning_rate": 1e-2, "lists": 8}
    out = train(support.config(bert, data, tmp_path / "out", **settings))
    losses = support.losses(out)
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_a_step_moves_the_updates_alone(bert: str, data: str, tmp_path: Path) -> None:
    settings = {"tune": "lora", "train_documents": True, "steps": 1}
    out = train(support.config(bert, data, tmp_path / "out", **settings))
    moved = support.changed(AutoModel.from_pretrained(out), AutoModel.from_pretrained(bert))
    assert moved
    assert all(name.endswith(("query.weight", "key.weight", "value.weight", "dense.weight"))
               for name in moved)  # fmt: skip
    assert not any("pooler" in name for name in moved)


@pytest.mark.parametrize(
    "changes", [{}, {"train_documents": True, "tune": "full"}], ids=["adapter", "model"]
)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    bert: str, data: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    # Of two epochs, with dropout, a falling learning rate and batches of two sources.
    settings = changes | {"steps": 7, "lists": 4, "save_every": 2, "dropout": True}
    whole = train(support.config(bert, data, tmp_path / "whole", **settings))
    config = support.config(bert, data, tmp_path / "cut", **settings)
    with pytest.raises(Killed):
        train(config, progress=killed_after(5))
    assert len(support.losses(config.out)) == 5
    again: list[int] = []
    out = train(config, resume=True, progress=again.append)
    assert again == [5, 6, 7]
    assert support.losses(out) == support.losses(whole)
    name = "adapter.safetensors" if not changes else "model.safetensors"
    mine, theirs = load_file(out / name), load_file(whole / name)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[each], theirs[each]) for each in mine)
    left = {path.name for path in out.iterdir()}
    assert "checkpoint.pt" not in left
    assert not [each for each in left if each.startswith(("documents-", "unchecked"))]


@pytest.mark.parametrize("documents", [False, True])
def test_a_result_that_could_not_be_written_is_not_trained_again(
    bert: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, documents: bool
) -> None:
    tune = {"train_documents": True, "tune": "full"} if documents else {}
    config = support.config(bert, data, tmp_path / "out", steps=3, **tune)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr("e2rank.train.saving.save", full)
        with pytest.raises(OSError, match="no space"):
            train(config)
    again: list[int] = []
    out = train(config, resume=True, progress=again.append)
    assert not again
    whole = train(support.config(bert, data, tmp_path / "whole", steps=3, **tune))
    assert support.losses(out) == support.losses(whole)
    name = "model.safetensors" if documents else "adapter.safetensors"
    mine, theirs = load_file(out / name), load_file(whole / name)
    assert all(torch.equal(mine[each], theirs[each]) for each in theirs)


def test_a_run_that_was_killed_as_it_read_the_documents_can_be_resumed(
    bert: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = support.config(bert, data, tmp_path / "out", steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("e2rank.train.model.tune", lambda *_: killed_after(0)(0))
        with pytest.raises(Killed):
            train(config)
    assert [each.name[:10] for each in (tmp_path / "out").iterdir()] == ["documents-"]
    with pytest.raises(ValueError, match="or resume=True to go on with it"):
        train(config)
    monkeypatch.setattr("e2rank.encoders.tokens.Wording.documents", None)
    assert len(support.losses(train(config, resume=True))) == 2


def test_a_resumed_run_does_not_read_frozen_documents_again(
    bert: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = support.config(bert, data, tmp_path / "out", steps=3, save_every=1)
    with pytest.raises(Killed):
        train(config, progress=killed_after(1))
    monkeypatch.setattr("e2rank.encoders.tokens.Wording.documents", None)
    train(config, resume=True)


@pytest.mark.parametrize("left", [0, 90, 3000])
def test_frozen_documents_of_a_file_that_was_cut_are_read_again(
    bert: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    config = support.config(bert, data, tmp_path / "out", steps=2, save_every=1)
    with pytest.raises(Killed):
        train(config, progress=killed_after(1))
    (file,) = (tmp_path / "out").glob("documents-*.npy")
    assert file.stat().st_size > left
    os.truncate(file, left)
    train(config, resume=True)
    assert f"{file} is damaged, and documents are read again" in caplog.text


def test_a_run_killed_before_its_first_checkpoint_starts_again_and_says_so(
    bert: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = support.config(bert, data, tmp_path / "out", steps=3)
    with pytest.raises(Killed):
        train(config, progress=killed_after(2))
    assert not caplog.records
    train(config, resume=True)
    assert len(support.losses(config.out)) == 3
    assert [each.message for each in caplog.records] == [
        f"{config.out} has no checkpoint yet: there is nothing to resume, it starts anew"
    ]


def test_a_run_is_not_resumed_on_a_base_that_has_changed(data: str, tmp_path: Path) -> None:
    base = support.bert_base(tmp_path / "base")
    config = support.config(base, data, tmp_path / "out", save_every=1)
    with pytest.raises(Killed):
        train(config, progress=killed_after(2))
    kept = (tmp_path / "out" / "checkpoint.pt").read_bytes()
    weights = load_file(tmp_path / "base" / "model.safetensors")
    moved = {name: each + 0.01 for name, each in weights.items()}
    save_file(moved, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"base: .* is not the model that it was when the run"):
        train(config, resume=True)
    assert (tmp_path / "out" / "checkpoint.pt").read_bytes() == kept
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    train(config, resume=True)


def test_a_checkpoint_of_another_format_is_refused(bert: str, data: str, tmp_path: Path) -> None:
    config = support.config(bert, data, tmp_path / "out", save_every=1)
    with pytest.raises(Killed):
        train(config, progress=killed_after(2))
    file = tmp_path / "out" / "checkpoint.pt"
    whole = torch.load(file)
    del whole["base"]
    torch.save(whole | {"format": 1}, file)
    with pytest.raises(ValueError, match="is of format 1, expected 2: go on with the e2rank that"):
        train(config, resume=True)


def test_lists_that_teach_nothing_are_refused_before_the_first_step(
    bert: str, tmp_path: Path
) -> None:
    level = [row | {"labels": [1.0] * 3} for row in support.lists(4)]
    single = [
        {"query": row["query"], "documents": [row["documents"][1]], "labels": [1.0]}
        for row in support.lists(4)
    ]
    apart = [row | {"source": str(number)} for number, row in enumerate(single)]
    for name, rows, lists in (
        ("level", level, 4),
        # A single document has nothing to be told apart from: in its batch, or in its data set.
        ("alone", single, 1),
        ("apart", apart, 4),
        ("asked_once", single[:1] * 3, 4),
    ):
        data = support.write_lists(tmp_path / f"{name}.jsonl", rows)
        with pytest.raises(CorpusError, match=rf"{name}\.jsonl: none of the \d lists has two docu"):
            train(support.config(bert, data, tmp_path / name, lists=lists))
    empty = support.write_lists(tmp_path / "empty.jsonl", [])
    with pytest.raises(CorpusError, match=r"empty\.jsonl: there is no example to learn from"):
        train(support.config(bert, empty, tmp_path / "empty"))


def test_lists_of_one_document_are_learned_from_by_contrast(bert: str, tmp_path: Path) -> None:
    rows = [
        {"query": row["query"], "documents": [row["documents"][1]], "labels": [1.0]}
        for row in support.lists(8)
    ]
    data = support.write_lists(tmp_path / "single.jsonl", rows)
    lines = read_log(train(support.config(bert, data, tmp_path / "out", prompt="none")))
    assert all(line["infonce"] > 0 and line["listwise"] == 0 for line in lines)


def test_how_many_lists_have_nothing_to_order_is_logged(
    bert: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = support.lists(8)
    rows[2]["labels"] = [1.0, 1.0, 1.0]
    data = support.write_lists(tmp_path / "lists.jsonl", rows)
    train(support.config(bert, data, tmp_path / "out", steps=1))
    assert [each.message for each in caplog.records] == [
        "1 of 8 lists have no two documents with different labels: nothing to order"
    ]


@pytest.mark.parametrize("prompt", ["text", "vectors"])
def test_a_query_without_room_for_documents_is_refused_before_the_first_step(
    bert: str, tmp_path: Path, prompt: str
) -> None:
    rows = support.lists(8)
    rows[5]["query"] = "wing shock heat panel flutter nose"
    data = support.write_lists(tmp_path / "lists.jsonl", rows)
    settings = {"prompt": prompt, "prompt_tokens": 10}
    done: list[int] = []
    with pytest.raises(CorpusError, match="aero: the prompt of the query 'wing shock heat panel"):
        train(support.config(bert, data, tmp_path / "out", **settings), progress=done.append)
    assert not done
    # No prompt is read by the control, and two documents fit.
    train(support.config(bert, data, tmp_path / "none", **settings | {"prompt": "none"}))
    rows[5]["query"] = "wing shock heat"
    support.write_lists(tmp_path / "lists.jsonl", rows)
    train(support.config(bert, data, tmp_path / "fits", **settings | {"list_sizes": (2,)}))


def test_what_cannot_be_resumed_is_refused(bert: str, data: str, tmp_path: Path) -> None:
    own = support.write_lists(tmp_path / "own.jsonl", support.lists(8))
    settings = {"steps": 3, "save_every": 1}
    config = support.config(bert, own, tmp_path / "out", **settings)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(config, resume=True)
    with pytest.raises(Killed):
        train(config, progress=killed_after(2))
    with pytest.raises(ValueError, match=r"not empty; name a new folder, or resume=True"):
        train(config)
    other = support.config(bert, own, tmp_path / "out", **settings, temperature=0.5)
    with pytest.raises(ValueError, match=r"temperature was 0\.03 .* and is 0\.5"):
        train(other, resume=True)
    support.write_lists(Path(own), support.lists(9))
    with pytest.raises(ValueError, match=r"own\.jsonl has changed"):
        train(config, resume=True)
    support.write_lists(Path(own), support.lists(8))
    # How often it saves does not change the result.
    train(support.config(bert, own, tmp_path / "out", **settings | {"save_every": 9}), resume=True)
    with pytest.raises(ValueError, match="holds a finished run"):
        train(config, resume=True)
    with pytest.raises(ValueError, match=r"not empty; name a new folder$"):
        train(config)


def test_a_run_from_before_a_setting_came_goes_on() -> None:
    now = support.config("base", "data.jsonl", Path("out")).to_dict()
    before = {k: v for k, v in now.items() if k not in ("wordings", "negatives_among")}
    saved = Checkpoint(step=1, fields=before, data={}, base="", weights={}, optimizer={})
    saved.check(now, {})
    with pytest.raises(ValueError, match=r"negatives_among was None .* and is 8"):
        saved.check(now | {"negatives_among": 8}, {})


def test_a_damaged_checkpoint_is_refused(bert: str, data: str, tmp_path: Path) -> None:
    config = support.config(bert, data, tmp_path / "out", save_every=1)
    with pytest.raises(Killed):
        train(config, progress=killed_after(2))
    file = tmp_path / "out" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        train(config, resume=True)


@pytest.mark.parametrize(
    "changes", [{"chunk_tokens": 8}, {"gradient_checkpointing": True}], ids=str
)
def test_what_saves_memory_does_not_change_the_losses(
    bert: str, data: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = {"train_documents": True, "lora_dropout": 0.0}
    plain = train(support.config(bert, data, tmp_path / "plain", **settings))
    saving = train(support.config(bert, data, tmp_path / "saving", **settings | changes))
    assert support.losses(saving) == pytest.approx(support.losses(plain), rel=1e-4)


@pytest.mark.parametrize("chunk", [8, 8192])
@pytest.mark.parametrize("documents", [False, True], ids=["frozen", "trained"])
def test_a_steps_loss_is_the_objective_of_the_models_own_vectors(
    bert: str, tmp_path: Path, documents: bool, chunk: int
) -> None:
    # Texts whose order by length is not the one that they come in.
    pairs = [("wing", ("a", "b c d e f", "g h")), ("a shock here", ("i j k", "l")), ("jet", ("m",))]
    examples = [Example(query, own, tuple(map(float, range(len(own))))) for query, own in pairs]
    batch = ListBatch(tuple(examples), "s", 3)
    settings = {"train_documents": documents, "lora_dropout": 0.0, "chunk_tokens": chunk}
    config = support.config(bert, "a", tmp_path, **settings)
    trainee = model.load(config, [3], torch.device("cpu"))
    frozen = None if documents else freeze(trainee, examples, tmp_path, World())
    model.tune(trainee, config)
    found, tokens = learn(trainee, config, batch, frozen, World())

    wanted, encoder = targets(batch), load_encoder(bert, device="cpu")
    queries, lists = [each for each, _ in pairs], [own for _, own in pairs]
    encodings = (
        encoder.encode_queries(queries),
        encoder.encode_prompts(queries, lists),
        encoder.encode_documents(wanted.texts),
    )
    vectors = [torch.from_numpy(each.vectors) for each in encodings]
    expected = objective(config, wanted, *vectors)
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-4)
    assert tokens == sum(each.tokens for each in encodings[: 2 + documents])
    gradients = [weight.grad for weight in trainee.weights().values()]
    assert max(each.abs().max() for each in gradients if each is not None) > 0


@pytest.mark.parametrize("source", ["ours", "theirs"])
def test_lists_of_a_source_are_read_under_its_own_wording(tmp_path: Path, source: str) -> None:
    base = support.qwen_base(tmp_path / "base")
    wording = {"query_prefix": "Find: ", "prompt_before": "Rank these:\n"}
    examples = [
        Example(query, (f"{query} one", f"{query} two"), (1.0, 0.0), source=source)
        for query in ("wing", "jet", "shock")
    ]
    settings = {"train_documents": True, "lora_dropout": 0.0, "wordings": {"theirs": wording}}
    config = support.config(base, "a", tmp_path, **settings)
    trainee = model.load(config, [2], torch.device("cpu"))
    model.tune(trainee, config)
    batch = ListBatch(tuple(examples), source, 2)
    found, _ = learn(trainee, config, batch, None, World())

    words, wanted = load_encoder(base, device="cpu").words, targets(batch)
    if source == "theirs":
        words = words.under(dataclasses.replace(words.contract, **wording))
    queries = [each.query for each in examples]
    texts = (
        words.queries(queries),
        words.prompts(queries, [each.documents for each in examples]),
        words.documents(wanted.texts),
    )
    vectors = [torch.from_numpy(trainee.encode(each)) for each in texts]
    expected = objective(config, wanted, *vectors)
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-4)


def test_a_wording_of_a_source_without_lists_is_refused(
    bert: str, data: str, tmp_path: Path
) -> None:
    config = support.config(bert, data, tmp_path / "out", wordings={"natural": {}})
    with pytest.raises(ValueError, match=r"wordings names 'natural', and no list is from there; t"):
        train(config)


def test_two_processes_train_as_one_does(bert: str, data: str, tmp_path: Path) -> None:
    # Batches of three lists for two processes, and of two at the end of a source.
    settings = {"train_documents": True, "tune": "full", "lists": 3, "steps": 6}
    config = support.config(bert, data, tmp_path / "one", **settings)
    alone = train(config)
    recipe = tmp_path / "run.toml"
    fields = {k: v for k, v in config.to_dict().items() if v is not None}
    fields["out"] = str(tmp_path / "two")
    recipe.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in fields.items()))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "e2rank", "train", str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert support.losses(tmp_path / "two") == pytest.approx(support.losses(alone), rel=1e-4)
    # Not weight by weight: Adam makes a step of the rounding where a gradient is zero.
    mine, theirs = (load_encoder(str(out), device="cpu") for out in (tmp_path / "two", alone))
    for texts in (["wing shock", "heat"], ["panel and jet here"]):
        found, expected = mine.encode_queries(texts).vectors, theirs.encode_queries(texts).vectors
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_every_batch_is_of_one_source_and_both_are_met(
    bert: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[set[str]] = []
    learn = loop.learn

    def spy(trainee: Any, config: Any, batch: ListBatch, *rest: Any) -> Any:
        met.append({each.source for each in batch.examples})
        return learn(trainee, config, batch, *rest)

    monkeypatch.setattr(loop, "learn", spy)
    train(support.config(bert, data, tmp_path / "out", steps=None, epochs=2))
    # Two epochs of two sources, each two batches of four.
    assert sorted(map(sorted, met)) == [["aero"]] * 4 + [["kitchen"]] * 4


def test_a_loss_that_is_not_finite_ends_the_run(
    bert: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2rank.encoders.tower.torch.nn.functional.normalize",
                        lambda rows, dim: rows * float("nan"))  # fmt: skip
    with pytest.raises(EncodingError, match="the loss is nan"):
        train(support.config(bert, data, tmp_path / "out", train_documents=True))


def test_a_run_leaves_torchs_generator_as_it_was(bert: str, data: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(support.config(bert, data, tmp_path / "out", steps=1))
    assert torch.equal(torch.rand(2), expected)


def test_every_step_is_logged_with_its_losses_and_speed(
    bert: str, data: str, tmp_path: Path
) -> None:
    config = support.config(bert, data, tmp_path / "out", warmup=0.25, weight=3.0)
    lines = read_log(train(config))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for step, line in enumerate(lines):
        assert line["loss"] == pytest.approx(line["infonce"] + 3.0 * line["listwise"])
        assert line["lr"] == loop.learning_rate(step, 4, config)
        assert min(line["lists_s"], line["tokens_s"], line["seconds"]) > 0


def test_the_curve_is_a_picture_where_matplotlib_is_and_a_line_where_not(
    bert: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(loop, "draw_curve", log.draw_curve)
    out = train(support.config(bert, data, tmp_path / "out", steps=2))
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    (out / "curve.png").unlink()
    monkeypatch.setattr(log, "find_spec", lambda name: None)
    with caplog.at_level("INFO", "e2rank"):
        log.draw_curve(out)
    assert not (out / "curve.png").exists()
    assert [each.message for each in caplog.records] == [
        "no curve.png: matplotlib is not installed"
    ]


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """Eight texts, three queries with judgments, and a run for two of them."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    texts = [*support.WORDS, "wing shock", "heat and panel", "panel"]
    corpus = [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    queries = [{"_id": f"q{n}", "text": t} for n, t in enumerate(["wing", "heat panel", "jet"])]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    judged = ["q0\td8\t2", "q0\td0\t1", "q1\td9\t2", "q1\td10\t1", "q2\td6\t1"]
    (folder / "qrels" / "dev.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    pairs = [("q0", [3, 8, 0, 5]), ("q1", [10, 2, 9])]
    run = [f"{q} Q0 d{d} {r} {9 - r} x" for q, own in pairs for r, d in enumerate(own, 1)]
    (folder / "run.trec").write_text("\n".join(run))
    return folder


@pytest.mark.parametrize("documents", [False, True], ids=["frozen", "trained"])
def test_the_measurement_is_the_ndcg_of_the_trained_models_own_order(
    bert: str, data: str, tmp_path: Path, beir: Path, documents: bool
) -> None:
    settings = {"dev": str(beir), "dev_run": str(beir / "run.trec"), "dev_every": 3,
                "train_documents": documents}  # fmt: skip
    out = train(support.config(bert, data, tmp_path / "out", **settings))
    lines = [line for line in read_log(out) if "dev" in line]
    assert [line["step"] for line in lines] == [0, 3, 4]
    qrels = load_beir(beir, "dev").qrels
    texts = dict(enumerate([*support.WORDS, "wing shock", "heat and panel", "panel"]))
    encoder, run = load_encoder(str(out), device="cpu"), {}
    for query, text, own in (("q0", "wing", [3, 8, 0, 5]), ("q1", "heat panel", [10, 2, 9])):
        shown = [texts[each] for each in own]
        prompt = encoder.encode_prompts([text], [shown]).vectors[0]
        scores = encoder.encode_documents(shown).vectors @ prompt
        run[query] = [(f"d{each}", float(s)) for each, s in zip(own, scores, strict=True)]
    expected = per_query(qrels, run, ["nDCG@10"])["nDCG@10"]
    assert lines[-1]["dev"]["prompt"] == pytest.approx(sum(expected.values()) / 3)
    first = (2 / np.log2(3) + 1 / 2) / (2 + 1 / np.log2(3))
    first += (1 + 2 / 2) / (2 + 1 / np.log2(3))
    assert [line["dev"]["first"] for line in lines] == [pytest.approx(first / 3)] * 3


def test_without_a_run_the_candidates_are_those_nearest_to_the_base(
    bert: str, data: str, tmp_path: Path, beir: Path
) -> None:
    settings = {"dev": str(beir), "dev_depth": 4, "dev_queries": 2, "prompt": "none"}
    out = train(support.config(bert, data, tmp_path / "out", **settings))
    first = next(line["dev"] for line in read_log(out) if "dev" in line)
    encoder, collection = load_encoder(bert, device="cpu"), load_beir(beir, "dev").first(2)
    texts = {each.id: each.body for each in collection.documents()}
    documents = encoder.encode_documents(list(texts.values())).vectors
    run = {}
    for query, text in collection.queries.items():
        scores = documents @ encoder.encode_queries([text]).vectors[0]
        best = np.argsort(-scores)[:4]
        run[query] = [(list(texts)[place], float(scores[place])) for place in best]
    expected = per_query(collection.qrels, run, ["nDCG@10"])["nDCG@10"]
    # The control has no prompt to measure.
    assert first == {name: pytest.approx(sum(expected.values()) / 2) for name in ("first", "query")}


def test_a_run_of_another_collection_is_refused(
    bert: str, data: str, tmp_path: Path, beir: Path
) -> None:
    (beir / "run.trec").write_text("q0 Q0 elsewhere 1 1.0 x")
    settings = {"dev": str(beir), "dev_run": str(beir / "run.trec")}
    with pytest.raises(ValueError, match="expected candidates of that collection"):
        train(support.config(bert, data, tmp_path / "out", **settings))


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["e2rank", "train", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_trains_a_recipe_with_changes(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(f'base = "{bert}"\ndata = ["training/example.jsonl"]\nsteps = 5\n')
    monkeypatch.chdir(ROOT)
    out = str(tmp_path / "out")
    changes = ("--set", f"out={out}", "--set", "steps=2", "--set", "list_sizes=[2, 3]")
    assert cli(monkeypatch, str(recipe), *changes) == 0
    assert out in capsys.readouterr().out.replace("\n", "")
    assert len(support.losses(out)) == 2
    assert load_encoder(out, device="cpu").contract.list_sizes == (2, 3)

    assert cli(monkeypatch, str(recipe), *changes) == 1
    assert "is not empty" in capsys.readouterr().err
    assert cli(monkeypatch, str(recipe), *changes, "--resume") == 1
    assert "holds a finished run" in capsys.readouterr().err
    assert cli(monkeypatch, str(recipe), "--set", "list=3") == 1
    assert "did you mean 'lists'" in capsys.readouterr().err
    assert cli(monkeypatch, str(recipe), "--set", "lists") == 1
    assert "no KEY=VALUE" in capsys.readouterr().err
