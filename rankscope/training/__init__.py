"""The trainer: a small character model, adapters, and one loop that writes what is measured."""

from rankscope.training.config import TrainingConfig
from rankscope.training.folder import recorded_config
from rankscope.training.loop import Run, train
from rankscope.training.trained import load_trained

__all__ = ["Run", "TrainingConfig", "load_trained", "recorded_config", "train"]
