"""The commands that change an index and look after it."""

import json
from pathlib import Path

import numpy as np
import pytest
from index_support import EveryEncoder
from test_cli import Run, run  # noqa: F401 - the fixture is used by name

from e2rank import Engine, IndexConfig
from e2rank.encoders.hashing import HashingEncoder
from e2rank.index import Manifest

RECORDS = [
    {"id": "wing", "text": "lift of a wing", "metadata": {"year": 1950}},
    {"id": "panel", "text": "flutter of a panel", "metadata": {"year": 1960}},
]


def write(path: Path, records: list[dict[str, object]]) -> Path:
    """A corpus file."""
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, run: Run) -> Path:  # noqa: F811
    """An index of two documents."""
    corpus = write(tmp_path / "corpus.jsonl", RECORDS)
    done = run("index", corpus, "--out", tmp_path / "index", "--encoder", "hashing")
    assert done.status == 0
    return tmp_path / "index"


def test_add_delete_and_compact_say_what_they_did(
    run: Run,  # noqa: F811
    folder: Path,
    tmp_path: Path,
) -> None:
    more = [{"id": "tail", "text": "a tail"}, {"id": "wing", "text": "a better wing"}]
    added = run("add", folder, write(tmp_path / "more.jsonl", more), "--json")
    assert json.loads(added.out) == {"added": 1, "replaced": 1, "documents": 3}
    deleted = run("delete", folder, "panel", "nobody", "--json")
    assert json.loads(deleted.out) == {"deleted": 1, "not_there": 1, "documents": 2}
    compacted = json.loads(run("compact", folder, "--json").out)
    assert "nothing to delete" in run("delete", folder).err
    assert (compacted["documents"], compacted["segments"]) == (2, 1)
    shown = json.loads(run("show", folder, "--verify", "--json").out)
    assert (shown["documents"], shown["deleted"], shown["segments"]) == (2, 0, 1)


def test_add_takes_vectors_from_a_file(
    run: Run,  # noqa: F811
    folder: Path,
    tmp_path: Path,
) -> None:
    corpus = write(tmp_path / "more.jsonl", [{"id": str(n), "text": f"tail {n}"} for n in range(3)])
    rows = HashingEncoder().encode_documents([f"tail {n}" for n in range(3)]).vectors
    np.save(tmp_path / "rows.npy", rows[:2])
    told = ("add", folder, corpus, "--vectors", tmp_path / "rows.npy", "--json")
    assert "rows.npy holds 2 vectors, and the corpus 3 documents" in run(*told).err
    np.save(tmp_path / "rows.npy", rows)
    assert json.loads(run(*told).out) == {"added": 3, "replaced": 0, "documents": 5}


@pytest.mark.parametrize(
    ("encoder", "config", "said"),
    [
        (
            HashingEncoder(16),
            IndexConfig(),
            {"token_dim": 0, "tokens": "none", "sparse_dim": 0, "sparse": "none", "format": 3},
        ),
        (
            EveryEncoder(),
            IndexConfig(tokens="float16"),
            {
                **{"token_dim": 4, "tokens": "float16", "sparse_dim": 23, "sparse": "exact"},
                "format": 4,
            },
        ),
    ],
)
def test_show_names_token_vectors_sparse_vectors_and_the_format(
    run: Run,  # noqa: F811
    tmp_path: Path,
    encoder: HashingEncoder,
    config: IndexConfig,
    said: dict[str, object],
) -> None:
    Engine.build(RECORDS, tmp_path / "index", encoder, config).close()
    shown = json.loads(run("show", tmp_path / "index", "--json").out)
    assert {name: shown[name] for name in said} == said
    lines = [line.split() for line in run("show", tmp_path / "index").out.splitlines()]
    assert [[name, str(value)] for name, value in said.items()] == [
        line for line in lines if line[0] in said
    ]


def test_search_takes_a_filter_in_words(run: Run, folder: Path) -> None:  # noqa: F811
    found = run("search", folder, "lift", "--where", "year >= 1955", "--json")
    assert [hit["id"] for hit in json.loads(found.out)["hits"]] == ["panel"]
    wrong = run("search", folder, "lift", "--where", "year >=")
    assert wrong.status == 1
    assert wrong.err.startswith("error: ")
    assert wrong.err.count("\n") == 1


def test_verify_names_damaged_files_and_repair_says_what_it_cannot_do(
    run: Run,  # noqa: F811
    folder: Path,
) -> None:
    whole = run("verify", folder)
    assert (whole.status, whole.err) == (0, "")
    path = folder / "segments/000001/documents.sqlite"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    broken = run("verify", folder)
    assert broken.status == 1
    assert "documents.sqlite is damaged" in broken.err
    left = run("repair", folder)
    assert left.status == 1
    assert "restore them from a copy" in left.err
    assert "documents.sqlite" in left.err


@pytest.mark.parametrize(
    ("step", "left"),
    [("sync", "the index is as it was"), ("Writer._clean", "the index was changed by then")],
)
@pytest.mark.parametrize("command", [("add", "more.jsonl"), ("delete", "wing"), ("compact",)])
def test_ctrl_c_while_an_index_is_changed_says_what_it_left(
    run: Run,  # noqa: F811
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    step: str,
    left: str,
) -> None:
    def interrupted(*_: object) -> None:
        if step == "sync" or Manifest.load(folder).commit > before:
            raise KeyboardInterrupt

    write(tmp_path / "more.jsonl", [{"id": "tail", "text": "a tail"}])
    run("delete", folder, "panel")
    before = Manifest.load(folder).commit
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(f"e2rank.index.writer.{step}", interrupted)
        ran = run(command[0], folder, *command[1:])
    assert (ran.status, ran.err.strip()) == (130, f"error: interrupted; {left}")
    assert (Manifest.load(folder).commit > before) == ("changed" in left)
    assert run("verify", folder).status == 0


def test_ctrl_c_while_an_index_is_migrated_says_how_to_go_on(
    run: Run,  # noqa: F811
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command = ("migrate", folder, folder.with_name("new"), "--encoder", "hashing")
    for step, more in (("index.finish.write_table", ""), ("migrate._caught_up", " with --update")):
        with monkeypatch.context() as patched:
            patched.setattr(f"e2rank.{step}", interrupted)
            ran = run(*command)
        assert ran.status == 130
        assert ran.err.strip() == f"error: interrupted; the same command{more} continues"
    assert run(*command, "--update").status == 0


def test_migrate_makes_an_index_by_another_encoder(run: Run, folder: Path) -> None:  # noqa: F811
    new = folder.with_name("new")
    done = run("migrate", folder, new, "--encoder", "hashing", "--json")
    assert json.loads(done.out)["documents"] == 2
    again = run("migrate", folder, folder, "--encoder", "hashing")
    assert "is the index itself" in again.err
