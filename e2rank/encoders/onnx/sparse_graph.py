"""The head of sparse vectors as a graph of its own: only who wants them pays for them."""

from collections.abc import Collection

import onnx
import torch

from e2rank.encoders.onnx.exporting import exported
from e2rank.encoders.sparse import WINDOW, SparseHead

_AXES: dict[str, tuple[str, ...]] = {
    "states": ("n", "t"),
    "input_ids": ("n", "t"),
    "counted": ("n", "t"),
    "windows": ("n", "w"),
}
"""Inputs, and the axes of each that may have any length."""

_OUTPUTS = ("weights", "terms")

# A bias that no logit makes up for.
_NEVER = -1e9


class Votes(torch.nn.Module):
    """From (n, t, width) states to the terms and weights of n texts, as `SparseHead.documents`.

    `counted` (n, t) float32 is 1 for a token that is a term and 0 for any other; `windows`
    (n, w, WINDOW) int64 says where among all n * t states those of each window are. A text of few
    windows names one several times: a maximum does not mind.
    """

    words: torch.Tensor
    bias: torch.Tensor

    def __init__(self, head: SparseHead, special: Collection[int], most: int) -> None:
        """Take the weights of a head.

        Args:
            head: the trained one.
            special: ids that are no terms.
            most: terms that a text keeps, those of largest weight.
        """
        super().__init__()
        self.transform, self.norm, self.own, self.gain = (
            head.transform,
            head.norm,
            head.own,
            head.gain,
        )
        # As a product takes it, so that the graph turns nothing around.
        self.register_buffer("words", head.words.T.contiguous())
        bias = head.bias.detach().clone()
        bias[list(special)] = _NEVER
        self.register_buffer("bias", bias)
        self.most = min(most, len(bias))

    def forward(
        self,
        states: torch.Tensor,
        input_ids: torch.Tensor,
        counted: torch.Tensor,
        windows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, most) float32 weights, the largest first, and the int64 terms they are of."""
        rows = states.flatten(0, 1)
        means = rows[windows.flatten()].unflatten(0, windows.shape).mean(2)
        logits = self.norm(torch.nn.functional.gelu(self.transform(means))) @ self.words
        expanded = torch.relu(logits.amax(1) + self.bias)
        # A product with a vector, which no smaller precision is worth for.
        own = torch.nn.functional.softplus(states @ self.own.weight[0] + self.own.bias)
        votes = expanded.scatter_add(1, input_ids, self.gain * own * counted)
        best, terms = votes.topk(self.most, dim=1)
        return best.log1p(), terms


def sparse_graph_of(head: SparseHead, special: Collection[int], most: int) -> onnx.ModelProto:
    """The float32 graph of a head, for any number of texts of any length."""
    width = head.transform.in_features
    examples = {
        "states": torch.ones(3, 19, width),
        "input_ids": torch.ones(3, 19, dtype=torch.long),
        "counted": torch.ones(3, 19),
        "windows": torch.arange(3 * 2 * WINDOW).reshape(3, 2, WINDOW),
    }
    return exported(Votes(head, special, most).eval(), examples, _AXES, _OUTPUTS)
