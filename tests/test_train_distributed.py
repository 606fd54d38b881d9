"""Two processes on two shares of a batch do what one does on the whole of it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import cases, step

from e2rank.train.distributed import World, gather, mean, reduce_gradients, split, start, stop

ROOT = Path(__file__).parents[1]
CASES = cases()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(ROOT / "tests/distributed_worker.py"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("batch", "how"), CASES)
def test_two_processes_give_the_loss_and_the_gradients_of_one(
    ranks: list[dict[str, Any]], batch: int, how: str
) -> None:
    expected = step(batch, "plain", World())
    assert all(gradient.abs().max() > 1e-3 for gradient in expected["gradients"].values())
    for found in ranks:
        each = found[f"{batch} {how}"]
        assert each["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        torch.testing.assert_close(each["gradients"], expected["gradients"], rtol=1e-5, atol=1e-6)


def test_a_parameter_without_gradient_on_every_process_stays_without(
    ranks: list[dict[str, Any]],
) -> None:
    assert all(found[f"{batch} {how}"]["unused"] is None for found in ranks for batch, how in CASES)


def test_gathered_rows_stand_in_rank_order_whatever_each_process_holds(
    ranks: list[dict[str, Any]],
) -> None:
    for found in ranks:
        assert found["rows"].tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]


def test_a_mean_is_over_all_processes_until_they_part(ranks: list[dict[str, Any]]) -> None:
    assert [found["mean"] for found in ranks] == [0.5, 0.5]
    assert [found["after"] for found in ranks] == [0.0, 1.0]


def test_nothing_of_the_group_is_left_when_the_processes_part(
    ranks: list[dict[str, Any]],
) -> None:
    """A thread of it that still holds a tensor when Python exits aborts the process."""
    assert [found["left"] for found in ranks] == ["None", "None"]


def test_vectors_of_different_models_are_refused_on_every_process(
    ranks: list[dict[str, Any]],
) -> None:
    assert all("[2, 3] dimensions" in found["widths"] for found in ranks)


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    vectors = torch.ones(2, 3)

    world = start(device="cpu")
    reduce_gradients([weight])
    assert world == World()
    assert world.main
    assert gather(vectors) is vectors
    assert mean(3.0) == 3.0
    assert weight.grad.tolist() == [1.0, 2.0]
    assert split([1, 2, 3], world) == [1, 2, 3]
    stop()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("n", [0, 1, 5, 6, 24])
def test_shares_joined_are_the_batch_and_nearly_equal(n: int, size: int) -> None:
    shares = [split(range(n), World(rank, size)) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_environment_says_which_process_this_is() -> None:
    said = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    world = World.from_environment(said, device="cpu")
    assert (world.rank, world.size, world.main) == (3, 4, False)


@pytest.mark.parametrize("said", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "2"}])
def test_a_contradictory_environment_is_refused(said: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="torchrun"):
        World.from_environment(said, device="cpu")


def test_each_process_takes_its_own_gpu_and_none_shares_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = {"RANK": "5", "WORLD_SIZE": "8"}
    second = {**said, "LOCAL_RANK": "1"}
    # "cuda" alone has no number, which generators and collectives ask for.
    for device in (None, "cuda", "cuda:1"):
        assert World.from_environment(second, device=device).device == torch.device("cuda:1")
    with pytest.raises(ValueError, match="one process a GPU"):
        World.from_environment({**said, "LOCAL_RANK": "2"})
    with pytest.raises(ValueError, match="one process a GPU"):
        World.from_environment({**said, "LOCAL_RANK": "2"}, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU here; pass device='cpu'"):
        World.from_environment(second, device="cuda")
