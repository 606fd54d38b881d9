"""The command that says which index fits, before anything is built."""

import dataclasses
import enum
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from e2rank.cli import options
from e2rank.cli.commands import app
from e2rank.cli.output import print_json
from e2rank.index.advice import Option, recipe, setting, size
from e2rank.index.advice import advise as advise_on

_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_NOTE = """\
Best recall first; ? was not measured at this size, and stands where the nearest size puts it.
Documents come on top of disk. The memory that is left keeps raw rows that searches read."""


class Raw(enum.StrEnum):
    """How raw rows may be kept."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


@app.command()
def advise(
    n: Annotated[str, typer.Option("--n", help="Documents: 1e7, 10_000_000 or 10M.")],
    ram: Annotated[str, typer.Option(help="Memory of the machine: 512M, 16G or 1.5T.")],
    dim: Annotated[int, typer.Option(help="Length of a vector.")] = 384,
    raw: Annotated[Raw, typer.Option(help="How raw rows are kept.")] = Raw.FLOAT32,
    tokens: Annotated[float, typer.Option(help="Token vectors of a document, on average.")] = 0,
    token_dim: Annotated[int, typer.Option(help="Length of a token vector.")] = 0,
    json: options.Json = False,
) -> None:
    """Say which FAISS factory fits, what it costs, and where each number is from."""
    count, memory = parse_count(n), parse_size(ram)
    found = advise_on(count, dim, memory, raw=raw.value, tokens=tokens, token_dim=token_dim)
    best = found[0] if not found[0].why_not else None
    if json:
        fields = [dataclasses.asdict(option) for option in found]
        made = recipe(best.config) if best else None
        print_json({"n": count, "dim": dim, "ram": memory, "options": fields, "recipe": made})
    else:
        _show(found, f"{count:,} vectors of {dim} dimensions, {size(memory)} of memory")
    if best is None:
        raise ValueError(f"nothing fits {size(memory)} of memory; the reasons are above")
    if not json:
        typer.echo(f"The best as a recipe, for `e2rank index --recipe`:\n\n{recipe(best.config)}")


def parse_count(text: str) -> int:
    """A number of vectors.

    >>> parse_count("1e7"), parse_count("10_000_000"), parse_count("2.5M"), parse_count("40k")
    (10000000, 10000000, 2500000, 40000)

    Raises:
        ValueError: for anything but a whole number from 1 to 10**12.
    """
    value = _number(text, "([kmb]?)", _COUNTS)
    if value is None or not 1 <= value <= 10**12 or value != int(value):
        raise ValueError(f"--n is {text!r}; expected a number such as 1e7, 10_000_000 or 10M")
    return int(value)


def parse_size(text: str) -> int:
    """A size in bytes; K, M, G and T are powers of 1,024.

    >>> parse_size("16G") == 16 * 2**30, parse_size("1.5T") == 1.5 * 2**40, parse_size("512MB")
    (True, True, 536870912)

    Raises:
        ValueError: for anything else, less than a byte, or more than 2**60.
    """
    value = _number(text, "([kmgt]?)(?:i?b)?", _SIZES)
    if value is None or not 1 <= value <= 2**60:
        raise ValueError(f"--ram is {text!r}; expected a size such as 512M, 16G or 1.5T")
    return int(value)


def _number(text: str, unit: str, units: Mapping[str, int]) -> float | None:
    pattern = rf"(\d[\d_,]*(?:\.\d+)?(?:e\d{{1,2}})?)\s*{unit}"
    match = re.fullmatch(pattern, text.strip().lower())
    return float(re.sub("[_,]", "", match[1])) * units[match[2]] if match else None


def _show(found: Sequence[Option], title: str) -> None:
    """The options in a table, then where their numbers are from."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("factory and search", overflow="fold")
    for name in ("RAM", "to build", "disk", "recall@10"):
        table.add_column(name, justify="right", no_wrap=True)
    for place, each in enumerate(found, start=1):
        recall = "?" if each.recall.value is None else f"{each.recall.value:.3f}"
        sizes = (size(figure.value or 0) for figure in (each.ram, each.build_ram, each.disk))
        mark = "-" if each.why_not else str(place)
        table.add_row(mark, _name(each), *sizes, recall)
    Console().print(table)
    for place, each in enumerate(found, start=1):
        if each.why_not:
            typer.echo(f"-  {_name(each)}: {each.why_not}")
            continue
        typer.echo(f"{place}  {_name(each)}")
        for name, figure in _figures(each).items():
            typer.echo(f"   {name:9} {figure}")
    typer.echo(f"\n{_NOTE}")


def _name(option: Option) -> str:
    return f"{option.config.factory} {setting(option.config)}".rstrip()


def _figures(option: Option) -> dict[str, str]:
    """Each number with its source."""
    ms = option.ms
    return {
        "RAM": option.ram.source,
        "to build": option.build_ram.source,
        "disk": option.disk.source,
        "recall@10": option.recall.source,
        "p50 ms": ms.source if ms.value is None else f"{ms.value:.3g}, {ms.source}",
    }
