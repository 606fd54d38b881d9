"""What a training run is: one frozen record, refused where it could not train anything."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from e2rank.train.losses import LISTWISE
from e2rank.train.ranges import as_tuple, check_ranges, check_strings
from e2rank.train.sampling import Sampling

_CHOICES: dict[str, tuple[str, ...]] = {
    "prompt": ("text", "vectors", "none"),
    "tune": ("lora", "full", "heads"),
    "listwise": tuple(LISTWISE),
    "schedule": ("linear", "constant"),
    "precision": ("float32", "bfloat16"),
}
_LEAST = {
    "lora_rank": 1,
    "lora_alpha": 1,
    "lora_dropout": 0,
    "prompt_tokens": 1,
    "prompt_document_tokens": 1,
    "weight": 0,
    "lists": 1,
    "negatives_among": 1,
    "token_budget": 1,
    "chunk_tokens": 1,
    "epochs": 1,
    "steps": 1,
    "warmup": 0,
    "weight_decay": 0,
    "seed": 0,
    "dev_every": 1,
    "dev_queries": 1,
    "dev_depth": 1,
    "save_every": 1,
    "threads": 1,
}
_ABOVE_ZERO = (
    "temperature",
    "scale",
    "teacher_temperature",
    "learning_rate",
    "clip",
)
_MOST = {"lora_dropout": 0.999, "warmup": 1.0}
_WORDED = ("query_prefix", "query_suffix", "prompt_before", "prompt_query", "prompt_after")
_SWITCHES = ("train_documents", "dropout", "shuffle", "gradient_checkpointing")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained to read listwise prompts.

    loss = InfoNCE(query vector; the best-labelled document of its list against the others and
    those of the batch's other lists) + weight * listwise(scale * cosine(prompt vector, documents
    of its list)).

    With `train_documents` the vectors of documents change too, as published, and the result is a
    model; without it they stay those of the base, so that its indexes stay valid, and the result
    is an adapter.

    Args:
        base: preset, folder or owner/name of the model to start from.
        data: JSONL files of examples, see `read_examples`.
        corpora: JSONL corpora with the texts of examples that name documents by id.
        out: a new or empty folder for the result, its log and its checkpoints.
        prompt: "text" shows the list's documents in the prompt; "vectors" shows their vectors, as
            soft tokens; "none" is the control of both, whose listwise loss is put on the plain
            query vector.
        train_documents: whether documents are read by the weights that are tuned.
        tune: "lora" for low-rank updates, "full" for every weight, "heads" for no weight of the
            model. What makes soft tokens is trained in any case.
        lora_rank: of each update.
        lora_alpha: an update is multiplied with lora_alpha / lora_rank.
        lora_dropout: of an update's input, 0 to 1.
        dropout: whether the base's own dropout, if it has any, is on. With it attention cannot run
            fused: a listwise prompt then takes several times the memory and the time.
        prompt_tokens: budget of a prompt, in place of the base's own.
        prompt_document_tokens: most tokens of a document in a prompt, likewise.
        wordings: by source of lists, what of the contract's wording of queries and prompts is
            another for them, such as an instruction of their own; the result keeps the base's.
        temperature: of InfoNCE.
        listwise: name of the listwise loss, one of `LISTWISE`.
        weight: of the listwise loss.
        scale: of the cosines that the listwise loss sees.
        teacher_temperature: labels are divided by it; only losses that look at differences of
            labels, not at their order alone, notice.
        list_sizes: most documents of a list, drawn for each batch.
        lists: lists of a batch, over all processes.
        negatives_among: so many lists of a batch at a time are each other's negatives, as they are
            on one device that gathers none from others; None for all.
        token_budget: most tokens of a batch, see `Sampling`.
        shuffle: whether documents are shown in random order.
        chunk_tokens: tokens, padding included, whose graph is held at a time in each process;
            it bounds memory and, where `lora_dropout` is 0 and `dropout` false, does not change the
            result; each chunk draws its own dropout.
        epochs: passes over the examples.
        steps: batches, however many epochs they take; None for whole epochs.
        learning_rate: of AdamW, at its highest.
        warmup: part of the steps in which the learning rate rises to it.
        schedule: "linear" falls to 0 at the end, "constant" stays.
        weight_decay: of AdamW.
        clip: longest gradient.
        seed: fixes batches, dropout and the updates' first values.
        precision: of the model's arithmetic; weights are float32 in either.
        gradient_checkpointing: less memory for one forward pass more.
        dev: BEIR folder to measure nDCG@10 on, or "".
        dev_split: its qrels.
        dev_run: TREC run with the candidates; "" takes those nearest to the base's query vector.
        dev_every: steps between two measurements.
        dev_queries: only the first so many.
        dev_depth: candidates of a query, all of them shown in the prompt; in one of vectors, as
            many as its longest list had.
        save_every: steps between two checkpoints.
        threads: of the CPU; None leaves torch's choice.

    Source: E2Rank, arXiv 2510.22733: loss, temperature, weight, scale, LoRA's sizes, warm-up.
    """

    base: str = "minilm-base"
    data: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    out: str = ""
    prompt: Literal["text", "vectors", "none"] = "text"
    train_documents: bool = False
    tune: Literal["lora", "full", "heads"] = "lora"
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    dropout: bool = False
    prompt_tokens: int | None = None
    prompt_document_tokens: int | None = None
    wordings: Mapping[str, Mapping[str, Any]] | None = None
    temperature: float = 0.03
    listwise: str = "ranknet"
    weight: float = 2.0
    scale: float = 10.0
    teacher_temperature: float = 1.0
    list_sizes: tuple[int, ...] = tuple(range(5, 21))
    lists: int = 32
    negatives_among: int | None = None
    token_budget: int | None = None
    shuffle: bool = True
    chunk_tokens: int = 8192
    epochs: int = 1
    steps: int | None = None
    learning_rate: float = 1e-4
    warmup: float = 0.03
    schedule: Literal["linear", "constant"] = "linear"
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    dev: str = ""
    dev_split: str = "dev"
    dev_run: str = ""
    dev_every: int = 100
    dev_queries: int = 100
    dev_depth: int = 20
    save_every: int = 500
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be trained.

        Raises:
            ValueError: naming the field, its value and what it must be.
        """
        check_strings(self, ("base", "out", "dev", "dev_split", "dev_run"))
        for name, kind in (("data", str), ("corpora", str), ("list_sizes", int)):
            as_tuple(self, name, kind)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                raise ValueError(f"{name} is {given!r}; expected one of {', '.join(allowed)}")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        check_ranges(self, _LEAST, _ABOVE_ZERO, _MOST)
        self._check_wordings()
        self._check_together()

    def sampling(self) -> Sampling:
        """How its batches are made."""
        return Sampling(
            lists=self.lists,
            list_sizes=self.list_sizes,
            token_budget=self.token_budget,
            shuffle=self.shuffle,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-able."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    def _check_wordings(self) -> None:
        tables = {} if self.wordings is None else self.wordings
        if not isinstance(tables, Mapping) or not all(
            isinstance(fields, Mapping) for fields in tables.values()
        ):
            raise ValueError(f"wordings is {tables!r}; expected a table for each source")
        for source, fields in tables.items():
            for name, text in fields.items():
                if name not in _WORDED or not isinstance(text, str):
                    raise ValueError(
                        f"wordings has {name} = {text!r} for {source!r}; expected texts for "
                        f"{', '.join(_WORDED)}"
                    )

    def _check_together(self) -> None:
        if not self.data:
            raise ValueError("data names no file; expected JSONL files of examples")
        if not self.out:
            raise ValueError("out is empty; expected a folder to write the result to")
        if self.tune == "full" and not self.train_documents:
            raise ValueError(
                "tune='full' with train_documents=false is refused: every weight changes, so the "
                "result is no small adapter beside a base whose document vectors stay; take "
                "tune='lora', or train_documents=true"
            )
        if self.prompt == "vectors" and self.train_documents:
            raise ValueError(
                "prompt='vectors' with train_documents=true is refused: soft tokens are made of "
                "vectors that stay; take train_documents=false"
            )
        if self.tune == "heads" and self.prompt != "vectors":
            raise ValueError(
                f"tune='heads' with prompt={self.prompt!r} would train nothing; take tune='lora'"
            )
        if self.dev_run and not self.dev:
            raise ValueError("dev_run is given without dev; name the BEIR folder that it is of")
        self.sampling()
