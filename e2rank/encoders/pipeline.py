"""A sentence-transformers model that gives several vectors a text, or a sparse one, in batches."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from sentence_transformers.base.modules import Router

from e2rank.contract import Contract
from e2rank.encoders.backend import backend
from e2rank.encoders.batching import batches, halves, with_progress
from e2rank.encoders.digest import model_digest, text_digest, weights_digest
from e2rank.encoders.tokens import Wording

T = TypeVar("T")
Task = Literal["query", "document"]
Features = dict[str, Any]

# The first of these that the model has a prompt of stands in front of a text.
_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}

_TEXTS = {"query": "queries", "document": "documents"}

# Fields of modules that change what they give and leave no trace in the weights.
_FIELDS = (
    "activation_function",
    "k",
    "keep_only_token_ids",
    "module_input_name",
    "num_protected_tokens",
    "pool_factor",
    "pooling_mode",
    "pooling_strategy",
    "skiplist_tasks",
    "skiplist_words",
    "transformer_task",
)


@dataclass(frozen=True, slots=True)
class Rows(Generic[T]):
    """What a pipeline made of n texts.

    Args:
        rows: one result a text.
        tokens: tokens read, padding not counted.
        truncated: positions of the texts that lost tokens to the model's budget.
    """

    rows: list[T]
    tokens: int
    truncated: tuple[int, ...]


class Pipeline:
    """The modules that a loaded model has for one task: "query" or "document".

    A text's result does not depend on the batch it is in, and several threads may read at once.
    On a GPU the model runs in bfloat16, and out of memory halves the batch and goes on.
    """

    def __init__(self, model: Any, task: Task, lock: threading.Lock) -> None:
        """Take the route of `task` through a SparseEncoder or a MultiVectorEncoder.

        Args:
            model: a loaded one.
            task: what its texts are.
            lock: held while the model's tokenizer runs, which keeps the length that it cuts to.
        Raises:
            ValueError: if the model routes texts, and none of its routes is of this task, or its
                tokenizer is not one of Rust's.
        """
        self.modules = _route(model, task)
        names = [*_PROMPTS[task], model.default_prompt_name]
        self.prefix = str(
            next((model.prompts[each] for each in names if each in model.prompts), "")
        )
        self.budget = _budget(self.modules[0], task)
        contract = Contract(
            family="bidirectional",
            pooling="mean",
            dim=1,
            document_prefix=self.prefix,
            document_tokens=self.budget,
        )
        self.words = Wording(backend(self.modules[0].tokenizer), contract)
        self._task = task
        self._lock = lock

    def digest(self) -> str:
        """Of the weights, in the dtype they have now, and of what is done with them."""
        parts = []
        for module in self.modules:
            body = getattr(module, "auto_model", None)
            weights = weights_digest(module.state_dict()) if body is None else ""
            fields = [f"{name}={getattr(module, name, None)}" for name in _FIELDS]
            parts.append(f"{type(module).__name__} {weights} {fields}")
            parts.append(model_digest(body, None) if body is not None else "")
        return text_digest(f"{parts}")

    def read(
        self,
        texts: Sequence[str],
        make: Callable[[Features], list[T]],
        batch_tokens: int,
        **options: Any,
    ) -> Rows[T]:
        """Run n texts through the modules.

        Args:
            texts: any number.
            make: what the modules gave for a batch to one result a text.
            batch_tokens: most tokens of a batch, padding counted.
            options: given to the modules that take them.
        """
        made: dict[int, T] = {}
        tokens = self.words.documents(texts)
        groups = batches([len(each.ids) for each in tokens], batch_tokens)
        for group in with_progress(groups, f"encoding {_TEXTS[self._task]}"):
            self._fill(made, texts, group, make, options)
        return Rows(
            [made[place] for place in range(len(texts))],
            sum(len(each.ids) for each in tokens),
            tuple(place for place, each in enumerate(tokens) if each.cut),
        )

    def _fill(
        self,
        made: dict[int, T],
        texts: Sequence[str],
        group: Sequence[int],
        make: Callable[[Features], list[T]],
        options: dict[str, Any],
    ) -> None:
        try:
            rows = make(self._run([texts[place] for place in group], options))
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            torch.cuda.empty_cache()
            for half in halves(group):
                self._fill(made, texts, half, make, options)
            return
        made.update(zip(group, rows, strict=True))

    @torch.inference_mode()
    def _run(self, texts: list[str], options: dict[str, Any]) -> Features:
        first = self.modules[0]
        with self._lock:
            given = first.preprocess(texts, prompt=self.prefix or None, task=self._task)
        device = next(first.parameters()).device
        features = {
            name: each.to(device) if isinstance(each, torch.Tensor) else each
            for name, each in given.items()
        }
        options = {"task": self._task} | options
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            for module in self.modules:
                takes = getattr(module, "forward_kwargs", ())
                features = module(features, **{k: v for k, v in options.items() if k in takes})
        return features


def pipelines(model: Any) -> tuple[Pipeline, Pipeline]:
    """The routes of queries and of documents, which take turns at the tokenizer.

    Raises:
        ValueError: if the model routes texts, and has no route for one of them.
    """
    lock = threading.Lock()
    return Pipeline(model, "query", lock), Pipeline(model, "document", lock)


def contract_of(asked: Pipeline, shown: Pipeline, **fields: Any) -> Contract:
    """How a model that gives no dense vectors is spoken to: its `dim` means nothing."""
    return Contract(
        family="bidirectional",
        pooling="mean",
        dim=1,
        query_prefix=asked.prefix,
        document_prefix=shown.prefix,
        query_tokens=asked.budget,
        document_tokens=shown.budget,
        **fields,
    )


def _route(model: Any, task: Task) -> list[Any]:
    route: list[Any] = []
    for module in model:
        if not isinstance(module, Router):
            route.append(module)
        elif task in module.sub_modules:
            route.extend(cast(Any, module.sub_modules[task]))
        else:
            known = ", ".join(module.sub_modules)
            raise ValueError(f"the model has routes for {known}; expected one for {task}")
    return route


def _budget(first: Any, task: Task) -> int:
    expansion = getattr(first, "query_expansion", None) if task == "query" else None
    if expansion and expansion["strategy"] == "fixed":
        return int(expansion["length"])
    return int(getattr(first, f"{task}_length", None) or first.max_seq_length)
