"""What goes in: documents and mappings, and settings; each refusal says which one and why."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2rank.config import IndexConfig, load_recipe
from e2rank.documents import Document, as_documents
from e2rank.errors import CorpusError
from e2rank.index.staging import line_of


def test_documents_and_mappings_mix() -> None:
    given = [Document("a", "one"), {"id": "b", "text": "two", "title": "T", "metadata": {"y": 1}}]
    assert list(as_documents(given)) == [
        Document("a", "one"),
        Document("b", "two", "T", {"y": 1}),
    ]


def test_only_none_stands_for_no_title_and_no_metadata() -> None:
    given = {"id": "a", "text": "x", "title": None, "metadata": None}
    assert list(as_documents([given])) == [Document("a", "x")]
    for wrong in (False, 0, "", []):
        (document,) = as_documents([{"id": "a", "text": "x", "metadata": wrong}])
        with pytest.raises(CorpusError, match="'a' has metadata JSON cannot hold"):
            line_of(document)


def test_beirs_own_name_for_an_id_is_understood() -> None:
    assert next(as_documents([{"_id": "7", "text": "x"}])).id == "7"


def test_documents_are_read_one_by_one() -> None:
    read = []

    def corpus() -> Iterator[Document]:
        for number in range(3):
            read.append(number)
            yield Document(str(number), "text")

    documents = as_documents(corpus())
    next(documents)
    assert read == [0]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("text", "document 1 is a str; expected a Document or a mapping"),
        ({"id": 7, "text": "x"}, "document 1 has the id 7 of type int; ids are strings"),
        ({"id": "", "text": "x"}, "document 1 has an empty id"),
        ({"text": "x"}, "document 1 has no 'id'"),
        ({"id": "b"}, "document 1 has no 'text'"),
        ({"id": "b", "text": None}, "document 'b' has a text of type NoneType"),
        ({"id": "b", "text": "x", "title": 3}, "document 'b' has a title of type int"),
        ({"id": "b", "text": "x", "title": 0}, "document 'b' has a title of type int"),
        ({"id": "b", "text": "x", "title": False}, "document 'b' has a title of type bool"),
        ({"id": "b", "text": "x", "year": 1}, "document 1 has the unknown field 'year'"),
        (Document(id=7, text="x"), "document 1 has the id 7 of type int"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_document_is_refused_by_its_position(record: Any, says: str) -> None:
    with pytest.raises(CorpusError, match=says):
        list(as_documents([Document("a", "fine"), record]))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"factory": ""}, "factory is ''; pass a FAISS"),
        ({"factory": 5}, "factory is 5"),
        ({"batch": 0}, "batch is 0; it must be a whole number, at least 1"),
        ({"batch": "many"}, "batch is 'many'"),
        ({"nprobe": 0}, "nprobe is 0"),
        ({"ef_search": -1}, "ef_search is -1"),
        ({"train_rows": 0}, "train_rows is 0"),
    ],
)
def test_settings_without_sense_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        IndexConfig(**fields)


def test_a_misspelt_recipe_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('factroy = "Flat"')
    with pytest.raises(ValueError, match="no field 'factroy'; did you mean 'factory'"):
        load_recipe(IndexConfig, tmp_path / "mine.toml")


def test_a_broken_recipe_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("factory = ")
    with pytest.raises(ValueError, match=r"mine\.toml is not TOML"):
        load_recipe(IndexConfig, tmp_path / "mine.toml")
