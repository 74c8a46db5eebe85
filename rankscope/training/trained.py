"""The model of a run: before its first step, and as it was written."""

from __future__ import annotations

from pathlib import Path

from rankscope.training.config import TrainingConfig
from rankscope.training.folder import recorded_config
from rankscope.training.methods import METHODS
from rankscope.training.model import GPT, Architecture, new_model
from rankscope.training.weights import load_model

__all__ = ["initial_model", "load_trained"]


def initial_model(config: TrainingConfig) -> GPT:
    """Return the model that the first step of a run changes."""
    if config.base is None:
        model = new_model(Architecture(config.layers, config.width), seed=config.init_seed)
    else:
        model = load_model(config.base)
    METHODS[config.method].prepare(model, config)
    return model


def load_trained(folder: str | Path) -> GPT:
    """Return the model of any run, ready to be evaluated.

    What was added to the base, such as adapters, stays apart from its weights.

    Parameters
    ----------
    folder : path
        Of a run; its base is looked for where it was when the run was made.

    Raises
    ------
    SourceError
        If the run, its weights or its base cannot be read, or do not belong together.
    """
    config = recorded_config(folder)
    model = initial_model(config)
    METHODS[config.method].load(Path(folder), model)
    return model.eval()
