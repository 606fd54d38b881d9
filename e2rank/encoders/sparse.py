"""A head that makes learned sparse vectors of documents: which terms a text is about, how much."""

from collections.abc import Sequence

import numpy as np
import torch

from e2rank.encoders.tokens import Tokens
from e2rank.errors import EncodingError

WINDOW = 8
"""Tokens whose states are averaged before they vote for other terms than their own."""

_SILENT = -1e4


class SparseHead(torch.nn.Module):
    """Weights of a document's own terms and of terms that it expands to; a table for queries.

    A document with token states h_1 ... h_t (special tokens left out) and windows of WINDOW
    consecutive tokens has for each term v of the vocabulary the weight

        w_v = log(1 + relu(max over windows of <g(mean h of the window), e_v> + b_v)
                    + gain * sum over its tokens j that are v of softplus(<o, h_j> + c))

    with the model's own word embeddings e_v, divided by their mean length, and
    g = LayerNorm(GELU(linear)). Its score with a query is the sum of w_v * q_v over the query's
    distinct terms, where q_v is read from a table: a query needs no model.

    Source: SPLADE (arXiv 2107.05720) with SPLADE-doc's queries and inference-free weights as in
    arXiv 2411.04403. Windows and the sum over a term's own tokens are ours: the vocabulary is
    scored once a window instead of once a token, which is what makes the head cheap, and how
    often a term stands in a text is not lost.
    """

    words: torch.Tensor

    def __init__(self, words: torch.Tensor, width: int) -> None:
        """A head on states of `width`, over the (terms, hidden) embeddings `words`."""
        super().__init__()
        terms, hidden = words.shape
        scaled = words.detach().float()
        self.register_buffer("words", scaled / scaled.norm(dim=1).mean(), persistent=False)
        self.transform = torch.nn.Linear(width, hidden)
        self.norm = torch.nn.LayerNorm(hidden)
        self.bias = torch.nn.Parameter(torch.full((terms,), -3.0))
        self.own = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.own.weight)
        torch.nn.init.ones_(self.own.bias)
        self.gain = torch.nn.Parameter(torch.ones(()))
        # Logarithms, so that no term of a query can count against a document.
        self.log_query = torch.nn.Parameter(torch.zeros(terms))

    def documents(
        self,
        states: Sequence[torch.Tensor],
        texts: Sequence[Tokens],
        special: frozenset[int],
        most: int,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The terms (int32, ascending) and weights (float32) of each text.

        Args:
            states: (t, width) of each text.
            texts: whose they are.
            special: ids that are no terms.
            most: terms that a text keeps, those of largest weight.
        Raises:
            EncodingError: for a NaN or an infinity.
        """
        # All texts at once: each copy to a GPU, and each look-up there, costs as much as many.
        ids = np.concatenate([np.array(each.ids, dtype=np.int64) for each in texts])
        counted = ~np.isin(ids, list(special))
        ends = np.cumsum([len(each.ids) for each in texts])
        counts = [int(each.sum()) for each in np.split(counted, ends[:-1])]
        places, own = (
            torch.from_numpy(each).to(self.bias.device)
            for each in (np.flatnonzero(counted), ids[counted])
        )
        shown = torch.cat(list(states)).float()[places]
        votes = self.votes(shown.split(counts), own.split(counts))
        votes[:, list(special)] = 0.0
        best, terms = votes.topk(min(most, votes.shape[1]), dim=1)
        # The largest are enough: a NaN counts as larger than any number.
        if not best.isfinite().all():
            raise EncodingError("the sparse head gave a NaN or an infinity; check its weights")
        rows = zip(best.log1p().cpu().numpy(), terms.cpu().numpy(), strict=True)
        return [_sorted(term[weight > 0], weight[weight > 0]) for weight, term in rows]

    def votes(
        self,
        states: Sequence[torch.Tensor],
        ids: Sequence[torch.Tensor],
        columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(n, terms) of what stands inside the weight's log(1 + ...).

        Args:
            states: (t, width) of each of n texts, t perhaps 0.
            ids: (t,) term ids of each.
            columns: (c,) distinct terms to give the votes for, instead of all.
        """
        chosen = slice(None) if columns is None else columns
        words, bias = self.words[chosen], self.bias[chosen]
        parts = [windows(each) for each in states]
        logits = self.norm(torch.nn.functional.gelu(self.transform(torch.cat(parts)))) @ words.T
        silent = logits.new_full((1, len(bias)), _SILENT)
        best = [
            torch.cat([own, silent]).amax(0) if not len(own) else own.amax(0)
            for own in logits.split([len(each) for each in parts])
        ]
        expanded = torch.relu(torch.stack(best) + bias)
        return expanded + self.gain * self._own(states, ids, columns)

    def _own(
        self,
        states: Sequence[torch.Tensor],
        ids: Sequence[torch.Tensor],
        columns: torch.Tensor | None,
    ) -> torch.Tensor:
        width = len(self.bias) if columns is None else len(columns)
        text = torch.repeat_interleave(
            torch.arange(len(ids), device=self.bias.device),
            torch.tensor([len(each) for each in ids], device=self.bias.device),
        )
        column, weight = torch.cat(list(ids)), self.own(torch.cat(list(states)))[:, 0]
        if columns is not None:
            place = torch.full((len(self.bias),), -1, device=self.bias.device)
            place[columns] = torch.arange(width, device=self.bias.device)
            column = place[column]
            text, column, weight = (each[column >= 0] for each in (text, column, weight))
        flat = weight.new_zeros(len(ids) * width)
        where = text * width + column
        return flat.scatter_add(0, where, torch.nn.functional.softplus(weight)).view(-1, width)

    def query_weights(self) -> np.ndarray:
        """(terms,) float32, what each term of a query counts."""
        return self.log_query.detach().exp().cpu().numpy()


def windows(states: torch.Tensor) -> torch.Tensor:
    """(t, width) states to (ceil(t / WINDOW), width) means; the last state fills up the last."""
    missing = -len(states) % WINDOW
    filled = torch.cat([states, states[-1:].expand(missing, -1)]) if missing else states
    return filled.view(-1, WINDOW, states.shape[1]).mean(1)


def _sorted(terms: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(terms)
    return terms[order].astype(np.int32), weights[order].astype(np.float32)
