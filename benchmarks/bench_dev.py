"""What was chosen on dev collections: the fusion weight of late interaction, and every prompt.

A trained prompt stands beside its control, which had the same data, steps and weights but no
candidates. `make prompts` trains them; those that are not there are left out.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness import ROOT, collection, command, index_of, rows, save

DEV = {
    "hotpotqa-train100": "dev",
    "musique-train100": "dev",
    "squad-dev-passages": "dev",
    "trec-dl21-pool": "test",
}
WEIGHTS = ("1.0", "0.9", "0.8")
PROMPTS = ("text-control", "text", "vectors-control", "vectors")
QUERIES = "100"


def asked(name: str, split: str, *more: str) -> list[dict[str, Any]]:
    """The rows of one evaluation."""
    where = ["evaluate", str(index_of(name)), str(collection(name)), "--split", split]
    report = json.loads(command(*where, "--limit", QUERIES, *more, "--json"))
    return [row | {"queries": report["queries"]} for row in report["rows"]]


def run(name: str, split: str) -> list[dict[str, Any]]:
    """Every row of one collection."""
    found = asked(name, split, "--rerank", "none", "--rerank", "prf")
    for weight in WEIGHTS:
        more = ("--rerank", "none", "--rerank", "tokens", "--fuse", weight)
        found.append(asked(name, split, *more)[1] | {"ranker": f"tokens, weight {weight}"})
    for prompt in PROMPTS:
        adapter = ROOT / ".work" / f"minilm-{prompt}"
        if not (adapter / "adapter.json").is_file():
            continue
        # The control reranks by its own query vector, so its search is its rerank.
        rankers = ["none"] if "control" in prompt else ["none", "listwise"]
        named = [word for each in rankers for word in ("--rerank", each)]
        told: tuple[str, ...] = ("--encoder", str(adapter), "--depth", "20", *named)
        found.append(asked(name, split, *told)[-1] | {"ranker": f"prompt: {prompt}"})
    return [{"collection": name, **row} for row in found]


def main() -> None:
    """Run, print, write."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    # Nothing is timed here, so two at a time.
    with ThreadPoolExecutor(2) as pool:
        found = [row for part in pool.map(run, DEV, DEV.values()) for row in part]
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
    save("dev", "late interaction and trained prompts on dev collections", found)


if __name__ == "__main__":
    main()
