"""Symmetric linear operators that are known only through their products.

Everything in this package that takes a matrix `A` asks for no more than `A.shape`, `A.dtype`, `A.device` and
`A @ X` with `X` of shape `[n]` or `[n, k]`; a dense symmetric tensor will do, and so will any class below.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["FunctionOperator", "SymmetricOperator", "between", "check_finite", "check_square"]


def check_square(A: "Tensor | SymmetricOperator") -> int:
    """Size `n` of the `n x n` matrix `A`; `ValueError` if it is not square."""
    if len(A.shape) != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"the matrix must be square, got shape {tuple(A.shape)}")
    return A.shape[0]


def check_finite(product: Tensor) -> None:
    """`ValueError` if a product is not finite."""
    if not bool(torch.isfinite(product).all()):
        raise ValueError("the matrix product is not finite: has the model diverged?")


class SymmetricOperator(ABC):
    """A symmetric `n x n` matrix behind `@`. Subclasses say how to multiply a block of columns."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device | str) -> None:
        if size < 1:
            raise ValueError(f"an operator needs at least one dimension, got {size}")
        self.shape, self.dtype, self.device = (size, size), dtype, torch.device(device)

    @abstractmethod
    def _columns(self, block: Tensor) -> Tensor:
        """The product with `block`, `[n, k]`."""

    def __matmul__(self, x: Tensor) -> Tensor:
        """`A x` for `x` of shape `[n]` or `[n, k]`, in the same shape."""
        if not isinstance(x, Tensor):
            raise TypeError(f"can multiply with a tensor, not {type(x).__name__}")
        if x.ndim not in (1, 2) or x.shape[0] != self.shape[0]:
            n = self.shape[0]
            raise ValueError(f"operand of shape {tuple(x.shape)} does not fit: need [{n}] or [{n}, k]")
        if x.dtype != self.dtype:
            raise TypeError(f"the operator works in {self.dtype}, the operand is {x.dtype}: convert one of them")
        if x.ndim == 2 and x.shape[1] == 0:
            return torch.zeros_like(x)
        return self._columns(x) if x.ndim == 2 else self._columns(x.unsqueeze(1)).squeeze(1)

    def dense(self, block: int = 128) -> Tensor:
        """The whole matrix, `[n, n]`, by `n` products in blocks of `block` columns, symmetrised."""
        n = self.shape[0]
        out = torch.empty(n, n, dtype=self.dtype, device=self.device)
        for start in range(0, n, block):
            stop = min(start + block, n)
            units = torch.zeros(n, stop - start, dtype=self.dtype, device=self.device)
            units[start:stop].fill_diagonal_(1)
            out[:, start:stop] = self @ units
        return (out + out.T) / 2


class FunctionOperator(SymmetricOperator):
    """The operator whose product with `[n, k]` columns is `function(columns)`; it must be linear and symmetric."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        size: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(size, dtype, device)
        self._function = function

    def _columns(self, block: Tensor) -> Tensor:
        return self._function(block)


def between(scale: Tensor, A: SymmetricOperator) -> FunctionOperator:
    """S A S, for S the diagonal matrix with the entries `scale`, `[n]`."""
    column = scale.unsqueeze(1)
    return FunctionOperator(lambda v: column * (A @ (column * v)), A.shape[0], dtype=A.dtype, device=A.device)
