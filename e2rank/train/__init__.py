"""Training: listwise prompts, token and sparse heads, adapters of an index to its own corpus."""

from e2rank.train.adapt import Adapted, adapt
from e2rank.train.config import TrainConfig
from e2rank.train.late import LateConfig, train_tokens
from e2rank.train.loop import train
from e2rank.train.place import remove_adapter
from e2rank.train.querymap import AdaptConfig
from e2rank.train.sparse import SparseConfig, train_sparse

__all__ = [
    "AdaptConfig",
    "Adapted",
    "LateConfig",
    "SparseConfig",
    "TrainConfig",
    "adapt",
    "remove_adapter",
    "train",
    "train_sparse",
    "train_tokens",
]
