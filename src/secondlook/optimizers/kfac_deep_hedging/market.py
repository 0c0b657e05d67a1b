"""Heston's model: simulated paths, the exact price of a call, and the hedge of Black and Scholes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import quad
from torch import Tensor


@dataclass(frozen=True)
class Heston:
    """dS = mu S dt + sqrt(V) S dW1, dV = kappa (theta - V) dt + xi sqrt(V) dW2, d<W1, W2> = rho dt; time in years."""

    spot: float = 100.0
    variance: float = 0.04  # V at time 0
    mu: float = 0.0
    kappa: float = 2.0
    theta: float = 0.04
    xi: float = 0.3
    rho: float = -0.7
    maturity: float = 30 / 252


def simulate_heston(n_paths: int, n_steps: int, params: Heston, seed: int) -> tuple[Tensor, Tensor]:
    """Paths S and V, each [n_paths, n_steps + 1] in float32, by Euler's scheme with full truncation.

    V may fall below zero between steps; wherever it is used max(V, 0) stands. S is stepped in its logarithm.
    """
    generator = torch.Generator().manual_seed(seed)
    dt = params.maturity / n_steps
    z = torch.randn(n_steps, 2, n_paths, generator=generator, dtype=torch.float64) * math.sqrt(dt)
    x, v = torch.zeros(n_steps + 1, n_paths).double(), torch.full((n_steps + 1, n_paths), params.variance).double()
    for k, (w1, independent) in enumerate(z):
        now = v[k].clamp_min(0)
        w2 = params.rho * w1 + math.sqrt(1 - params.rho**2) * independent
        x[k + 1] = x[k] + (params.mu - now / 2) * dt + now.sqrt() * w1
        v[k + 1] = v[k] + params.kappa * (params.theta - now) * dt + params.xi * now.sqrt() * w2
    return (params.spot * x.exp()).T.float().contiguous(), v.clamp_min(0).T.float().contiguous()


def call_price(params: Heston, strike: float) -> float:
    """Price of a European call at rate zero: Lewis's integral of the characteristic function (2001)."""

    def characteristic(u: complex) -> complex:
        """E exp(i u log(S_T / S_0)) under the pricing measure, in the form that is continuous in u."""
        p, t = params, params.maturity
        b = p.kappa - p.rho * p.xi * 1j * u
        d = np.sqrt(b * b + p.xi**2 * (1j * u + u * u))
        g, decay = (b - d) / (b + d), np.exp(-d * t)
        log_ratio = np.log((1 - g * decay) / (1 - g))
        drift = p.kappa * p.theta / p.xi**2 * ((b - d) * t - 2 * log_ratio)
        return np.exp(drift + (b - d) / p.xi**2 * (1 - decay) / (1 - g * decay) * p.variance)

    k = math.log(params.spot / strike)
    integral, _ = quad(lambda u: (np.exp(1j * u * k) * characteristic(u - 0.5j)).real / (u * u + 0.25), 0, np.inf)
    return params.spot - math.sqrt(params.spot * strike) / math.pi * integral


def black_scholes_delta(S: Tensor, V: Tensor, strike: float, maturity: float) -> Tensor:
    """Hedge ratios [n, N] of a call for paths S, V [n, N + 1], with the present volatility."""
    n_steps = S.shape[1] - 1
    left = maturity * (1 - torch.arange(n_steps, dtype=S.dtype, device=S.device) / n_steps)
    deviation = (V[:, :-1] * left).sqrt().clamp_min(1e-6)
    d1 = (S[:, :-1] / strike).log() / deviation + deviation / 2
    return torch.special.ndtr(d1)


def banded(target: Tensor, width: float) -> Tensor:
    """Positions [n, N] that follow `target` only as far as needed to stay within `width` of it."""
    position, held = torch.zeros_like(target[:, 0]), []
    for goal in target.unbind(1):
        position = torch.clamp(position, goal - width, goal + width)
        held.append(position)
    return torch.stack(held, 1)
