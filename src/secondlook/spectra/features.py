"""What the papers on kernels share: power-law spectra, and ReLU random features with the kernel they converge to."""

import math

import torch
from torch import Tensor

__all__ = ["powerlaw", "relu_features", "relu_kernel"]


def powerlaw(modes: int, exponent: float, device: str | torch.device = "cpu") -> Tensor:
    """i^-exponent for i = 1..modes, `[modes]`, float64."""
    if modes < 1:
        raise ValueError(f"a spectrum needs at least one mode, got {modes}")
    return torch.arange(1, modes + 1, dtype=torch.float64, device=device) ** -exponent


def relu_features(x: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` features sqrt(2 / count) relu(w . x / sqrt(d)) with w ~ N(0, I), `[N, count]`, of points `[N, d]`.

    Their inner products are those of `relu_kernel` on average.
    """
    w = torch.randn(x.shape[1], count, dtype=x.dtype, device=x.device, generator=generator)
    return torch.relu(x @ w) * math.sqrt(2 / (count * x.shape[1]))


def relu_kernel(x: Tensor, y: Tensor | None = None) -> Tensor:
    """The kernel of infinitely many ReLU features, `[N, N']`, of points `[N, d]` and `[N', d]` (default: x).

    |x| |y| (sin t + (pi - t) cos t) / (pi d) with t the angle between x and y (Cho and Saul 2009).
    """
    y = x if y is None else y
    length = x.norm(dim=1).unsqueeze(1) * y.norm(dim=1)
    cos = (x @ y.T / length.clamp(min=torch.finfo(x.dtype).tiny)).clamp(-1, 1)
    angle = cos.acos()
    return length * (angle.sin() + (math.pi - angle) * cos) / (math.pi * x.shape[1])
