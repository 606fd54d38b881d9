"""As many threads as a process may use cores, as its container says."""

import os
from pathlib import Path
from typing import Any

import pytest

from e2rank.encoders.onnx import sessions
from e2rank.encoders.onnx.cores import usable_cores

V1 = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("said", "omp", "cores"),
    [
        ({}, None, 64),
        ({"cpu.max": "200000 100000\n"}, None, 2),
        ({"cpu.max": "150000 100000\n"}, None, 2),
        ({"cpu.max": "20000 100000\n"}, None, 1),
        ({"cpu.max": "9900000 100000\n"}, None, 64),
        ({"cpu.max": "max 100000\n"}, None, 64),
        ({"cpu.max": "nonsense"}, None, 64),
        (dict(zip(V1, ("250000\n", "100000\n"), strict=True)), None, 3),
        (dict(zip(V1, ("-1\n", "100000\n"), strict=True)), None, 64),
        (dict(zip(V1, ("100000\n", "0\n"), strict=True)), None, 64),
        ({V1[0]: "100000\n"}, None, 64),
        ({}, "5", 5),
        ({}, "100", 64),
        ({"cpu.max": "200000 100000\n"}, "5", 2),
        ({"cpu.max": "200000 100000\n"}, "1", 1),
        *(({}, omp, 64) for omp in ("", "0", "-1", "2.5", "4,2", "many")),
    ],
)
def test_cores_are_the_least_of_affinity_quota_and_what_is_asked_for(
    said: dict[str, str],
    omp: str | None,
    cores: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    for name, text in said.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores


def test_a_session_takes_the_cores_it_may_use_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "usable_cores", lambda: 7)
    monkeypatch.setattr(sessions.Sessions, "_session", lambda self, threads: Nothing())
    threads: Any
    for threads, taken in ((None, 7), (3, 3)):
        made = sessions.Sessions(tmp_path / "x.onnx", provider=sessions.CPU, threads=threads)
        assert made.threads == taken


class Nothing:
    """A session that takes and gives nothing."""

    def get_inputs(self) -> list[Any]:
        """None."""
        return []

    get_outputs = get_inputs


def test_without_affinity_all_cores_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores(Path("nowhere")) == 7
