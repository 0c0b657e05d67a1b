"""Regularised binary classification in float64: exact derivatives, the optimum, and first-order methods and L-BFGS."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from secondlook.problems import datasets


class Loss(NamedTuple):
    """A loss of the margin t and the class y (0 or 1), its first two derivatives by t, and a bound on the second."""

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    bend: Callable[[Tensor, Tensor], Tensor]
    bound: float


def _squares_bend(t: Tensor, y: Tensor) -> Tensor:
    s = torch.sigmoid(t)
    rise = s * (1 - s)
    return 2 * rise * (rise + (s - y) * (1 - 2 * s))


def _squares_slope(t: Tensor, y: Tensor) -> Tensor:
    s = torch.sigmoid(t)
    return 2 * (s - y) * s * (1 - s)


def _logistic_bend(t: Tensor, y: Tensor) -> Tensor:
    s = torch.sigmoid(t)
    return s * (1 - s)


LOSSES = {
    "logistic": Loss(lambda t, y: F.softplus(t) - y * t, lambda t, y: torch.sigmoid(t) - y, _logistic_bend, 0.25),
    "squares": Loss(lambda t, y: (torch.sigmoid(t) - y) ** 2, _squares_slope, _squares_bend, 0.16),
}


@dataclass(frozen=True)
class Objective:
    """F(w) = mean loss of the margins x w + ridge/2 |w|^2.

    Attributes:
        x: `[n, d]`, a column of ones among them.
        y: `[n]`, 0 or 1.
        loss: "logistic", or "squares", (y - sigmoid(x w))^2, which is not convex.
    """

    x: Tensor
    y: Tensor
    loss: str
    ridge: float

    @classmethod
    def of(cls, name: str, device: str, exponents: Tensor | float = 0.0) -> "Objective":
        """From "DATA-LOSS": all training rows, odd against even digits, ridge 1/n, features times 10^exponents."""
        data, _, loss = name.rpartition("-")
        part = datasets.load(data).train.to(device)
        x = part.x.flatten(1).double() * 10.0**exponents
        return cls(torch.cat([x, torch.ones_like(x[:, :1])], 1), part.y.double() % 2, loss, 1 / len(x))

    def value(self, w: Tensor) -> Tensor:
        """At `[d]`, or at each column of `[d, m]`."""
        return self._value(w, self.x @ w)

    def gradient(self, w: Tensor) -> Tensor:
        """At `[d]`, or at each column of `[d, m]`."""
        return self._gradient(w, self.x @ w)

    def both(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient, from the same margins."""
        margins = self.x @ w
        return self._value(w, margins), self._gradient(w, margins)

    def product(self, w: Tensor, v: Tensor) -> Tensor:
        """The Hessian at `[d]` times `[d]` or `[d, m]`, or those at the columns of `[d, m]` times one of `v` each."""
        bend = self._points("bend", self.x @ w)
        return (
            self.x.T @ (bend.view(*bend.shape, *[1] * (v.ndim - w.ndim)) * (self.x @ v)) / len(self.x) + self.ridge * v
        )

    def _value(self, w: Tensor, margins: Tensor) -> Tensor:
        return self._points("value", margins).mean(0) + self.ridge / 2 * (w * w).sum(0)

    def _gradient(self, w: Tensor, margins: Tensor) -> Tensor:
        return self.x.T @ self._points("slope", margins) / len(self.x) + self.ridge * w

    def _points(self, what: str, margins: Tensor) -> Tensor:
        return getattr(LOSSES[self.loss], what)(margins, self.y.view(-1, *[1] * (margins.ndim - 1)))

    @cached_property
    def smoothness(self) -> float:
        """Bounds the curvature."""
        norm = torch.linalg.matrix_norm(self.x, 2).item()
        return LOSSES[self.loss].bound * norm**2 / len(self.x) + self.ridge

    @cached_property
    def optimum(self) -> float:
        """The least value, by a trust-region Newton method from 0."""
        eye = torch.eye(self.x.shape[1], dtype=self.x.dtype, device=self.x.device)

        def at(function: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
            return lambda w: function(torch.from_numpy(w.copy()).to(self.x)).cpu().numpy()

        jac, hess = at(self.gradient), at(lambda w: self.product(w, eye))
        options = {"gtol": 1e-11, "maxiter": 5000}
        return float(
            minimize(at(self.value), np.zeros(len(eye)), jac=jac, hess=hess, method="trust-exact", options=options).fun
        )

    def gap(self, values: float | Tensor | Sequence[float], start: Tensor) -> Tensor:
        """(F - F*) / (F(start) - F*), not below rounding; of values `[k]`, or `[k, m]` from starts `[d, m]`."""
        first = self.value(start) - self.optimum
        return ((torch.as_tensor(values, dtype=self.x.dtype).cpu() - self.optimum) / first.cpu()).clamp_min(1e-16)


def descend(objective: Objective, rule: str, starts: Tensor, lrs: Tensor) -> Iterator[Tensor]:
    """The values `[m]` after each gradient step from the columns of `starts` `[d, m]` at their rates `[m]`, for ever.

    Rules: "gd"; "gd-decaying", the step k times shorter at iteration k; "nesterov", momentum for strong convexity
    `ridge`; "adam" with its usual averages; "adgd", adaptive gradient descent (Malitsky and Mishchenko 2020), which is
    the step rule of OASIS without a scaling, its first step the rate.
    """
    w, m, v = starts, torch.zeros_like(starts), torch.zeros_like(starts)
    step, growth = lrs, torch.full_like(lrs, torch.inf)
    root, g = (lrs * objective.ridge).sqrt(), objective.gradient(starts)
    for k in itertools.count(1):
        match rule:
            case "gd":
                w = w - lrs * g
            case "gd-decaying":
                w = w - lrs / k * g
            case "nesterov":
                after = w - lrs * g
                w, m = after + (1 - root) / (1 + root) * (after - (m if k > 1 else starts)), after
            case "adam":
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                w = w - lrs * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
            case "adgd":
                if k > 1:  # m and v hold the point and the gradient before
                    bound = (w - m).norm(dim=0) / (2 * (g - v).norm(dim=0))
                    longer = torch.minimum((1 + growth).sqrt() * step, bound)
                    step, growth = longer, longer / step
                m, v, w = w, g, w - step * g
            case _:
                raise ValueError(f"no rule {rule!r}; use gd, gd-decaying, nesterov, adam or adgd")
        here, g = objective.both(w)
        yield here


def lbfgs_values(objective: Objective, start: Tensor, limit: int) -> list[float]:
    """The least value so far at each evaluation (value with gradient) of SciPy's L-BFGS-B with a memory of ten."""
    seen: list[float] = []

    def both(w: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(w.copy()).to(start)
        value = float(objective.value(x))
        seen.append(min([value, *seen[-1:]]))
        return value, objective.gradient(x).cpu().numpy()

    options = {"maxcor": 10, "maxfun": limit, "maxiter": limit, "ftol": 0, "gtol": 1e-12}
    minimize(both, start.cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    return seen
