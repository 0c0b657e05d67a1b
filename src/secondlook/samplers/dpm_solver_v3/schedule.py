"""Noise schedules in terms of lambda = log(alpha / sigma), half the log signal-to-noise ratio.

A noised sample is x = alpha x0 + sigma z. Every sampler of this family integrates the probability-flow ODE

    dx/dlambda = (dlog alpha/dlambda) x - sigma eps(x, lambda)

from `start` (almost pure noise) up to `end` (almost clean); lambda increases along the way.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

SPACINGS = ("lambda", "time")


class Schedule(ABC):
    """What a sampler needs to know of the forward process; all arguments are tensors of lambda."""

    start: float
    end: float

    @abstractmethod
    def log_alpha(self, lam: Tensor) -> Tensor:
        """Logarithm of the signal's scale."""

    @abstractmethod
    def drift(self, lam: Tensor) -> Tensor:
        """dlog alpha / dlambda."""

    @abstractmethod
    def time_nodes(self, steps: int) -> Tensor:
        """Lambdas [steps + 1] of the schedule's own time grid."""

    def alpha(self, lam: Tensor) -> Tensor:
        return self.log_alpha(lam).exp()

    def sigma(self, lam: Tensor) -> Tensor:
        return (self.log_alpha(lam) - lam).exp()

    def nodes(self, steps: int, spacing: str = "lambda") -> Tensor:
        """Float64 lambdas [steps + 1] from `start` to `end`, uniform in lambda or in the schedule's time."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if spacing not in SPACINGS:
            raise ValueError(f"spacing must be one of {SPACINGS}, got {spacing!r}")
        if spacing == "time":
            return self.time_nodes(steps)
        return torch.linspace(self.start, self.end, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class VPSchedule(Schedule):
    """Variance preserving, alpha^2 + sigma^2 = 1, with beta(t) linear on [0, 1] (Song et al. 2021)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_end: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.t_end < 1:
            raise ValueError(f"t_end must lie strictly between 0 and 1, got {self.t_end}")
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"need 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    @property
    def start(self) -> float:
        return self.lambda_at(torch.tensor(1.0, dtype=torch.float64)).item()

    @property
    def end(self) -> float:
        return self.lambda_at(torch.tensor(self.t_end, dtype=torch.float64)).item()

    def lambda_at(self, t: Tensor) -> Tensor:
        """Lambda of the time t in (0, 1]."""
        log_alpha = -t * (self.beta_min / 2 + t * (self.beta_max - self.beta_min) / 4)
        return log_alpha - (-torch.expm1(2 * log_alpha)).log() / 2

    def log_alpha(self, lam: Tensor) -> Tensor:
        return -softplus(-2 * lam) / 2

    def drift(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-2 * lam)  # = sigma^2

    def time_nodes(self, steps: int) -> Tensor:
        return self.lambda_at(torch.linspace(1.0, self.t_end, steps + 1, dtype=torch.float64))


@dataclass(frozen=True)
class EDMSchedule(Schedule):
    """Variance exploding, alpha = 1, with the sigma range and the rho-spaced times of Karras et al.
    (2022)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def start(self) -> float:
        return -math.log(self.sigma_max)

    @property
    def end(self) -> float:
        return -math.log(self.sigma_min)

    def log_alpha(self, lam: Tensor) -> Tensor:
        return torch.zeros_like(lam)

    def drift(self, lam: Tensor) -> Tensor:
        return torch.zeros_like(lam)

    def time_nodes(self, steps: int) -> Tensor:
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return -self.rho * torch.linspace(first, last, steps + 1, dtype=torch.float64).log()
