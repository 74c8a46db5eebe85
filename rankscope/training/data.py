"""Batches of text: seeded, endless, and without the questions held out for evaluation."""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rankscope.training.draws import Chance
from rankscope.training.languages import LONGEST, Text, mixture_text, sql_text
from rankscope.training.model import CONTEXT
from rankscope.training.slots import USUAL_DIFFICULTY, slots_text
from rankscope.training.vocabulary import PAD, encode

__all__ = ["IGNORED", "Labels", "Split", "Task", "batch", "example", "is_held_out"]

Task: TypeAlias = Literal["mixture", "sql", "slots"]
Labels: TypeAlias = Literal["true", "shuffled"]
Split: TypeAlias = Literal["train", "held-out"]

IGNORED = -100  # the target of a position without loss, as torch's cross-entropy has it


def is_held_out(key: str) -> bool:
    """Return whether a text is kept from training: one in sixteen, by the hash of its key.

    The choice looks at nothing else, so that runs of every seed hold out the same questions.
    """
    return hashlib.sha256(key.encode()).digest()[0] < 16


def example(task: Task, seed: int, split: Split, *key: int, difficulty: int | None = None) -> Text:
    """Return one example, a pure function of its arguments.

    Parameters
    ----------
    task : {"mixture", "sql", "slots"}
    seed : int
    split : {"train", "held-out"}
        No question of one is ever in the other, whatever the seeds.
    *key : int
        Position in the endless stream; for the mixture, row and line.
    difficulty : int, optional
        Of slots alone: 1 to 3, or 2 unless given.
    """
    chance = Chance(task, split, seed, *key)
    while True:
        text = _text(task, chance, difficulty)
        if is_held_out(text.key) == (split == "held-out"):
            return text


def _text(task: Task, chance: Chance, difficulty: int | None) -> Text:
    if task == "slots":
        return slots_text(chance, USUAL_DIFFICULTY if difficulty is None else difficulty)
    return sql_text(chance) if task == "sql" else mixture_text(chance)


def batch(
    task: Task,
    seed: int,
    split: Split,
    first: int,
    count: int,
    *,
    difficulty: int | None = None,
    labels: Labels = "true",
) -> tuple[Tensor, Tensor]:
    """Return examples `first` to `first + count` as inputs and targets, both (count, 128) int64.

    A row of the mixture is filled with lines and cut at its end, and every position counts. A
    row of questions holds one, padded; only the positions that predict its answer count, the
    others' target is `IGNORED`. With shuffled labels the answer is another question's.
    """
    rows = [
        _packed_row(seed, split, index)
        if task == "mixture"
        else _row(*_asked(task, seed, split, index, difficulty, labels))
        for index in range(first, first + count)
    ]
    inputs, targets = np.stack(rows, axis=1)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _asked(
    task: Task, seed: int, split: Split, index: int, difficulty: int | None, labels: Labels
) -> tuple[str, str]:
    """Return a question and the answer that counts as right."""
    text = example(task, seed, split, index, difficulty=difficulty)
    if labels == "true":
        return text.question, text.answer
    return text.question, _another_answer(task, seed, text, difficulty)


def _another_answer(task: Task, seed: int, text: Text, difficulty: int | None) -> str:
    """Return the wrong answer of a question: the same whenever that question is asked again."""
    chance = Chance(task, "labels", seed, text.key)
    while True:
        other = _text(task, chance, difficulty)
        fits = len(text.question + other.answer) <= LONGEST
        if fits and other.answer != text.answer and not is_held_out(other.key):
            return other.answer


def _row(question: str, answer: str) -> np.ndarray:
    ids = encode(question + answer)
    row = np.full((2, CONTEXT), PAD, np.int64)
    row[1] = IGNORED
    row[0, : len(ids) - 1] = ids[:-1]
    counted = slice(len(question) - 1, len(ids) - 1)
    row[1, counted] = ids[1:][counted]
    return row


def _packed_row(seed: int, split: Split, index: int) -> np.ndarray:
    text, line = "", 0
    while len(text) <= CONTEXT:
        text += str(example("mixture", seed, split, index, line))
        line += 1
    ids = encode(text[: CONTEXT + 1])
    return np.stack([ids[:-1], ids[1:]])
