"""The commands that change an index and look after it."""

import json
from pathlib import Path

import pytest
from index_support import EveryEncoder
from test_cli import Run, run  # noqa: F401 - the fixture is used by name

from e2rank import Engine, IndexConfig
from e2rank.encoders.hashing import HashingEncoder

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


def test_migrate_makes_an_index_by_another_encoder(run: Run, folder: Path) -> None:  # noqa: F811
    new = folder.with_name("new")
    done = run("migrate", folder, new, "--encoder", "hashing", "--json")
    assert json.loads(done.out)["documents"] == 2
    again = run("migrate", folder, folder, "--encoder", "hashing")
    assert "is the index itself" in again.err
