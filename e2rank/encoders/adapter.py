"""What training adds to an encoder: a folder that is loaded whole, on the right model, or not."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.torch
import torch

from e2rank.contract import Contract
from e2rank.encoders import difference
from e2rank.encoders.digest import weights_digest
from e2rank.encoders.directions import Directions
from e2rank.encoders.heads import TokenHead
from e2rank.encoders.soft import SoftPrompt, word_embeddings
from e2rank.encoders.sparse import SparseHead
from e2rank.encoders.tower import Tower
from e2rank.errors import AdapterError, EncoderMismatch

NAME, WEIGHTS = "adapter.json", "adapter.safetensors"
KIND, FORMAT = "e2rank-adapter", 1
TOKENS, LORA, QUERY, SOFT, SPARSE = "tokens.", "lora.", "query.", "soft.", "sparse."

_OF_QUERIES = {f"{QUERY}{name}" for name in ("weight", "terms", "directions", "pull")}

_UNREADABLE = (
    OSError,
    AttributeError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
    safetensors.SafetensorError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """Trained weights for the query side of one encoder; its document vectors stay as they are.

    Args:
        base: fingerprint of the encoder it was trained on.
        base_name: the name that loads that encoder.
        contract: that encoder's contract as the adapter extends it: prompts, token vectors.
        weights: `tokens.*` for the token head; `lora.MODULE.A` (r, in) and `lora.MODULE.B`
            (out, r) for low-rank updates of linear layers, which only queries and prompts see;
            `query.weight` (dim, dim) for a map W that moves a query's vector q to q + W q;
            `query.terms` (t,), `query.directions` (t, dim) and `query.pull` () for what its terms
            add to the unit vector of that, see `Directions`;
            `soft.*` for prompts of vectors; `sparse.*` for the head of sparse vectors.
        lora_scale: what a low-rank product is multiplied with.
        about: what it was trained on and how; free form, for the reader.
    """

    base: str
    base_name: str
    contract: Contract
    weights: dict[str, torch.Tensor]
    lora_scale: float = 1.0
    about: dict[str, Any]

    @property
    def token_fingerprint(self) -> str:
        """Hash of the weights that make token vectors of documents."""
        return weights_digest(
            {name: each for name, each in self._under(TOKENS).items() if "project" in name}
        )

    @property
    def sparse_fingerprint(self) -> str:
        """Hash of what makes sparse vectors of documents: weights, and how many terms are kept."""
        weights = {name: each for name, each in self._under(SPARSE).items() if name != "log_query"}
        return weights_digest(weights, str(self.contract.sparse_terms))

    @property
    def fingerprint(self) -> str:
        """Hash of every weight, their scale and the contract."""
        scale = torch.tensor(self.lora_scale, dtype=torch.float64)
        return f"{weights_digest(self.weights | {'scale': scale})}-{self.contract.digest()}"

    def check(self, fingerprint: str, name: str) -> None:
        """Refuse another model than the one this was trained on.

        Raises:
            EncoderMismatch: saying what differs.
        """
        if fingerprint != self.base:
            raise EncoderMismatch(
                f"the adapter was trained on another model than {name!r} (different "
                f"{difference(self.base, fingerprint)}): load it on that model, or train it again"
            )

    def on(self, tower: Tower) -> Tower:
        """The tower that reads queries and prompts: `tower` itself where there is no update.

        Raises:
            AdapterError: if an update is of a layer that the model lacks, or of another shape.
        """
        updates = self._under(LORA)
        if not updates:
            return tower
        asking = copy.deepcopy(tower)
        modules = dict(asking.model.named_modules())
        for name in sorted({each.rsplit(".", 1)[0] for each in updates}):
            down, up = updates.get(f"{name}.A"), updates.get(f"{name}.B")
            layer = modules.get(name)
            if down is None or up is None or not isinstance(layer, torch.nn.Linear):
                raise AdapterError(f"the adapter's update of {name!r} does not fit the model")
            shapes = (up.shape[:1] + down.shape[1:], up.shape[1:], (down.dim(), up.dim()))
            if shapes != (layer.weight.shape, down.shape[:1], (2, 2)):
                raise AdapterError(
                    f"the adapter's update of {name!r} is {tuple(up.shape)} times "
                    f"{tuple(down.shape)}, the layer {tuple(layer.weight.shape)}"
                )
            change = self.lora_scale * (up.float() @ down.float())
            layer.weight.data += change.to(layer.weight)
        return asking.eval()

    def token_head(self, tower: Tower) -> TokenHead | None:
        """The token head, or None where the contract has no token vectors.

        Raises:
            AdapterError: if its weights are missing, too many, or do not fit the model.
        """
        given = self._under(TOKENS)
        if not self.contract.token_dim:
            if given:
                raise AdapterError(
                    "the adapter has a token head, and its contract's token_dim is 0"
                )
            return None
        self._check_layers(tower, "token")
        head = TokenHead.under(self.contract, _hidden(tower))
        _fill(head, given, "token head")
        return head.to(tower.device).eval()

    def sparse_head(self, tower: Tower) -> SparseHead | None:
        """What makes sparse vectors of documents, or None where the contract has none.

        Raises:
            AdapterError: if its weights are missing, too many, or do not fit the model.
        """
        given = self._under(SPARSE)
        if not self.contract.sparse_dim:
            if given:
                raise AdapterError(
                    "the adapter has a sparse head, and its contract's sparse_dim is 0"
                )
            return None
        self._check_layers(tower, "sparse")
        words = word_embeddings(tower)
        if len(words) != self.contract.sparse_dim:
            raise AdapterError(
                f"the adapter's sparse_dim is {self.contract.sparse_dim}, the model has "
                f"{len(words)} terms"
            )
        head = SparseHead(words, self.contract.token_layers * _hidden(tower))
        _fill(head, given, "sparse head")
        return head.to(tower.device).eval()

    def soft_prompt(self, tower: Tower) -> SoftPrompt | None:
        """What makes prompts of vectors, or None where the contract's prompts are of text.

        Raises:
            AdapterError: if its weights are missing, too many, or do not fit the model.
        """
        given = self._under(SOFT)
        if self.contract.prompt != "vectors":
            if given:
                raise AdapterError(
                    "the adapter has a soft prompt, and its contract's prompts are of text"
                )
            return None
        soft = SoftPrompt(self.contract.dim, word_embeddings(tower).shape[1])
        _fill(soft, given, "soft prompt")
        return soft.to(tower.device).eval()

    def query_map(self) -> torch.Tensor | None:
        """(dim, dim) float32 W of a query's q + W q, or None where there is none.

        Raises:
            AdapterError: if it is of another shape.
        """
        weight = self.weights.get(f"{QUERY}weight")
        dim = self.contract.dim
        if weight is not None and weight.shape != (dim, dim):
            raise AdapterError(
                f"the adapter's query map is {tuple(weight.shape)}, expected {(dim, dim)}"
            )
        return None if weight is None else weight.float()

    def directions(self) -> Directions | None:
        """What a query's terms add to its vector, or None where they add nothing.

        Raises:
            AdapterError: if the terms do not ascend, or weights are missing or of another shape.
        """
        names = [f"{QUERY}{name}" for name in ("terms", "directions", "pull")]
        given = [self.weights[name].numpy() for name in names if name in self.weights]
        if not given:
            return None
        shapes = [each.shape for each in given]
        count, dim = len(given[0].reshape(-1)), self.contract.dim
        if shapes != [(count,), (count, dim), ()] or (np.diff(given[0]) <= 0).any():
            raise AdapterError(
                f"the adapter's directions of terms are {shapes}, expected ascending terms (t,), "
                f"rows (t, {dim}) and a pull ()"
            )
        return Directions(given[0], given[1], float(given[2]))

    def save(self, folder: Path) -> None:
        """Write the adapter into a new or empty folder; the file that names it is written last."""
        folder.mkdir(parents=True, exist_ok=True)
        data = {name: each.contiguous() for name, each in self.weights.items()}
        (folder / WEIGHTS).write_bytes(safetensors.torch.save(data))
        fields = {
            "kind": KIND,
            "format": FORMAT,
            "base": self.base,
            "base_name": self.base_name,
            "weights": weights_digest(self.weights),
            "fingerprint": self.fingerprint,
            "lora_scale": self.lora_scale,
            "contract": self.contract.to_dict(),
            "about": self.about,
        }
        text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
        (folder / NAME).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an adapter folder.

        Raises:
            AdapterError: if a file is missing or damaged, or needs a newer e2rank.
        """
        try:
            fields = json.loads((folder / NAME).read_text(encoding="utf-8"))
            if fields["kind"] != KIND or fields["format"] > FORMAT:
                raise AdapterError(
                    f"{folder} is no adapter this e2rank reads (kind {fields['kind']!r}, format "
                    f"{fields['format']}, expected up to {FORMAT}); run: pip install -U e2rank"
                )
            weights, expected = safetensors.torch.load_file(folder / WEIGHTS), fields["weights"]
            adapter = cls(
                base=fields["base"],
                base_name=fields["base_name"],
                contract=Contract.from_dict(fields["contract"]),
                weights=weights,
                lora_scale=float(fields["lora_scale"]),
                about=fields["about"],
            )
        except AdapterError:
            raise
        except _UNREADABLE as error:
            raise AdapterError(f"{folder} holds no whole adapter: {error}") from error
        if (found := weights_digest(weights)) != expected:
            raise AdapterError(
                f"{folder / WEIGHTS} is damaged: its hash is {found}, expected {expected}"
            )
        for name in weights:
            known = name in _OF_QUERIES or name.startswith((TOKENS, LORA, SOFT, SPARSE))
            if not known:
                raise AdapterError(
                    f"{folder} holds weights of no known part, {name!r}: train it again; an "
                    "index's own is taken away by e2rank adapt INDEX --remove"
                )
        return adapter

    def _check_layers(self, tower: Tower, head: str) -> None:
        config: Any = tower.model.config
        asked, most = self.contract.token_layers, config.num_hidden_layers + 1
        if asked > most:
            raise AdapterError(
                f"the adapter's {head} head reads {asked} layers, the model has {most}"
            )

    def _under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix(prefix): each
            for name, each in self.weights.items()
            if name.startswith(prefix)
        }


def _hidden(tower: Tower) -> int:
    config: Any = tower.model.config
    return int(config.hidden_size)


def _fill(module: torch.nn.Module, weights: dict[str, torch.Tensor], what: str) -> None:
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise AdapterError(f"the adapter's {what} does not fit: {reason}") from error
