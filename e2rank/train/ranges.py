"""Fields of a configuration, checked the same way wherever there are some."""

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, get_args


def check_ranges(
    config: Any,
    least: Mapping[str, float],
    above_zero: Iterable[str] = (),
    most: Mapping[str, float] | None = None,
) -> None:
    """Refuse a number that is too small or too large, is infinite, or is none.

    Whether it has to be whole, and whether it may be None, says the field's annotation.

    Args:
        config: a dataclass with the fields.
        least: the least value of each of these fields.
        above_zero: fields that must be above 0.
        most: the largest value of those of them that have one.
    Raises:
        ValueError: naming the field, its value and what it must be.
    """
    for name, bound in least.items():
        _check(config, name, bound, f"at least {bound:g}", most or {})
    for name in above_zero:
        _check(config, name, math.ulp(0.0), "above 0", most or {})


def as_tuple(config: Any, name: str, kind: type) -> None:
    """Make a tuple of a frozen configuration's field, which TOML and JSON give as a list.

    Raises:
        ValueError: if it is no list, or holds something that is not of that kind.
    """
    values = getattr(config, name)
    if not isinstance(values, list | tuple) or any(type(each) is not kind for each in values):
        raise ValueError(f"{name} is {values!r}; it must be a list of {kind.__name__}")
    object.__setattr__(config, name, tuple(values))


def check_strings(config: Any, names: Iterable[str]) -> None:
    """Refuse fields that are no strings.

    Raises:
        ValueError: naming the field and its value.
    """
    for name in names:
        if not isinstance(getattr(config, name), str):
            raise ValueError(f"{name} is {getattr(config, name)!r}; it must be a string")


def _check(config: Any, name: str, least: float, bounds: str, most: Mapping[str, float]) -> None:
    value = getattr(config, name)
    annotated = next(each.type for each in dataclasses.fields(config) if each.name == name)
    kinds = get_args(annotated) or (annotated,)
    if value is None and type(None) in kinds:
        return
    known = isinstance(value, int | float if float in kinds else int)
    # Written so that a NaN, which compares with nothing, is refused too.
    inside = known and least <= value <= most.get(name, sys.float_info.max)
    if not inside or isinstance(value, bool):
        what = "a number" if float in kinds else "a whole number"
        bounds += f" and at most {most[name]:g}" if name in most else ""
        raise ValueError(f"{name} is {value!r}; it must be {what}, {bounds}")
