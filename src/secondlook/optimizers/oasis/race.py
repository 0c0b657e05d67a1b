"""Runs of OASIS and its rivals on one objective from seeded starts, until the relative gap is closed."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secondlook.optimizers.adahessian.method import AdaHessian
from secondlook.optimizers.oasis.minimize import WARMUP, oasis_minimize
from secondlook.optimizers.oasis.objectives import Objective, descend, lbfgs_values

GRADIENT, PRODUCT = 1, 2  # evaluations that a gradient (with its value) and a Hessian-vector product count as


@dataclass(frozen=True)
class Trace:
    """Relative gaps `[iterations + 1]`, evaluations an iteration and before the first, and step lengths if known."""

    gaps: np.ndarray
    cost: int = GRADIENT
    once: int = 0
    steps: tuple[float, ...] = ()

    def iterations(self, gap: float, limit: int) -> int:
        """Iterations until no more than `gap` is left, `limit` if it never is."""
        closed = np.flatnonzero(self.gaps <= gap)
        return int(closed[0]) if len(closed) else limit

    def evaluations(self, gap: float, limit: int) -> int:
        """The same in evaluations."""
        return self.once + self.cost * self.iterations(gap, limit)

    def shown(self, count: int = 30) -> np.ndarray:
        """At most `count` iterations, evenly in the logarithm, up to the last."""
        return np.unique(np.geomspace(1, max(len(self.gaps) - 1, 1), count).astype(int))


@dataclass(frozen=True)
class Race:
    """An objective, the relative gap (F - F*) / (F(start) - F*) to close, and the iterations allowed."""

    objective: Objective
    gap: float
    limit: int
    spread: float = 0.1  # standard deviation of the start's weights

    def start(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(self.objective.x.shape[1], generator=generator, dtype=torch.float64)
        return self.spread * weights.to(self.objective.x.device)

    def goal(self, start: Tensor) -> float:
        return self.objective.optimum + self.gap * (float(self.objective.value(start)) - self.objective.optimum)

    def trace(self, start: Tensor, values: Sequence[float], **more: object) -> Trace:
        return Trace(self.objective.gap(values, start).numpy(), **more)  # type: ignore[arg-type]

    @torch.inference_mode()
    def oasis(self, seeds: Sequence[int], **options: float) -> list[Trace]:
        """The method, with one setting for everything."""
        o, found = self.objective, []
        for seed in seeds:
            w, signs = self.start(seed), torch.Generator(o.x.device).manual_seed(seed)
            settings = {"max_iter": self.limit, "tol": 0, "target": self.goal(w), "generator": signs, **options}
            r = oasis_minimize(o.value, o.gradient, o.product, w, **settings)
            price = {"cost": GRADIENT + PRODUCT, "once": WARMUP * PRODUCT, "steps": tuple(r.steps)}
            found.append(self.trace(w, r.values, **price))
        return found

    def lbfgs(self, seeds: Sequence[int]) -> list[Trace]:
        starts = [self.start(seed) for seed in seeds]
        return [self.trace(w, lbfgs_values(self.objective, w, self.limit)) for w in starts]

    @torch.inference_mode()
    def first_order(self, rule: str, rates: float | Sequence[float], seeds: Sequence[int]) -> list[Trace]:
        """A rule of `descend` from all seeds at once, at one rate or one each, until the last has closed the gap."""
        starts = [self.start(seed) for seed in seeds]
        w = torch.stack(starts, 1)
        goals = w.new_tensor([self.goal(s) for s in starts])
        lrs = w.new_tensor(rates).expand_as(goals) * self.unit(rule)
        values, short = [self.objective.value(w)], torch.ones_like(goals, dtype=torch.bool)
        for here in itertools.islice(descend(self.objective, rule, w, lrs), self.limit):
            values.append(here)
            short &= here > goals
            if not short.any():
                break
        return [self.trace(s, v) for s, v in zip(starts, torch.stack(values, 1), strict=True)]

    def adahessian(self, rate: float, seeds: Sequence[int], limit: int | None = None) -> list[Trace]:
        """AdaHessian on the whole objective, at a constant learning rate."""
        o, found = self.objective, []
        for seed in seeds:
            w, goal = self.start(seed).requires_grad_(), self.goal(self.start(seed))
            optimizer = AdaHessian([w], lr=rate, generator=torch.Generator(w.device).manual_seed(seed))
            values = [float(o.value(w.detach()))]
            while len(values) <= (limit or self.limit) and goal < values[-1] < np.inf:
                w.grad = o.gradient(w)  # the closed form, which autograd differentiates once more
                optimizer.step()
                values.append(float(o.value(w.detach())))
            found.append(self.trace(self.start(seed), values, cost=GRADIENT + PRODUCT))
        return found

    def unit(self, rule: str) -> float:
        """Rates of gradient descent and Nesterov's method are multiples of 1/L."""
        return 1 / self.objective.smoothness if rule in ("gd", "nesterov", "gd-decaying") else 1.0

    def tuned(self, rule: str, rates: Sequence[float], seed: int) -> tuple[float, int]:
        """The rate that closes the gap first from the start of `seed` (comes nearest, if none does), and when."""
        start = self.start(seed)
        if rule == "adahessian":
            best, needed = rates[0], self.limit
            for rate in sorted(rates, key=lambda rate: abs(np.log(rate))):  # each only as long as it can still win
                if (k := self.adahessian(rate, [seed], needed)[0].iterations(self.gap, self.limit)) < needed:
                    best, needed = rate, k
            return best, needed
        columns = start.new_tensor(rates) * self.unit(rule)
        values, goal = descend(self.objective, rule, start[:, None].expand(-1, len(rates)), columns), self.goal(start)
        for k, here in enumerate(itertools.islice(values, self.limit), 1):
            nearest = int(here.nan_to_num(nan=torch.inf).argmin())
            if (here <= goal).any():
                return rates[nearest], k
        return rates[nearest], self.limit
