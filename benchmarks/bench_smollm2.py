"""Whether a listwise prompt beats its control on a decoder: SmolLM2-135M, trained on one core.

The lists that `training/smollm2_lists.py` held out, ordered by each model's query vector and by
the prompt's vector, and judged by the teacher: a candidate's gain is how many of its list the
teacher puts below it. A model without its vectors in .work reads them first, so a run cut short
continues.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ROOT, WORK, rows, save

from e2rank.encoders.load import load_trained
from e2rank.encoders.torch import TorchEncoder
from e2rank.evaluate import deltas, permutation_test
from e2rank.scores import fuse
from e2rank.train.examples import Example, read_lists
from e2rank.train.labels import ndcg

SOURCES = ("squad", "pubmedqa", "medquad")
FOLDERS = {
    "prompt": WORK / "smollm2-text",
    "control": WORK / "smollm2-control",
    "contrastive": WORK / "smollm2-contrastive",
}
LISTS = WORK / "smollm2-lists"
DOCUMENTS = ROOT / "training" / "minilm"
KINDS = ("query", "prompt", "fused")
Values = dict[str, float]


def held_out(source: str) -> list[Example]:
    """The lists of one source that nothing was trained on."""
    corpus = DOCUMENTS / f"{source}-documents.jsonl.gz"
    return read_lists([str(LISTS / f"{source}-held-out.jsonl.gz")], [str(corpus)])


def read(encoder: TorchEncoder, examples: Sequence[Example]) -> np.ndarray:
    """(k, n) cosines of all n candidates, lists one after another, to the first k of `KINDS`.

    The prompt shows as many candidates as it did in training, those nearest to the query.
    """
    texts = list(dict.fromkeys(text for each in examples for text in each.documents))
    place = {text: number for number, text in enumerate(texts)}
    asked = [each.query for each in examples]
    # As in training: half the time of float32.
    with torch.autocast("cpu", torch.bfloat16):
        documents = encoder.encode_documents(texts).vectors
        queries = encoder.encode_queries(asked).vectors
        pools = [documents[[place[text] for text in each.documents]] for each in examples]
        out = [pool @ query for pool, query in zip(pools, queries, strict=True)]
        found = [np.concatenate(out)]
        if encoder.contract.prompt_trained:
            most = max(encoder.contract.list_sizes)
            shown = [
                [each.documents[i] for i in np.argsort(-cosines, kind="stable")[:most]]
                for each, cosines in zip(examples, out, strict=True)
            ]
            prompts = encoder.encode_prompts(asked, shown).vectors
            by_prompt = [pool @ prompt for pool, prompt in zip(pools, prompts, strict=True)]
            found.append(np.concatenate(by_prompt))
    return np.stack(found)


def kept(name: str, encoder: TorchEncoder, source: str, examples: Sequence[Example]) -> np.ndarray:
    """What `read` gives, now or in an unfinished run."""
    path = WORK / "bench-smollm2" / f"{name}-{source}-{encoder.fingerprint}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, read(encoder, examples))
        part.replace(path)
    cosines: np.ndarray = np.load(path)
    return cosines


def fused(examples: Sequence[Example], cosines: np.ndarray, weight: float) -> np.ndarray:
    """(k, n) cosines, and where there is a prompt's, a row of both as a search blends them."""
    if len(cosines) < 2:
        return cosines
    ends = np.cumsum([len(each) for each in examples])[:-1]
    by_query, by_prompt = (np.split(row, ends) for row in cosines)
    pairs = zip(by_prompt, by_query, strict=True)
    return np.stack([*cosines, np.concatenate([fuse(*pair, weight) for pair in pairs])])


def quality(source: str, examples: Sequence[Example], scores: np.ndarray) -> Values:
    """nDCG@10 of each list, by its id."""
    values: Values = {}
    start = 0
    for number, each in enumerate(examples):
        labels = np.array(each.labels)
        order = np.argsort(-scores[start : start + len(each)], kind="stable")
        values[f"{source}-{number}"] = ndcg(order, (labels[:, None] > labels).sum(1))
        start += len(each)
    return values


def measured() -> dict[str, Values]:
    """nDCG@10 of every held-out list under every ranker."""
    lists = {source: held_out(source) for source in SOURCES}
    found: dict[str, Values] = {"MiniLM, query": {}}
    for source, examples in lists.items():
        scores = np.concatenate([each.first_stage for each in examples])
        found["MiniLM, query"] |= quality(source, examples, scores)
    for name, folder in FOLDERS.items():
        encoder = load_trained(folder, device="cpu")
        for source, examples in lists.items():
            cosines = kept(name, encoder, source, examples)
            scored = fused(examples, cosines, encoder.contract.fusion_weight)
            for kind, scores in zip(KINDS, scored, strict=False):
                found.setdefault(f"{name}, {kind}", {}).update(quality(source, examples, scores))
    return found


def compared(one: Values, other: Values) -> dict[str, Any]:
    """The mean difference of two rankers, how sure it is, and on how many lists who was better."""
    change = deltas(one, other)
    changes = np.array([one[query] - other[query] for query in one])
    return {
        "difference": float(changes.mean()),
        "standard_error": float(changes.std(ddof=1) / len(changes) ** 0.5),
        "p_value": permutation_test(one, other),
        "better": change.wins,
        "worse": change.losses,
    }


def summary(found: dict[str, Values]) -> dict[str, Any]:
    """Means, over all and by source, and the comparisons that were asked for."""

    def mean(values: Values, prefix: str = "") -> float:
        return float(np.mean([value for key, value in values.items() if key.startswith(prefix)]))

    control = found["control, query"]
    return {
        "lists": len(control),
        "nDCG@10": {
            name: {"all": mean(values)} | {each: mean(values, each) for each in SOURCES}
            for name, values in found.items()
        },
        "prompt against control": compared(found["prompt, prompt"], control),
        "fused prompt against control": compared(found["prompt, fused"], control),
        "prompt against its own query": compared(found["prompt, prompt"], found["prompt, query"]),
        "control against contrastive": compared(control, found["contrastive, query"]),
    }


def missing() -> Path | None:
    """The first thing this needs that is not there."""
    needed = [LISTS / f"{source}-held-out.jsonl.gz" for source in SOURCES]
    needed += [folder / "contract.json" for folder in FOLDERS.values()]
    return next((path for path in needed if not path.is_file()), None)


def main() -> None:
    """Measure, print, write."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    if path := missing():
        print(f"skipped: no {path.relative_to(ROOT)}; see training/smollm2.toml for what makes it")
        sys.exit(0)
    result = summary(measured())
    lines = [["ranker", "all", *SOURCES]]
    for name, values in result["nDCG@10"].items():
        lines.append([name, *(f"{value:.4f}" for value in values.values())])
    rows(lines)
    for name, values in result.items():
        if "against" in name:
            print(f"{name}: {values['difference']:+.4f}, p {values['p_value']:.4f}")
    save("smollm2", "a listwise prompt against its control on SmolLM2-135M", result)


if __name__ == "__main__":
    main()
