"""The model that is trained: how it is made, which of its weights change, how it reads."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from e2rank.contract import Contract
from e2rank.encoders.adapter import SOFT
from e2rank.encoders.batching import batches
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.soft import SoftPrompt
from e2rank.encoders.tokens import Tokens, Wording
from e2rank.encoders.torch import TorchEncoder
from e2rank.encoders.tower import Tower
from e2rank.errors import MissingExtra
from e2rank.train.config import TrainConfig

# Linear layers that get an update: BERT's, then those of decoders, then MPNet's.
_TARGETS = ("query", "key", "value", "dense", "q_proj", "k_proj", "v_proj", "o_proj", *"qkvo")


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
        worded: `words` of those sources of lists that have a wording of their own.
    """

    name: str
    fingerprint: str
    tower: Tower
    words: Wording
    contract: Contract
    precision: str = "float32"
    soft: SoftPrompt | None = None
    worded: Mapping[str, Wording] = dataclasses.field(default_factory=dict)

    def words_of(self, source: str) -> Wording:
        """How queries and prompts of lists of this source are worded."""
        return self.worded.get(source, self.words)

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
            # Padding in front of a causal sequence attends to nothing, and of such rows kernels of
            # GPUs may give a gradient of NaN.
            vectors: torch.Tensor = self.tower(texts, soft=tokens, side="right").vectors
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
    base = base_of(config)
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
        worded={
            source: base.words.under(dataclasses.replace(contract, **fields))
            for source, fields in (config.wordings or {}).items()
        },
    )


def _soft(tower: Tower, seed: int) -> SoftPrompt:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return SoftPrompt.on(tower)


def base_of(config: TrainConfig) -> TorchEncoder:
    """The encoder that a recipe starts from, loaded anew, on the CPU.

    Raises:
        ValueError: if it cannot be trained.
    """
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
