"""Fits a coordinate network to all samples of a signal, by L-BFGS, Adam or Gauss-Newton, and counts what it takes.

With all samples in every gradient the objective is deterministic, and L-BFGS applies as it stands.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from secondlook.curvature.flat import pack, unpack
from secondlook.optimizers.base import check_count, check_range
from secondlook.optimizers.curvature_aware_coordinate_networks.lbfgs import lbfgs
from secondlook.optimizers.least_squares import levenberg_marquardt


@dataclass
class Trace:
    """PSNR (dB) of the best weights so far, by work (gradients over all samples) and by seconds."""

    evals: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)

    def reached(self, target: float) -> float:
        """The work at which the PSNR first was `target`; infinity if never."""
        return next((e for e, value in zip(self.evals, self.psnr, strict=True) if value >= target), math.inf)

    def pace(self) -> float:
        """Seconds that a gradient over all samples took."""
        return self.seconds[-1] / self.evals[-1]

    def at(self, evals: float) -> float:
        """The best PSNR within that much work."""
        return max((value for e, value in zip(self.evals, self.psnr, strict=True) if e <= evals), default=-math.inf)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a signal in [0, 1] with this mean squared error."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


class _Spent(Exception):
    """The budget is used up."""


class _Objective:
    """Mean squared error and gradient at a vector of weights; keeps count, trace and the best weights."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, evals: float, seconds: float, callback) -> None:
        self.net, self.x, self.y, self.callback = net, x, y, callback
        self.params = list(net.parameters())
        self.limits, self.start = (evals, seconds), time.perf_counter()
        self.trace, self.work, self.best = Trace(), 0.0, pack(self.params).detach()

    @torch.no_grad()
    def place(self, w: Tensor) -> None:
        """Give the network these weights; for a small network that is cheaper than `functional_call`."""
        torch._foreach_copy_(self.params, unpack(w, self.params))

    def __call__(self, w: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Value and gradient over all samples, or over those in `rows`, which are then not the trace's PSNR."""
        x, y = (self.x, self.y) if rows is None else (self.x[rows], self.y[rows])
        self.place(w)
        loss = F.mse_loss(self.net(x), y)
        gradient = pack(torch.autograd.grad(loss, self.params))
        self.work += len(x) / len(self.x)
        if rows is None:
            self.note(w.detach(), float(loss.detach()))
        return loss.detach(), gradient

    def note(self, w: Tensor, mse: float) -> None:
        """Enter the weights' PSNR; raises `_Spent` when the budget is used up."""
        value, seconds = psnr(mse) if math.isfinite(mse) else -math.inf, time.perf_counter() - self.start
        known = self.trace.psnr[-1] if self.trace.psnr else -math.inf
        if value > known:
            self.best = w.clone()
        self.trace.evals.append(self.work)
        self.trace.seconds.append(seconds)
        self.trace.psnr.append(max(value, known))
        if self.callback is not None:
            self.callback(self.work, self.trace.psnr[-1])
        if self.work >= self.limits[0] or seconds >= self.limits[1]:
            raise _Spent


def fit_signal(
    net: nn.Module,
    coords: Tensor,
    values: Tensor,
    optimizer: Literal["lbfgs", "adam", "gn"] = "lbfgs",
    *,
    budget_evals: int = 500,
    budget_seconds: float = math.inf,
    lr: float = 1e-3,
    history: int = 20,
    lam0: float = 1e-3,
    batches: int = 1,
    generator: torch.Generator | None = None,
    callback: Callable[[float, float], None] | None = None,
) -> Trace:
    """Fit `net`, and leave it with the best weights met.

    Args:
        coords: [N, d_in].
        values: [N, d_out], the signal in [0, 1].
        optimizer: "lbfgs" with a strong Wolfe line search; "adam", its rate falling along half a cosine over
            `budget_evals`; "gn" is Levenberg-Marquardt with a dense Jacobian, for small networks.
        budget_evals: gradients over all samples. A line search's trials count; an iteration of "gn" counts
            1 + min(N d_out, P) / 3, what the smaller Gram matrix takes in multiplications.
        budget_seconds: ends a run earlier.
        lr: Adam's rate.
        history: pairs that L-BFGS keeps.
        lam0: damping that "gn" starts with.
        batches: Adam's samples are shuffled into that many parts, one for each step; PSNR is looked up, free of charge,
            when all were seen.
        generator: shuffles.
        callback: called with work and best PSNR at each entry of the trace.

    Raises:
        ValueError: an option is out of range, or coordinates and values differ in number.
    """
    if optimizer not in ("lbfgs", "adam", "gn"):
        raise ValueError(f"optimizer must be 'lbfgs', 'adam' or 'gn', got {optimizer!r}")
    if len(coords) != len(values):
        raise ValueError(f"{len(coords)} coordinates for {len(values)} values: there must be one each")
    check_count("budget_evals", budget_evals)
    check_count("batches", batches)
    check_range("lr", lr, low_open=True)
    if batches > 1 and optimizer != "adam":
        raise ValueError(f"{optimizer!r} compares gradients at different weights: it needs all samples (batches=1)")
    objective = _Objective(net, coords, values, budget_evals, budget_seconds, callback)
    w = objective.best.clone()
    try:
        match optimizer:
            case "lbfgs":
                lbfgs(objective, w, history=history, evaluations=budget_evals + 1)
            case "adam":
                _adam(objective, w, budget_evals, lr, batches, generator)
            case "gn":
                _gauss_newton(objective, w, lam0)
    except _Spent:
        pass
    objective.place(objective.best)
    return objective.trace


def _adam(
    objective: _Objective, w: Tensor, evals: int, lr: float, batches: int, generator: torch.Generator | None
) -> None:
    """Adam on the vector of all weights, until the budget is used up."""
    optimizer = torch.optim.Adam([w], lr)
    steps, done = evals * batches, 0
    while True:
        order = torch.randperm(len(objective.x), generator=generator).to(w.device) if batches > 1 else None
        for rows in [None] if order is None else order.chunk(batches):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done / steps)))
            _, w.grad = objective(w, rows)
            optimizer.step()
            done += 1
        if order is not None:
            objective.place(w)
            with torch.no_grad():
                objective.note(w, float(F.mse_loss(objective.net(objective.x), objective.y)))


def _gauss_newton(objective: _Objective, w: Tensor, lam0: float) -> None:
    """Levenberg-Marquardt on the residuals of all samples, until the budget is used up."""
    count = objective.y.numel()
    names = [name for name, _ in objective.net.named_parameters()]

    def entered(iteration: int, w: Tensor, loss: float) -> None:
        objective.work += 1 + (min(count, len(w)) / 3 if iteration else 0)
        objective.note(w, 2 * loss / count)

    def residual(w: Tensor) -> Tensor:
        weights = dict(zip(names, unpack(w, objective.params), strict=True))
        return functional_call(objective.net, weights, (objective.x,)) - objective.y

    levenberg_marquardt(residual, w, lam0, 10**9, callback=entered)
