"""The differential equation that INNAprop discretises, integrated by SciPy."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import OdeSolution, solve_ivp

from secondlook.optimizers.base import check_range


def inna_flow(
    grad: Callable[[np.ndarray], ArrayLike],
    x0: ArrayLike,
    alpha: float,
    beta: float,
    t_span: tuple[float, float],
    *,
    tolerance: float = 1e-10,
) -> OdeSolution:
    """The path of x'' + alpha x' + beta d/dt grad F(x) + grad F(x) = 0 that leaves `x0` with psi at rest.

    Args:
        grad: gradient of F, from `[n]` to `[n]`.
        x0: start `[n]`; the initial velocity is -beta grad F(x0).
        alpha: viscous damping, at least 0.
        beta: geometric damping, above 0.
        t_span: first and last time.
        tolerance: relative and absolute tolerance of the integrator.

    Returns:
        A function of times `[k]` to `[2 n, k]`: x in the first n rows, psi in the others.

    Raises:
        ValueError: a damping is out of range.
        RuntimeError: the integrator could not reach the last time.
    """
    check_range("alpha", alpha)
    check_range("beta", beta, low_open=True)
    x0 = np.asarray(x0, dtype=float)

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        x, psi = state[: x0.size], state[x0.size :]
        drift = ((1 - alpha * beta) * x - psi) / beta
        return np.concatenate([drift - beta * np.asarray(grad(x)), drift])

    start = np.concatenate([x0, (1 - alpha * beta) * x0])
    found = solve_ivp(velocity, t_span, start, "LSODA", dense_output=True, rtol=tolerance, atol=tolerance)
    if not (found.success and np.isfinite(found.y).all()):
        reached = found.t[np.isfinite(found.y).all(0)].max()
        raise RuntimeError(f"the flow could be followed to t = {reached:g} only; shorten t_span, or F has no minimum")
    return found.sol
