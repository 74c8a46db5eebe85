"""What a run takes: processor time and bytes, estimated before it is trained."""

from __future__ import annotations

from rankscope.training import TrainingConfig
from rankscope.training.model import Architecture

__all__ = ["parameters", "run_bytes", "run_seconds"]

# Of a row of 128 characters, on one core with bfloat16 products, in a block of width 256:
# forward and backward, and forward alone. A small model's time goes into what is not a product,
# so that rank and targets hardly matter.
_TRAINED_ROW, _EVALUATED_ROW = 3.6e-3, 1.5e-3
_MOMENT = 5e-9  # of a trained weight in every step: gradient, clipping, AdamW
_STARTED = 1.0


def run_seconds(config: TrainingConfig, base: TrainingConfig) -> float:
    """Return about how many seconds of one core a run takes; right to a factor of two."""
    blocks = base.layers * base.width / 256
    tasks = 1 if config.base is None else 2
    trained = config.steps * config.batch * _TRAINED_ROW + config.steps * _MOMENT * parameters(
        config, base
    )
    return _STARTED + blocks * (trained + tasks * config.held_out * _EVALUATED_ROW)


def run_bytes(config: TrainingConfig, base: TrainingConfig) -> int:
    """Return about how many bytes a run leaves: its weights in float32, and checkpoints."""
    return 4 * parameters(config, base) * (1 + len(config.save_at))


def parameters(config: TrainingConfig, base: TrainingConfig) -> int:
    """Return how many weights a run trains: r·(d + k) of each adapted matrix, all, or few (0)."""
    if config.method in ("pre-training", "full"):
        return Architecture(base.layers, base.width).parameters
    wide = sum(name in ("up", "down") for name in config.targets)
    sides = base.width * (2 * (len(config.targets) - wide) + 5 * wide)
    return base.layers * int(config.rank or 0) * sides
