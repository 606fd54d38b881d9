"""Soft prompts: the candidates' stored vectors enter a prompt as tokens, one a document."""

from typing import Any

import torch

from e2rank.encoders.tower import Tower

# An optimizer such as Adam moves every weight by about its learning rate a step. The gate is one
# number that has to travel from 0 to about 1 while the weights around it move by hundredths.
_PACE = 20.0


class SoftPrompt(torch.nn.Module):
    """Stored vectors to soft tokens, and what is read from them to a prompt vector.

    The prompt vector is unit(q + g * h), with the plain query vector q and the unit vector h that
    the model gives for the query beside the soft tokens. The gate g starts at 0, where the prompt
    vector is the plain query vector itself.

    Source: the projector is that of PE-Rank, arXiv 2406.14848; the gate that of ReZero,
    arXiv 2003.04887.
    """

    def __init__(self, dim: int, width: int, size: float = 1.0) -> None:
        """Map vectors of `dim` to soft tokens of `width` that are `size` long."""
        super().__init__()
        self.project = torch.nn.Sequential(
            torch.nn.Linear(dim, width), torch.nn.GELU(), torch.nn.Linear(width, width)
        )
        # A logarithm, so that training cannot turn the tokens upside down.
        self.log_size = torch.nn.Parameter(torch.tensor(size).log())
        self.gate = torch.nn.Parameter(torch.zeros(()))

    @classmethod
    def on(cls, tower: Tower) -> "SoftPrompt":
        """An untrained one for this model, its tokens as long as the model's words are."""
        words = word_embeddings(tower)
        size = float(words.float().norm(dim=1).mean())
        return cls(tower.contract.dim, words.shape[1], size).to(tower.device)

    def tokens(self, vectors: torch.Tensor) -> torch.Tensor:
        """(n, dim) unit rows to (n, width) soft tokens of one length."""
        # Components of about 1, beside which the first layer's offsets are small.
        wide = self.project(vectors * vectors.shape[1] ** 0.5)
        return torch.nn.functional.normalize(wide.float(), dim=-1) * self.log_size.exp()

    def prompts(self, asked: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """(n, dim) unit prompt vectors of the (n, dim) plain query vectors and those read."""
        moved = asked + _PACE * self.gate * read
        # By a ratio that is exactly 1 where the gate is 0.
        return moved * (asked.norm(dim=1, keepdim=True) / moved.norm(dim=1, keepdim=True))


def word_embeddings(tower: Tower) -> torch.Tensor:
    """(words, width) embeddings that the model reads its tokens by."""
    model: Any = tower.model
    return model.get_input_embeddings().weight.detach()
