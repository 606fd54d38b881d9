"""The E2Rank objective as a loss of sentence-transformers, for `SentenceTransformerTrainer`."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from e2rank.train.contrastive import infonce
from e2rank.train.losses import LISTWISE

_log = logging.getLogger("e2rank")


class ListwiseLoss(torch.nn.Module):
    """InfoNCE of the query plus `weight` times a listwise loss of the listwise prompt.

    A row of the data set has, in this order, the texts `query`, `prompt` and `document_1` to
    `document_n`, n the same for every row, and `labels`, n numbers: the teacher's gain of each
    document, higher is better. NaN marks a place without a document; its text is not looked at.

        from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

        model = SentenceTransformer("Qwen/Qwen3-Embedding-0.6B")
        loss = ListwiseLoss(model)
        SentenceTransformerTrainer(model=model, train_dataset=rows, loss=loss).train()

    `prompt` is the finished text, from `Contract.listwise`. The model cuts it at its
    `max_seq_length` like any text, and with it the query that stands last: a batch whose prompts
    reach that length is warned about, once.

    The positive of a query is its best-labelled document, the first of equals. Its negatives are
    the documents of its list with a lower label and all those of the other lists.

    Source: E2Rank, arXiv 2510.22733, whose labels never tie.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        temperature: float = 0.03,
        weight: float = 2.0,
        scale: float = 10.0,
        listwise: str = "ranknet",
    ) -> None:
        """Train `model`, a `SentenceTransformer`.

        Args:
            model: gives `sentence_embedding`; vectors are brought to unit length here.
            temperature: of InfoNCE.
            weight: of the listwise loss.
            scale: of the cosines that the listwise loss sees.
            listwise: one of `LISTWISE`; irpo without a reference.
        Raises:
            ValueError: if listwise names no loss.
        """
        super().__init__()
        if listwise not in LISTWISE:
            raise ValueError(f"listwise is {listwise!r}; expected one of {', '.join(LISTWISE)}")
        self.model = model
        self.temperature, self.weight, self.scale = temperature, weight, scale
        self.listwise = listwise
        self._warned = False

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of one batch.

        Args:
            sentence_features: a tokenised batch for each text column.
            labels: (b, n) float.
        Returns:
            Scalar.
        Raises:
            ValueError: if there is not one text column for each label, the query and the prompt.
        """
        columns = list(sentence_features)
        if labels.dim() != 2 or len(columns) != labels.shape[1] + 2:
            raise ValueError(
                f"{len(columns)} text columns and labels {tuple(labels.shape)}; expected the "
                "columns query, prompt, document_1 .. document_n and n labels a row"
            )
        self._warn_of_cut(columns[1])
        alike = _alike(columns[0]).to(labels.device)
        queries, prompts, *documents = (
            functional.normalize(self.model(column)["sentence_embedding"].float(), dim=-1)
            for column in columns
        )
        return self._objective(queries, prompts, torch.stack(documents, 1), labels, alike)

    def _objective(
        self, queries: Tensor, prompts: Tensor, documents: Tensor, labels: Tensor, alike: Tensor
    ) -> Tensor:
        """Both losses of (b, d) queries and prompts and (b, n, d) documents."""
        b, n = labels.shape
        real = ~labels.isnan()
        gains = torch.where(real, labels, -torch.inf)
        best, places = gains.max(1)
        lists = torch.arange(b, device=labels.device)
        # (b, b, n): what a query may be told apart from; a list without documents has no say.
        allowed = real.expand(b, b, n) & ~alike[:, :, None]
        allowed[lists, lists] = real & (gains < best[:, None])
        allowed[~real.any(1)] = False
        contrast = infonce(
            queries,
            documents.flatten(0, 1),
            lists * n + places,
            self.temperature,
            allowed.flatten(1),
        )
        cosines = torch.einsum("bd,bnd->bn", prompts, documents)
        ranking = LISTWISE[self.listwise](self.scale * cosines, labels, real)
        return contrast + self.weight * ranking

    def _warn_of_cut(self, prompts: dict[str, Tensor]) -> None:
        # The trainer may have wrapped the model, for several GPUs.
        most = getattr(getattr(self.model, "module", self.model), "max_seq_length", None)
        ids = prompts.get("input_ids")
        if self._warned or most is None or ids is None or ids.shape[-1] < most:
            return
        self._warned = True
        _log.warning(
            "listwise prompts reach the model's max_seq_length of %d tokens: what stands last in "
            "them, the query too, may be cut; raise model.max_seq_length or shorten documents",
            most,
        )

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of this loss."""
        names = ("temperature", "weight", "scale", "listwise")
        return {name: getattr(self, name) for name in names}

    @property
    def citation(self) -> str:
        """Where the loss is from, for the model card."""
        return "E2Rank, https://arxiv.org/abs/2510.22733"


def _alike(queries: dict[str, Tensor]) -> Tensor:
    """(b, b) bool: which queries of a tokenised batch are the same text."""
    ids, mask = queries.get("input_ids"), queries.get("attention_mask")
    if ids is None or mask is None:
        return torch.eye(len(next(iter(queries.values()))), dtype=torch.bool)
    # Padding has an id that a text may have, too.
    shown = torch.where(mask.bool(), ids, -1)
    return (shown[:, None] == shown[None]).all(-1)
