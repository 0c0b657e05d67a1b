"""Limited-memory BFGS with a strong Wolfe line search (Nocedal and Wright 2006, algorithms 7.4, 3.5 and 3.6)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable

from torch import Tensor

from secondlook.optimizers.base import check_count

Pair = tuple[Tensor, Tensor]
Point = tuple[float, float, float]  # step, value, slope
CURVATURE = 1e-10  # a pair is kept where s.y exceeds this many times |s||y|


def two_loop(gradient: Tensor, pairs: Iterable[Pair]) -> Tensor:
    """The direction -B g, B the inverse Hessian as seen in steps s and turns y of the gradient, oldest pair first."""
    pairs, q, weights = list(pairs), gradient.clone(), []
    curvatures = [s @ y for s, y in pairs]
    for (s, y), curvature in zip(reversed(pairs), reversed(curvatures), strict=True):
        a = (s @ q) / curvature
        q -= a * y
        weights.append(a)
    if pairs:
        y = pairs[-1][1]
        q *= curvatures[-1] / (y @ y)
    for (s, y), curvature, a in zip(pairs, curvatures, reversed(weights), strict=True):
        q += s * (a - (y @ q) / curvature)
    return -q


def strong_wolfe(
    phi: Callable[[float], tuple[float, float]],
    value: float,
    slope: float,
    step: float,
    *,
    decrease: float = 1e-4,
    flatness: float = 0.9,
    limit: int = 25,
) -> float:
    """A step at which phi has decreased by enough and its slope is flat enough; the last one evaluated.

    Where `limit` evaluations do not find one: the best step that has decreased by enough (evaluated once more), or 0.

    Args:
        phi: value and slope of the function along the line.
        value: phi(0).
        slope: phi'(0), negative.
        step: the first step to try.
    """
    low, high = (0.0, value, slope), None
    for _ in range(limit):
        here = (step, *phi(step))
        if not math.isfinite(here[1]) or here[1] > value + decrease * step * slope or here[1] >= low[1]:
            high = here
        elif abs(here[2]) <= -flatness * slope:
            return step
        else:
            if here[2] * ((math.inf if high is None else high[0]) - low[0]) >= 0:
                high = low
            low = here
        step = 2 * low[0] if high is None else _between(low, high)
    if low[0] > 0:
        phi(low[0])
    return low[0]


def _between(low: Point, high: Point) -> float:
    """The minimum of the cubic through both points, kept from the ends by a tenth of their distance."""
    width = high[0] - low[0]
    middle = low[0] + width / 2
    if not math.isfinite(high[1]) or not math.isfinite(high[2]):
        return middle
    d1 = low[2] + high[2] - 3 * (low[1] - high[1]) / (low[0] - high[0])
    square = d1**2 - low[2] * high[2]
    if square < 0:
        return middle
    d2 = math.copysign(math.sqrt(square), width)
    denominator = high[2] - low[2] + 2 * d2
    if denominator == 0:
        return middle
    step = high[0] - width * (high[2] + d2 - d1) / denominator
    nearest, farthest = sorted((low[0] + 0.1 * width, high[0] - 0.1 * width))
    return min(max(step, nearest), farthest)


def lbfgs(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    w: Tensor,
    *,
    history: int = 20,
    evaluations: int = 1000,
    gtol: float = 0.0,
) -> Tensor:
    """Minimise a function of a vector; it may be asked for a few evaluations more than allowed, to end a line search.

    Args:
        function: value (0-d) and gradient [P] at a point [P].
        w: the start; not changed.
        history: pairs to keep, each two vectors of memory.
        evaluations: end when that many have been made.
        gtol: end when no entry of the gradient is larger.

    Returns:
        The point at the end. A line search that fails restarts from the gradient; a second one in a row ends.
    """
    check_count("history", history)
    check_count("evaluations", evaluations)
    count, pairs = 1, deque(maxlen=history)
    value, gradient = function(w)
    failed = False
    while count < evaluations and float(gradient.abs().max()) > gtol:
        direction = two_loop(gradient, pairs)
        slope = float(gradient @ direction)
        if not slope < 0:
            pairs.clear()
            direction, slope = -gradient, -float(gradient @ gradient)
        first = 1.0 if pairs else min(1.0, 1 / float(gradient.abs().sum()))
        seen: dict[str, Tensor] = {}

        def phi(
            step: float, direction: Tensor = direction, start: Tensor = w, seen: dict = seen
        ) -> tuple[float, float]:
            nonlocal count
            count += 1
            seen["w"] = start + step * direction
            seen["value"], seen["gradient"] = function(seen["w"])
            return float(seen["value"]), float(seen["gradient"] @ direction)

        if strong_wolfe(phi, float(value), slope, first) == 0:
            if failed or not pairs:
                break
            pairs.clear()
            failed = True
            continue
        failed = False
        s, y = seen["w"] - w, seen["gradient"] - gradient
        if float(s @ y) > CURVATURE * float(s.norm() * y.norm()):
            pairs.append((s, y))
        w, value, gradient = seen["w"], seen["value"], seen["gradient"]
    return w
