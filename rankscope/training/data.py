"""Batches of text: seeded, endless, and without the questions held out for evaluation."""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rankscope.training.draws import Chance
from rankscope.training.languages import Text, mixture_text, sql_text
from rankscope.training.model import CONTEXT
from rankscope.training.vocabulary import PAD, encode

__all__ = ["IGNORED", "Split", "Task", "batch", "example", "is_held_out"]

Task: TypeAlias = Literal["mixture", "sql"]
Split: TypeAlias = Literal["train", "held-out"]

IGNORED = -100  # the target of a position without loss, as torch's cross-entropy has it

_GENERATORS = {"mixture": mixture_text, "sql": sql_text}


def is_held_out(key: str) -> bool:
    """Return whether a text is kept from training: one in sixteen, by the hash of its key.

    The choice looks at nothing else, so that runs of every seed hold out the same questions.
    """
    return hashlib.sha256(key.encode()).digest()[0] < 16


def example(task: Task, seed: int, split: Split, *key: int) -> Text:
    """Return one example, a pure function of its arguments.

    Parameters
    ----------
    task : {"mixture", "sql"}
    seed : int
    split : {"train", "held-out"}
        No question of one is ever in the other, whatever the seeds.
    *key : int
        Position in the endless stream; for the mixture, row and line.
    """
    chance = Chance(task, split, seed, *key)
    while True:
        text = _GENERATORS[task](chance)
        if is_held_out(text.key) == (split == "held-out"):
            return text


def batch(task: Task, seed: int, split: Split, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Return examples `first` to `first + count` as inputs and targets, both (count, 128) int64.

    A row of the mixture is filled with lines and cut at its end, and every position counts. A
    row of questions holds one, padded; only the positions that predict its answer count, the
    others' target is `IGNORED`.
    """
    rows = [_row(task, seed, split, index) for index in range(first, first + count)]
    inputs, targets = np.stack([row[:2] for row in rows], axis=1)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _row(task: Task, seed: int, split: Split, index: int) -> np.ndarray:
    if task == "mixture":
        return _packed_row(seed, split, index)
    text = example(task, seed, split, index)
    ids = encode(str(text))
    row = np.full((2, CONTEXT), PAD, np.int64)
    row[1] = IGNORED
    row[0, : len(ids) - 1] = ids[:-1]
    answer = slice(len(text.question) - 1, len(ids) - 1)
    row[1, answer] = ids[1:][answer]
    return row


def _packed_row(seed: int, split: Split, index: int) -> np.ndarray:
    text, line = "", 0
    while len(text) <= CONTEXT:
        text += str(example("mixture", seed, split, index, line))
        line += 1
    ids = encode(text[: CONTEXT + 1])
    return np.stack([ids[:-1], ids[1:]])
