"""What is kept of a trained model: an adapter or a model folder, read back before it counts."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from e2rank.encoders.adapter import LORA, SOFT, Adapter
from e2rank.encoders.load import load_trained
from e2rank.encoders.torch import TorchEncoder
from e2rank.encoders.tower import Tower
from e2rank.errors import AdapterError
from e2rank.train.config import TrainConfig
from e2rank.train.examples import Example
from e2rank.train.model import Trainee, base_of

_CLOSE = 1e-4
_EXACT = 1e-5
_SAMPLE, _SHOWN = 8, 5


def adapter(trainee: Trainee, config: TrainConfig, about: dict[str, Any]) -> Adapter:
    """The low-rank updates, and what makes prompts of vectors, as they are now."""
    weights: dict[str, torch.Tensor] = {}
    for name, module in trainee.tower.model.named_modules():
        if hasattr(module, "lora_A"):
            for part in "AB":
                found: Any = getattr(module, f"lora_{part}")
                weights[f"{LORA}{name}.{part}"] = found["default"].weight.detach().cpu().clone()
    if trainee.soft is not None:
        state = trainee.soft.state_dict()
        weights |= {f"{SOFT}{name}": each.detach().cpu().clone() for name, each in state.items()}
    return Adapter(
        base=trainee.fingerprint,
        base_name=trainee.name,
        contract=trainee.contract,
        weights=weights,
        lora_scale=config.lora_alpha / config.lora_rank,
        about=about,
    )


def save(
    trainee: Trainee,
    config: TrainConfig,
    folder: Path,
    examples: Sequence[Example],
    about: dict[str, Any],
) -> None:
    """Write what was trained: an adapter, or a model folder where documents were trained too.

    It is read back before it gets its place in the folder, on a base that is loaded anew.

    Args:
        trainee: the trained model.
        config: how it was trained.
        folder: where to write; files that are there already stay.
        examples: whose first texts it is checked on.
        about: what it was trained on and how.
    Raises:
        AdapterError: if what was read back does not give the vectors of the trained model.
    """
    part = folder / "unchecked"
    base = base_of(config)
    if config.train_documents:
        tower = trainee.tower
        if config.tune == "lora":
            tower = adapter(trainee, config, about).on(base.tower)
        _save_model(trainee, tower, part, about)
        again, last = load_trained(part, device="cpu"), "contract.json"
    else:
        adapter(trainee, config, about).save(part)
        again, last = base.adapt(Adapter.load(part)), "adapter.json"
    _check(trainee, base, again, examples[:_SAMPLE])
    names = sorted((each.name for each in part.iterdir()), key=lambda name: (name == last, name))
    for name in names:
        (part / name).replace(folder / name)
    part.rmdir()


def _save_model(trainee: Trainee, tower: Tower, folder: Path, about: dict[str, Any]) -> None:
    model: Any = tower.model
    model.save_pretrained(folder)
    text = trainee.words.identity()
    pad = model.config.pad_token_id
    tokenizer = Tokenizer.from_str(text)
    special = {} if pad is None else {"pad_token": tokenizer.id_to_token(pad)}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side=tower.side, **special
    ).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    for name, fields in (("training", about), ("contract", trainee.contract.to_dict())):
        written = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(written, encoding="utf-8")


def _check(
    trainee: Trainee, base: TorchEncoder, again: TorchEncoder, examples: Sequence[Example]
) -> None:
    """Refuse a result that, read back, is not the trained model, or is still the base."""
    exact = dataclasses.replace(trainee, precision="float32")
    queries = [each.query for each in examples]
    expected = exact.encode(exact.words.queries(queries))
    found = again.encode_queries(queries).vectors
    before = base.encode_queries(queries).vectors
    moved = float(np.abs(expected - before).max())
    off = float(np.abs(expected - found).max())
    # One prompt will do: it is read by the same weights.
    if trainee.contract.prompt_trained:
        shown = list(examples[0].documents[:_SHOWN])
        off = max(off, _prompt_off(exact, base, again, queries[0], shown))
    # Where training moved little, agreeing to 1e-4 would not tell the trained model from the base.
    if not off <= min(_CLOSE, max(_EXACT, moved / 2)):
        raise AdapterError(
            f"what was saved, read back, gives vectors that differ by {off:.1e} from those of the "
            f"trained model (training moved them by {moved:.1e}); its files are left in a folder "
            "named unchecked"
        )


def _prompt_off(
    exact: Trainee, base: TorchEncoder, again: TorchEncoder, query: str, shown: list[str]
) -> float:
    """How far one prompt of what was read back is from that of the trained model."""
    if exact.soft is None:
        expected = exact.encode(exact.words.prompts([query], [shown]))
        found = again.encode_prompts([query], [shown])
    else:
        vectors = [base.encode_documents(shown).vectors]
        asked = exact.encode(exact.words.queries([query]))
        expected = exact.vector_prompts([query], asked, vectors)
        found = again.encode_vector_prompts([query], again.encode_queries([query]).vectors, vectors)
    return float(np.abs(expected - found.vectors).max())
