"""What several tests start from: real texts, and an index of them that needs no weights."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from e2rank import Document, Engine, read_corpus

CRANFIELD = Path(__file__).parents[1] / "benchmarks" / "data" / "cranfield"


@pytest.fixture(scope="session")
def cranfield() -> Path:
    """The BEIR folder of the demo collection."""
    return CRANFIELD


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """The first 60 abstracts of the demo collection."""
    return list(islice(read_corpus(CRANFIELD), 60))


@pytest.fixture(scope="session")
def engine(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine over those abstracts, with hashed words for an encoder."""
    folder = tmp_path_factory.mktemp("shared") / "index"
    with Engine.build(documents, folder, encoder="hashing") as built:
        yield built
