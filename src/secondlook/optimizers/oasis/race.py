"""Runs of OASIS and its rivals on one objective from seeded starts, until the relative gap is closed."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secondlook.curvature import probe_vectors
from secondlook.optimizers.adahessian.method import AdaHessian, sign_vectors
from secondlook.optimizers.oasis.minimize import WARMUP, iterates
from secondlook.optimizers.oasis.objectives import Objective, descend, lbfgs_values

GRADIENT, PRODUCT = 1, 2  # evaluations that a gradient (with its value) and a Hessian-vector product count as
ETA0 = 1e-3  # the first step of the adaptive methods, unless it is what varies


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

    def starts(self, seeds: Sequence[int]) -> Tensor:
        return torch.stack([self.start(seed) for seed in seeds], 1)

    def goal(self, start: Tensor) -> Tensor:
        """The value that closes the gap, from `[d]` or from each column of `[d, m]`."""
        return self.objective.optimum + self.gap * (self.objective.value(start) - self.objective.optimum)

    def closed(self, w: Tensor, values: list[Tensor], steps: Sequence[Tensor] = (), **price: int) -> list[Trace]:
        """Traces of the columns of `w`, each until it has closed the gap or is no number; `values` start at `w`."""
        found, goals = torch.stack(values, 1), self.goal(w)
        gaps, lengths = self.objective.gap(found.T, w).T.numpy(), torch.stack(list(steps), 1).tolist() if steps else []
        traces = []
        for i, over in enumerate(~((found > goals[:, None]) & found.isfinite())):
            end = int(over.nonzero()[0]) if over.any() else len(values) - 1
            traces.append(Trace(gaps[i, : end + 1], **price, steps=tuple(lengths[i][:end]) if steps else ()))
        return traces

    @torch.inference_mode()
    def oasis(self, seeds: Sequence[int], eta0: float | Sequence[float] = ETA0) -> list[Trace]:
        """The method from all seeds at once, with one setting for everything but, maybe, the first step."""
        o, w = self.objective, self.starts(seeds)
        streams = [torch.Generator(o.x.device).manual_seed(seed) for seed in seeds]

        def signs(k: int) -> Sequence[Tensor]:
            count = 1 if k else WARMUP
            drawn = [probe_vectors(len(w), count, generator=s, dtype=w.dtype, device=w.device) for s in streams]
            return torch.stack(drawn, 2).unbind(1)

        values, steps, goals = [], [], self.goal(w)
        short = torch.ones_like(goals, dtype=torch.bool)
        for x, _, eta in itertools.islice(iterates(o.gradient, o.product, w, signs, eta0=eta0), self.limit + 1):
            values.append(o.value(x))
            steps.append(eta)
            short &= values[-1] > goals
            if not short.any():
                break
        return self.closed(w, values, steps[1:], cost=GRADIENT + PRODUCT, once=WARMUP * PRODUCT)

    def lbfgs(self, seeds: Sequence[int]) -> list[Trace]:
        starts = [self.start(seed) for seed in seeds]
        return [Trace(self.objective.gap(lbfgs_values(self.objective, w, self.limit), w).numpy()) for w in starts]

    @torch.inference_mode()
    def first_order(self, rule: str, rates: float | Sequence[float], seeds: Sequence[int]) -> list[Trace]:
        """A rule of `descend` from all seeds at once, at one rate or one each, until the last has closed the gap."""
        w = self.starts(seeds)
        goals = self.goal(w)
        lrs = w.new_tensor(rates).expand_as(goals) * self.unit(rule)
        values, short = [self.objective.value(w)], torch.ones_like(goals, dtype=torch.bool)
        for here in itertools.islice(descend(self.objective, rule, w, lrs), self.limit):
            values.append(here)
            short &= here > goals
            if not short.any():
                break
        return [Trace(gaps) for gaps in self.objective.gap(torch.stack(values), w).T.numpy()]

    def adahessian(self, rate: float, seeds: Sequence[int], limit: int | None = None) -> list[Trace]:
        """AdaHessian on the whole objective from all seeds at once, at a constant learning rate."""
        o, w = self.objective, self.starts(seeds).requires_grad_()
        streams = [torch.Generator(w.device).manual_seed(seed) for seed in seeds]
        optimizer, start = AdaHessian([w], lr=rate), w.detach().clone()
        values, goals = [o.value(start)], self.goal(start)
        short = torch.ones_like(goals, dtype=torch.bool)
        while len(values) <= (limit or self.limit) and short.any():
            w.grad = o.gradient(w)  # the closed form, which autograd differentiates once more
            signs = torch.stack([sign_vectors([column], s)[0] for column, s in zip(start.T, streams, strict=True)], 1)
            optimizer.step(probes=[signs])
            values.append(o.value(w.detach()))
            short &= (values[-1] > goals) & values[-1].isfinite()
        return self.closed(start, values, cost=GRADIENT + PRODUCT)

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
        goal = float(self.goal(start))
        values = descend(self.objective, rule, start[:, None].expand(-1, len(rates)), columns)
        for k, here in enumerate(itertools.islice(values, self.limit), 1):
            nearest = int(here.nan_to_num(nan=torch.inf).argmin())
            if (here <= goal).any():
                return rates[nearest], k
        return rates[nearest], self.limit
