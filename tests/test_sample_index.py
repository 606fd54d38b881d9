"""The committed index: what an earlier e2rank wrote, this one opens, verifies and searches."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from e2rank import Document, Engine, read_corpus
from e2rank.index import Store
from e2rank.index.verify import check

SAMPLE = Path(__file__).parents[1] / "indexes" / "sample"


@pytest.fixture
def corpus(cranfield: Path) -> list[Document]:
    """What it was built from."""
    return list(islice(read_corpus(cranfield), 40))


def test_it_stays_of_the_first_format_so_that_this_is_read_for_ever() -> None:
    assert json.loads((SAMPLE / "manifest.json").read_bytes())["format"] == 1


def test_every_byte_is_as_its_manifest_says() -> None:
    with Store.open(SAMPLE) as store:
        store.verify()
        check(store)


def test_it_holds_the_documents_it_was_built_from(corpus: list[Document]) -> None:
    with Store.open(SAMPLE) as store:
        assert list(store) == corpus


def test_its_vectors_are_those_the_default_encoder_gives_today(corpus: list[Document]) -> None:
    with Engine.open(SAMPLE) as engine:
        fresh = engine.encoder.encode_documents([document.body for document in corpus]).vectors
        stored = engine.store.vectors(range(40))
        np.testing.assert_allclose(stored, fresh, atol=1e-4)
        hits = engine.search("slipstream over a wing at different angles of attack", rerank=False)
        assert hits[0].id == "1"
