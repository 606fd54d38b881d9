"""Reading a corpus: what is kept, and how a broken file is named."""

import gzip
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from e2rank import corpus
from e2rank.corpus import read_corpus
from e2rank.documents import Document
from e2rank.errors import CorpusError

GOOD = b'{"_id": "1", "title": "Wings", "text": "Lift."}\n'


def written(folder: Path, content: bytes, name: str = "corpus.jsonl") -> Path:
    """A file of this content."""
    path = folder / name
    path.write_bytes(content)
    return path


def test_every_way_to_name_a_corpus_gives_the_same_documents(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.mkdir()
    packed.mkdir()
    files = [
        written(plain, GOOD),
        written(packed, gzip.compress(GOOD), "corpus.jsonl.gz"),
    ]
    paths: list[str | Path] = [*files, plain, packed, str(plain)]
    expected = [Document("1", "Lift.", "Wings")]
    assert [list(read_corpus(path)) for path in paths] == [expected] * 5


def test_unknown_fields_join_the_metadata(tmp_path: Path) -> None:
    line = {"id": "7", "text": "t", "url": "u", "metadata": {"year": 1958}, "tags": [1, None]}
    path = written(tmp_path, json.dumps(line).encode())
    assert list(read_corpus(path)) == [
        Document("7", "t", metadata={"year": 1958, "url": "u", "tags": [1, None]})
    ]


def test_an_id_beside_beirs_id_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"_id": "a", "id": "b", "text": ""}')
    assert list(read_corpus(path)) == [Document("a", "", metadata={"id": "b"})]


def test_null_title_and_metadata_count_as_absent(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"_id": "1", "title": null, "text": "x", "metadata": null}')
    assert list(read_corpus(path)) == [Document("1", "x")]


def test_blank_lines_are_skipped_and_still_counted(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + b"\n  \t\n" + b"{broken\n")
    documents = read_corpus(path)
    assert next(documents).id == "1"
    with pytest.raises(CorpusError, match=r"^corpus\.jsonl line 4 is not JSON"):
        next(documents)


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = written(tmp_path, '{"_id": "1", "text": "a\u2028b\u0085c"}\n'.encode())
    assert [document.text for document in read_corpus(path)] == ["a\u2028b\u0085c"]


def test_documents_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    documents = read_corpus(written(tmp_path, GOOD + b"not json\n"))
    assert next(documents) == Document("1", "Lift.", "Wings")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"_id": "2", "text": ', "line 2 is not JSON"),
        (b'["2", "text"]', "line 2 is a JSON list; expected an object"),
        (b'{"text": "x"}', "line 2 has no 'id'"),
        (b'{"_id": "2", "title": "x"}', "line 2 has no 'text'"),
        (b'{"_id": 2, "text": "x"}', "line 2 has '_id' of type int; expected a string"),
        (b'{"_id": "", "text": "x"}', "line 2 has an empty id"),
        (b'{"_id": "2", "text": null}', "line 2 has 'text' of type NoneType"),
        (b'{"_id": "2", "text": "x", "title": 5}', "line 2 has 'title' of type int"),
        (b'{"_id": "2", "text": "x", "metadata": []}', "line 2 has 'metadata' of type list"),
        (b'{"_id": "2", "text": "x", "a": 1, "metadata": {"a": 2}}', "line 2 has 'a' both"),
        (b'{"_id": "2", "text": "caf\xe9"}', "line 2 is not UTF-8"),
        (b'{"_id": "2", "text": "\\ud83d"}', "line 2 has half a surrogate pair"),
        (b'{"_id": "2", "m": ' + b"[" * 100_000, "line 2 is JSON that is nested too deep"),
    ],
)
def test_a_broken_line_is_named_with_its_file(tmp_path: Path, line: bytes, message: str) -> None:
    with pytest.raises(CorpusError) as caught:
        list(read_corpus(written(tmp_path, GOOD + line + b"\n")))
    assert str(caught.value).startswith(f"corpus.jsonl {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_line_longer_than_any_text_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(corpus, "LONGEST", 100)
    longest = GOOD.rstrip() + b" " * (99 - len(GOOD.rstrip())) + b"\n"
    assert len(longest) == 100
    content = longest * 2 + b" " * 100 + b"\n" + longest
    path = written(tmp_path, gzip.compress(content) if ".gz" in name else content, name)
    documents = read_corpus(path)
    assert [next(documents).id for _ in range(2)] == ["1", "1"]
    with pytest.raises(CorpusError) as caught:
        next(documents)
    assert str(caught.value).startswith(f"{name} line 3 is longer than 100 bytes")


def test_a_line_without_an_end_takes_no_more_memory_than_a_line_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(40):
            file.write(bytes(1 << 20))
    monkeypatch.setattr(corpus, "LONGEST", 1 << 20)
    tracemalloc.start()
    with pytest.raises(CorpusError, match="line 1 is longer than 1,048,576 bytes"):
        list(read_corpus(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_whole_surrogate_pair_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"_id": "1", "text": "\\ud83d\\ude00"}')
    assert [document.text for document in read_corpus(path)] == ["\U0001f600"]


def test_a_gzip_file_cut_short_names_the_last_whole_line(tmp_path: Path) -> None:
    noise = random.Random(3)
    lines = [json.dumps({"_id": str(n), "text": str(noise.random())}).encode() for n in range(5000)]
    packed = gzip.compress(b"\n".join(lines) + b"\n")
    documents = read_corpus(written(tmp_path, packed[: len(packed) // 2], "corpus.jsonl.gz"))
    seen: list[str] = []
    with pytest.raises(CorpusError) as caught:
        seen.extend(document.id for document in documents)
    assert seen == [str(n) for n in range(len(seen))]
    assert 0 < len(seen) < 5000
    assert str(caught.value) == (
        f"corpus.jsonl.gz ends early after line {len(seen)}: the file is cut short"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: the file is cut short"),
        (gzip.compress(GOOD, mtime=0)[:5], "ends early after line 0: the file is cut short"),
        (GOOD, "is not a gzip file"),
        (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "is damaged after line"),
    ],
)
def test_a_file_that_is_no_whole_gzip_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path, content, "corpus.jsonl.gz")
    with pytest.raises(CorpusError, match=rf"^corpus\.jsonl\.gz {message}"):
        list(read_corpus(path))


@pytest.mark.parametrize("packed", [False, True])
def test_a_pipe_and_standard_input_are_read_once_as_they_come(packed: bool) -> None:
    given = gzip.compress(GOOD) if packed else GOOD
    for name in ("", "-", "/dev/stdin"):
        reading, writing = os.pipe()
        os.write(writing, given)
        os.close(writing)
        before = os.dup(0)
        os.dup2(reading, 0)
        try:
            got = list(read_corpus(name or f"/dev/fd/{reading}"))
        finally:
            os.dup2(before, 0)
            os.close(before)
            os.close(reading)
        assert got == [Document("1", "Lift.", "Wings")]


def test_standard_input_may_be_a_gzipped_file(tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress(GOOD), "corpus.packed")
    before = os.dup(0)
    with path.open("rb") as file:
        os.dup2(file.fileno(), 0)
    try:
        assert list(read_corpus("-")) == [Document("1", "Lift.", "Wings")]
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_a_broken_line_of_a_pipe_is_named_with_all_of_its_path(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, GOOD + b"{\n")
    os.close(writing)
    with pytest.raises(CorpusError, match=rf"^/dev/fd/{reading} line 2 is not JSON"):
        list(read_corpus(f"/dev/fd/{reading}"))
    os.close(reading)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds neither corpus\.jsonl nor corpus\.jsonl\.gz"):
        list(read_corpus(tmp_path))
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        list(read_corpus(tmp_path / "nowhere"))


def test_importing_it_loads_nothing_of_ir_measures_or_torch() -> None:
    code = (
        "import sys, e2rank.corpus;"
        "print(*({'ir_measures', 'torch', 'faiss', 'onnxruntime'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
