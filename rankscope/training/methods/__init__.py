"""The ways of training: each one file that says what is trained, how fast, and how it is kept."""

from __future__ import annotations

from rankscope.training.methods.adapters import LoRA
from rankscope.training.methods.method import Method, MethodName, trained
from rankscope.training.methods.whole import Full, PreTraining

__all__ = ["METHODS", "Method", "MethodName", "trained"]

METHODS: dict[MethodName, Method] = {
    method.name: method for method in (PreTraining(), Full(), LoRA())
}
