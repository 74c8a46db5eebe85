"""The trainer: a small character model, adapters, and one loop that writes what is measured."""

from rankscope.training.config import TrainingConfig
from rankscope.training.folder import recorded_config
from rankscope.training.loop import Run, train

__all__ = ["Run", "TrainingConfig", "recorded_config", "train"]
