"""Publishing an index and fetching it: what arrives is what was sent, or nothing arrives."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import Hub, running_hub
from huggingface_hub import constants
from huggingface_hub.utils import enable_progress_bars
from test_pack import SAMPLE, content, entries, flip, manifest_of
from typer.testing import CliRunner

from e2rank import hub as hub_module
from e2rank.cli.ship import app
from e2rank.errors import IndexFormatError, MissingExtra
from e2rank.hub import pull, push
from e2rank.index.manifest import NAME, Manifest

REPO = "someone/some-index"

# The hub's own library sends files so.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only hub here is on this machine, and speaks plain HTTP."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub) -> Hub:
    """The hub, with nothing in it."""
    server.repos.clear()
    server.ignored.clear()
    return server


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A copy of the sample index."""
    return shutil.copytree(SAMPLE, tmp_path / "index")


def test_what_is_pulled_is_what_was_pushed(hub: Hub, tmp_path: Path) -> None:
    commit = push(SAMPLE, REPO, endpoint=hub.endpoint)
    assert commit == hub.repos[REPO].newest
    manifest = pull(REPO, tmp_path / "new" / "folder", endpoint=hub.endpoint)
    assert manifest == Manifest.load(SAMPLE)
    assert content(tmp_path / "new" / "folder") == content(SAMPLE)
    assert os.listdir(tmp_path) == ["new"]


def test_a_repository_holds_the_index_and_its_card(hub: Hub, index: Path) -> None:
    (index / "segments" / "orphan").write_bytes(b"of no index")
    push(index, REPO, license="apache-2.0", endpoint=hub.endpoint)
    files = dict(hub.repos[REPO].files)
    assert files.pop("README.md").decode().startswith("---\nlibrary_name: e2rank\nlicense: apache")
    del files[".gitattributes"]
    assert files == content(SAMPLE)


def test_the_next_index_replaces_the_one_before_in_one_commit(hub: Hub, index: Path) -> None:
    first = push(SAMPLE, REPO, endpoint=hub.endpoint)
    hub.repos[REPO].files["LICENSE"] = b"as you like"
    name, other = sorted(Manifest.load(index).files)[:2]
    (index / "segments" / "2").mkdir()
    (index / name).rename(index / "segments" / "2" / "x.json")
    files = dict(Manifest.load(index).files)
    files["segments/2/x.json"] = files.pop(name)
    dataclasses.replace(Manifest.load(index), files=files).save(index)
    second = push(index, REPO, endpoint=hub.endpoint)
    repo = hub.repos[REPO]
    assert list(repo.commits)[-2:] == [first, second]
    assert name not in repo.files
    assert {other, "segments/2/x.json", "LICENSE"} < repo.files.keys()
    assert [change["key"] for change in repo.messages[-1]].count("deletedFile") == 1


def test_an_older_commit_can_be_pulled(hub: Hub, index: Path, tmp_path: Path) -> None:
    first = push(SAMPLE, REPO, endpoint=hub.endpoint)
    dataclasses.replace(Manifest.load(index), files={}).save(index)
    push(index, REPO, endpoint=hub.endpoint)
    pull(REPO, tmp_path / "old", revision=first, endpoint=hub.endpoint)
    assert content(tmp_path / "old") == content(SAMPLE)


def test_a_damaged_index_is_not_pushed(hub: Hub, index: Path) -> None:
    name = sorted(Manifest.load(index).files)[0]
    flip(index / name)
    with pytest.raises(IndexFormatError, match=name):
        push(index, REPO, endpoint=hub.endpoint)
    assert hub.repos == {}


def test_a_repository_of_something_else_is_left_alone(hub: Hub) -> None:
    repo = hub.create(REPO, {"model.safetensors": b"precious"})
    with pytest.raises(ValueError, match=r"holds 'model.safetensors' and no index"):
        push(SAMPLE, REPO, endpoint=hub.endpoint)
    assert len(repo.commits) == 1


@pytest.mark.parametrize("there", [None, True])
def test_a_private_index_is_private(hub: Hub, there: bool | None) -> None:
    if there:
        hub.create(REPO, {}, private=True)
    push(SAMPLE, REPO, private=True, endpoint=hub.endpoint)
    assert hub.repos[REPO].private


def test_a_private_index_does_not_go_to_a_public_repository(hub: Hub) -> None:
    repo = hub.create(REPO, {})
    with pytest.raises(ValueError, match="already and public"):
        push(SAMPLE, REPO, private=True, endpoint=hub.endpoint)
    assert len(repo.commits) == 1


@pytest.mark.parametrize("name", ["name", "a/b/c", ""])
def test_a_repository_has_an_owner_and_a_name(hub: Hub, name: str) -> None:
    with pytest.raises(ValueError, match="expected owner/name"):
        push(SAMPLE, name, endpoint=hub.endpoint)
    assert hub.repos == {}


def test_a_file_that_the_hub_does_not_take_is_told(hub: Hub) -> None:
    name = sorted(Manifest.load(SAMPLE).files)[-1]
    hub.ignored.add(name)
    with pytest.raises(OSError, match=f"did not take {name}"):
        push(SAMPLE, REPO, endpoint=hub.endpoint)


def test_a_push_that_another_overtakes_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed = hub_module._Remote.indexed

    def overtaken(remote: hub_module._Remote) -> set[str]:
        hub.repos[REPO].commit({"of": b"another"})
        return indexed(remote)

    monkeypatch.setattr(hub_module._Remote, "indexed", overtaken)
    with pytest.raises(OSError, match=f"{REPO} on the hub: .*412"):
        push(SAMPLE, REPO, endpoint=hub.endpoint)
    assert hub.repos[REPO].files == {"of": b"another"}


VECTORS = next(name for name in Manifest.load(SAMPLE).files if name.endswith("vectors.npy"))
TAMPERED: dict[str, tuple[dict[str, bytes | None], str]] = {
    "another file": (
        {VECTORS: bytes((SAMPLE / VECTORS).stat().st_size)},
        "npy differs from",
    ),
    "a longer file": ({VECTORS: bytes(99999)}, "has 99999 bytes of .*vectors.npy, expected"),
    "no file": ({VECTORS: None}, "has no bytes of .*vectors.npy"),
    "no manifest": ({NAME: None}, f"{REPO} has no manifest.json"),
    "no JSON": ({NAME: b"["}, f"{REPO}/manifest.json is damaged"),
    "a path outside": ({NAME: manifest_of(entries({"../x": b"x"}))}, "names"),
    "a hidden file": ({NAME: manifest_of(entries({".x": b"x"})), ".x": b"x"}, "expected a path"),
    "too much": ({NAME: manifest_of({"x": {"bytes": 10**18, "xxh3": ""}})}, "are left for it"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_differs_from_its_manifest_is_not_pulled(hub: Hub, tmp_path: Path, what: str) -> None:
    changes, reason = TAMPERED[what]
    files = {**content(SAMPLE), **changes}
    hub.create(REPO, {name: data for name, data in files.items() if data is not None})
    with pytest.raises(IndexFormatError, match=reason) as refused:
        pull(REPO, tmp_path / "new", endpoint=hub.endpoint)
    assert len(str(refused.value).splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_only_what_the_manifest_names_is_pulled(hub: Hub, tmp_path: Path) -> None:
    hub.create(REPO, {**content(SAMPLE), "segments/000001/evil.py": b"x", "README.md": b"x"})
    pull(REPO, tmp_path / "new", endpoint=hub.endpoint)
    assert content(tmp_path / "new") == content(SAMPLE)


def test_what_is_in_the_way_of_a_pull_stays(hub: Hub, index: Path) -> None:
    with pytest.raises(ValueError, match="is there already"):
        pull(REPO, index, endpoint=hub.endpoint)
    assert content(index) == content(SAMPLE)


@pytest.mark.parametrize(
    ("repo", "revision", "reason"),
    [
        ("someone/nothing", None, "someone/nothing on the hub: 404"),
        (REPO, "v9", f"{REPO} on the hub: 404"),
    ],
)
def test_what_is_not_on_the_hub_is_said_in_one_line(
    hub: Hub, tmp_path: Path, repo: str, revision: str | None, reason: str
) -> None:
    hub.create(REPO, content(SAMPLE))
    with pytest.raises(OSError, match=reason) as refused:
        pull(repo, tmp_path / "new", revision=revision, endpoint=hub.endpoint)
    assert len(str(refused.value).splitlines()) == 1


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"{REPO} on the hub: ") as refused:
        pull(REPO, tmp_path / "new", endpoint="http://127.0.0.1:9")
    assert len(str(refused.value).splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_without_the_hub_library_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"e2rank\[hub\]"):
        pull(REPO, tmp_path / "new")


def test_importing_the_module_does_not_load_the_hub_library() -> None:
    code = "import sys, e2rank.hub; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_commands_push_and_pull(hub: Hub, tmp_path: Path) -> None:
    enable_progress_bars()
    runner, there = CliRunner(), ["--endpoint", hub.endpoint]
    done = runner.invoke(app, ["push", str(SAMPLE), REPO, *there, "--private", "--json"])
    assert json.loads(done.stdout) == {"repo": REPO, "commit": hub.repos[REPO].newest}
    assert done.stderr == ""
    assert hub.repos[REPO].private
    done = runner.invoke(app, ["pull", REPO, str(tmp_path / "new"), *there])
    assert "40 documents by 'minilm', every file verified" in done.stdout
    assert content(tmp_path / "new") == content(SAMPLE)
