"""Moving an index to another encoder, while the old one goes on serving."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from e2rank import whole
from e2rank.config import LATER, IndexConfig
from e2rank.encoders import Encoder
from e2rank.encoders.presets import load_encoder
from e2rank.engine import Engine
from e2rank.index import Store
from e2rank.passages import can_split

_TOGETHER = 1000
_PASSES = 20

_log = logging.getLogger("e2rank")


def migrate(
    old: str | Path,
    new: str | Path,
    encoder: str | Path | Encoder,
    config: IndexConfig | None = None,
    *,
    update: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Engine:
    """Encode the documents of an index again into another, which may be there in part.

    What is committed to the old index meanwhile is taken over at the end, so that both hold the
    same documents when this returns; should the old one change faster than it is read, a warning
    says so. Called again it goes on where it was killed.

    Args:
        old: an index; it is only read.
        new: a new folder, or one that an earlier call began.
        encoder: see `load_encoder`.
        config: how the new index is built; as the old one unless given.
        update: bring an index that is whole up to the old one: what the old one lacks is deleted.
        progress: called with the number of documents encoded, once a batch.
    Returns:
        The new index, opened.
    Raises:
        CorpusError: if the old index changed before an interrupted first pass could be
            resumed.
        EncoderMismatch: if `new` is an index of another encoder.
        ValueError: if `new` is `old`, or is a whole index and `update` is not set.
    """
    if Path(old).resolve() == Path(new).resolve():
        raise ValueError(f"{new} is the index itself; choose a new folder")
    with Store.open(Path(old)) as source:
        loaded = load_encoder(encoder)
        if not (Path(new) / "manifest.json").exists():
            update = True
            how = config or _possible(source.manifest.index_config, loaded)
            documents = whole.every(source)
            Engine.build(documents, new, loaded, how, resume=True, progress=progress).close()
    engine = Engine.open(new, loaded)
    try:
        if not update:
            raise ValueError(
                f"{new} is an index of {len(engine)} documents: pass update=True to make it hold "
                "what the old one does, or choose another folder"
            )
        if not any(_caught_up(engine, Path(old)) for _ in range(_PASSES)):
            _log.warning("%s changes faster than it is read: migrate again with update=True", old)
    except BaseException:
        engine.close()
        raise
    return engine


def _possible(config: IndexConfig, encoder: Encoder) -> IndexConfig:
    """The old index's configuration without settings of vectors that the encoder does not make."""
    gone = [] if encoder.contract.token_dim else [name for name in LATER if "token" in name]
    gone += [] if encoder.contract.sparse_dim else [name for name in LATER if "sparse" in name]
    usual = IndexConfig()
    lost = [name for name in gone if getattr(config, name) != getattr(usual, name)]
    if lost:
        _log.warning("%s makes no such vectors: %s is left out", encoder.name, ", ".join(lost))
    if config.passages and not can_split(encoder):
        _log.warning("%s has no tokenizer to split documents by: they are kept whole", encoder.name)
        lost.append("passages")
    return dataclasses.replace(config, **{name: getattr(usual, name) for name in lost})


def _caught_up(engine: Engine, old: Path) -> bool:
    """Take over what differs; whether that is all, and nothing was committed meanwhile."""
    before = engine.store.manifest.commit
    with Store.open(old) as source:
        # What is there already stays where it is.
        engine.add(whole.every(source), commit=False)
        engine.delete(_gone(engine, source), commit=False)
        engine.commit()
        commit = source.manifest.commit
    if engine.store.manifest.commit != before:
        return False
    with Store.open(old) as newest:
        return newest.manifest.commit == commit


def _gone(there: Engine, source: Store) -> Iterator[str]:
    """Ids in the new index that the old one has no more."""
    ids = whole.names(there.store)
    while part := list(islice(ids, _TOGETHER)):
        yield from sorted(set(part) - whole.rows_of(source, part).keys())
