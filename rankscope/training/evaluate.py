"""How well a model does on questions that it was not trained on."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankscope.training.data import IGNORED, Task, batch
from rankscope.training.vocabulary import SIZE

__all__ = ["Evaluation", "autocast", "evaluate", "loss_of"]

_ROWS = 32  # at a time
_SEED = 0  # of the held-out stream: every run answers the same questions


class Evaluation(TypedDict):
    """Scores on held-out rows; the answers are given while predicting (teacher forcing)."""

    rows: int
    loss: float  # nats per counted character
    token_accuracy: float  # share of counted characters that are the likeliest one
    exact_match: float | None  # share of answers right in every character; None for the mixture


def autocast(precision: str) -> torch.autocast:
    """Return the context in which matrix products are taken in `precision`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def loss_of(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy, nats, of (batch, length, vocabulary) over counted targets."""
    return functional.cross_entropy(
        logits.float().view(-1, SIZE), targets.view(-1), ignore_index=IGNORED, reduction=reduction
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, rows: int, precision: str, *, difficulty: int | None = None
) -> Evaluation:
    """Return the scores of `model` on the first `rows` of the task's held-out stream.

    The answers are the true ones, whatever the labels of the training were.
    """
    was_training = model.training
    model.eval()
    total = right = counted = exact = 0.0
    for first in range(0, rows, _ROWS):
        count = min(_ROWS, rows - first)
        inputs, targets = batch(task, _SEED, "held-out", first, count, difficulty=difficulty)
        with autocast(precision):
            logits = model(inputs)
        counts = targets != IGNORED
        hits = logits.argmax(-1) == targets
        total += loss_of(logits, targets, "sum").item()
        right += (hits & counts).sum().item()
        counted += counts.sum().item()
        exact += (hits | ~counts).all(-1).sum().item()
    model.train(was_training)
    return Evaluation(
        rows=rows,
        loss=total / counted,
        token_accuracy=right / counted,
        exact_match=None if task == "mixture" else exact / rows,
    )
