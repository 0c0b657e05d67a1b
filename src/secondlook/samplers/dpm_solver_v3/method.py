"""DPM-Solver-v3 (Zheng, Lu, Chen & Zhu 2023): a multistep ODE solver built on statistics of the pretrained
model.

With L = int l, S = int s and E(u) = exp((L + S)(u) - (L + S)(lambda_s)), the exact solution from lambda_s to
lambda_t reads

    x_t = alpha_t e^(L_s - L_t) [ x_s / alpha_s - int E(u) ( g(u) + beta(u) ) du ]
    beta(u) = int_{lambda_s}^{u} e^(S_s - S(v)) b(v) dv
    g(u)    = e^(S_s - S(u)) f(u) - beta(u),           f = (sigma eps - l x) / alpha

and the solver replaces g, the only unknown, by its Taylor polynomial at lambda_s. l, s, b come from
`compute_ems`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.samplers.dpm_solver_v3.multistep import (
    EpsFn,
    MultistepSampler,
    Node,
    Scales,
    taylor_coefficients,
)
from secondlook.samplers.dpm_solver_v3.schedule import Schedule
from secondlook.samplers.dpm_solver_v3.statistics import EMS, compute_ems

__all__ = ["EMS", "DPMSolverV3", "compute_ems"]


@dataclass(frozen=True)
class StepIntegrals:
    """The integrals of one step, each [*shape]; they depend on the statistics and not on x."""

    decay: Tensor  # e^(L_s - L_t)
    moments: list[Tensor]  # int E(u) (u - lambda_s)^n / n! du, n = 0, 1, ...
    bias: Tensor  # int E(u) beta(u) du


class DPMSolverV3(MultistepSampler):
    """The predictor-corrector sampler of the paper's algorithm 1, one model evaluation a step.

    `ems` holds l, s, b on a uniform grid of M + 1 lambdas that spans the schedule; step times are rounded to
    that grid, so M should be at least ten times the number of steps (`EMS.refine` interpolates). `corrector`
    reuses the next step's evaluation. `p_pseudo` and `c_pseudo` choose divided differences over the
    Vandermonde system in the predictor and the corrector; the pseudo-order corrector has one order more than
    the predictor. Raises ValueError when the grid does not span the schedule or is too coarse for the number
    of steps.
    """

    def __init__(
        self,
        eps_fn: EpsFn,
        schedule: Schedule,
        ems: EMS,
        order: int = 3,
        corrector: bool = True,
        c_pseudo: bool = True,
        p_pseudo: bool = False,
        lower_order_final: bool = True,
        spacing: str = "lambda",
    ) -> None:
        super().__init__(eps_fn, schedule, order=order, lower_order_final=lower_order_final, spacing=spacing)
        ends = torch.tensor([schedule.start, schedule.end], dtype=torch.float64)
        if not torch.allclose(ems.lambdas[[0, -1]].double().cpu(), ends, atol=1e-6):
            raise ValueError(
                f"the statistics span lambda {ems.lambdas[0]:.4f} to {ems.lambdas[-1]:.4f}, the schedule "
                f"{ends[0]:.4f} to {ends[1]:.4f}; recompute them with compute_ems for this schedule"
            )
        self.ems, self.corrector, self.c_pseudo, self.p_pseudo = ems, corrector, c_pseudo, p_pseudo
        self._L, self._S = ems.cumulative(ems.l), ems.cumulative(ems.s)
        self._lams = ems.lambdas.tolist()
        self._integrals: dict[tuple[int, int], StepIntegrals] = {}

    def index(self, lam: float) -> int:
        """Nearest grid index of lambda."""
        return round((lam - self._lams[0]) / (self._lams[-1] - self._lams[0]) * (len(self._lams) - 1))

    def nodes(self, steps: int) -> list[float]:
        indices = [self.index(lam) for lam in super().nodes(steps)]
        if len(set(indices)) <= steps:
            raise ValueError(
                f"{steps} steps do not fit a grid of {len(self._lams) - 1} intervals; use ems.refine(n_grid)"
            )
        return [self._lams[i] for i in indices]

    def evaluate(self, x: Tensor, lam: float) -> Node:
        at, l = Scales.at(self.schedule, lam), self.ems.l[self.index(lam)].to(x)
        return Node(lam, (at.sigma * self.eps(x, lam) - l * x) / at.alpha)

    def advance(self, x: Tensor, nodes: list[Node], lam: float, *, correcting: bool = False) -> Tensor:
        base = nodes[0]
        s, t = Scales.at(self.schedule, base.lam), Scales.at(self.schedule, lam)
        integrals = self._step(self.index(base.lam), self.index(lam))
        g = [base.term, *(self._transformed(node, base) for node in nodes[1:])]
        derivatives = taylor_coefficients(
            [node.lam for node in nodes], g, pseudo=self.c_pseudo if correcting else self.p_pseudo
        )
        increment = integrals.bias.to(x) + sum(
            moment.to(x) * derivative
            for moment, derivative in zip(integrals.moments, [g[0], *derivatives], strict=False)
        )
        return t.alpha * integrals.decay.to(x) * (x / s.alpha - increment)

    def correct_with(self, past: list[Node], new: Node, order: int) -> list[Node] | None:
        if not self.corrector or (order == 1 and not self.c_pseudo):
            return None
        nodes = [past[0], new, *past[1:]]
        return nodes if self.c_pseudo else nodes[:order]

    def _transformed(self, node: Node, base: Node) -> Tensor:
        """g at another node, relative to the base point."""
        i, s = self.index(node.lam), self.index(base.lam)
        first, last = min(i, s), max(i, s)
        beta = self._bias(s, first, last)[-1] * (1 if i >= s else -1)
        return (self._S[s] - self._S[i]).exp().to(node.term) * node.term - beta.to(node.term)

    def _bias(self, base: int, first: int, last: int) -> Tensor:
        """Running integral of e^(S_base - S) b over grid points first..last: [last - first + 1, *shape]."""
        span = slice(first, last + 1)
        return self.ems.cumulative((self._S[base] - self._S[span]).exp() * self.ems.b[span])

    def _step(self, s: int, t: int) -> StepIntegrals:
        """Trapezoid integrals over the grid from s to t, computed once for every (s, t)."""
        if (s, t) not in self._integrals:
            span = slice(s, t + 1)
            exponent = self._L[span] + self._S[span]
            weight = (exponent - exponent[0]).exp()
            gap = (self.ems.lambdas[span] - self.ems.lambdas[s]).reshape(-1, *[1] * (weight.ndim - 1))
            self._integrals[s, t] = StepIntegrals(
                decay=(self._L[s] - self._L[t]).exp(),
                moments=[self.ems.integral(weight * gap**n / math.factorial(n)) for n in range(self.order + 1)],
                bias=self.ems.integral(weight * self._bias(s, s, t)),
            )
        return self._integrals[s, t]
