"""The loop that all multistep samplers share: predict, evaluate, correct, remember.

A sampler says three things: which nonlinear term it remembers (`evaluate`), how it integrates one step from a
list of remembered terms (`advance`), and which terms its corrector uses (`correct_with`). The corrector
reuses the evaluation the next step needs anyway, so the number of function evaluations equals the number of
steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from secondlook.samplers.dpm_solver_v3.schedule import Schedule

EpsFn = Callable[[Tensor, Tensor], Tensor]
"""Noise prediction eps(x [N, *shape], lambda [0-d]) -> [N, *shape]."""


@dataclass(frozen=True)
class Scales:
    """The schedule at one lambda, as numbers."""

    alpha: float
    sigma: float

    @classmethod
    def at(cls, schedule: Schedule, lam: float) -> Scales:
        lam = torch.tensor(lam, dtype=torch.float64)
        return cls(schedule.alpha(lam).item(), schedule.sigma(lam).item())


@dataclass(frozen=True)
class Node:
    """A remembered evaluation: the nonlinear term [N, *shape] at lambda."""

    lam: float
    term: Tensor


class MultistepSampler:
    """Base of every sampler here: `Sampler(eps_fn, schedule, ...).sample(x_T, steps)`.

    The order warms up (1, 2, 3, ...) and, with `lower_order_final`, comes down again over the last steps.
    """

    def __init__(
        self,
        eps_fn: EpsFn,
        schedule: Schedule,
        *,
        order: int,
        lower_order_final: bool = True,
        spacing: str = "lambda",
    ) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}")
        self.eps_fn, self.schedule = eps_fn, schedule
        self.order, self.lower_order_final, self.spacing = order, lower_order_final, spacing

    def nodes(self, steps: int) -> list[float]:
        """The lambdas [steps + 1] visited."""
        return self.schedule.nodes(steps, self.spacing).tolist()

    def eps(self, x: Tensor, lam: float) -> Tensor:
        # Filled in on the device: a copy from the host would wait for every step before it.
        return self.eps_fn(x, torch.full((), lam, dtype=x.dtype, device=x.device))

    def evaluate(self, x: Tensor, lam: float) -> Node:
        """The nonlinear term; here the data prediction x0 = (x - sigma eps) / alpha."""
        at = Scales.at(self.schedule, lam)
        return Node(lam, (x - at.sigma * self.eps(x, lam)) / at.alpha)

    def advance(self, x: Tensor, nodes: list[Node], lam: float, *, correcting: bool = False) -> Tensor:
        """One step from nodes[0].lam, where the state is x, to lam, using the terms in `nodes`."""
        raise NotImplementedError

    def correct_with(self, past: list[Node], new: Node, order: int) -> list[Node] | None:
        """The nodes of the corrector after a predictor step of this order, or None for no correction."""
        return None

    def sample(self, x_T: Tensor, steps: int) -> Tensor:
        """Solve the ODE from noise x_T [N, *shape] at `schedule.start` to `schedule.end` in `steps`
        evaluations.

        Under VP x_T is standard normal; under EDM it is sigma_max times a standard normal.
        """
        lams = self.nodes(steps)
        x, past = x_T, [self.evaluate(x_T, lams[0])]
        for n, (_, lam) in enumerate(pairwise(lams), start=1):
            order = min(self.order, n, steps - n + 1 if self.lower_order_final else self.order)
            predicted = self.advance(x, past[:order], lam)
            if n == steps:
                return predicted
            new = self.evaluate(predicted, lam)
            used = self.correct_with(past[:order], new, order)
            # The remembered term stays as evaluated at the predicted point, also after a correction.
            x = predicted if used is None else self.advance(x, used, lam, correcting=True)
            past = [new, *past][: self.order]
        raise AssertionError("unreachable: steps >= 1")


def taylor_coefficients(lams: list[float], terms: list[Tensor], *, pseudo: bool = False) -> list[Tensor]:
    """Estimates of the derivatives g', g'', ... at lams[0] from the values g at all of `lams` (base first).

    True order solves the Vandermonde system of Taylor expansions of g_j - g_0; pseudo order takes n! times
    the divided difference over the first n + 1 nodes, in the order listed (Zheng et al. 2023, section 3.2.2
    and appendix).
    """
    gaps = [lam - lams[0] for lam in lams[1:]]
    if pseudo:
        column, leading = list(terms), []
        for n in range(1, len(lams)):
            column = [(right - left) / (lams[i + n] - lams[i]) for i, (left, right) in enumerate(pairwise(column))]
            leading.append(math.factorial(n) * column[0])
        return leading
    orders = range(1, len(lams))
    system = torch.tensor([[gap**n / math.factorial(n) for n in orders] for gap in gaps], dtype=torch.float64)
    weights = torch.linalg.inv(system).tolist() if gaps else []
    changes = [term - terms[0] for term in terms[1:]]
    return [sum(w * change for w, change in zip(row, changes, strict=True)) for row in weights]
