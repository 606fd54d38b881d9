"""The training loop: read it from `train` down."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from e2rank.durable import file_entry
from e2rank.train import distributed, model, saving
from e2rank.train.checkpoint import Checkpoint
from e2rank.train.config import TrainConfig
from e2rank.train.dev import Dev, load_dev
from e2rank.train.distributed import World
from e2rank.train.examples import Example, read_lists
from e2rank.train.folder import claim, tidy
from e2rank.train.lists import check_order, check_room, check_sources, contrasted
from e2rank.train.log import RunLog, draw_curve, read_log
from e2rank.train.model import Trainee
from e2rank.train.sampling import Epoch, ListBatch
from e2rank.train.step import Frozen, freeze, learn


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Callable[[int], None] | None = None,
    device: str | None = None,
) -> Path:
    """Train, and write an adapter or a model folder that `load_encoder` loads.

    Under torchrun every process calls this, and without dropout (`lora_dropout` is 0.05 unless
    given) the result is that of one process; with it each process draws its own.

    Args:
        config: everything that makes a run.
        resume: go on from the last checkpoint of a run that was interrupted.
        progress: called with the number of steps done.
        device: a torch device; None takes the GPU when there is one, "cuda" needs one.
    Returns:
        The folder.
    Raises:
        ValueError: if the folder is taken, or a resumed run is another one.
        CorpusError: for a row that is no example or does not fit into its prompt, or where no list
            has anything to teach.
        AdapterError: if the result, read back, is not what was trained.
        EncodingError: if the loss is a NaN or an infinity.
    """
    world = distributed.start(device=device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    gpus = [world.device] if world.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(gpus):
            return _train(config, world, resume, progress or (lambda done: None))
    finally:
        distributed.stop()


@dataclass(slots=True)
class _Run:
    """What a run holds; `done` and the weights are what changes."""

    config: TrainConfig
    world: World
    data: dict[str, str]
    examples: list[Example]
    total: int
    trainee: Trainee
    frozen: Frozen | None
    dev: Dev | None
    weights: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    log: RunLog
    done: int


def _train(
    config: TrainConfig, world: World, resume: bool, progress: Callable[[int], None]
) -> Path:
    run = _begin(config, world, resume)
    if not run.done:
        _measure(run)
    for batch in _stream(run):
        begun = time.perf_counter()
        # Drawn anew for every step, so that a resumed run draws what this one would have.
        torch.manual_seed(_seed(config.seed, run.done, world.rank))
        rate = learning_rate(run.done, run.total, config)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        run.optimizer.zero_grad(set_to_none=True)
        losses, tokens = learn(run.trainee, config, batch, run.frozen, world)
        distributed.reduce_gradients(run.weights.values())
        torch.nn.utils.clip_grad_norm_(run.weights.values(), config.clip)
        run.optimizer.step()
        run.done += 1

        seconds = time.perf_counter() - begun
        run.log.line(
            step=run.done,
            loss=losses.total.item(),
            infonce=losses.infonce.item(),
            listwise=losses.listwise.item(),
            lr=rate,
            lists_s=round(len(batch.examples) / seconds, 3),
            tokens_s=round(tokens / seconds, 1),
            seconds=round(seconds, 4),
        )
        if run.done % config.dev_every == 0 or run.done == run.total:
            _measure(run)
        if run.done % config.save_every == 0 or run.done == run.total:
            # At the end too: a result that cannot be written is not trained again.
            _save(run)
        progress(run.done)
    return _finish(run)


def _begin(config: TrainConfig, world: World, resume: bool) -> _Run:
    out = Path(config.out)
    saved = claim(out, resume, world)
    data = {path: _file_hash(Path(path)) for path in (*config.data, *config.corpora)}
    if saved is not None:
        saved.check(config.to_dict(), data)
    examples = read_lists(config.data, config.corpora)
    check_order(examples, config.data, others=contrasted(examples, config))
    check_sources(examples, config)
    # The base reads all that stays as it is; only then its weights are made ready to change.
    trainee = model.load(config, _sizes(examples, config), world.device)
    if saved is not None:
        saved.check_base(trainee.fingerprint)
    check_room(trainee, config, examples)
    # Before the documents are read, which takes longest: it may not be there.
    dev = load_dev(config, trainee) if world.main else None
    frozen = None if config.train_documents else freeze(trainee, examples, out, world)
    torch.manual_seed(config.seed)
    model.tune(trainee, config)
    weights = trainee.weights()
    optimizer = torch.optim.AdamW(
        weights.values(), config.learning_rate, weight_decay=config.weight_decay
    )
    done = _restore(saved, weights, optimizer) if saved else 0
    return _Run(
        config=config,
        world=world,
        data=data,
        examples=examples,
        total=config.steps or _batches(examples, config),
        trainee=trainee,
        frozen=frozen,
        dev=dev,
        weights=weights,
        optimizer=optimizer,
        log=RunLog(out, done, write=world.main),
        done=done,
    )


def _measure(run: _Run) -> None:
    if run.dev is not None:
        run.log.line(step=run.done, dev=run.dev.measure(run.trainee))


def _save(run: _Run) -> None:
    if run.world.main:
        state = run.optimizer.state_dict()
        Checkpoint(
            step=run.done,
            fields=run.config.to_dict(),
            data=run.data,
            base=run.trainee.fingerprint,
            weights=dict(run.weights),
            optimizer=state,
        ).save(Path(run.config.out))


def _finish(run: _Run) -> Path:
    out = Path(run.config.out)
    if run.world.main:
        saving.save(run.trainee, run.config, out, run.examples, _about(run))
        draw_curve(out)
        tidy(out)
    # Nobody leaves before the files are there.
    distributed.mean(0.0)
    return out


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Of step number `step` (from 0) of `total`: up during the warm-up, then down to 0, or level.

    >>> config = TrainConfig(data=("a.jsonl",), out="a", learning_rate=1.0, warmup=0.5)
    >>> [learning_rate(step, 4, config) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    rise = round(config.warmup * total)
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (total - step) / (total - rise)


def _stream(run: _Run) -> Iterator[ListBatch]:
    """The batches that are left, epoch after epoch."""
    sampling = run.config.sampling()
    epochs = (Epoch(run.examples, sampling, number) for number in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(epochs), run.done, run.total)


def _batches(examples: Sequence[Example], config: TrainConfig) -> int:
    epochs = (Epoch(examples, config.sampling(), number) for number in range(config.epochs))
    return sum(1 for epoch in epochs for _ in epoch)


def _sizes(examples: Sequence[Example], config: TrainConfig) -> list[int]:
    """Numbers of documents that a prompt may have."""
    lengths = {len(each) for each in examples}
    return sorted({min(length, size) for length in lengths for size in config.list_sizes})


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def _restore(
    saved: Checkpoint, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> int:
    if saved.weights.keys() != weights.keys():
        raise ValueError("the checkpoint is of other weights than this model's; start again")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved.weights[name])
    optimizer.load_state_dict(saved.optimizer)
    return saved.step


def _about(run: _Run) -> dict[str, Any]:
    losses = [line["loss"] for line in read_log(Path(run.config.out)) if "loss" in line]
    return {
        "config": run.config.to_dict(),
        "data": run.data,
        "examples": len(run.examples),
        "steps": run.total,
        "seed": run.config.seed,
        "processes": run.world.size,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _file_hash(path: Path) -> str:
    """xxh3 of a file's bytes; an empty string where there is none, which reading it will refuse."""
    if not path.is_file():
        return ""
    return str(file_entry(path)["xxh3"])
