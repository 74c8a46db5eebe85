"""One weight update ΔW in its two forms: a product of factors, or a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from rankscope.errors import AdapterError, UpdateError
from rankscope.linalg.blocks import inner, norm

__all__ = ["Compressed", "DenseUpdate", "FactoredUpdate", "Update"]


class Compressed(NamedTuple):
    """An update as ``left @ core @ right.T`` with orthonormal `left` and `right`.

    ``None`` for `left` or `right` is the identity. All in float64, but for the core of a dense
    update, which is its float32 matrix where that holds the numbers exactly.
    """

    left: Float[Tensor, "out p"] | None
    core: Float[Tensor, "p q"]
    right: Float[Tensor, "in q"] | None


class Update(ABC):
    """A weight update ΔW, canonical: (out, in), as in ``y = x @ W.T``.

    Closed under ``+``, ``-``, multiplication by a number and ``.T``. Everything is computed in
    float64, whatever the stored dtype.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the stored numbers (not of the arithmetic)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the stored numbers lie."""

    @property
    def rounding(self) -> float:
        """A bound on the Frobenius norm of what was rounded when the numbers were formed."""
        return 0.0

    @override
    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"{type(self).__name__}({rows} × {columns}, rank at most {self.ceiling})"

    @property
    @abstractmethod
    def ceiling(self) -> int:
        """The largest rank that this form can have."""

    @property
    @abstractmethod
    def T(self) -> Update:  # noqa: N802 - the field's name for the transpose
        """The transpose, of shape ``(in, out)``."""

    @abstractmethod
    def matmul(self, x: Float[Tensor, "in k"]) -> Float[Tensor, "out k"]:
        """Return ``ΔW @ x`` without forming ΔW where it is factored."""

    @abstractmethod
    def term_size(self) -> float:
        """Return the size of the largest term that is added up to ΔW; 0 for a plain matrix.

        Round-off is relative to it: where terms cancel, ΔW is smaller than its own error.
        """

    @abstractmethod
    def compress(self) -> Compressed:
        """Return ``left @ core @ right.T``, the one hook that all spectra and norms use."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "out in"]:
        """Return the matrix ΔW: ``out * in`` float64 numbers."""

    @abstractmethod
    def inner(self, other: Update) -> float:
        """Return the inner product ``sum(ΔW₁ * ΔW₂)``; no product of factors is formed."""

    @abstractmethod
    def to(self, device: str | torch.device) -> Update:
        """Return the same update with its numbers on `device`."""

    @abstractmethod
    def __mul__(self, factor: float) -> Update: ...

    @abstractmethod
    def __add__(self, other: Update) -> Update: ...

    def __rmul__(self, factor: float) -> Update:
        return self * factor

    def __neg__(self) -> Update:
        return self * -1.0

    def __sub__(self, other: Update) -> Update:
        return self + (-other)

    def norm(self) -> float:
        """Return the Frobenius norm ``‖ΔW‖_F``; 0 for an update that is all zero.

        Taken on the core, not on a Gram matrix, so that the difference of two nearly equal
        updates keeps its digits.
        """
        return norm(self.compress().core)


@final
@dataclass(frozen=True, eq=False, repr=False)
class FactoredUpdate(Update):
    """``scale * up @ down``, never multiplied out; `down` reads the input, `up` writes.

    Parameters
    ----------
    up : (out, r) Tensor
        LoRA's B.
    down : (r, in) Tensor
        LoRA's A.
    scale : float
        ``alpha / r``, or whatever the trained model applies.

    Raises
    ------
    AdapterError
        If the factors are not matrices or their ranks differ.

    Examples
    --------
    >>> update = FactoredUpdate(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]]), 2.0)
    >>> update.dense().tolist()
    [[6.0, 8.0], [12.0, 16.0]]
    >>> round(update.norm() ** 2, 9)  # 4 * (1 + 4) * (9 + 16)
    500.0
    """

    up: Float[Tensor, "out r"]
    down: Float[Tensor, "r in"]
    scale: float = 1.0

    def __post_init__(self) -> None:
        up, down = tuple(self.up.shape), tuple(self.down.shape)
        if len(up) != 2 or len(down) != 2 or up[1] != down[0]:
            raise AdapterError(
                "the two factors of an update do not fit together",
                where="FactoredUpdate(up, down)",
                expected="up (out, r) and down (r, in) with one r",
                got=f"up {up} and down {down}",
                fix="pass LoRA's B as up and A as down",
            )

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    @override
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.up.dtype, self.down.dtype)

    @property
    @override
    def device(self) -> torch.device:
        return self.up.device

    @property
    @override
    def ceiling(self) -> int:
        return min(*self.shape, self.up.shape[1])

    @property
    @override
    def T(self) -> FactoredUpdate:
        return FactoredUpdate(self.down.T, self.up.T, self.scale)

    @override
    def matmul(self, x: Float[Tensor, "in k"]) -> Float[Tensor, "out k"]:
        return self.scale * (self.up.double() @ (self.down.double() @ x.double()))

    @override
    def term_size(self) -> float:
        return abs(self.scale) * self._term_sizes.max().item() if self.up.shape[1] else 0.0

    @cached_property
    def _term_sizes(self) -> Float[Tensor, " r"]:
        up, down = (torch.linalg.vector_norm(x, dim=1) for x in self._rows())
        sizes: Tensor = up * down
        return sizes

    def _rows(self) -> tuple[Float[Tensor, "r out"], Float[Tensor, "r in"]]:
        """Return a term's two vectors as rows: to reorder columns costs more than their QR."""
        up, down = (
            x.to(torch.float64, memory_format=torch.contiguous_format)
            for x in (self.up.T, self.down)
        )
        return up, down

    @override
    def compress(self) -> Compressed:
        up, down = self._rows()
        # Strongest term first: the SVD of a core graded downwards keeps every digit of its
        # small singular values, in any other order only those above eps * the largest.
        order = self._term_sizes.argsort(descending=True, stable=True)
        # QR, not a Gram matrix: squaring would lose all that lies below sqrt(eps).
        left, upper = torch.linalg.qr(up[order].T)
        right, lower = torch.linalg.qr(down[order].T)
        return Compressed(left, self.scale * (upper @ lower.T), right)

    @override
    def dense(self) -> Float[Tensor, "out in"]:
        return self.scale * (self.up.double() @ self.down.double())

    @override
    def inner(self, other: Update) -> float:
        _check_same_shape(self, other)
        product = other.matmul(self.down.double().T) * self.up.double()
        return self.scale * product.sum().item()

    @override
    def to(self, device: str | torch.device) -> FactoredUpdate:
        return FactoredUpdate(self.up.to(device), self.down.to(device), self.scale)

    @override
    def __mul__(self, factor: float) -> FactoredUpdate:
        return FactoredUpdate(self.up, self.down, self.scale * factor)

    @override
    def __add__(self, other: Update) -> Update:
        if not isinstance(other, FactoredUpdate):
            return other + self
        _check_same_shape(self, other)
        up = torch.cat([self.scale * self.up.double(), other.scale * other.up.double()], dim=1)
        return FactoredUpdate(up, torch.cat([self.down.double(), other.down.double()]))


@final
@dataclass(frozen=True, eq=False, repr=False)
class DenseUpdate(Update):
    """A weight update that is known as a matrix, for instance fine-tuned minus base.

    Parameters
    ----------
    matrix : (out, in) Tensor
    rounding : float
        A bound on the Frobenius norm of what was rounded when `matrix` was formed; 0 if nothing.

    Raises
    ------
    AdapterError
        If it is not a matrix.

    Examples
    --------
    >>> (DenseUpdate(torch.eye(4)) * 3).norm()
    6.0
    """

    matrix: Float[Tensor, "out in"]
    rounding: float = 0.0

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2:
            raise AdapterError(
                "an update is a matrix",
                where="DenseUpdate(matrix)",
                expected="two dimensions, (out, in)",
                got=f"shape {tuple(self.matrix.shape)}",
                fix="reshape a convolution to (out, in * kernel) first",
            )

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    @override
    def device(self) -> torch.device:
        return self.matrix.device

    @property
    @override
    def ceiling(self) -> int:
        return min(self.shape)

    @property
    @override
    def T(self) -> DenseUpdate:
        return DenseUpdate(self.matrix.T, self.rounding)

    @override
    def matmul(self, x: Float[Tensor, "in k"]) -> Float[Tensor, "out k"]:
        return self.matrix.double() @ x.double()

    @override
    def term_size(self) -> float:
        return 0.0

    @override
    def compress(self) -> Compressed:
        # Half-precision numbers are exact in float32, at half the memory of float64.
        wide = torch.promote_types(self.matrix.dtype, torch.float32)
        return Compressed(None, self.matrix.to(wide), None)

    @override
    def dense(self) -> Float[Tensor, "out in"]:
        return self.matrix.double()

    @override
    def inner(self, other: Update) -> float:
        if isinstance(other, FactoredUpdate):
            return other.inner(self)
        _check_same_shape(self, other)
        assert isinstance(other, DenseUpdate)
        return inner(self.matrix, other.matrix)

    @override
    def to(self, device: str | torch.device) -> DenseUpdate:
        return DenseUpdate(self.matrix.to(device), self.rounding)

    @override
    def __mul__(self, factor: float) -> DenseUpdate:
        return DenseUpdate(self.matrix.double() * factor, abs(factor) * self.rounding)

    @override
    def __add__(self, other: Update) -> DenseUpdate:
        _check_same_shape(self, other)
        total = self.matrix.double() + other.dense()
        return DenseUpdate(total, self.rounding + other.rounding)


def _check_same_shape(one: Update, other: Update) -> None:
    # torch would broadcast a row over a matrix without a word.
    if one.shape != other.shape:
        raise UpdateError(
            "updates of different shapes cannot be combined",
            where="+, - or inner()",
            expected=f"two updates of shape {one.shape}",
            got=f"{one.shape} and {other.shape}",
            fix="combine updates of one module",
        )
