"""Empirical model statistics: the coefficient curves l, s, b that DPM-Solver-v3 measures once per pretrained
model.

With f = (sigma eps - l x) / alpha and everything per coordinate, over x = alpha x0 + sigma z:

    l = E[ diag(sigma d eps / d x) ]                 minimises E || d/dx (sigma eps - l x) ||_F^2
    s, b = argmin E ( df/dlambda - s f - b )^2       df/dlambda taken along the ODE

Zheng, Lu, Chen & Zhu (2023), section 3.1 and its appendix on computing the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import jvp, vmap

from secondlook.samplers.dpm_solver_v3.multistep import EpsFn
from secondlook.samplers.dpm_solver_v3.schedule import Schedule

DERIVATIVES = ("jvp", "central")
CHUNK = 8  # tangents pushed forward at once, a bound on memory


@dataclass(frozen=True)
class EMS:
    """Curves l, s, b, each [M + 1, *shape], on a uniform grid `lambdas` [M + 1] in increasing order."""

    lambdas: Tensor
    l: Tensor
    s: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        if self.lambdas.ndim != 1 or len(self.lambdas) < 2 or not (self.lambdas.diff() > 0).all():
            raise ValueError("lambdas must be a vector of at least two increasing values")
        gaps = self.lambdas.diff()
        if not torch.allclose(gaps, gaps.mean().expand_as(gaps), rtol=1e-3):
            raise ValueError("lambdas must be uniformly spaced; interpolate the statistics onto a uniform grid")
        for name in ("l", "s", "b"):
            curve = getattr(self, name)
            if curve.shape != (len(self.lambdas), *self.l.shape[1:]):
                raise ValueError(f"{name} has shape {tuple(curve.shape)}, expected {tuple(self.l.shape)}")
            if not curve.isfinite().all():
                raise ValueError(f"{name} holds values that are not finite; the model's statistics diverged")

    @classmethod
    def degenerate(
        cls,
        schedule: Schedule,
        shape: tuple[int, ...],
        n_grid: int,
        kind: str = "data",
        device: torch.device | str = "cpu",
    ) -> EMS:
        """The constant choices behind earlier solvers: `data` (l = 1, s = b = 0) is DPM-Solver++,
        `noise` (l = 0, s = -1, b = 0) is DPM-Solver."""
        if kind not in ("data", "noise"):
            raise ValueError(f"kind must be 'data' or 'noise', got {kind!r}")
        zero = torch.zeros(n_grid + 1, *shape, dtype=torch.float64, device=device)
        l, s = (zero + 1, zero) if kind == "data" else (zero, zero - 1)
        return cls(schedule.nodes(n_grid).to(device), l, s, zero)

    def refine(self, n_grid: int) -> EMS:
        """The same piecewise linear curves sampled on n_grid intervals."""
        at = torch.linspace(0, len(self.lambdas) - 1, n_grid + 1, dtype=torch.float64, device=self.l.device)
        left = at.floor().long().clamp(max=len(self.lambdas) - 2)
        fraction = (at - left).reshape(-1, *[1] * (self.l.ndim - 1))

        def interpolate(curve: Tensor) -> Tensor:
            return curve[left].lerp(curve[left + 1], fraction.to(curve).expand_as(curve[left]))

        lambdas = torch.linspace(self.lambdas[0].item(), self.lambdas[-1].item(), n_grid + 1, dtype=torch.float64)
        return EMS(lambdas.to(self.l.device), *map(interpolate, (self.l, self.s, self.b)))

    def shuffled(self, generator: torch.Generator) -> EMS:
        """The curves with their lambdas permuted: the same values at the wrong places (a broken control)."""
        order = torch.randperm(len(self.lambdas), generator=generator).to(self.l.device)
        return replace(self, l=self.l[order], s=self.s[order], b=self.b[order])

    def integral(self, curve: Tensor) -> Tensor:
        """Trapezoid rule over consecutive grid points: [n, *shape] -> [*shape]; one point gives zero."""
        return (curve.sum(0) - (curve[0] + curve[-1]) / 2) * self.width

    def cumulative(self, curve: Tensor) -> Tensor:
        """Running trapezoid rule, zero at the first point: [n, *shape] -> [n, *shape]."""
        return torch.cat([torch.zeros_like(curve[:1]), ((curve[1:] + curve[:-1]) / 2).cumsum(0) * self.width])

    @property
    def width(self) -> Tensor:
        """Grid spacing in lambda."""
        return (self.lambdas[-1] - self.lambdas[0]) / (len(self.lambdas) - 1)


def compute_ems(
    eps_fn: EpsFn,
    schedule: Schedule,
    data: Tensor,
    n_grid: int = 120,
    n_data: int = 512,
    probes: int | None = 4,
    derivatives: str = "jvp",
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    track: Callable[[Iterable, str], Iterable] | None = None,
) -> EMS:
    """Measure l, s, b of a model on n_grid + 1 uniform lambdas from n_data samples of `data` [N, *shape].

    The same data and the same noise serve every lambda, so that l is smooth and can be differentiated along
    lambda. `probes` Rademacher vectors estimate the Jacobian's diagonal; None uses all unit vectors and is
    exact. `derivatives` is "jvp" (forward-mode, exact) or "central" (differences, for models that torch.func
    cannot push forward). Costs about (n_grid + 1) n_data (probes + 3) evaluations. Where f does not vary, s
    is set to 0 and b to the mean derivative. Returns float64 curves on the data's device.
    """
    if derivatives not in DERIVATIVES:
        raise ValueError(f"derivatives must be one of {DERIVATIVES}, got {derivatives!r}")
    if n_data < 2 or n_grid < 2:
        raise ValueError(f"n_data and n_grid must be at least 2, got {n_data} and {n_grid}")
    if probes is not None and probes < 1:
        raise ValueError(f"probes must be positive, or None for the exact diagonal, got {probes}")
    pick = torch.randint(len(data), (n_data,), generator=generator).to(data.device)
    x0 = data[pick]
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0)
    directions = _directions(x0, probes, generator)
    lambdas = schedule.nodes(n_grid).to(x0.device)
    track = track or (lambda items, _: items)

    def scaled_eps(x: Tensor, lam: Tensor) -> Tensor:
        return schedule.sigma(lam) * eps_fn(x, lam)

    def noised(lam: Tensor) -> Iterator[Tensor]:
        return (schedule.alpha(lam) * x0 + schedule.sigma(lam) * noise).split(batch_size)

    def diagonal(lam: Tensor) -> Tensor:
        """E[diag(sigma d eps / d x)] as the mean of v * (J v)."""
        total = torch.zeros(x0.shape[1:], dtype=torch.float64, device=x0.device)
        for x, vs in zip(noised(lam), directions.expand(-1, n_data, *x0.shape[1:]).split(batch_size, 1), strict=True):
            products = _jacobian_products(lambda x: scaled_eps(x, lam), x, vs, derivatives)
            total += (vs * products).sum((0, 1), dtype=torch.float64)
        return total / n_data

    def regression(lam: Tensor, l: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """s and b by least squares of df/dlambda on f; `slope` is dl/dlambda."""
        alpha, drift = schedule.alpha(lam), schedule.drift(lam)
        fs, rates = [], []
        for x in noised(lam):
            velocity = drift * x - scaled_eps(x, lam)  # dx/dlambda along the ODE
            value, rate = _along(scaled_eps, (x, lam), (velocity, torch.ones_like(lam)), derivatives)
            f = (value - l * x) / alpha
            fs.append(f.double())
            rates.append(((rate - slope * x - l * velocity) / alpha - drift * f).double())
        rounding = 64 * torch.finfo(x0.dtype).eps / alpha
        return _least_squares(torch.cat(fs), torch.cat(rates), floor=rounding.double() ** 2)

    grid = lambdas.to(x0.dtype)
    l = torch.stack([diagonal(lam) for lam in track(grid, "l")])
    slope = torch.gradient(l, spacing=(lambdas,), dim=0, edge_order=2)[0]
    pairs = [regression(grid[i], l[i].to(x0), slope[i].to(x0)) for i in track(range(n_grid + 1), "s and b")]
    s, b = (torch.stack(curve) for curve in zip(*pairs, strict=True))
    return EMS(lambdas, l, s, b)


def _directions(x0: Tensor, probes: int | None, generator: torch.Generator | None) -> Tensor:
    """Probes v [P, N or 1, *shape] whose sum of v v^T is the identity, in expectation or exactly."""
    if probes is None:
        d = x0[0].numel()
        return torch.eye(d, dtype=x0.dtype, device=x0.device).reshape(d, 1, *x0.shape[1:])
    signs = torch.randint(0, 2, (probes, *x0.shape), generator=generator).to(x0) * 2 - 1
    return signs / probes**0.5


def _jacobian_products(function: Callable[[Tensor], Tensor], x: Tensor, vs: Tensor, how: str) -> Tensor:
    """J v for every direction of vs [P, *x.shape]."""
    if how == "central":
        return torch.stack([_along(function, (x,), (v,), how)[1] for v in vs])
    return vmap(lambda v: jvp(function, (x,), (v,))[1], chunk_size=CHUNK)(vs)


def _along(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...], how: str
) -> tuple[Tensor, Tensor]:
    """Value and directional derivative of a function at `primals` along `tangents`."""
    if how == "jvp":
        return jvp(function, primals, tangents)
    step = torch.finfo(primals[0].dtype).eps ** (1 / 3)
    ahead, behind = (
        function(*(p + sign * step * v for p, v in zip(primals, tangents, strict=True))) for sign in (1, -1)
    )
    return function(*primals), (ahead - behind) / (2 * step)


def _least_squares(f: Tensor, rate: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Slope s and intercept b of rate ~ s f + b over the first axis; s = 0 where f does not vary."""
    mean_f, mean_rate = f.mean(0), rate.mean(0)
    variance = (f - mean_f).square().mean(0)
    covariance = ((f - mean_f) * (rate - mean_rate)).mean(0)
    s = torch.where(variance > floor, covariance / variance.clamp(min=1e-300), 0.0)
    return s, mean_rate - s * mean_f
