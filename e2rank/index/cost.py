"""Bytes of FAISS indexes by formula, and how many lists and training rows an IVF wants."""

import math
import re
from dataclasses import dataclass, field

from e2rank.config import IndexConfig

ROWS_A_LIST = 39
"""FAISS warns where fewer train a centre."""

_PIECE = re.compile(r"(OPQ|IVF|HNSW|PQ|SQ|RaBitQ|Flat)(\d*|fp16)(?:np)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What something holds in bytes: a row, by part, and once, by part."""

    row: dict[str, float] = field(default_factory=dict)
    once: dict[str, int] = field(default_factory=dict)

    def bytes(self, n: int) -> int:
        """Bytes of n rows."""
        return round(n * sum(self.row.values()) + sum(self.once.values()))

    def formula(self, n: int) -> str:
        """The same sum in words.

        >>> Cost(row={"code": 48, "id": 8}, once={"centres": 6176}).formula(1000)
        '1,000 * (48 code + 8 id) + 6,176 centres'
        """
        row = " + ".join(f"{value:,.5g} {name}" for name, value in self.row.items())
        once = [f"{value:,} {name}" for name, value in self.once.items()]
        return " + ".join([f"{n:,} * ({row})", *once] if row else once or ["nothing"])


def lists_for(n: int) -> int:
    """IVF lists: the power of two nearest to 4 sqrt(n), with 39 rows or more for each.

    >>> [lists_for(n) for n in (1, 10_000, 100_000, 1_000_000, 10_000_000)]
    [1, 256, 1024, 4096, 16384]
    """
    wanted = round(math.log2(4 * math.sqrt(n)))
    return int(2 ** min(wanted, math.floor(math.log2(max(n // ROWS_A_LIST, 1)))))


def nprobe_for(lists: int) -> int:
    """IVF lists that a search reads: a sixteenth, at most 128."""
    return min(max(lists // 16, 1), 128)


def train_rows_for(n: int) -> int:
    """Rows to train an IVF on: the default of `IndexConfig`, or 64 a list where that is more."""
    return max(IndexConfig().train_rows, min(n, 64 * lists_for(n)))


def faiss_cost(factory: str, dim: int) -> Cost:
    """What the FAISS index of a factory holds, in memory as in its file; "Flat" alone has none.

    Raises:
        ValueError: for a piece of the factory whose size is not known here.
    """
    row: dict[str, float] = {}
    once: dict[str, int] = {}
    for piece in factory.split(",") if factory != "Flat" else ():
        match = _PIECE.fullmatch(piece)
        if not match:
            raise ValueError(f"the size of {piece!r} in the factory {factory!r} is not known")
        each = _piece(match[1], match[2], dim)
        row, once = row | each.row, once | each.once
    return Cost(row=row, once=once)


def _piece(kind: str, size: str, dim: int) -> Cost:
    number = int(size) if size.isdecimal() else 0
    match kind:
        case "OPQ":
            return Cost(once={"rotation": 4 * dim * dim})
        case "IVF":
            return Cost(row={"id": 8}, once={"centres": number * (4 * dim + 8)})
        case "HNSW":
            # 2M links at the ground and M at each level above, which one row in M reaches, of 4
            # bytes each; and 12 bytes that say where they begin and how high they go.
            m = number or 32
            return Cost(row={"links": 8 * m + 12 + 4 * m / (m - 1)})
        case "PQ":
            return Cost(row={"code": number}, once={"codebooks": 1024 * dim})
        case "SQ":
            code = 2 * dim if size == "fp16" else dim * number / 8
            return Cost(row={"code": code}, once={"ranges": 8 * dim})
        case "RaBitQ":
            factors = 20 if number > 1 else 8
            code = math.ceil(dim * max(number, 1) / 8)
            return Cost(row={"code": code, "factors": factors}, once={"mean": 4 * dim})
    return Cost(row={"vector": 4 * dim})
