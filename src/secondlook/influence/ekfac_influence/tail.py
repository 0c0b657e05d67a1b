r"""Is the largest influence distributed as a power law? Maximum likelihood and a goodness-of-fit test.

    p(x) = ((a - 1) / x_min) (x / x_min)^{-a},   a = 1 + n / sum log(x / x_min)

following Clauset, Shalizi & Newman (arXiv:0706.1062), with x_min at a fixed quantile: the p-value is the share of
synthetic power-law samples that fit worse, each after its own fit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TailFit(NamedTuple):
    exponent: float
    ks_p: float  # small values reject the power law
    log_likelihood_gain: float  # per point, over a shifted exponential fitted to the same tail


def power_law(values: Tensor, share: float, resamples: int, generator: torch.Generator) -> TailFit:
    """Fit the largest `share` of `values` [N], which must be positive there. p-values resolve 1 / resamples."""
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    count = round(share * len(values))
    if count < 10:
        raise ValueError(f"{share} of {len(values)} values leaves {count} in the tail; give at least 10")
    top = values.double().topk(count + 1).values
    x, floor = top[:-1].flip(0), top[-1]
    if float(floor) <= 0:
        raise ValueError("the tail holds values that are not positive; take a smaller share")
    log = (x / floor).log().unsqueeze(0)  # exponentially distributed with rate a - 1 under a power law
    rate, distance = _fit(log)
    uniform = torch.rand(resamples, count, generator=generator, dtype=torch.float64)
    _, synthetic = _fit((-(1 - uniform).log()).sort(1).values)
    excess = (x - floor).mean()
    power = rate[0].log() - floor.log() - (rate[0] + 1) * log.mean()
    exponential = -excess.log() - 1
    p = (synthetic >= distance[0]).double().mean()
    return TailFit(1 + float(rate[0]), float(p), float(power - exponential))


def _fit(log: Tensor) -> tuple[Tensor, Tensor]:
    """Rate and Kolmogorov-Smirnov distance of exponentials fitted to sorted rows [R, n]."""
    n = log.shape[1]
    rate = 1 / log.mean(1)
    cdf = 1 - torch.exp(-rate.unsqueeze(1) * log)
    steps = torch.arange(n, dtype=log.dtype)
    distance = torch.maximum((cdf - steps / n).abs(), ((steps + 1) / n - cdf).abs()).amax(1)
    return rate, distance
