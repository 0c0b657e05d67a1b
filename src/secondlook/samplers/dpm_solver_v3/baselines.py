"""The training-free solvers that DPM-Solver-v3 is compared with, written from their papers, and a reference
solution.

All predict the data, m = (x - sigma eps) / alpha, and approximate the exact step from lambda_s to lambda_t =
lambda_s + h,

    x_t = (sigma_t / sigma_s) x_s + alpha_t int_{lambda_s}^{lambda_t} e^(lambda - lambda_t) m(lambda) dlambda.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from secondlook.samplers.dpm_solver_v3.multistep import (
    EpsFn,
    MultistepSampler,
    Node,
    Scales,
    taylor_coefficients,
)
from secondlook.samplers.dpm_solver_v3.schedule import Schedule


def moments(h: float, count: int) -> list[float]:
    """psi_n = int_0^h e^(u - h) u^n / n! du for n = 0 .. count - 1, by integration by parts."""
    values = [-math.expm1(-h)]
    for n in range(1, count):
        values.append(h**n / math.factorial(n) - values[-1])
    return values


class _DataPrediction(MultistepSampler):
    """Shared linear part; a subclass gives the integral of e^(lambda - lambda_t) m over the step."""

    def advance(self, x: Tensor, nodes: list[Node], lam: float, *, correcting: bool = False) -> Tensor:
        s, t = Scales.at(self.schedule, nodes[0].lam), Scales.at(self.schedule, lam)
        return t.sigma / s.sigma * x + t.alpha * self.integral(nodes, lam)

    def integral(self, nodes: list[Node], lam: float) -> Tensor:
        raise NotImplementedError


class DDIM(_DataPrediction):
    """Song, Meng & Ermon (2021), deterministic: the data prediction stays constant over a step."""

    def __init__(self, eps_fn: EpsFn, schedule: Schedule, spacing: str = "lambda") -> None:
        super().__init__(eps_fn, schedule, order=1, spacing=spacing)

    def integral(self, nodes: list[Node], lam: float) -> Tensor:
        return moments(lam - nodes[0].lam, 1)[0] * nodes[0].term


class DPMSolverPP(_DataPrediction):
    """Multistep DPM-Solver++ (Lu et al. 2022), orders 2 (2M) and 3 (3M).

    `variant` says how the differences are weighted: "midpoint" is the published 2M (its weight (1 - e^-h) / 2
    agrees with the exact one to first order in h), "taylor" integrates the Taylor polynomial exactly. At
    order 3, "released" is the authors' code, whose second derivative is half the Taylor term's, and "taylor"
    is the full term.
    """

    def __init__(
        self,
        eps_fn: EpsFn,
        schedule: Schedule,
        order: int = 2,
        variant: str | None = None,
        lower_order_final: bool = True,
        spacing: str = "lambda",
    ) -> None:
        super().__init__(eps_fn, schedule, order=order, lower_order_final=lower_order_final, spacing=spacing)
        allowed = {1: ("taylor",), 2: ("midpoint", "taylor"), 3: ("released", "taylor")}[order]
        self.variant = variant or allowed[0]
        if self.variant not in allowed:
            raise ValueError(f"variant at order {order} must be one of {allowed}, got {variant!r}")

    def integral(self, nodes: list[Node], lam: float) -> Tensor:
        psi = moments(lam - nodes[0].lam, len(nodes))
        weights = list(psi)
        if len(nodes) == 2 and self.variant != "taylor":
            weights[1] = psi[0] * (lam - nodes[0].lam) / 2
        if len(nodes) == 3 and self.variant == "released":
            weights[2] = psi[2] / 2
        return _weighted(nodes, weights)


class UniPC(_DataPrediction):
    """Unified predictor-corrector (Zhao et al. 2023), data prediction.

    Where a step has one difference, "bh1" and "bh2" fix its weight to B(h) / 2 with B(h) = h and e^h - 1; the varying
    coefficients "v" match the exact integral. With more differences all three match it and B(h) cancels. The
    corrector has one order more than the predictor.
    """

    def __init__(
        self,
        eps_fn: EpsFn,
        schedule: Schedule,
        order: int = 3,
        variant: str = "bh2",
        corrector: bool = True,
        lower_order_final: bool = True,
        spacing: str = "lambda",
    ) -> None:
        super().__init__(eps_fn, schedule, order=order, lower_order_final=lower_order_final, spacing=spacing)
        if variant not in ("bh1", "bh2", "v"):
            raise ValueError(f"variant must be 'bh1', 'bh2' or 'v', got {variant!r}")
        self.variant, self.corrector = variant, corrector

    def integral(self, nodes: list[Node], lam: float) -> Tensor:
        h = lam - nodes[0].lam
        weights = moments(h, len(nodes))
        if len(nodes) == 2 and self.variant != "v":
            weights[1] = (h if self.variant == "bh1" else weights[0]) * h / 2
        return _weighted(nodes, weights)

    def correct_with(self, past: list[Node], new: Node, order: int) -> list[Node] | None:
        return [past[0], new, *past[1:]] if self.corrector else None


class RungeKutta:
    """Classical fourth-order Runge-Kutta on y = x / sigma, where dy/dlambda = e^lambda m: the reference
    solution.

    Four evaluations a step; it shares no formula with the solvers it judges.
    """

    def __init__(self, eps_fn: EpsFn, schedule: Schedule) -> None:
        self._model = MultistepSampler(eps_fn, schedule, order=1)
        self.schedule = schedule

    def sample(self, x_T: Tensor, steps: int) -> Tensor:
        """Solve from x_T [N, *shape] in `steps` steps uniform in lambda."""
        lams = self.schedule.nodes(steps).tolist()

        def slope(y: Tensor, lam: float) -> Tensor:
            return math.exp(lam) * self._model.evaluate(Scales.at(self.schedule, lam).sigma * y, lam).term

        y = x_T / Scales.at(self.schedule, lams[0]).sigma
        for lam, after in pairwise(lams):
            h, middle = after - lam, (lam + after) / 2
            k1 = slope(y, lam)
            k2 = slope(y + h / 2 * k1, middle)
            k3 = slope(y + h / 2 * k2, middle)
            k4 = slope(y + h * k3, after)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return Scales.at(self.schedule, lams[-1]).sigma * y


def _weighted(nodes: list[Node], weights: list[float]) -> Tensor:
    """sum_n weight_n m^(n), the derivatives by finite differences of the nodes' terms."""
    terms = [node.term for node in nodes]
    derivatives = [terms[0], *taylor_coefficients([node.lam for node in nodes], terms)]
    return sum(weight * term for weight, term in zip(weights, derivatives, strict=True))
