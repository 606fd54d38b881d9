"""The card of a published index: facts from its manifest, and code that opens it."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from e2rank.index import card as card_module
from e2rank.index.card import card
from e2rank.index.manifest import Manifest

SAMPLE = Manifest.load(Path(__file__).parents[1] / "indexes" / "sample")


def front_matter(text: str) -> object:
    return yaml.safe_load(text.split("---\n")[1])


def facts(text: str) -> dict[str, str]:
    """The rows of the first table."""
    rows = [line.split(" | ") for line in text.split("## ")[0].splitlines() if "|" in line]
    return {cells[0].strip("| "): cells[1].strip("| ") for cells in rows}


def with_encoder(**fields: object) -> Manifest:
    return dataclasses.replace(SAMPLE, encoder=dataclasses.replace(SAMPLE.encoder, **fields))


def test_the_front_matter_names_library_tags_and_a_licence_if_given() -> None:
    tags = ["e2rank", "search-index", "embeddings"]
    assert front_matter(card(SAMPLE, "a/b")) == {"library_name": "e2rank", "tags": tags}
    licensed = front_matter(card(SAMPLE, "a/b", license="cc-by-4.0"))
    assert licensed == {"library_name": "e2rank", "license": "cc-by-4.0", "tags": tags}
    assert "licen" not in card(SAMPLE, "a/b")


@pytest.mark.parametrize("license", ["", "MIT\ntags: x", "a: b", "- x", "#"])
def test_a_licence_that_is_no_identifier_is_refused(license: str) -> None:
    with pytest.raises(ValueError, match="expected an identifier"):
        card(SAMPLE, "a/b", license=license)


def test_the_card_says_what_the_index_holds() -> None:
    assert facts(card(SAMPLE, "a/b")) == {
        "": "",
        "---": "---",
        "documents": f"{SAMPLE.count:,}",
        "longer than a model of the encoder reads": f"{SAMPLE.truncated:,}",
        "encoder": "`minilm`",
        "fingerprint": f"`{SAMPLE.encoder.fingerprint}`",
        "adapted to its documents": "no",
        "dimension": "384",
        "token vectors": "none",
        "sparse vectors": "none",
        "FAISS factory": "`Flat`",
        "index format": "1",
        "bytes": f"{sum(entry['bytes'] for entry in SAMPLE.files.values()):,}",
    }


def test_token_vectors_and_how_they_are_kept_are_told() -> None:
    manifest = with_encoder(token_dim=96, tokens="abc")
    told = facts(card(manifest, "a/b"))
    assert (told["token vectors"], told["index format"]) == ("96 components, kept as int8", "3")
    (one,) = manifest.segments
    both = dataclasses.replace(
        manifest,
        segments=[one, dataclasses.replace(one, name="000002")],
        files={"segments/000002/token_codes.npy": {"bytes": 1, "xxh3": "0"}},
        config=manifest.config | {"tokens": "pq", "token_factory": "IVF16,Flat"},
    )
    told = facts(card(both, "a/b"))
    assert told["token vectors"] == "96 components, kept as int8 and pq"
    assert told["FAISS factory of single tokens"] == "`IVF16,Flat`"
    assert told["index format"] == "4"


def test_sparse_vectors_are_told() -> None:
    told = facts(card(with_encoder(sparse_dim=30522, sparse="abc"), "a/b"))
    assert told["sparse vectors"] == "of 30,522 terms, search exact"
    assert told["index format"] == "4"


def test_every_file_is_there_with_size_and_hash() -> None:
    lines = card(SAMPLE, "a/b").splitlines()
    for name, entry in SAMPLE.files.items():
        assert f"| `{name}` | {entry['bytes']:,} | `{entry['xxh3']}` |" in lines


def test_a_list_without_end_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_module, "SHOWN", 1)
    text = card(SAMPLE, "a/b")
    assert [name in text for name in sorted(SAMPLE.files)].count(True) == 1
    assert f"and {len(SAMPLE.files) - 1} more, see manifest.json" in text


def test_the_code_of_the_card_is_python_and_opens_the_index() -> None:
    text = card(SAMPLE, "someone/some-index")
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert 'pull("someone/some-index", "some-index")' in code
    assert 'engine = Engine.open("some-index")' in code


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("owner/model", "`owner/model`"),
        ("/home/somebody/secret/model", "`model`"),
        ("a`b|c\nd", "`a b c d`"),
    ],
)
def test_an_encoder_is_named_without_its_folder_and_within_its_cell(name: str, shown: str) -> None:
    assert facts(card(with_encoder(name=name), "a/b"))["encoder"] == shown
