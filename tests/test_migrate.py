"""Moving an index to another encoder: all of it, resumable, in step with the old one."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from index_support import TokenEncoder

from e2rank import Engine, IndexConfig
from e2rank.encoders import Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import EncoderMismatch
from e2rank.migrate import migrate

RECORDS = [{"id": str(n), "text": f"word{n}", "metadata": {"n": n}} for n in range(30)]


class Recorder(HashingEncoder):
    """Keeps what it read; fails at one text."""

    def __init__(self, fails_at: str = "") -> None:
        super().__init__(64)
        self.read: list[str] = []
        self.fails_at = fails_at

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        if self.fails_at in texts:
            raise KeyboardInterrupt
        self.read += texts
        return super().encode_documents(texts)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An index by another encoder, with a deleted and a replaced document."""
    config = IndexConfig(batch=8)
    with Engine.build(RECORDS, tmp_path / "old", HashingEncoder(32), config) as engine:
        engine.delete(["3"])
        engine.add([{"id": "4", "text": "other words"}])
    return tmp_path / "old"


def test_the_new_index_holds_the_same_documents_by_the_new_encoder(old: Path) -> None:
    recorder = Recorder()
    with migrate(old, old.with_name("new"), recorder) as engine:
        with Engine.open(old, HashingEncoder(32)) as before:
            assert list(engine.store) == list(before.store)
        assert engine.store.dim == 64
        assert engine.store.manifest.config["batch"] == 8
        assert engine.search("other words", 1, rerank=False)[0].id == "4"
    assert len(recorder.read) == 29


def test_a_migration_that_was_killed_goes_on_where_it_was(old: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        migrate(old, old.with_name("new"), Recorder(fails_at="word20"))
    recorder = Recorder()
    with migrate(old, old.with_name("new"), recorder) as engine:
        assert len(engine) == 29
    assert "word0" not in recorder.read
    assert len(recorder.read) < 20


def test_what_changes_meanwhile_and_later_is_taken_over_and_nothing_is_read_twice(
    old: Path,
) -> None:
    new = old.with_name("new")
    migrate(old, new, Recorder()).close()
    with Engine.open(old, HashingEncoder(32)) as engine:
        engine.delete(["0", "1"])
        engine.add([{"id": "2", "text": "changed"}, {"id": "x", "text": "new"}])
        # Python calls 5 and 5.0 equal, and so are True and 1; they are not the same metadata.
        engine.add([{"id": "5", "text": "word5", "metadata": {"n": 5.0}}])
    recorder = Recorder()
    with pytest.raises(ValueError, match="is an index of 29 documents: pass update=True"):
        migrate(old, new, recorder)
    with migrate(old, new, recorder, update=True) as engine:
        texts = {document.id: document.text for document in engine.store}
        (number,) = (document.metadata["n"] for document in engine.get(["5"]))
    assert recorder.read == ["changed", "new"]
    assert isinstance(number, float)
    assert (texts["2"], texts["x"], "0" in texts, len(texts)) == ("changed", "new", False, 28)


def test_another_encoders_index_and_the_index_itself_are_refused(old: Path) -> None:
    with pytest.raises(ValueError, match="is the index itself"):
        migrate(old, old / ".", HashingEncoder(64))
    migrate(old, old.with_name("new"), HashingEncoder(64)).close()
    with pytest.raises(EncoderMismatch, match="is another model"):
        migrate(old, old.with_name("new"), HashingEncoder(128))


def test_settings_of_vectors_that_the_new_encoder_lacks_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = IndexConfig(tokens="float16")
    Engine.build(RECORDS[:3], tmp_path / "old", TokenEncoder(64), config).close()
    with migrate(tmp_path / "old", tmp_path / "new", HashingEncoder(64)) as engine:
        assert len(engine) == 3
    assert "makes no such vectors: tokens is left out" in caplog.text
