"""Where an export goes: whole, into the place that was named, or refused before any work."""

import logging
from pathlib import Path

import pytest

from e2rank.encoders.onnx.placing import in_place_when_whole


def put(folder: Path) -> None:
    """Write a file as an export does."""
    with in_place_when_whole(folder) as side:
        (side / "made.txt").write_text("made")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_to_where_it_leads(there: bool, tmp_path: Path) -> None:
    real, link = tmp_path / "deep" / "real", tmp_path / "link"
    if there:
        real.mkdir(parents=True)
    link.symlink_to(real)
    put(link)
    assert link.is_symlink()
    assert (real / "made.txt").read_text() == "made"
    assert {each.name for each in tmp_path.iterdir()} == {"deep", "link"}
    assert [each.name for each in real.parent.iterdir()] == ["real"]


def test_a_relative_folder_is_where_it_was_when_the_export_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with in_place_when_whole(Path("made")) as side:
        (side / "made.txt").write_text("made")
        monkeypatch.chdir(tmp_path / "other")
    assert (tmp_path / "made" / "made.txt").is_file()


def test_what_cannot_be_replaced_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path("."), tmp_path):
        with pytest.raises(ValueError, match=r"is the working directory .* a new folder in it"):
            put(folder)
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "volume")
    with pytest.raises(ValueError, match="is mounted and cannot be replaced"):
        put(tmp_path / "volume")
    assert [each.name for each in tmp_path.iterdir()] == ["volume"]


@pytest.mark.parametrize("out", ["file/sub", "file/sub/deeper"])
def test_a_place_where_no_folder_can_be_made_is_named(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = rf"no folder can be made in {(tmp_path / out).parent} \(.*: {tmp_path / 'file'}"
    with pytest.raises(ValueError, match=words):
        put(tmp_path / out)


def test_what_killed_exports_to_the_same_place_left_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # In brackets, which are no pattern here.
    target, left = tmp_path / "bundle[1]", tmp_path / ".bundle[1].x_1abcde"
    caplog.set_level(logging.WARNING)
    for name in (".bundle1.x_1abcde", ".bundle[1].short", ".bundle[1].x_1abcdef"):
        (tmp_path / name).mkdir()
    put(target)
    assert caplog.messages == []
    (target / "made.txt").unlink()
    left.mkdir()
    put(target)
    [said] = caplog.messages
    assert f"{left} was left by an export that was killed, unless one runs: remove it" == said
    assert left.is_dir()
