"""log I_v(x) and log K_v(x) on the log scale, for every order v >= 0 and argument x > 0.

Three regimes, each evaluated on its own elements alone (see `regimes`): the uniform expansion where v > 12.7, Hankel's
expansion where x > 30, and the corner left over, by the power series for I and an integral for K. All arithmetic is in
float64; other real types are promoted. Arrays in, arrays out; tensors in, tensors out, with gradients in x.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from secondlook.scientific.log_bessel_gpu import regimes
from secondlook.scientific.log_bessel_gpu.regimes import ARGUMENT, DEBYE_TERMS, ORDER

Array = Tensor | np.ndarray | float
Branch = Callable[[Tensor, Tensor, int], Tensor]
FEW = 1 << 14  # up to so many elements one group a regime; more are sorted into bands of like cost as well
EDGES = (1e-150, 1e-20, 1e-9, 1e-5, 1e-3, 1e-2, 0.04, 0.15, 0.5, 2.0, 8.0, *(least for least, _ in DEBYE_TERMS))
BANDS = len(EDGES) + 1
CHUNK = {"cpu": 1 << 13, "cuda": 1 << 21}  # elements at once: temporaries that stay in the cache, or fit the card
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
    regime = (series if sign > 0 else integral, hankel, debye)
    shape, v, x = v.shape, v.reshape(-1), x.reshape(-1)
    order, counts = _sorted(_codes(v, x))
    step = CHUNK.get(x.device.type, 1 << 20)
    groups = [
        (regime[code // BANDS], min(step, n - done)) for code, n in enumerate(counts) for done in range(0, n, step)
    ]
    if not groups:
        return x.new_empty(shape)
    functions, sizes = zip(*groups, strict=True)
    parts = zip(functions, v.index_select(0, order).split(sizes), x.index_select(0, order).split(sizes), strict=True)
    found = torch.cat([function(a, b, sign) for function, a, b in parts])
    return torch.empty_like(x).index_copy_(0, order, found).reshape(shape)


def _codes(v: Tensor, x: Tensor) -> Tensor:
    """The regime of each element, and its band where there are many: equal codes are evaluated together."""
    corner = (v <= ORDER) & (x <= ARGUMENT)
    codes = (~corner).to(torch.uint8).add_(v > ORDER).mul_(BANDS)  # a NaN goes through Hankel's sum and stays one
    if x.numel() > FEW:
        least, size = float(x.min()), torch.where(corner, x, torch.maximum(v, x))
        for edge in EDGES:
            if not edge < least:
                codes.add_(size > edge)
    return codes


def _sorted(codes: Tensor) -> tuple[Tensor, list[int]]:
    """The order that sorts the codes, and how many there are of each; NumPy is several times faster on the host."""
    if codes.device.type != "cpu":
        return codes.argsort(stable=True), codes.bincount().tolist()
    codes = codes.numpy()
    return torch.from_numpy(codes.argsort(kind="stable")), np.bincount(codes).tolist()


def _apply(v: Array, x: Array, sign: int, function: Callable, dtype: torch.dtype) -> Tensor | np.ndarray:
    tensors = isinstance(v, Tensor) or isinstance(x, Tensor)
    device = next((a.device for a in (x, v) if isinstance(a, Tensor) and a.ndim), None)
    v, x = (_real(a, name, device).to(dtype) for a, name in ((v, "v"), (x, "x")))
    if v.requires_grad:
        raise ValueError("gradients are given in x, not in the order v; detach v: v.detach()")
    if not _within(v, 0.0):
        raise ValueError(f"orders must be finite and not negative, got {_worst(v, v < 0)}; I_(-v) is another function")
    if not _within(x, math.ulp(0.0)):
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


def _within(a: Tensor, least: float) -> bool:
    """Whether all elements are finite and at least `least`, or NaN."""
    if not a.numel():
        return True
    low, high = (float(end) for end in a.detach().aminmax())  # both NaN if any element is
    return low >= least and high < math.inf if low == low else not bool(((a < least) | a.isinf()).any())


def _worst(a: Tensor, bad: Tensor) -> float:
    return float(a[bad][0]) if bool(bad.any()) else math.inf
