"""The model that is trained: which of its weights change, how it reads, what is kept of it."""

import dataclasses
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from e2rank.contract import Contract
from e2rank.encoders.adapter import LORA, SOFT, Adapter
from e2rank.encoders.batching import batches
from e2rank.encoders.load import load_trained
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.soft import SoftPrompt
from e2rank.encoders.tokens import Tokens, Wording
from e2rank.encoders.torch import TorchEncoder
from e2rank.encoders.tower import Tower
from e2rank.errors import AdapterError, MissingExtra
from e2rank.train.config import TrainConfig
from e2rank.train.examples import Example

# Linear layers that get an update: BERT's, then those of decoders, then MPNet's.
_TARGETS = ("query", "key", "value", "dense", "q_proj", "k_proj", "v_proj", "o_proj", *"qkvo")
_CLOSE = 1e-4
_EXACT = 1e-5
_SAMPLE, _SHOWN = 8, 5


@dataclasses.dataclass(frozen=True, slots=True)
class Trainee:
    """A base model on its way.

    Args:
        name: the base's.
        fingerprint: the base's.
        tower: the transformer, its weights float32.
        words: texts to tokens under `contract`.
        contract: the base's, with what this training adds.
        precision: "float32" or "bfloat16" arithmetic.
        soft: what makes prompts of vectors, or None where prompts are of texts.
    """

    name: str
    fingerprint: str
    tower: Tower
    words: Wording
    contract: Contract
    precision: str = "float32"
    soft: SoftPrompt | None = None

    def read(self, texts: Sequence[Tokens], shown: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """(n, dim) float32 unit vectors of n sequences in one batch, with a graph.

        Args:
            texts: n sequences.
            shown: for each, (m, dim) vectors of the documents of a prompt of vectors; () for
                other texts.
        """
        half = self.precision == "bfloat16"
        device = self.tower.device
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            tokens = [self.soft.tokens(each.to(device)) for each in shown] if self.soft else []
            vectors: torch.Tensor = self.tower(texts, soft=tokens).vectors
        return vectors.float()

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[Tokens],
        shown: Sequence[torch.Tensor] = (),
        budget: int = 8192,
    ) -> np.ndarray:
        """(n, dim) float32 unit vectors as the model gives them outside training: no dropout."""
        training = self.tower.training
        self.tower.eval()
        out = np.zeros((len(texts), self.contract.dim), dtype=np.float32)
        for group in batches([len(each.ids) for each in texts], budget):
            vectors = [shown[place] for place in group] if shown else ()
            out[group] = self.read([texts[place] for place in group], vectors).cpu().numpy()
        self.tower.train(training)
        return out

    @torch.no_grad()
    def vector_prompts(
        self, queries: Sequence[str], asked: np.ndarray, vectors: Sequence[np.ndarray]
    ) -> np.ndarray:
        """(n, dim) float32 vectors of prompts that show (m, dim) vectors of documents.

        Raises:
            ValueError: if prompts are of texts.
        """
        if self.soft is None:
            raise ValueError(f"{self.name} is trained on prompts of texts; use the texts")
        texts = self.words.vector_prompts(queries, list(map(len, vectors)))
        read = torch.from_numpy(self.encode(texts, [torch.tensor(each) for each in vectors]))
        device = self.tower.device
        return self.soft.prompts(torch.tensor(asked).to(device), read.to(device)).cpu().numpy()

    def weights(self) -> dict[str, torch.nn.Parameter]:
        """The weights that change, by name."""
        named = dict(self.tower.named_parameters())
        if self.soft is not None:
            named |= {f"{SOFT}{name}": each for name, each in self.soft.named_parameters()}
        return {name: each for name, each in named.items() if each.requires_grad}


def load(config: TrainConfig, sizes: Sequence[int], device: torch.device) -> Trainee:
    """The base as it is, under the contract that the result will have.

    Args:
        config: names the base and the budgets of its prompts.
        sizes: numbers of documents that its prompts will have.
        device: where it is to be.
    Raises:
        ValueError: if the base is no plain transformer, or has layers this cannot save.
    """
    base = _base(config)
    if base.tower.head is not None and config.train_documents:
        raise ValueError(
            f"{config.base!r} has layers after its pooling, which a trained model folder does not "
            "hold; take train_documents=false"
        )
    changes: dict[str, Any] = {"list_sizes": () if config.prompt == "none" else tuple(sizes)}
    if config.prompt != "none":
        changes["prompt"] = config.prompt
    for name in ("prompt_tokens", "prompt_document_tokens"):
        if (value := getattr(config, name)) is not None:
            changes[name] = value
    contract = dataclasses.replace(base.contract, **changes)
    tower = base.tower.to(device)
    return Trainee(
        name=base.name,
        fingerprint=base.fingerprint,
        tower=tower,
        words=base.words.under(contract),
        contract=contract,
        precision=config.precision,
        soft=_soft(tower, config.seed) if config.prompt == "vectors" else None,
    )


def _soft(tower: Tower, seed: int) -> SoftPrompt:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return SoftPrompt.on(tower)


def _base(config: TrainConfig) -> TorchEncoder:
    # On the CPU, where weights become float32: a GPU would round them to bfloat16.
    base = load_encoder(config.base, device="cpu")
    if not isinstance(base, TorchEncoder) or base.contract is not base.tower.contract:
        raise ValueError(
            f"{config.base!r} cannot be trained: expected a transformer without an adapter, such "
            "as 'minilm-base' or the folder of a model"
        )
    return base


def tune(trainee: Trainee, config: TrainConfig) -> None:
    """Make the weights that change ready to change, and all others stay.

    Raises:
        MissingExtra: if peft is not installed.
        ValueError: if the model has no layer to put a low-rank update on.
    """
    model: Any = trainee.tower.model
    trainee.tower.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not config.dropout:
            module.p = 0.0
    if config.gradient_checkpointing:
        # Of two names: the older one warns where the newer one is there.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if config.tune == "full":
        return
    trainee.tower.requires_grad_(False)
    if config.tune == "lora":
        _add_updates(trainee, config)


def _add_updates(trainee: Trainee, config: TrainConfig) -> None:
    if find_spec("peft") is None:
        raise MissingExtra("peft", extra="train")
    from peft import LoraConfig, inject_adapter_in_model

    model: Any = trainee.tower.model
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.rsplit(".", 1)[-1] in _TARGETS
        and not name.startswith("pooler")
    ]
    if not targets:
        raise ValueError(
            f"{trainee.name!r} has no linear layer named {', '.join(_TARGETS)}; take tune='full'"
        )
    updates = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
    )
    inject_adapter_in_model(updates, model)


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
    base = _base(config)
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
