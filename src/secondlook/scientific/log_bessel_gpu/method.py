"""log I_v(x) and log K_v(x) on the log scale, for every order v >= 0 and argument x > 0.

Three regimes, each evaluated on its own elements alone (see `regimes`): the uniform expansion where v > 12.7, Hankel's
expansion where x > 30, and the corner left over, by the power series for I and an integral for K. All arithmetic is in
float64; other real types are promoted. Arrays in, arrays out; tensors in, tensors out, with gradients in x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from secondlook.scientific.log_bessel_gpu import regimes
from secondlook.scientific.log_bessel_gpu.regimes import ARGUMENT, BANDS, ORDER

Array = Tensor | np.ndarray | float
Branch = Callable[[Tensor, Tensor, int], Tensor]
CHUNK = {"cpu": 1 << 14, "cuda": 1 << 22}  # elements at once: temporaries that stay in the cache, or fit the card
BUCKETS = (ARGUMENT, 8.0, 2.0, 0.5, 0.1, 1e-2, 1e-3, 1e-5, 1e-9, 1e-20, 1e-150, 0.0)  # like arguments cost alike
VALUE = (regimes.debye, regimes.hankel, regimes.series, regimes.integral)
STEP = (
    regimes.debye_step,
    regimes.hankel_step,
    regimes.series_step,
    lambda v, x, sign: regimes.integral(v + 1, x, sign) - regimes.integral(v, x, sign),
)


def log_iv(v: Array, x: Array, *, dtype: torch.dtype = torch.float64) -> Tensor | np.ndarray:
    """log of the modified Bessel function of the first kind, differentiable in `x`.

    Args:
        v: orders, v >= 0, any shape that broadcasts with `x`.
        x: arguments, x > 0.
        dtype: arithmetic to use; float32 is there to measure what it costs, not to be used.

    Returns:
        log I_v(x) in `dtype`, a tensor where an argument is one, else an array. A NaN stays a NaN.

    Raises:
        ValueError: a negative order, an argument not above 0, infinity, or a gradient wanted in `v`.
        TypeError: complex or boolean arguments, or tensors on two devices.
    """
    return _apply(v, x, +1, _Log.apply, dtype)


def log_kv(v: Array, x: Array, *, dtype: torch.dtype = torch.float64) -> Tensor | np.ndarray:
    """log of the modified Bessel function of the second kind, differentiable in `x`. See `log_iv`."""
    return _apply(v, x, -1, _Log.apply, dtype)


def bessel_ratio(v: Array, x: Array) -> Tensor | np.ndarray:
    """I_(v+1)(x) / I_v(x), in (0, 1), from the difference of the logs taken before rounding.

    Shapes, types and errors as for `log_iv`; differentiable in `x`: r' = 1 - r^2 - (2v + 1) r / x.
    """
    return _apply(v, x, +1, _Ratio.apply, torch.float64)


class _Log(torch.autograd.Function):
    """d log I_v / dx = I_(v+1)/I_v + v/x and d log K_v / dx = -K_(v+1)/K_v + v/x (DLMF 10.29.2)."""

    @staticmethod
    def forward(ctx, v: Tensor, x: Tensor, sign: int) -> Tensor:
        ctx.save_for_backward(v, x)
        ctx.sign = sign
        return dispatch(v, x, sign, VALUE)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, None]:
        v, x = ctx.saved_tensors
        return None, grad * (ctx.sign * _Ratio.apply(v, x, ctx.sign) + v / x), None


class _Ratio(torch.autograd.Function):
    """r = F_(v+1)/F_v with r' = s (1 - r^2) - (2v + 1) r / x for I (s = 1), and 1 -> -1, sign of r^2 for K."""

    @staticmethod
    def forward(ctx, v: Tensor, x: Tensor, sign: int) -> Tensor:
        r = dispatch(v, x, sign, STEP).exp_()
        ctx.save_for_backward(v, x, r)
        ctx.sign = sign
        return r

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, None]:
        v, x, r = ctx.saved_tensors
        return None, grad * (ctx.sign * (1 - r * r) - (2 * v + 1) * r / x), None


def dispatch(v: Tensor, x: Tensor, sign: int, branches: tuple[Branch, ...]) -> Tensor:
    """Evaluate each branch (large order, large argument, corner of I, corner of K) on its own elements."""
    debye, hankel, series, integral = branches
    shape, v, x = v.shape, v.reshape(-1), x.reshape(-1)
    out = torch.empty_like(x)
    large, far = v > ORDER, x > ARGUMENT
    upper = [low for _, low in BANDS[1:]] + [math.inf]
    debye_bands = [(low, high, {"terms": terms}) for (terms, low), high in zip(BANDS, upper, strict=True)]
    corner_bands = [(low, high, {}) for high, low in pairwise(BUCKETS)]
    for mask, branch, key, bands in (
        (large, debye, torch.maximum, debye_bands),
        (far & ~large, hankel, torch.maximum, [(0.0, math.inf, {})]),
        (~(large | far), series if sign > 0 else integral, lambda v, x: x, corner_bands),
    ):
        inside = _where(mask)
        size = key(v.index_select(0, inside), x.index_select(0, inside))
        for low, high, options in bands:
            band = inside[_where((size > low) & (size <= high))] if len(bands) > 1 else inside
            for at in band.split(CHUNK.get(x.device.type, 1 << 20)) if len(band) else ():
                out.index_copy_(0, at, branch(v.index_select(0, at), x.index_select(0, at), sign, **options))
    out[(v != v) | (x != x)] = math.nan
    return out.reshape(shape)


def _where(mask: Tensor) -> Tensor:
    """Indices of the true elements; NumPy finds them several times faster on the host."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.device.type == "cpu" else mask.nonzero().squeeze(1)


def _apply(v: Array, x: Array, sign: int, function: Callable, dtype: torch.dtype) -> Tensor | np.ndarray:
    tensors = isinstance(v, Tensor) or isinstance(x, Tensor)
    device = next((a.device for a in (x, v) if isinstance(a, Tensor) and a.ndim), None)
    v, x = (_real(a, name, device).to(dtype) for a, name in ((v, "v"), (x, "x")))
    if v.requires_grad:
        raise ValueError("gradients are given in x, not in the order v; detach v: v.detach()")
    if not _all(v < 0, v.isinf()):
        raise ValueError(f"orders must be finite and not negative, got {_worst(v, v < 0)}; I_(-v) is another function")
    if not _all(x <= 0, x.isinf()):
        raise ValueError(f"arguments must be finite and above 0, got {_worst(x, x <= 0)}; drop or shift those elements")
    v, x = torch.broadcast_tensors(v, x)
    out = function(v, x, sign)
    return out if tensors else out.numpy()


def _real(a: Array, name: str, device: torch.device | None) -> Tensor:
    if not isinstance(a, Tensor):
        a = np.asarray(a)
        if a.dtype.kind not in "fiu":
            raise TypeError(f"{name} must hold real numbers, got {a.dtype}; convert it first")
        a = torch.as_tensor(a, dtype=torch.float64, device=device)
    if a.is_complex() or a.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {a.dtype}; convert it first")
    if device is not None and a.device != device:
        if a.ndim:
            raise TypeError(f"v and x must be on one device, got {a.device} and {device}; move one of them")
        a = a.to(device)
    return a


def _all(*bad: Tensor) -> bool:
    return not any(bool(b.any()) for b in bad)


def _worst(a: Tensor, bad: Tensor) -> float:
    return float(a[bad][0]) if bool(bad.any()) else math.inf
