"""Some rows or columns of a matrix, and a container in which a tensor is cut down to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

from torch import Tensor
from typing_extensions import override

from rankscope.io.containers.lens import Lens, Part
from rankscope.io.containers.store import TensorInfo, TensorStore

__all__ = ["Block", "Sliced"]


@dataclass(frozen=True)
class Block:
    """The same rows of every group of rows of a matrix.

    Attributes
    ----------
    groups : int
        How many groups of equally many rows the matrix is; 1 for one run of rows.
    start, stop : int
        Which rows of each group, from 0, `stop` not among them.
    columns : bool
        Whether columns are meant in place of rows.

    Examples
    --------
    >>> import torch
    >>> Block(2, 0, 1).take(torch.arange(4)[:, None]).flatten().tolist()
    [0, 2]
    >>> Block(2, 0, 1).shape((4, 7))
    (2, 7)
    """

    groups: int
    start: int
    stop: int
    columns: bool = False

    @property
    def T(self) -> Block:  # noqa: N802 - the field's name for the transpose
        """What it is of the transposed matrix."""
        return replace(self, columns=not self.columns)

    def take(self, matrix: Tensor) -> Tensor:
        """Return the rows, in their order, of a matrix whose rows the groups divide."""
        if self.columns:
            return self.T.take(matrix.T).T
        columns = matrix.shape[1]
        grouped = matrix.reshape(self.groups, -1, columns)
        return grouped[:, self.start : self.stop].reshape(-1, columns)

    def put(self, part: Tensor, count: int) -> Tensor:
        """Return a matrix of `count` rows that is zero but for these, which are those of `part`.

        Examples
        --------
        >>> import torch
        >>> Block(2, 0, 1).put(torch.tensor([[5], [7]]), 4).flatten().tolist()
        [5, 0, 7, 0]
        """
        if self.columns:
            return self.T.put(part.T, count).T
        columns = part.shape[1]
        whole = part.new_zeros(self.groups, count // self.groups, columns)
        whole[:, self.start : self.stop] = part.reshape(self.groups, -1, columns)
        return whole.flatten(0, 1)

    def shape(self, whole: tuple[int, int]) -> tuple[int, int]:
        """Return the shape of what is taken, given the matrix's."""
        count = self.groups * (self.stop - self.start)
        return (whole[0], count) if self.columns else (count, whole[1])


@final
class Sliced(Lens):
    """A container of one matrix, cut down to a block of it as it is read."""

    def __init__(self, store: TensorStore, name: str, block: Block) -> None:
        super().__init__(store)
        self.name = name
        self.block = block

    @cached_property
    @override
    def parts(self) -> Mapping[str, Part]:
        return {self.name: Part(self.name)}

    @cached_property
    @override
    def tensors(self) -> Mapping[str, TensorInfo]:
        whole = self.store.tensors[self.name]
        rows, columns = whole.shape
        return {self.name: TensorInfo(whole.dtype, self.block.shape((rows, columns)))}

    @override
    def read(self, name: str) -> Tensor:
        return self.block.take(super().read(name))
