"""The model of a run: before its first step, and as it was written."""

from __future__ import annotations

from pathlib import Path

from rankscope.errors import SourceError
from rankscope.training.config import TrainingConfig
from rankscope.training.folder import recorded_config, recorded_identity
from rankscope.training.methods import METHODS
from rankscope.training.model import GPT, Architecture, new_model
from rankscope.training.weights import load_model, sha256_of

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
    if config.base:
        _check_base(Path(config.base), recorded_identity(folder)["base_sha256"], Path(folder))
    METHODS[config.method].load(Path(folder), model)
    return model.eval()


def _check_base(base: Path, recorded: str, run: Path) -> None:
    path = base / "model.safetensors"
    if sha256_of(path) != recorded:
        raise SourceError(
            "the base is not the one that the run began from",
            where=str(path),
            expected=f"sha256 {recorded}, as {run} records",
            got=f"sha256 {sha256_of(path)}",
            fix="put the base of the run there again, or train the run anew",
        )
