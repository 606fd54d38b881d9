"""From examples to the batches of one epoch: which lists, how long, in which order."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from e2rank.train.examples import Example


def estimated_tokens(text: str) -> int:
    """A guess at the tokens of a text without a tokenizer: one every four characters.

    >>> estimated_tokens("a wing stalls")
    4
    """
    return len(text) // 4 + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How batches are made.

    Args:
        lists: most lists of a batch.
        list_sizes: most documents of a list; one of them is drawn for each batch, each as likely,
            so that the model meets every size it will be asked for.
        token_budget: most tokens of a batch, padding included: its number of lists times the
            tokens of its longest list (query and documents). A list longer than that gets a
            batch of its own. None for no such limit.
        shuffle: whether a list's documents come in random order; else in first-stage order, best
            first, or in the example's own where it has no first-stage scores.
        seed: with the number of the epoch, fixes everything that is drawn.

    Source: list sizes as GroupRank's multi-scale sampling, arXiv 2511.11653; shuffled lists as
    RankVicuna, arXiv 2309.15088.
    """

    lists: int = 8
    list_sizes: Sequence[int] = tuple(range(5, 21))
    token_budget: int | None = None
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that make no batch.

        Raises:
            ValueError: naming the setting, its value and what it must be.
        """
        if self.lists < 1:
            raise ValueError(f"lists is {self.lists}; it must be at least 1")
        if not self.list_sizes or min(self.list_sizes) < 2:
            raise ValueError(
                f"list_sizes is {tuple(self.list_sizes)}; expected sizes of at least 2, since one "
                "document alone has no order"
            )
        if self.token_budget is not None and self.token_budget < 1:
            raise ValueError(f"token_budget is {self.token_budget}; it must be at least 1 or None")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")


@dataclass(frozen=True, slots=True)
class ListBatch:
    """Lists that are learned from together.

    Args:
        examples: at least one, each with at most `size` documents in the order to show them.
        source: the one data set that all of them are from.
        size: the list size drawn for this batch; a shorter list is whole.
    """

    examples: tuple[Example, ...]
    source: str
    size: int


class Epoch:
    """The batches of one pass over the examples; every example is in exactly one of them.

    A batch is of one source, chosen with a probability in proportion to the lists it has left,
    so sources are mixed evenly to the end. The last batch of a source may be short. The same
    examples, settings and epoch give the same batches, however often they are iterated.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        sampling: Sampling,
        epoch: int = 0,
        lengths: Callable[[str], int] = estimated_tokens,
    ) -> None:
        """Plan epoch number `epoch` (from 0).

        Args:
            examples: all of them; held, not copied.
            sampling: how batches are made.
            epoch: its number.
            lengths: tokens of a text; asked only under a token budget.
        Raises:
            ValueError: if there is no example, or the epoch is negative.
        """
        if not examples:
            raise ValueError("there is no example to train on; expected at least one")
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must not be negative")
        self._examples, self._sampling, self._lengths = examples, sampling, lengths
        self._seed = (sampling.seed, epoch)

    def __iter__(self) -> Iterator[ListBatch]:
        random = np.random.default_rng(self._seed)
        queues = self._queues(random)
        while queues:
            left = np.array([len(queue) for queue in queues.values()])
            source = list(queues)[random.choice(len(left), p=left / left.sum())]
            size = int(random.choice(np.asarray(self._sampling.list_sizes)))
            yield ListBatch(self._take(queues[source], size, random), source, size)
            if not queues[source]:
                del queues[source]

    def skip(self, n: int) -> Iterator[ListBatch]:
        """The batches from number n (from 0) on, as a run that was interrupted goes on with.

        Raises:
            ValueError: if n is negative.
        """
        if n < 0:
            raise ValueError(f"cannot skip {n} batches; expected 0 or more")
        return itertools.islice(self, n, None)

    def _queues(self, random: np.random.Generator) -> dict[str, list[int]]:
        """Places of each source's examples, to be taken from the end."""
        queues: dict[str, list[int]] = {}
        for place in random.permutation(len(self._examples)).tolist():
            queues.setdefault(self._examples[place].source, []).append(place)
        return queues

    def _take(
        self, queue: list[int], size: int, random: np.random.Generator
    ) -> tuple[Example, ...]:
        taken: list[Example] = []
        longest = 0
        while queue and len(taken) < self._sampling.lists:
            example = shortened(
                self._examples[queue[-1]], size, random, shuffle=self._sampling.shuffle
            )
            longest = max(longest, self._tokens(example))
            if taken and longest * (len(taken) + 1) > (self._sampling.token_budget or np.inf):
                break
            taken.append(example)
            queue.pop()
        return tuple(taken)

    def _tokens(self, example: Example) -> int:
        if self._sampling.token_budget is None:
            return 0
        return sum(map(self._lengths, (example.query, *example.documents)))


def shortened(
    example: Example, size: int, random: np.random.Generator, *, shuffle: bool = True
) -> Example:
    """The example with at most `size` documents, in the order to show them.

    A list of at most `size` keeps all. Of a longer one the best-labelled document stays; the
    others, best label first, are cut into size - 1 runs of equal length (to within one), and one
    document is drawn from each run: what is kept spans the labels from the best to the worst.
    Documents of equal label stand in random order before the cut, so none of them is favoured.

    Args:
        example: n documents.
        size: at least 1.
        random: what draws.
        shuffle: whether the order is random; else first-stage order.
    """
    kept = _kept(np.asarray(example.labels), size, random)
    if shuffle:
        kept = random.permutation(kept)
    elif example.first_stage:
        kept = kept[np.argsort(-np.asarray(example.first_stage)[kept], kind="stable")]
    places = kept.tolist()
    return replace(
        example,
        documents=tuple(example.documents[place] for place in places),
        labels=tuple(example.labels[place] for place in places),
        first_stage=tuple(example.first_stage[place] for place in places if example.first_stage),
        ids=tuple(example.ids[place] for place in places if example.ids),
    )


def _kept(labels: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Sorted places of the documents to keep."""
    if len(labels) <= size:
        return np.arange(len(labels))
    mixed = random.permutation(len(labels))
    best, *others = mixed[np.argsort(-labels[mixed], kind="stable")]
    runs = np.array_split(np.array(others), size - 1) if size > 1 else []
    return np.sort([best, *(random.choice(run) for run in runs)])
