"""The yardstick: Levenberg-Marquardt on all weights of the same network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secondlook.optimizers.least_squares import Trace, levenberg_marquardt
from secondlook.optimizers.optimal_input_gain.method import Network, augmented


def jacobian(network: Network, X: Tensor) -> Tensor:
    """Derivatives [P M, weights] of all outputs at inputs X [P, N+1] by W, then by Wo, row by row."""
    O, fprime = network.hidden(X)
    outputs, rows = len(network.Wo), len(X)
    by_net = network.Wo[:, X.shape[1] :] * fprime[:, None]  # [P, M, Nh]
    hidden = by_net[..., None] * X[:, None, None]  # [P, M, Nh, N+1]
    own = torch.eye(outputs, dtype=X.dtype, device=X.device)
    output = own[..., None] * torch.cat([X, O], 1)[:, None, None]  # [P, M, M, N+1+Nh]
    return torch.cat([part.reshape(rows * outputs, -1) for part in (hidden, output)], 1)


def fit_lm(
    X: Tensor, T: Tensor, network: Network, iterations: int, callback: Callable[[int, Network], None] | None = None
) -> Trace:
    """Minimise the same error from the same start; `losses` of the trace are errors."""
    X = augmented(X)
    scale = (2 / len(X)) ** 0.5  # half the squared residuals are the error
    start = {"W": network.W, "Wo": network.Wo}

    def at(params: dict[str, Tensor]) -> Network:
        return Network(params["W"], params["Wo"], network.activation)

    def at_flat(flat: Tensor) -> Network:
        W, Wo = flat.split([network.W.numel(), network.Wo.numel()])
        return at({"W": W.view_as(network.W), "Wo": Wo.view_as(network.Wo)})

    return levenberg_marquardt(
        lambda params: scale * (at(params)(X) - T),
        start,
        max_iter=iterations,
        jacobian=lambda flat: scale * jacobian(at_flat(flat), X),
        callback=(lambda i, params, loss: callback(i, at(params))) if callback else None,
    )
