"""The ways of training: each says what is trained, how fast, and how it is kept."""

from __future__ import annotations

from rankscope.training.methods.adapters import LoRA, LoRAPlus, RsLoRA
from rankscope.training.methods.bias import Bias
from rankscope.training.methods.bottleneck import Bottleneck
from rankscope.training.methods.dora import DoRA
from rankscope.training.methods.ia3 import IA3
from rankscope.training.methods.method import Method, MethodName, trained
from rankscope.training.methods.prefix import Prefix
from rankscope.training.methods.qlora import QLoRA
from rankscope.training.methods.whole import Full, Last, PreTraining

__all__ = ["METHODS", "Method", "MethodName", "trained"]

_ALL = (
    *(PreTraining, Full, LoRA, RsLoRA, DoRA, LoRAPlus, QLoRA),
    *(Bias, Last, IA3, Bottleneck, Prefix),
)
METHODS: dict[MethodName, Method] = {method.name: method() for method in _ALL}
