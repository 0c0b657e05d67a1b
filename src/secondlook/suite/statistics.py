"""The few tests the verdicts stand on. `docs/statistics.md` states their assumptions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats would cost every job a second to load

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs with its 95% t-interval; `n` is the number of pairs."""

    mean: float
    low: float
    high: float
    n: int
    sd: float

    def p_above(self, threshold: float) -> float:
        """One-sided p of "the mean is not above the threshold" (one-sample t-test)."""
        gap = self.mean - threshold
        if self.n < 2 or math.isnan(gap):
            return 1.0
        if self.sd <= 1e-12 * max(abs(self.mean), abs(threshold), 1e-300):
            # All pairs agree: t is infinite. n equal signs still have probability 2^-n under a symmetric null.
            return 2.0**-self.n if gap > 0 else 1.0
        return float(stdtr(self.n - 1, -gap / (self.sd / math.sqrt(self.n))))

    def p_below(self, threshold: float) -> float:
        """One-sided p of "the mean is not below the threshold"."""
        return Estimate(-self.mean, -self.high, -self.low, self.n, self.sd).p_above(-threshold)


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of independent pairs with its two-sided 95% t-interval, shape `[n]`. One value has no interval (nan)."""
    v = np.asarray(values, dtype=float)
    if v.size == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, math.nan)
    mean = float(v.mean())
    if v.size == 1:
        return Estimate(mean, math.nan, math.nan, 1, math.nan)
    sd = float(v.std(ddof=1))
    half = float(stdtrit(v.size - 1, 0.5 + LEVEL / 2)) * sd / math.sqrt(v.size)
    return Estimate(mean, mean - half, mean + half, int(v.size), sd)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p-values that may be compared with one level over the whole family of tests."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (p.size - rank) * p[i]))
        adjusted[i] = running
    return adjusted.tolist()


def loglog_slope(step: np.ndarray, value: np.ndarray) -> float:
    """Least-squares slope of log value against log step; needs two distinct positive steps and positive values."""
    step, value = np.asarray(step, float), np.asarray(value, float)
    if np.unique(step).size < 2:
        raise ValueError("a slope needs at least two different steps")
    if (step <= 0).any() or (value <= 0).any():
        raise ValueError("a log-log slope needs positive steps and values")
    return float(np.polyfit(np.log(step), np.log(value), 1)[0])


def correlation(x: np.ndarray, y: np.ndarray, kind: str) -> float:
    """Spearman or Pearson correlation; a constant side has correlation 0 (it carries no order)."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.size < 3:
        raise ValueError(f"a correlation needs at least three points, there are {x.size}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    if kind == "spearman":
        x, y = _ranks(x), _ranks(y)
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def _ranks(v: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]
