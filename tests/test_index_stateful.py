"""Any sequence of changes leaves what a dict would hold, and searches find it."""

import logging
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from index_support import (
    DIM,
    FILTERS,
    WORDS,
    Model,
    SparseEncoder,
    agrees,
    agrees_by_terms,
    by_id,
    document,
    held,
)

from e2rank import Engine, IndexConfig
from e2rank.errors import IndexFormatError
from e2rank.index import making
from e2rank.index.verify import check, damage

IDS = st.lists(st.integers(0, 30), max_size=8, unique=True)
SEEDS = st.integers(0, 2**20)


def made(ids: list[int], seed: int) -> list[dict[str, Any]]:
    rnd = random.Random(seed)
    return [document(each, rnd) for each in ids]


class Changing(RuleBasedStateMachine):
    """A writing engine, a reading one that lags behind, and the dicts that they must agree with."""

    factory = "Flat"
    sparse = True

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.folder, self.encoder = self.home / "index", SparseEncoder(DIM, sparse=self.sparse)
        self.model: Model = {}  # with what is not committed
        self.durable: Model = {}
        self.seen: Model = {}  # by the reader
        self.commit = 1

    @initialize(count=st.integers(2, 40), seed=SEEDS, raw=st.sampled_from(["float32", "float16"]))
    def build(self, count: int, seed: int, raw: str) -> None:
        documents = made(list(range(count)), seed)
        config = IndexConfig(factory=self.factory, raw=raw, batch=16)
        self.engine = Engine.build(documents, self.folder, self.encoder, config)
        self.reader = Engine.open(self.folder, self.encoder, read_only=True)
        self.model = self.durable = self.seen = by_id(documents)

    def committed(self, *, commit: bool) -> None:
        if commit:
            self.durable = dict(self.model)

    @rule(ids=IDS, seed=SEEDS, commit=st.booleans())
    def add(self, ids: list[int], seed: int, commit: bool) -> None:
        documents = made(ids, seed)
        assert self.engine.add(iter(documents), commit=commit) == len(documents)
        self.model = self.model | by_id(documents)
        self.committed(commit=commit)

    @rule(count=st.integers(0, 12), seed=SEEDS, commit=st.booleans())
    def give_again(self, count: int, seed: int, commit: bool) -> None:
        rnd = random.Random(seed)
        ids = rnd.sample(sorted(self.model), min(count, len(self.model)))
        described = [document(0, rnd)["metadata"] for _ in ids]
        documents = [self.model[each] for each in ids]
        documents = [
            {**each, "metadata": rnd.choice([each["metadata"], other])}
            for each, other in zip(documents, described, strict=True)
        ]
        with patch.object(self.encoder, "encode_documents", side_effect=AssertionError):
            assert self.engine.add(documents, commit=commit) == len(documents)
        self.model = self.model | by_id(documents)
        self.committed(commit=commit)

    @rule(ids=IDS, commit=st.booleans())
    def delete(self, ids: list[int], commit: bool) -> None:
        wanted = [str(each) for each in ids]
        assert self.engine.delete(wanted, commit=commit) == len(self.model.keys() & set(wanted))
        self.model = {k: v for k, v in self.model.items() if k not in wanted}
        self.committed(commit=commit)

    @rule(ids=IDS, seed=SEEDS)
    def replace_in_one_commit(self, ids: list[int], seed: int) -> None:
        self.delete(ids, commit=False)
        self.add(ids, seed, commit=False)
        self.commit_all()

    @rule()
    def commit_all(self) -> None:
        self.engine.commit()
        self.committed(commit=True)

    @rule()
    def compact(self) -> None:
        self.engine.compact()
        self.committed(commit=True)
        if self.model:
            (only,) = self.engine.store.segments
            assert only.count == len(self.model)

    @rule(ids=IDS, seed=SEEDS, commit=st.booleans())
    def a_bad_document_changes_nothing(self, ids: list[int], seed: int, commit: bool) -> None:
        documents = [*made(ids, seed), {"id": "1", "text": None}]
        with pytest.raises(ValueError, match="text"):
            self.engine.add(documents, commit=commit)

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self.model = dict(self.durable)
        self.engine = Engine.open(self.folder, self.encoder)

    @rule()
    def refresh(self) -> None:
        newer = self.reader.refresh()
        assert newer or self.seen == self.durable
        self.seen = dict(self.durable)
        assert not self.reader.refresh()

    @rule(seed=SEEDS, where=st.sampled_from(FILTERS), k=st.integers(1, 40))
    def search(self, seed: int, where: dict[str, Any] | None, k: int) -> None:
        query = " ".join(random.Random(seed).choices(WORDS, k=3))
        exact = self.factory == "Flat"
        for engine, model in ((self.engine, self.durable), (self.reader, self.seen)):
            agrees(engine, model, query, k=k, where=where, exact=exact)
            if self.sparse:
                agrees_by_terms(engine, model, query, k=k, where=where)

    @rule()
    def everything_fits(self) -> None:
        assert held(self.engine) == self.durable
        assert held(self.reader) == self.seen
        check(self.engine.store)
        assert damage(self.folder) == {}

    @precondition(lambda self: self.model != self.durable)
    @rule()
    def others_cannot_write_meanwhile(self) -> None:
        with (
            Engine.open(self.folder, self.encoder) as other,
            pytest.raises(IndexFormatError, match="is being written"),
        ):
            other.delete(["0"])

    @rule()
    def a_reader_refuses_changes(self) -> None:
        changes: list[Callable[[], Any]] = [
            lambda: self.reader.add([]),
            lambda: self.reader.delete([]),
            self.reader.compact,
        ]
        for change in changes:
            with pytest.raises(ValueError, match="read_only"):
                change()

    @invariant()
    def commits_only_go_up(self) -> None:
        if hasattr(self, "engine"):
            assert len(self.engine) == len(self.durable)
            assert self.engine.store.manifest.commit >= self.commit
            self.commit = self.engine.store.manifest.commit

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
            self.reader.close()
        shutil.rmtree(self.home)


# Small and large against the 40 documents: no merge keeps an approximate segment, or all do.
# Sparse vectors take half the time again, so two cases have them.
CASES = [
    ("Flat", 10, True),
    ("Flat", 10_000, False),
    ("HNSW8", 5, False),
    ("HNSW8", 25, True),
    ("IVF2,Flat", 3, False),
]
EXAMPLES, STEPS = 13, 40


@pytest.mark.parametrize(("factory", "small", "sparse"), CASES)
def test_changes_leave_what_a_dict_holds(
    factory: str,
    small: int,
    sparse: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR, "e2rank")
    monkeypatch.setattr(making, "SMALL", small)
    monkeypatch.setattr("os.fsync", lambda handle: None)
    machine = type("Case", (Changing,), {"factory": factory, "sparse": sparse})
    # The same steps every time: what fails here fails everywhere.
    with patch.object(logging.getLogger("e2rank"), "disabled", True):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
