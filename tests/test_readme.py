"""The README is true: its code runs, its commands exist, its figures were measured."""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from e2rank.cli import main
from e2rank.encoders import presets
from e2rank.encoders.hashing import HashingEncoder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


class Small(HashingEncoder):
    """Stands for the default model where a command would take minutes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "minilm"


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "python"}
    assert {shlex.split(line, comments=True)[0] for line in COMMANDS} == {"make", "pip", "e2rank"}


def test_python_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "README.md", "exec"), names)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["1", "2"]
    assert shown[0].split()[1] == "wing"


def test_commands_of_the_command_line_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.PRESETS, "minilm", lambda name, device: Small())
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    for line in COMMANDS:
        words = shlex.split(line, comments=True)
        if words[0] == "e2rank":
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as end:
                main()
            assert not end.value.code, capsys.readouterr().err
    assert "flutter of thin panels" in capsys.readouterr().out


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    asked = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert asked
    assert set(asked) <= set(targets)


def test_extras_to_install_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (asked,) = [line for line in COMMANDS if line.startswith("pip ")]
    extras = re.findall(r"\[(.*)\]", asked)[0].split(",")
    assert set(extras) <= project["optional-dependencies"].keys()


def test_it_has_at_most_200_lines() -> None:
    assert len(README.splitlines()) <= 200


def test_figures_of_the_table_are_those_that_were_measured() -> None:
    path = ROOT / "benchmarks" / "results" / "rerank.json"
    reports = json.loads(path.read_text(encoding="utf-8"))["results"]
    measured = [
        (f"{row['measures']['nDCG@10']:.4f}", f"{row['latency_ms']['p50']:,.0f}")
        for report in reports
        for row in report["rows"]
    ]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.splitlines()
        if line.startswith("| ") and re.search(r"\| 0\.\d{4} \|", line)
    ]
    assert [(cells[3], cells[5]) for cells in lines] == measured
