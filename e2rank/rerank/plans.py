"""Plans: which candidates go into which listwise prompt, and how many model calls that is."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Full:
    """One prompt with the first `shown` candidates; every candidate is scored by it."""

    shown: int = 20

    def __post_init__(self) -> None:
        """Refuse a prompt without candidates.

        Raises:
            ValueError: if shown < 1.
        """
        if self.shown < 1:
            raise ValueError(f"shown is {self.shown}; a listwise prompt needs at least 1 candidate")

    def calls(self, n: int) -> int:
        """Prompts for a list of n candidates: 1, or 0 for an empty list."""
        return min(n, 1)


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of `size` slide from the end of the list to its front by `stride`.

    A window reorders its own candidates, so a good one climbs with the windows to the front.
    Source: RankGPT, arXiv 2304.09542.
    """

    size: int = 20
    stride: int = 10

    def __post_init__(self) -> None:
        """Refuse windows that sort nothing, stand still or skip candidates.

        Raises:
            ValueError: if size < 2, stride < 1 or stride > size.
        """
        if self.size < 2:
            raise ValueError(f"size is {self.size}; a window of fewer than 2 sorts nothing")
        if not 1 <= self.stride <= self.size:
            raise ValueError(
                f"stride is {self.stride}; it must be between 1 and the window's size {self.size}, "
                "or candidates would be skipped"
            )

    def spans(self, n: int) -> Iterator[tuple[int, int]]:
        """Start and stop of each window over n candidates, in the order they are run."""
        stop = n
        while stop > 0:
            start = max(0, stop - self.size)
            yield start, stop
            if start == 0:
                return
            stop -= self.stride

    def calls(self, n: int) -> int:
        """Prompts for a list of n candidates.

        >>> Windows(size=20, stride=10).calls(100)
        9
        """
        return sum(1 for _ in self.spans(n))


@dataclass(frozen=True, slots=True)
class Groups:
    """The list is dealt into groups of `size`, each with a prompt of its own, `rounds` times.

    Scores of all prompts stand in one space, so each round simply reorders the whole list.
    Striped, group i takes candidates i, i + M, i + 2M, ... of M groups, so that every group spans
    the whole range of quality; otherwise groups are consecutive.
    """

    size: int = 20
    rounds: int = 1
    striped: bool = True

    def __post_init__(self) -> None:
        """Refuse groups that sort nothing.

        Raises:
            ValueError: if size < 2 or rounds < 1.
        """
        if self.size < 2:
            raise ValueError(f"size is {self.size}; a group of fewer than 2 sorts nothing")
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; it must be at least 1")

    def members(self, n: int) -> list[np.ndarray]:
        """Positions of each group among n candidates; every position is in exactly one group."""
        count = -(-n // self.size)
        places = np.arange(n)
        if self.striped:
            return [places[start::count] for start in range(count)]
        return [places[start : start + self.size] for start in range(0, n, self.size)]

    def calls(self, n: int) -> int:
        """Prompts for a list of n candidates.

        >>> Groups(size=20, rounds=2).calls(100)
        10
        """
        return -(-n // self.size) * self.rounds


Plan = Full | Windows | Groups
