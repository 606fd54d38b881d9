"""Where a run stands, in one file that is whole or not there."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NAME = "checkpoint.pt"
FORMAT = 2

# Fields of a configuration that a run may go on with changed: the result is the same.
_FREE = ("out", "threads", "save_every")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run after some steps.

    Everything that is drawn (batches, dropout) follows from the seed and the step, so neither
    a place in the data nor the state of a generator is kept.

    Args:
        step: steps done.
        fields: of the configuration.
        data: hash of each file of examples.
        base: fingerprint of the model that it started from.
        weights: those that change.
        optimizer: its state.
    """

    step: int
    fields: dict[str, Any]
    data: dict[str, str]
    base: str
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write it in place of the one before."""
        part = folder / f"{NAME}.part"
        whole = {
            "format": FORMAT,
            "step": self.step,
            "fields": json.dumps(self.fields),
            "data": self.data,
            "base": self.base,
            "weights": self.weights,
            "optimizer": self.optimizer,
        }
        with part.open("wb") as file:
            torch.save(whole, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / NAME)

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read it; no code is run from the file.

        One of format 1 does not say which model it started from, and so is refused.

        Raises:
            ValueError: if it is damaged, or of another format.
        """
        try:
            whole = torch.load(folder / NAME, map_location="cpu", weights_only=True)
            found = whole.pop("format")
            whole["fields"] = json.loads(whole["fields"])
            if found == FORMAT:
                return cls(**whole)
        # What torch.load raises on a damaged file depends on where the damage is.
        except Exception as error:
            raise ValueError(
                f"{folder / NAME} is damaged ({error}); remove the folder and start again"
            ) from error
        raise ValueError(
            f"{folder / NAME} is of format {found}, expected {FORMAT}: go on with the e2rank that "
            "wrote it, or remove the folder and start again"
        )

    def check(self, fields: Mapping[str, Any], data: Mapping[str, str]) -> None:
        """Refuse to go on with another configuration or other data.

        Raises:
            ValueError: naming the first field that differs.
        """
        for name in sorted(self.fields.keys() | fields.keys()):
            was, now = self.fields.get(name), fields.get(name)
            if was != now and name not in _FREE:
                raise ValueError(
                    f"{name} was {was!r} when the run was started and is {now!r}: resume with the "
                    "configuration it was started with, or start another run in another folder"
                )
        for path, digest in data.items():
            if self.data.get(path) != digest:
                raise ValueError(
                    f"data: {path} has changed since the run was started; restore it, or start "
                    "another run in another folder"
                )

    def check_base(self, fingerprint: str) -> None:
        """Refuse to put the weights that were trained on another model than they started from.

        Raises:
            ValueError: if the base is another one.
        """
        if self.base != fingerprint:
            raise ValueError(
                f"base: {self.fields['base']!r} is not the model that it was when the run was "
                "started, its weights, tokenizer or contract have changed; restore it, or start "
                "another run in another folder"
            )
