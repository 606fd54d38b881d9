"""Training on a GPU: a recipe's first steps beside the CPU's, and a step at a published size."""

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_listwise import SHAPE
from harness import ROOT, WORK, collection
from stages import stage
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from e2rank.config import load_recipe
from e2rank.encoders.presets import e2rank_contract, local_model
from e2rank.evaluate import load_beir
from e2rank.train import TrainConfig, train
from e2rank.train.log import read_log

HERE = WORK / "bench-gpu"
RECIPES = ROOT / "training"
PUBMEDQA = RECIPES / "minilm" / "pubmedqa"
COLLECTION, SIZE = "scifact", 16
STEPS, PUBLISHED_STEPS, LISTS = 8, 4, 32


def training(device: str = "cuda") -> list[dict[str, Any]]:
    """Losses and seconds of the first steps of two recipes.

    MiniLM's with prompts of vectors runs on the CPU and on the GPU, on PubMedQA alone; E2Rank
    0.6B's, as published but for its lists a step, on the GPU alone, from random weights.
    """
    some = {"data": [f"{PUBMEDQA}.jsonl.gz"], "corpora": [f"{PUBMEDQA}-documents.jsonl.gz"]}
    found = [
        _steps("minilm-vectors.toml", each, some | {"steps": STEPS})
        for each in dict.fromkeys(("cpu", device))
    ]
    changed = {"base": str(_base()), "data": [str(_lists())], "lists": LISTS}
    return [*found, _steps("e2rank-0.6b.toml", device, changed | {"steps": PUBLISHED_STEPS})]


def _steps(name: str, device: str, changed: dict[str, Any]) -> dict[str, Any]:
    folder = HERE / f"trained-{name.removesuffix('.toml')}-{device}"
    return stage(HERE / f"{folder.name}.json", lambda: _trained(folder, name, device, changed))


def _trained(folder: Path, name: str, device: str, changed: dict[str, Any]) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    config = load_recipe(TrainConfig, RECIPES / name, changed | {"out": str(folder)})
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    train(config, device=device)
    steps = [each for each in read_log(folder) if "loss" in each]
    found = {
        "recipe": name,
        "device": device,
        "lists": config.lists,
        "seconds": float(np.median([each["seconds"] for each in steps])),
        "tokens_s": float(np.median([each["tokens_s"] for each in steps])),
        "losses": [each["loss"] for each in steps],
    }
    if device != "cpu":
        found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    shutil.rmtree(folder)
    return found


def _base() -> Path:
    """A model that training starts from: Qwen3-0.6B's shape, SmolLM2's tokens, E2Rank's wording."""
    folder = HERE / "qwen3-0.6b-random"
    if not (folder / "contract.json").is_file():
        torch.manual_seed(0)
        Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(local_model("smollm2")).save_pretrained(folder)
        contract = e2rank_contract(SHAPE["hidden_size"]).to_dict()
        (folder / "contract.json").write_text(json.dumps(contract), encoding="utf-8")
    return folder


def _lists() -> Path:
    """Abstracts in lists of the published size, of which only the lengths count here."""
    judged = load_beir(collection(COLLECTION))
    texts = (each.body for each in judged.documents())
    lists = zip(judged.queries.values(), zip(*[texts] * SIZE, strict=False), strict=False)
    path = HERE / "lists.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for query, documents in islice(lists, LISTS * PUBLISHED_STEPS):
            labels = list(range(SIZE, 0, -1))
            line = {"query": query, "documents": documents, "labels": labels}
            file.write(json.dumps(line) + "\n")
    return path
