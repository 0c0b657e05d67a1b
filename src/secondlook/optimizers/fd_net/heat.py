"""The heat equation u_t = k (u_xx [+ u_yy]) on the unit interval or square with zero ends, solved exactly by sines."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def heat_solution(x: Tensor, t: Tensor | Sequence[float] | float, coeffs: Tensor, k: float = 1.0) -> Tensor:
    """Exact field sum_j c_j exp(-k pi^2 j^2 t) sin(j pi x) for every trajectory and time.

    `x` [N]; `t` one or T times; `coeffs` [B, J] gives fields [B, T, N], `coeffs` [B, J, J] fields [B, T, N, N] over the
    square, whose modes are sin(i pi x) sin(j pi y).
    """
    t = torch.as_tensor(t, dtype=x.dtype).reshape(-1)
    j = torch.arange(1, coeffs.shape[-1] + 1, dtype=x.dtype)
    modes = torch.sin(math.pi * torch.outer(j, x))  # [J, N]
    decay = torch.exp(-k * math.pi**2 * torch.outer(t, j**2))  # [T, J]
    if coeffs.ndim == 2:
        return torch.einsum("bj,tj,jn->btn", coeffs, decay, modes)
    return torch.einsum("bij,ti,tj,im,jn->btmn", coeffs, decay, decay, modes, modes)


def frames(
    count: int, recorded: int, ratio: float, points: int, modes: int, dim: int, generator: torch.Generator
) -> Tensor:
    """Random trajectories [count, recorded + 1, points(, points)], recorded every Dt = ratio dx^2 / k.

    Fields are sums of `modes` sines in each direction with normal coefficients; the ends, zero, are on the grid.
    """
    x = torch.linspace(0, 1, points, dtype=torch.float64)
    coeffs = torch.randn(count, *[modes] * dim, generator=generator, dtype=torch.float64) / math.sqrt(modes**dim)
    times = torch.arange(recorded + 1, dtype=torch.float64) * ratio / (points - 1) ** 2
    return heat_solution(x, times, coeffs)


def pairs(fields: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of a frame and the next, each [count * recorded, points(, points)]."""
    return fields[:, :-1].flatten(0, 1), fields[:, 1:].flatten(0, 1)
