"""Ranges of a configuration's numbers, checked the same way wherever there are some."""

from collections.abc import Iterable, Mapping


def check_ranges(config: object, least: Mapping[str, float], above_zero: Iterable[str]) -> None:
    """Refuse a number that is too small, or is none.

    Args:
        config: what has the fields.
        least: the least value of each of these fields.
        above_zero: fields that must be above 0.
    Raises:
        ValueError: naming the field, its value and what it must be.
    """
    # Written so that a NaN, which compares with nothing, is refused too.
    for name, bound in least.items():
        if not getattr(config, name) >= bound:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least {bound}")
    for name in above_zero:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be above 0")
