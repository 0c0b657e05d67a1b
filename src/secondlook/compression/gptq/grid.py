"""Uniform grids, and weights stored on them: what every weight quantizer of this room shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SHRINK_STEPS = 80  # the shrink search tries the ranges 1, 0.99, ..., 0.21 of the full one
SHRINK_NORM = 2.4  # and keeps the one with the smallest sum of |w - q|^2.4


class Grid(NamedTuple):
    """One grid a row: ``q(w) = scale * (clip(round(w / scale) + zero, 0, 2^bits - 1) - zero)``.

    ``scale`` and ``zero`` have shape ``[rows, 1]``; rounding is half to even.
    """

    scale: Tensor
    zero: Tensor
    bits: int

    def encode(self, weight: Tensor) -> Tensor:
        """The integer code of every weight, as floating-point numbers of the weight's type."""
        return (torch.round(weight / self.scale) + self.zero).clamp_(0, 2**self.bits - 1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.scale * (codes - self.zero)


def fit_grid(weight: Tensor, bits: int, *, symmetric: bool = False, mse: bool = False) -> Grid:
    """The min-max grid of every row of ``weight [rows, columns]``; the range always holds zero.

    ``symmetric`` puts zero in the middle of the codes. ``mse`` shrinks the range of each row to where the
    2.4-norm of its rounding error is smallest. A row of zeros takes the range [-1, 1].
    """
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = torch.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)

    def grid(share: float) -> Grid:
        scale = share * (high - low) / (2**bits - 1)
        zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else torch.round(-share * low / scale)
        return Grid(scale, zero, bits)

    best = grid(1.0)
    if not mse:
        return best
    scale, zero, least = best.scale.clone(), best.zero.clone(), torch.full_like(low, torch.inf)
    for step in range(SHRINK_STEPS):
        trial = grid(1 - step / 100)
        error = (trial.decode(trial.encode(weight)) - weight).abs_().pow_(SHRINK_NORM).sum(1, keepdim=True)
        better = error < least  # strict: a tie keeps the wider range
        scale, zero = torch.where(better, trial.scale, scale), torch.where(better, trial.zero, zero)
        least = torch.minimum(least, error)
    return Grid(scale, zero, bits)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix of ``bits``-bit integers.

    ``integers [rows, columns]`` (int16) holds the codes, ``scale`` and ``zero`` (``[rows, groups]``) the
    grids, ``group_of [columns]`` the grid that each column uses. ``loss`` is the quantizer's own account of
    the damage, the sum of squared compensated errors; NaN where it keeps none.
    """

    integers: Tensor
    scale: Tensor
    zero: Tensor
    group_of: Tensor
    bits: int
    loss: float = float("nan")

    def dequantize(self) -> Tensor:
        """The matrix ``[rows, columns]`` that the integers stand for, in the type of ``scale``."""
        scale, zero = self.scale[:, self.group_of], self.zero[:, self.group_of]
        return scale * (self.integers.to(scale.dtype) - zero)

    @property
    def bits_per_weight(self) -> float:
        """Storage, counting a 16-bit scale and a ``bits``-bit zero for every grid."""
        return self.bits + self.scale.numel() * (16 + self.bits) / self.integers.numel()


def check_layer(weight: Tensor, hessian: Tensor | None, bits: int, group_size: int | None) -> None:
    """Raise an error in plain words when a layer cannot be quantized as asked."""
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be a floating-point matrix [rows, columns], got {weight.dtype} "
                         f"of shape {tuple(weight.shape)}; flatten convolutions first")  # fmt: skip
    if not torch.isfinite(weight).all():
        raise ValueError("weight holds NaN or infinite entries; check the model before quantizing it")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"bits must be a whole number from 1 to 8, got {bits!r}")
    if group_size is not None and (not isinstance(group_size, int) or group_size < 1):
        raise ValueError(f"group_size must be a positive whole number, or None for one grid a row, got {group_size!r}")
    if hessian is None:
        return
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        raise ValueError(f"hessian must be [{columns}, {columns}], one row for each column of the weight, "
                         f"got {tuple(hessian.shape)}")  # fmt: skip
    if not torch.isfinite(hessian).all():
        raise ValueError("hessian holds NaN or infinite entries; check the calibration inputs")
    if (hessian.diagonal() < 0).any():
        raise ValueError("hessian has a negative diagonal entry; a sum of x x^T cannot have one")


def working_copy(weight: Tensor) -> Tensor:
    """A detached copy to compensate in: float64 stays, everything else is worked on in float32."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.detach().to(dtype, copy=True)


def rtn_quantize(
    weight: Tensor,
    bits: int = 4,
    *,
    group_size: int | None = None,
    symmetric: bool = False,
    mse: bool = False,
) -> QuantizedWeight:
    """Round to nearest, the baseline without data: one grid a row, or one for each ``group_size`` columns."""
    check_layer(weight, None, bits, group_size)
    weight = working_copy(weight)
    parts = weight.split(group_size or weight.shape[1], dim=1)
    grids = [fit_grid(part, bits, symmetric=symmetric, mse=mse) for part in parts]
    return QuantizedWeight(
        integers=torch.cat([g.encode(part) for g, part in zip(grids, parts, strict=True)], 1).to(torch.int16),
        scale=torch.cat([g.scale for g in grids], 1),
        zero=torch.cat([g.zero for g in grids], 1),
        group_of=torch.arange(weight.shape[1], device=weight.device) // (group_size or weight.shape[1]),
        bits=bits,
    )


def output_error(weight: Tensor, quantized: QuantizedWeight, hessian: Tensor) -> float:
    """Share of the layer's output energy that is lost: ``tr(D H D^T) / tr(W H W^T)``, ``D = W - Q``.

    With ``H = 2 E[x x^T]`` this is ``E |Wx - Qx|^2 / E |Wx|^2``; computed in float64.
    """
    weight, hessian = weight.detach().double(), hessian.double()
    lost = weight - quantized.dequantize().double()
    return float(((lost @ hessian) * lost).sum() / ((weight @ hessian) * weight).sum())
