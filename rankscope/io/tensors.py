"""Named tensors of any container, read one at a time: header first, numbers when asked."""

from __future__ import annotations

from rankscope.io.containers.arrays import ArraysFile
from rankscope.io.containers.memory_dict import StateDict
from rankscope.io.containers.opening import open_store
from rankscope.io.containers.safetensors_file import SafetensorsFile
from rankscope.io.containers.sharded import Sharded
from rankscope.io.containers.store import TensorInfo, TensorStore
from rankscope.io.containers.torch_file import TorchFile

__all__ = [
    "ArraysFile",
    "SafetensorsFile",
    "Sharded",
    "StateDict",
    "TensorInfo",
    "TensorStore",
    "TorchFile",
    "open_store",
]
