r"""Levenberg-Marquardt for residual functions, with a dense Jacobian (Levenberg 1944; Marquardt 1963; Nielsen 1999).

The loss F(theta) = |rho(theta)|^2 / 2 of residuals rho, [M], has the gradient J' rho. A step is

    delta = -(J'J + lam I)^-1 J' rho = -J' (JJ' + lam I)^-1 rho,

where the smaller of the two matrices is factorised. The gain ratio, the decrease of F over the one that the linearised
residuals promise, adapts lam: a step that keeps its promise lowers it, a step that raises F is taken back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import jacfwd, jacrev

from secondlook.curvature.flat import pack, unpack
from secondlook.optimizers.base import check_count, check_range

Parameters = Tensor | Mapping[str, Tensor]


@dataclass
class Trace:
    """What an iterative method did: the `params` it ended with, and one entry for the start and each iteration.

    Attributes:
        losses: F at the point that is kept.
        dampings: lam of the step to come.
        evaluations: residual evaluations so far, those inside a Jacobian not counted.
        jacobians: Jacobians so far.
        seconds: wall time so far, callbacks left out.
        reason: why it ended: "iterations", "seconds", "gradient" (below its tolerance) or "stalled"
            (no step lowers F).
    """

    params: Parameters
    losses: list[float] = field(default_factory=list)
    dampings: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    jacobians: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    reason: str = "iterations"


def damped_step(J: Tensor, rho: Tensor, gram: Tensor, lam: float) -> Tensor | None:
    """The step [P] at Jacobian J [M, P], given its smaller `gram` matrix; None where rounding makes that indefinite."""
    damped = gram.clone()
    damped.diagonal().add_(lam)
    factor, info = torch.linalg.cholesky_ex(damped)
    if int(info):
        return None
    kernel = len(gram) == len(J)
    solution = torch.cholesky_solve((rho if kernel else J.mT @ rho).unsqueeze(1), factor).squeeze(1)
    return -(J.mT @ solution if kernel else solution)


def levenberg_marquardt(
    residual_fn: Callable[[Parameters], Tensor],
    params: Parameters,
    lam0: float = 1e-2,
    max_iter: int = 100,
    *,
    jacobian: Callable[[Tensor], Tensor] | None = None,
    gtol: float = 0.0,
    budget_seconds: float = math.inf,
    callback: Callable[[int, Parameters, float], None] | None = None,
) -> Trace:
    """Minimise |residual_fn(params)|^2 / 2. Everything stays in the dtype and on the device of the parameters.

    Args:
        residual_fn: real residuals, of any shape, of parameters given as `params` are; differentiable by `torch.func`.
        params: a tensor, or a dictionary of tensors as `dict(model.named_parameters())` is; not changed.
        lam0: damping of the first step.
        max_iter: Jacobians at most; each is followed by as many trials as it takes to lower F.
        jacobian: the Jacobian [M, P] by the flat parameters [P], where a way is known that is cheaper than all rows
            (or columns) at once by `torch.func`.
        gtol: end when no entry of the gradient is larger than this.
        budget_seconds: end after the iteration that passes this.
        callback: called with iteration, parameters and F, at the start (0) and after each iteration.

    Raises:
        ValueError: an option is out of range, or F is not finite at the start.
    """
    check_range("lam0", lam0, low_open=True)
    check_count("max_iter", max_iter, 0)
    check_range("gtol", gtol)
    theta, restore = _flat(params)

    def flat_residual(flat: Tensor) -> Tensor:
        return residual_fn(restore(flat)).flatten()

    with torch.no_grad():
        rho = flat_residual(theta)
        loss = 0.5 * float(rho @ rho)
        if not math.isfinite(loss):
            raise ValueError(f"the residuals are not finite at the start: their half squared norm is {loss}")
        if jacobian is None:  # forward mode where the parameters are fewer
            jacobian = (jacrev if len(rho) < len(theta) else jacfwd)(flat_residual)
        trace = Trace(restore(theta))
        spent, evaluations, lam, growth = 0.0, 1, lam0, 2.0

        def record(iteration: int) -> None:
            trace.losses.append(loss)
            trace.dampings.append(lam)
            trace.evaluations.append(evaluations)
            trace.jacobians.append(iteration)
            trace.seconds.append(spent)
            if callback is not None:
                callback(iteration, restore(theta), loss)

        record(0)
        for iteration in range(1, max_iter + 1):
            start = time.perf_counter()
            J = jacobian(theta)
            gradient = J.mT @ rho
            if float(gradient.abs().max()) <= gtol:
                trace.reason = "gradient"
                break
            gram = J @ J.mT if len(J) < len(theta) else J.mT @ J
            floor, ceiling = (float(gram.diagonal().max()) * r for r in (torch.finfo(gram.dtype).eps, 1e16))
            moved = False
            while not moved and lam < ceiling:
                lam = max(lam, floor)
                delta = damped_step(J, rho, gram, lam)
                if delta is not None:
                    trial = flat_residual(theta + delta)
                    evaluations += 1
                    value = 0.5 * float(trial @ trial)
                    moved = value < loss
                if moved:
                    gain = (loss - value) / (0.5 * float(delta @ (lam * delta - gradient)))
                    theta, rho, loss = theta + delta, trial, value
                    lam, growth = lam * max(1 / 3, 1 - (2 * gain - 1) ** 3), 2.0
                else:
                    lam, growth = lam * growth, 2 * growth
            spent += time.perf_counter() - start
            if not moved:
                trace.reason = "stalled"
                break
            record(iteration)
            if spent > budget_seconds:
                trace.reason = "seconds"
                break
        trace.params = restore(theta)
    return trace


def _flat(params: Parameters) -> tuple[Tensor, Callable[[Tensor], Parameters]]:
    """The parameters as one vector, and the way back."""
    if isinstance(params, Tensor):
        return params.detach().flatten().clone(), lambda flat: flat.reshape(params.shape)
    like = [p.detach() for p in params.values()]
    return pack(like), lambda flat: dict(zip(params, unpack(flat, like), strict=True))
