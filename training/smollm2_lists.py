"""The lists that SmolLM2 is trained on and, apart, those that it is measured on.

    python training/smollm2_lists.py OUT

Of each source's lists in `training/minilm`, 60 are held out by a generator that is seeded with
the source's name. A list whose query is held out, word for word, is not trained on. Held-out lists
share documents with those that are: the collections are small.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from e2rank.train.examples import Example, read_lists, write_examples

LISTS = Path(__file__).resolve().parent / "minilm"
SOURCES = ("squad", "pubmedqa", "medquad")
HELD_OUT = 60


def split(source: str, examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """What is trained on, and what is held out."""
    queries = sorted({each.query for each in examples})
    held = set(random.Random(source).sample(queries, HELD_OUT))
    first = {each.query: each for each in reversed(examples)}
    return [each for each in examples if each.query not in held], [
        first[query] for query in sorted(held)
    ]


def main() -> None:
    """Write both, a file a source."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        files = (str(LISTS / f"{source}.jsonl.gz"), str(LISTS / f"{source}-documents.jsonl.gz"))
        train, held = split(source, read_lists(files[:1], files[1:]))
        write_examples(train, out / f"{source}.jsonl.gz", texts=False)
        write_examples(held, out / f"{source}-held-out.jsonl.gz", texts=False)
        print(f"{source}: {len(train)} lists to train on, {len(held)} held out")


if __name__ == "__main__":
    main()
