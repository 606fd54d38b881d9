"""What was chosen on dev collections: the fusion weight of late interaction, and every prompt.

A trained prompt stands beside its control, which had the same data, steps and weights but no
candidates, and over the queries of all collections together it is tested against it. `make
prompts` trains them; those that are not there are left out.
"""

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness import ROOT, collection, command, index_of, rows, save

from e2rank.evaluate import load_beir, mean, per_query, permutation_test, read_run

DEV = {
    "hotpotqa-train100": "dev",
    "musique-train100": "dev",
    "squad-dev-passages": "dev",
    "trec-dl21-pool": "test",
}
WEIGHTS = ("1.0", "0.9", "0.8")
PROMPTS = ("text-control", "text", "vectors-control", "vectors")
QUERIES = "100"
MEASURE = "nDCG@10"

Values = dict[str, float]


def asked(name: str, split: str, *more: str) -> list[dict[str, Any]]:
    """The rows of one evaluation."""
    where = ["evaluate", str(index_of(name)), str(collection(name)), "--split", split]
    report = json.loads(command(*where, "--limit", QUERIES, *more, "--json"))
    return [row | {"queries": report["queries"]} for row in report["rows"]]


def prompted(name: str, split: str, prompt: str) -> tuple[dict[str, Any], Values] | None:
    """The row of one trained prompt or control, and the measure of each query; None if not there.

    The queries are named by their collection too, so that those of several can be put together.
    """
    adapter = ROOT / ".work" / f"minilm-{prompt}"
    if not (adapter / "adapter.json").is_file():
        return None
    # The control reranks by its own query vector, so its search is its rerank.
    rankers = ["none"] if "control" in prompt else ["none", "listwise"]
    named = [word for each in rankers for word in ("--rerank", each)]
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "{ranker}.trec"
        told = ("--encoder", str(adapter), "--depth", "20", *named, "--run-out", str(runs))
        row = asked(name, split, *told)[-1] | {"ranker": f"prompt: {prompt}"}
        found = read_run(Path(folder) / f"{rankers[-1]}.trec")
    qrels = load_beir(collection(name), split=split).qrels
    judged = {query: qrels[query] for query in found}
    values = per_query(judged, found, (MEASURE,))[MEASURE]
    return row, {f"{name} {query}": value for query, value in values.items()}


def run(name: str, split: str) -> tuple[list[dict[str, Any]], dict[str, Values]]:
    """Every row of one collection, and of each prompt the measure of each query."""
    found = asked(name, split, "--rerank", "none", "--rerank", "prf")
    for weight in WEIGHTS:
        more = ("--rerank", "none", "--rerank", "tokens", "--fuse", weight)
        found.append(asked(name, split, *more)[1] | {"ranker": f"tokens, weight {weight}"})
    values = dict[str, Values]()
    for prompt in PROMPTS:
        if (measured := prompted(name, split, prompt)) is not None:
            row, values[prompt] = measured
            found.append(row)
    return [{"collection": name, **row} for row in found], values


def pooled(parts: list[dict[str, Values]]) -> list[dict[str, Any]]:
    """Each prompt against its control, over the queries of all collections together."""
    out = []
    for prompt in ("text", "vectors"):
        one, other = (
            {query: value for part in parts for query, value in part.get(each, {}).items()}
            for each in (prompt, f"{prompt}-control")
        )
        if one and other:
            out.append(
                {
                    "prompt": prompt,
                    "queries": len(one),
                    "control": mean(other),
                    "with_candidates": mean(one),
                    "p": permutation_test(one, other),
                }
            )
    return out


def main() -> None:
    """Run, print, write."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    # Nothing is timed here, so two at a time.
    with ThreadPoolExecutor(2) as pool:
        measured = list(pool.map(run, DEV, DEV.values()))
    found = [row for part, _ in measured for row in part]
    lines = [["collection", "queries", "ranker", "nDCG@10", "p against none"]]
    for row in found:
        p_value = row["p_value"]
        lines.append(
            [
                row["collection"],
                str(row["queries"]),
                row["ranker"],
                f"{row['measures']['nDCG@10']:.4f}",
                "" if p_value is None else f"{p_value:.4f}",
            ]
        )
    rows(lines)
    tests = pooled([values for _, values in measured])
    head = ["prompt", "queries", "control", "with candidates", "p"]
    cells = [
        [row["prompt"], str(row["queries"])]
        + [f"{row[key]:.4f}" for key in ("control", "with_candidates", "p")]
        for row in tests
    ]
    rows([head, *cells])
    results = {"rankers": found, "prompts_against_controls": tests}
    save("dev", "late interaction and trained prompts on dev collections", results)


if __name__ == "__main__":
    main()
