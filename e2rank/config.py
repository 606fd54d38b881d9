"""Settings: frozen dataclasses that refuse nonsense, and TOML recipes that fill them."""

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How an index is built.

    Args:
        factory: FAISS's own index_factory language: "Flat" is exact; "HNSW32,Flat",
            "IVF256,Flat" and "OPQ48,IVF256,PQ48" trade recall for speed or size. The metric is
            always cosine.
        batch: documents encoded and made durable at a time; a killed build loses at most one.
        train_rows: rows a trained factory learns from, taken evenly over the corpus.
        nprobe: IVF lists visited by a search; None keeps FAISS's default of 1.
        ef_search: HNSW beam of a search; None keeps FAISS's default of 16.
        rescore: rows an approximate search fetches for each one asked for; their exact cosines
            with the raw rows decide. More than 1 wins back most of what compressed codes lose.
        raw: how raw rows are kept: "float32", or "float16" in half the space; scores are then
            within about 2e-4 of the cosines.
    """

    factory: str = "Flat"
    batch: int = 1024
    train_rows: int = 262_144
    nprobe: int | None = None
    ef_search: int | None = None
    rescore: int = 1
    raw: str = "float32"

    def __post_init__(self) -> None:
        """Refuse values that could not build an index.

        Raises:
            ValueError: naming the field, its value and what it must be.
        """
        if not isinstance(self.factory, str) or not self.factory:
            raise ValueError(
                f"factory is {self.factory!r}; pass a FAISS factory string such as 'Flat'"
            )
        if self.raw not in ("float32", "float16"):
            raise ValueError(f"raw is {self.raw!r}; it must be 'float32' or 'float16'")
        for name in ("batch", "train_rows", "rescore", "nprobe", "ef_search"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")


def load_recipe(cls: type[T], path: str | Path, changes: Mapping[str, Any] | None = None) -> T:
    """Read the TOML file `path` into dataclass `cls`; `changes` take the place of its values.

    Raises:
        ValueError: if the file is not TOML, or for a key that is not a field of `cls`, with the
            nearest field's name.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    table |= changes or {}
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in table.keys() - set(names):
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{path}: {cls.__name__} has no field {key!r}{hint}")
    return cls(**table)
