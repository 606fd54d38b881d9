"""The E2Rank objective as a loss of sentence-transformers, for `SentenceTransformerTrainer`."""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from e2rank.train.examples import Example
from e2rank.train.losses import LISTWISE
from e2rank.train.objective import objective, targets
from e2rank.train.sampling import ListBatch

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

    Positives and negatives are those of `e2rank train`, see `targets`. To be read here again, the
    saved model needs its wording beside it: `e2rank contract e2rank-0.6b --out FOLDER`, if its
    columns were worded so.

    Source: E2Rank, arXiv 2510.22733.
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
            ValueError: if listwise names no loss, or the model puts every text, a finished prompt
                too, into a chat template.
        """
        super().__init__()
        modalities = getattr(next(iter(model.children()), None), "modality_config", None)
        if "message" in (modalities or {}):
            raise ValueError(
                "the model reads every text through its chat template, and so a finished prompt, "
                "queries and documents a second time; build it from Transformer and Pooling "
                "modules, with a tokenizer that has no chat template"
            )
        if listwise not in LISTWISE:
            raise ValueError(f"listwise is {listwise!r}; expected one of {', '.join(LISTWISE)}")
        self.model = model
        self.temperature, self.weight, self.scale = temperature, weight, scale
        self.listwise, self.teacher_temperature = listwise, 1.0
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
        rows = _Rows([_names(column) for column in (columns[0], *columns[2:])], labels)
        queries, prompts, *documents = (
            functional.normalize(self.model(column)["sentence_embedding"].float(), dim=-1)
            for column in columns
        )
        if not rows.lists:
            # No list has a document: nothing to learn, and a graph all the same.
            return 0 * torch.cat([queries, prompts, *documents]).sum()
        wanted = targets(ListBatch(tuple(rows.lists.values()), "", labels.shape[1]))
        each = torch.stack(documents, 1).flatten(0, 1)[[rows.place[text] for text in wanted.texts]]
        kept = list(rows.lists)
        return objective(self, wanted, queries[kept], prompts[kept], each).total

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


class _Rows:
    """The lists of a batch by their row, but those without a document, and where each text is."""

    def __init__(self, names: Sequence[Sequence[str]], labels: Tensor) -> None:
        """Read b rows: the names of their queries and of n columns of documents, (b, n) labels."""
        query, *documents = names
        self.lists: dict[int, Example] = {}
        self.place: dict[str, int] = {}
        for row, values in enumerate(labels.tolist()):
            held = [place for place, value in enumerate(values) if not math.isnan(value)]
            own = tuple(documents[place][row] for place in held)
            for place, text in zip(held, own, strict=True):
                self.place.setdefault(text, row * len(documents) + place)
            if own:
                given = tuple(values[place] for place in held)
                self.lists[row] = Example(query[row], own, given)


def _names(column: dict[str, Tensor]) -> list[str]:
    """Names of a column's texts, equal where their tokens are."""
    ids, mask = column.get("input_ids"), column.get("attention_mask")
    if ids is None or mask is None:
        return [f"{id(column)} {row}" for row in range(len(next(iter(column.values()))))]
    rows = zip(ids.tolist(), mask.tolist(), strict=True)
    return [str([token for token, real in zip(*row, strict=True) if real]) for row in rows]
