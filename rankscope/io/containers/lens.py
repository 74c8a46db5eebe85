"""Another view of a container: tensors renamed, sliced or flattened as they are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from rankscope.io.containers.store import TensorInfo, TensorStore

__all__ = ["Cleaned", "Lens", "Part", "clean_names", "cleaned"]

# What torch.compile and FSDP put inside paths, and DDP and DeepSpeed before them.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PREFIX = "module."


@dataclass(frozen=True)
class Part:
    """Where a lens finds one tensor.

    Attributes
    ----------
    name : str
        In the container.
    index : int or None
        Along the first dimension of a stack of matrices.
    rows : int or None
        How many of the first rows.
    flat : bool
        Whether (out, in, kernel…) becomes (out, in·kernel…).
    """

    name: str
    index: int | None = None
    rows: int | None = None
    flat: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the part's shape, given the whole tensor's."""
        shape = stored if self.index is None else stored[1:]
        if self.rows is not None:
            shape = (self.rows, *shape[1:])
        return (shape[0], TensorInfo("", shape[1:]).parameters) if self.flat else shape

    def cut(self, tensor: Tensor) -> Tensor:
        """Return the part of the whole tensor."""
        if self.index is not None:
            tensor = tensor[self.index]
        if self.rows is not None:
            tensor = tensor[: self.rows]
        return tensor.flatten(1) if self.flat else tensor


class Lens(TensorStore):
    """A container seen otherwise; it reads nothing but what the container reads."""

    def __init__(self, store: TensorStore) -> None:
        self.store = store
        self.label = store.label

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("parts", "tensors")}

    @cached_property
    @abstractmethod
    def parts(self) -> Mapping[str, Part]:
        """Where each tensor lies, by the name that the lens gives it."""

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        whole = self.store.tensors
        return {
            name: TensorInfo(whole[part.name].dtype, part.shape(whole[part.name].shape))
            for name, part in self.parts.items()
        }

    @property
    @override
    def metadata(self) -> Mapping[str, str]:
        return self.store.metadata

    @override
    def read(self, name: str) -> Tensor:
        part = self.parts[name]
        return part.cut(self.store.read(part.name))

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        return self.store.provenance

    @property
    @override
    def files(self) -> tuple[dict[str, Any], ...]:
        return self.store.files


@final
class Cleaned(Lens):
    """A container without what wrappers of modules add to the names."""

    @cached_property
    @override
    def parts(self) -> Mapping[str, Part]:
        return {new: Part(old) for new, old in clean_names(self.store.tensors).items()}


def cleaned(store: TensorStore) -> TensorStore:
    """Return the container without wrappers in its names; itself if there are none."""
    return store if all(n == o for n, o in clean_names(store.tensors).items()) else Cleaned(store)


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names without wrappers, each with the name it had.

    ``_orig_mod.`` and the like go wherever they stand, ``module.`` only from the front and
    only if every name has it. Names that would become one are left as they are.

    Examples
    --------
    >>> clean_names(["module._orig_mod.h.0.q", "module.h._orig_mod.1.q"])
    {'h.0.q': 'module._orig_mod.h.0.q', 'h.1.q': 'module.h._orig_mod.1.q'}
    """
    originals = list(names)
    bare = [".".join(s for s in name.split(".") if s not in _WRAPPERS) for name in originals]
    while bare and all(name.startswith(_PREFIX) for name in bare):
        bare = [name.removeprefix(_PREFIX) for name in bare]
    if len(set(bare)) < len(originals) or "" in bare:
        bare = originals
    return dict(zip(bare, originals, strict=True))
