"""Which FAISS factory fits: bytes by formula, recall as it was measured, nothing guessed."""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from e2rank.config import IndexConfig
from e2rank.index.cost import Cost, faiss_cost, lists_for, nprobe_for, train_rows_for
from e2rank.index.dense import CHUNK
from e2rank.index.measured import MEASURED, Measured

SHARE = 0.8
"""Of the memory, what an index may take; the rest is the process's, and raw rows that are read."""

SCAN_MS = 50
"""What a search that looks at every row may take."""

NEAR = 3
"""A measurement at a third to three times as many rows counts as one of this size."""

FEWEST_FOR_LISTS = 10_000
OPQ_ROWS = 65_536
"""FAISS finds an OPQ rotation on no more rows than these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A number and where it is from; None where it was not measured, and then what was."""

    value: float | None
    source: str


EXACT = Figure(value=1.0, source="exact: every row is compared")


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One way to build the index.

    Args:
        config: how.
        ram: bytes that searches keep in memory.
        build_ram: bytes that FAISS holds at most while it builds.
        disk: bytes of the index without its documents.
        recall: of the true ten nearest, the share that is found.
        ms: median of a single query on one core of the benchmarks' machine.
        why_not: what speaks against it; "" if it fits.
    """

    config: IndexConfig
    ram: Figure
    build_ram: Figure
    disk: Figure
    recall: Figure
    ms: Figure
    why_not: str


def advise(
    n: int,
    dim: int,
    ram: int,
    *,
    raw: str = "float32",
    tokens: float = 0,
    token_dim: int = 0,
    terms: float = 0,
) -> list[Option]:
    """Options for n vectors, best first: those that fit, by the recall measured nearest to n.

    Where recall is the same to two digits, the simpler comes first.

    Args:
        n: vectors.
        dim: their length.
        ram: bytes of memory of the machine that builds and searches.
        raw: how raw rows are kept, "float32" or "float16".
        tokens: token vectors of a document, on average.
        token_dim: length of a token vector.
        terms: terms of a document's sparse vector, on average; 0 where there is none. The 8 bytes
            a segment that each term of the vocabulary takes are left out.
    Raises:
        ValueError: for a number that is out of range.
    """
    for name, value in (("n", n), ("dim", dim), ("ram", ram)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not 0 <= tokens <= 10**6 or token_dim < 0 or (tokens > 0) != (token_dim > 0):
        raise ValueError(
            f"tokens is {tokens:g} and token_dim {token_dim}: give both, each above 0, or neither"
        )
    if not 0 <= terms <= 10**6:
        raise ValueError(f"terms is {terms:g}; it must be 0 to 1,000,000")
    late = {"tokens": tokens * token_dim, "token ends": 8} if token_dim else {}
    if terms:
        late |= {"sparse vectors": 6 * terms + 8, "postings": 8 * terms}
    options = [_option(config, n, dim, ram, late) for config in candidates(n, dim, raw)]

    def place(option: Option) -> tuple[bool, float]:
        measured = nearest(option.config, n)
        recall = option.recall.value or (measured.recall if measured else 0.0)
        return option.why_not != "", -round(recall, 2)

    return sorted(options, key=place)


def candidates(n: int, dim: int, raw: str = "float32") -> Iterator[IndexConfig]:
    """What is worth a look, the simplest first: IVF from 10,000 rows on, PQ for multiples of 8."""
    yield IndexConfig(factory="Flat", raw=raw)
    yield IndexConfig(factory="HNSW32,Flat", ef_search=128, raw=raw)
    yield IndexConfig(factory="SQ8", rescore=4, raw=raw)
    yield IndexConfig(factory="RaBitQ", rescore=10, raw=raw)
    if n < FEWEST_FOR_LISTS:
        return
    lists, codes = lists_for(n), dim // 8
    plain = IndexConfig(nprobe=nprobe_for(lists), train_rows=train_rows_for(n), raw=raw)
    yield dataclasses.replace(plain, factory=f"IVF{lists},Flat")
    yield dataclasses.replace(plain, factory=f"IVF{lists},SQ8", rescore=4)
    yield dataclasses.replace(plain, factory=f"IVF{lists},RaBitQ", rescore=10)
    if dim % 8 == 0:
        # "np": no polysemous training, minutes that change nothing in a search of ours.
        factory = f"OPQ{codes},IVF{lists},PQ{codes}np"
        yield dataclasses.replace(plain, factory=factory, rescore=10)


def setting(config: IndexConfig) -> str:
    """How an index is searched, in words.

    >>> setting(IndexConfig(factory="IVF256,SQ8", nprobe=16, rescore=4))
    'nprobe=16 rescore=4'
    """
    values = {"nprobe": config.nprobe, "ef_search": config.ef_search}
    values["rescore"] = config.rescore if config.rescore > 1 else None
    return " ".join(f"{name}={value}" for name, value in values.items() if value)


def recipe(config: IndexConfig) -> str:
    """The TOML file that `load_recipe` reads as `config`.

    >>> print(recipe(IndexConfig(factory="HNSW32,Flat", ef_search=128)), end="")
    factory = "HNSW32,Flat"
    ef_search = 128
    """
    fields = dataclasses.asdict(config)
    defaults = dataclasses.asdict(IndexConfig())
    shown = (name for name in fields if name == "factory" or fields[name] != defaults[name])
    return "".join(f"{name} = {json.dumps(fields[name])}\n" for name in shown)


def nearest(config: IndexConfig, n: int) -> Measured | None:
    """The measurement of this kind of factory at the size nearest to n."""
    same = [each for each in MEASURED if _kind(each.factory) == _kind(config.factory)]
    return min(same, key=lambda each: max(each.n / n, n / each.n), default=None)


def _kind(factory: str) -> str:
    """A factory without the numbers that grow with n and dim."""
    return re.sub(r"(IVF|PQ)\d+", r"\1", factory)


def _option(config: IndexConfig, n: int, dim: int, ram: int, late: dict[str, float]) -> Option:
    index, raw = faiss_cost(config.factory, dim), Cost(row={f"raw {config.raw}": _raw(config, dim)})
    held = index if index.row else raw
    build = Cost(row=index.row, once=index.once | _training(config, n, dim))
    most = _most_rows(config.factory, n)
    disk = Cost(row=raw.row | index.row | late, once=index.once)
    measured = nearest(config, n)
    ms = _ms(config, measured, n, dim)
    need = max(held.bytes(n), build.bytes(most))
    why_not = ""
    if need > SHARE * ram:
        why_not = f"needs {size(need)}, and {SHARE:.0%} of the memory is {size(SHARE * ram)}"
    elif _scans(config) and (ms.value or 0) > SCAN_MS:
        why_not = f"looks at every row, {ms.value:,.0f} ms a query; up to {SCAN_MS} ms are fast"
    return Option(
        config=config,
        ram=_bytes(held, n),
        build_ram=_bytes(build, most, "; arrays double as they fill" if most > n else ""),
        disk=_bytes(disk, n),
        recall=EXACT if config.factory == "Flat" else _measured(measured, "recall", n, dim),
        ms=ms,
        why_not=why_not,
    )


def size(count: float) -> str:
    """Bytes for people, in powers of 1,024.

    >>> size(16 * 2**30), size(56_000_000), size(900)
    ('16.0 G', '53.4 M', '900 B')
    """
    unit = max((power for power in range(5) if count >= 1024**power), default=0)
    return f"{count / 1024**unit:.1f} {'BKMGT'[unit]}" if unit else f"{count:.0f} B"


def _raw(config: IndexConfig, dim: int) -> int:
    return dim * (2 if config.raw == "float16" else 4)


def _most_rows(factory: str, n: int) -> int:
    """Rows that arrays hold at most while n are added a chunk at a time: a full one is doubled.

    One array is there twice for a moment; many lists are not all full at once (exploration).
    """
    if "IVF" in factory:
        return n + n // 2
    full = CHUNK
    while 2 * full < n:
        full *= 2
    return n if n <= CHUNK else max(n, 2 * full + min(CHUNK, n - full))


def _training(config: IndexConfig, n: int, dim: int) -> dict[str, int]:
    """The rows that a factory is trained on, as many times as FAISS holds them.

    They are gone before rows are added, so a build holds less than the sum.
    """
    rows = 4 * dim * min(n, config.train_rows)
    if "OPQ" in config.factory:
        most = 3 * 4 * dim * min(n, config.train_rows, OPQ_ROWS)
        return {"training rows, three times": 3 * rows, "to rotate": most}
    if re.search("IVF.*(SQ|RaBitQ)", config.factory):
        return {"training rows, twice": 2 * rows}
    return {"training rows": rows} if re.search("IVF|SQ|RaBitQ", config.factory) else {}


def _scans(config: IndexConfig) -> bool:
    return not re.search("IVF|HNSW", config.factory)


def _bytes(cost: Cost, n: int, why: str = "") -> Figure:
    return Figure(value=cost.bytes(n), source=f"formula: {cost.formula(n)}{why}")


def _measured(measured: Measured | None, name: str, n: int, dim: int) -> Figure:
    if measured is None:
        return Figure(value=None, source="not measured")
    value = getattr(measured, name)
    if measured.dim == dim and max(measured.n / n, n / measured.n) <= NEAR:
        return Figure(value=value, source=f"measured: {measured.where}")
    what = "size" if measured.dim == dim else "dimension"
    source = f"not measured at this {what}; it was {value:.3g} in {measured.where}"
    return Figure(value=None, source=source)


def _ms(config: IndexConfig, measured: Measured | None, n: int, dim: int) -> Figure:
    """As measured; where every row is looked at, in proportion to rows and dimension."""
    if measured is None or not _scans(config):
        return _measured(measured, "ms", n, dim)
    value = measured.ms * n * dim / (measured.n * measured.dim)
    source = f"measured: {measured.ms:.3g} ms, {measured.where}; scaled by n * dim"
    return Figure(value=value, source=source)
