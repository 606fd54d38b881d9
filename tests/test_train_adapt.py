"""Adapting an index: what helps is kept, what does not is refused, and nothing else changes."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders_support import made

from e2rank import Engine
from e2rank.cli import main
from e2rank.documents import Candidates
from e2rank.encoders import presets
from e2rank.encoders.torch import TorchEncoder
from e2rank.index.manifest import Manifest
from e2rank.rerank import Scored
from e2rank.train import AdaptConfig, adapt, remove_adapter

WORDS = [
    "wing",
    "lift",
    "drag",
    "flutter",
    "panel",
    "heat",
    "shock",
    "layer",
    "flow",
    "gas",
    "plate",
    "speed",
    "jet",
    "wave",
    "angle",
]
CONFIG = AdaptConfig(queries=200, depth=20, learning_rate=3e-3, epochs=30)


class Turned:
    """A teacher who ranks by the query's vector turned in one fixed way."""

    name = "turned"

    def __init__(self, encoder: TorchEncoder, *, noise: bool = False, fail_at: int = 10**9) -> None:
        rng = np.random.default_rng(0)
        dim = encoder.contract.dim
        self.turn = np.linalg.qr(np.eye(dim) + 0.4 * rng.normal(size=(dim, dim)))[0]
        self.encoder, self.noise, self.asked, self.fail_at = encoder, noise, 0, fail_at
        self._rng = rng

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """The cosines with the turned vector, or noise."""
        out = []
        for query, pool in zip(queries, pools, strict=True):
            if self.asked >= self.fail_at:
                raise KeyboardInterrupt
            self.asked += len(pool)
            asked = self.encoder.encode_queries([query]).vectors[0] @ self.turn.T
            vectors = self.encoder.encode_documents(list(pool.texts)).vectors
            scores = self._rng.normal(size=len(pool)) if self.noise else vectors @ asked
            out.append(Scored(scores.astype(np.float32), calls=len(pool)))
        return out


def sentence(rng: np.random.Generator, words: int) -> str:
    """Words in a random order."""
    return " ".join(rng.choice(WORDS, size=words))


@pytest.fixture(scope="module")
def encoder() -> TorchEncoder:
    return made()


@pytest.fixture(scope="module")
def log() -> list[str]:
    rng = np.random.default_rng(1)
    return [sentence(rng, 4) for _ in range(200)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, encoder: TorchEncoder) -> Path:
    rng = np.random.default_rng(2)
    folder = tmp_path_factory.mktemp("built") / "index"
    documents = ({"id": str(n), "text": sentence(rng, 9)} for n in range(60))
    Engine.build(documents, folder, encoder).close()
    return folder


@pytest.fixture
def index(
    built: Path, tmp_path: Path, encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of the index, whose encoder loads by its name."""
    monkeypatch.setitem(presets.PRESETS, encoder.name, lambda name, device, dtype: encoder)
    return Path(shutil.copytree(built, tmp_path / "index"))


def own(index: Path) -> Path:
    """Where the index's own adapter is."""
    return index / Manifest.load(index).adapter


def first_stage(index: Path, query: str, *, adapted: bool = True) -> list[tuple[str, float]]:
    """Ids and scores without rerank."""
    with Engine.open(index, adapted=adapted) as engine:
        return [(hit.id, hit.score) for hit in engine.search(query, 10, rerank=False)]


def test_an_index_that_a_teacher_can_improve_is_improved_and_its_files_stay(
    index: Path, encoder: TorchEncoder, log: list[str]
) -> None:
    before = first_stage(index, log[0])
    found = adapt(index, CONFIG, teacher=Turned(encoder), queries=log)
    assert found.folder == own(index)
    assert found.after > found.before + 0.05
    assert found.p_value < 0.05
    assert first_stage(index, log[0]) != before
    assert first_stage(index, log[0], adapted=False) == before
    with Engine.open(index) as engine:
        engine.store.verify()
    assert remove_adapter(index)
    assert first_stage(index, log[0]) == before
    assert not remove_adapter(index)


def test_an_index_is_adapted_to_the_documents_that_are_left(
    index: Path, encoder: TorchEncoder, log: list[str]
) -> None:
    gone = {str(n) for n in range(8)}
    with Engine.open(index) as engine:
        engine.delete(gone)
    found = adapt(index, CONFIG, teacher=Turned(encoder), queries=log)
    assert found.folder == own(index)
    assert not gone & {each for each, _ in first_stage(index, log[0])}


def test_a_teacher_of_noise_is_refused_and_nothing_is_written(
    index: Path, encoder: TorchEncoder, log: list[str]
) -> None:
    before = sorted(index.rglob("*"))
    found = adapt(index, CONFIG, teacher=Turned(encoder, noise=True), queries=log)
    assert found.folder is None
    assert sorted(index.rglob("*")) == before


def test_an_adapter_of_before_survives_one_that_is_refused(
    index: Path, encoder: TorchEncoder, log: list[str]
) -> None:
    adapt(index, CONFIG, teacher=Turned(encoder), queries=log)
    kept = first_stage(index, log[0])
    assert adapt(index, CONFIG, teacher=Turned(encoder, noise=True), queries=log).folder is None
    assert first_stage(index, log[0]) == kept


def test_an_interrupted_labelling_goes_on_without_asking_again(
    index: Path, encoder: TorchEncoder, log: list[str]
) -> None:
    whole = Turned(encoder)
    adapt(Path(shutil.copytree(index, index.parent / "other")), CONFIG, teacher=whole, queries=log)
    stopped = Turned(encoder, fail_at=whole.asked // 2)
    with pytest.raises(KeyboardInterrupt):
        adapt(index, CONFIG, teacher=stopped, queries=log)
    resumed = Turned(encoder)
    assert adapt(index, CONFIG, teacher=resumed, queries=log).folder is not None
    assert resumed.asked < 0.7 * whole.asked
    assert not (index / "adapter.work").exists()


def test_too_few_queries_and_no_teacher_are_refused(index: Path, encoder: TorchEncoder) -> None:
    with pytest.raises(ValueError, match="too few to adapt"):
        adapt(index, CONFIG, teacher=Turned(encoder), queries=["wing", "lift"])
    with pytest.raises(ValueError, match="pass a cross-encoder as the teacher"):
        adapt(index, CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        {"held_out": 0.0},
        {"held_out": 0.6},
        {"held_out": "half"},
        {"epochs": 0},
        {"epochs": 1.5},
        {"depth": 1},
        {"scale": 0},
        {"learning_rate": float("inf")},
    ],
    ids=str,
)
def test_settings_that_cannot_adapt_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        AdaptConfig(**change)


def test_the_command_line_says_that_there_is_nothing_to_remove(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["e2rank", "adapt", str(index), "--remove", "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["removed"] is False
