"""Heads on a frozen transformer: its token states become the token vectors of late interaction."""

from collections.abc import Sequence

import torch

from e2rank.contract import Contract


class TokenHead(torch.nn.Module):
    """One linear map for documents and queries, and how much each token of a query counts.

    score(q, d) = maxsim * sum over query tokens t of share_t * max over document tokens j of
    <q_t, d_j>, + cosine * <q, d>, with unit rows q_t, d_j and shares that sum to 1: late
    interaction (ColBERT, arXiv 2004.12832) fused with the cosine of the pooled vectors.
    """

    def __init__(self, width: int, dim: int) -> None:
        """Map states of `width` to token vectors of `dim`."""
        super().__init__()
        self.project = torch.nn.Linear(width, dim, bias=False)
        self.weigh = torch.nn.Linear(width, 1)
        torch.nn.init.orthogonal_(self.project.weight)
        torch.nn.init.zeros_(self.weigh.weight)
        torch.nn.init.zeros_(self.weigh.bias)
        # Logarithms, so that training cannot turn a score upside down.
        self.log_maxsim = torch.nn.Parameter(torch.tensor(20.0).log())
        self.log_cosine = torch.nn.Parameter(torch.tensor(10.0).log())

    @classmethod
    def under(cls, contract: Contract, hidden: int) -> "TokenHead":
        """The head a contract asks for, on a transformer of this hidden size."""
        return cls(contract.token_layers * hidden, contract.token_dim)

    def documents(self, states: torch.Tensor) -> torch.Tensor:
        """(t, width) states to (t, dim) float32 unit rows."""
        return torch.nn.functional.normalize(self.project(states), dim=-1)

    def many_documents(self, states: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """(t, width) states of several texts to (t, dim) float32 unit rows of each, on the CPU.

        They are made at once: on a GPU each product and each copy costs as much as one of many.
        """
        rows = self.documents(torch.cat(list(states))).cpu()
        return rows.split([len(each) for each in states])

    def many_queries(self, states: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """(t, width) states of several texts to the (t, dim) float32 rows of `queries` of each."""
        return [self.queries(each) for each in states]

    def queries(self, states: torch.Tensor) -> torch.Tensor:
        """(t, width) states to (t, dim) float32 rows whose lengths are shares that sum to 1."""
        share = self.counts(states)
        return self.documents(states) * (share / share.sum(0, keepdim=True))

    def counts(self, states: torch.Tensor) -> torch.Tensor:
        """(..., width) states to (..., 1): how much each token counts, above 0 and of any sum."""
        return torch.nn.functional.softplus(self.weigh(states))

    def blend(self) -> tuple[float, float]:
        """What MaxSim and cosine are multiplied with in a score."""
        return float(self.log_maxsim.detach().exp()), float(self.log_cosine.detach().exp())
