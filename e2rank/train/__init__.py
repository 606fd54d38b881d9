"""Training the encoder to read listwise prompts."""

from e2rank.train.config import TrainConfig
from e2rank.train.loop import train

__all__ = ["TrainConfig", "train"]
