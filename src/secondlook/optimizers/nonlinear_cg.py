"""Non-linear conjugate gradients (Polak and Ribiere 1969, beta cut at zero) that stay in one precision throughout.

The vectors are torch tensors of the working precision. The line search keeps its books in NumPy scalars of the same
precision: Python's own numbers would quietly be double.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

FunctionAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}


@dataclass
class Trace:
    """What a minimisation saw.

    Attributes:
        w: the point with the lowest value found.
        evaluations, values: the number of evaluations so far whenever the lowest value fell, and that value.
        first_failure: evaluations before the first line search that found no lower point; None if all did.
    """

    w: Tensor
    evaluations: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    first_failure: int | None = None

    def at(self, evaluation: float) -> float:
        """The lowest value known after so many evaluations."""
        place = np.searchsorted(self.evaluations, evaluation, side="right") - 1
        return self.values[max(int(place), 0)]


class Exhausted(Exception):
    """No evaluation is left."""


class Line:
    """The function along one direction: evaluates, counts, and remembers the lowest point."""

    def __init__(self, fun_and_grad: FunctionAndGradient, w: Tensor, value: np.floating, direction: Tensor, left: int):
        self.fun_and_grad, self.w, self.direction, self.left = fun_and_grad, w, direction, left
        self.number = type(value)
        self.step, self.value, self.point, self.gradient = self.number(0), value, w, None

    def __call__(self, step: np.floating) -> np.floating:
        """The value at `step`; infinity where it is not a number. Raises `Exhausted`."""
        if self.left <= 0:
            raise Exhausted
        self.left -= 1
        point = torch.add(self.w, self.direction, alpha=float(step))
        value, gradient = self.fun_and_grad(point)
        value = self.number(float(value))
        value = value if np.isfinite(value) else self.number(math.inf)
        if value < self.value:
            self.step, self.value, self.point, self.gradient = step, value, point, gradient
        return value


def parabola(a, fa, b, fb, c, fc) -> tuple[np.floating, np.floating]:
    """Where the parabola through three points a < b < c has its minimum, and how far that lies below `fb`.

    NaN or infinity where the points lie on a line.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        left, right = (fb - fa) / (b - a), (fc - fb) / (c - b)
        bend = (right - left) / (c - a)  # half the second derivative
        slope = left + bend * (b - a)  # at b
        return b - slope / (2 * bend), slope * slope / (4 * bend)


def bracketing(line: Line, slope: np.floating, step: np.floating, *, rtol: float = 1e-3, limit: int = 30) -> None:
    """Search along `line`: bracket a minimum by doubling or shrinking, then refine it by parabolas and golden sections.

    Args:
        line: the function along the direction; it remembers the lowest point.
        slope: its derivative at 0, negative.
        step: the first step to try.
        rtol: stop when the next step differs from the best one by this share.
        limit: give up after so many shrinkings, doublings or refinements.
    """
    a, b = step - step, step
    fa, fb = line.value, line(b)
    c, fc = 5 * b, fb  # not a bracket yet
    for _ in range(limit):
        if fb < fa:
            break
        c, fc = b, fb
        b = c / 2
        rise = fc - fa - slope * c
        if np.isfinite(rise) and rise > 0:  # the parabola with this value and slope at 0 turns before c / 2
            b = np.clip(-slope * c * c / (2 * rise), c / 50, c / 2)
        fb = line(b)
    else:
        return
    if c > 4 * b:  # too lopsided for parabolas, or none
        c, fc = 2 * b, line(2 * b)
        for _ in range(limit):
            if fc >= fb:
                break
            a, fa, b, fb = b, fb, c, fc
            c, fc = 2 * c, line(2 * c)
    golden, resolution = line.number((3 - math.sqrt(5)) / 2), 4 * np.finfo(line.number).eps
    for _ in range(limit):
        x, gain = parabola(a, fa, b, fb, c, fc)
        if not a < x < c:
            x = b + golden * ((c - b) if c - b > b - a else (a - b))
        elif abs(x - b) <= rtol * b or gain <= resolution * fb:
            return
        if c - a <= rtol * b:
            return
        fx = line(x)
        if fx < fb:
            a, fa, c, fc = (a, fa, b, fb) if x < b else (b, fb, c, fc)
            b, fb = x, fx
        elif x < b:
            a, fa = x, fx
        else:
            c, fc = x, fx


def conjugate_gradient(
    fun_and_grad: FunctionAndGradient,
    w0: Tensor,
    dtype: torch.dtype = torch.float64,
    max_evals: int = 1000,
    line_search: Callable[[Line, np.floating, np.floating], None] = bracketing,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Trace:
    """Minimise by d <- -g + beta d with beta = max(0, g.(g - g_last) / g_last.g_last).

    Restarts along -g after as many steps as there are parameters, where d does not descend, and after a line search
    that found no lower point; ends when one along -g finds none, or no evaluation is left.

    Args:
        fun_and_grad: value (0-d) and gradient [P] at a point [P], computed in `dtype`. Each call is one evaluation.
        w0: start, [P].
        dtype: float32 or float64, of all vectors and of the line search's numbers.
        max_evals: evaluations allowed.
        line_search: called with the `Line`, its slope at 0 and a first step.
        visit: called with the evaluations so far and the new point after every step.

    Raises:
        ValueError: another `dtype`, no evaluation allowed, or a start at which the function is not finite.
    """
    if dtype not in NUMBERS:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if max_evals < 1:
        raise ValueError(f"max_evals must be at least 1, got {max_evals}")
    number = NUMBERS[dtype]
    w = w0.detach().to(dtype)
    value, g = fun_and_grad(w)
    value, left = number(float(value)), max_evals - 1
    if not np.isfinite(value):
        raise ValueError("the function is not finite at w0; start nearer to the origin")
    trace = Trace(w, [1], [float(value)])
    d, slope, step, since_restart = -g, -number(float(g @ g)), None, 0
    while left > 0 and slope < 0:
        line = Line(fun_and_grad, w, value, d, left)
        first = number(1 / math.sqrt(-slope)) if step is None else step
        with suppress(Exhausted):
            line_search(line, slope, first)
        left, moved = line.left, line.gradient is not None
        if not moved:
            if left > 0 and trace.first_failure is None:
                trace.first_failure = max_evals - left
            if since_restart == 0:
                break
            d, slope, step, since_restart = -g, -number(float(g @ g)), None, 0
            continue
        w, value, last, g = line.point, line.value, g, line.gradient
        trace.w = w
        trace.evaluations.append(max_evals - left)
        trace.values.append(float(value))
        if visit is not None:
            visit(max_evals - left, w)
        since_restart = (since_restart + 1) % w.numel()
        beta = max(number(0), number(float(g @ (g - last))) / number(float(last @ last))) if since_restart else 0
        d = torch.add(-g, d, alpha=float(beta))
        new_slope = number(float(g @ d))
        if new_slope >= 0:
            d, new_slope, since_restart = -g, -number(float(g @ g)), 0
        step, slope = line.step * np.clip(slope / new_slope, 0.1, 10) if new_slope else None, new_slope
    return trace
