"""Arms that train an FD-Net on all its pairs of frames, their cost counted in gradient evaluations."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from secondlook.optimizers.fd_net.heat import frames, pairs
from secondlook.optimizers.fd_net.method import trust_region_cg
from secondlook.optimizers.fd_net.network import FDNet
from secondlook.problems.pairing import first_stream

NONLINEAR = {"tanh": torch.tanh}


@dataclass(frozen=True)
class Curve:
    """Loss after each count of gradient evaluations, in units of the loss at the start."""

    evals: list[float]
    loss: list[float]

    def reached(self, target: float) -> float:
        """Evaluations to the target; without it those of the whole run."""
        return next((e for e, value in zip(self.evals, self.loss, strict=True) if value <= target), self.evals[-1])

    def at(self, evals: float) -> float:
        """The least loss within so many evaluations."""
        return min(value for e, value in zip(self.evals, self.loss, strict=True) if e <= evals or e == self.evals[0])


def mismatch(net: FDNet, x: Tensor, y: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """Mean squared error of the next frames, as a function of the network's parameters."""
    names = [name for name, _ in net.named_parameters()]
    return lambda values: F.mse_loss(functional_call(net, dict(zip(names, values, strict=True)), (x,)), y)


def network(options: dict[str, Any], generator: torch.Generator | None = None) -> FDNet:
    """An FD-Net from a card's options; the nonlinearity is given by name."""
    options = dict(options)
    if "nonlinearity" in options:
        options["nonlinearity"] = NONLINEAR[options["nonlinearity"]]
    return FDNet(**options, generator=generator)


def race(
    arm: str, option: float, seed: int, net: dict[str, Any], data: dict[str, Any], target: float, budget: int
) -> Curve:
    """One run of `trcg` (option: first radius), `adam` or `lbfgs` (learning rate) to the target or for the budget.

    An arm's -copy has other trajectories and starting filters; arms with one seed share both.
    """
    name, g = arm.removesuffix("-copy"), torch.Generator().manual_seed(first_stream(arm, seed, 1))
    x, y = pairs(frames(**data, dim=net.get("dim", 1), generator=g))
    model = network(net, g)
    params, fun = list(model.parameters()), mismatch(model, x, y)
    start = float(fun(params).detach())
    if name == "trcg":
        trace = trust_region_cg(fun, params, option, max_iter=budget, max_evals=budget, target=target * start)
        return Curve(trace.evals, [value / start for value in trace.loss])
    seen: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.mse_loss(model(x), y)
        value.backward()
        seen.append(float(value.detach()) / start)
        return value

    if name == "adam":
        optimizer = torch.optim.Adam(params, option)
    elif name == "lbfgs":
        settings = {"max_iter": 20, "line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}
        optimizer = torch.optim.LBFGS(params, option, **settings)
    else:
        raise ValueError(f"no arm {arm!r}; use trcg, adam or lbfgs, or one of them with -copy")
    while len(seen) < budget and not any(value <= target for value in seen[-30:]) and math.isfinite((seen or [0])[-1]):
        optimizer.step(closure)
    return Curve(list(range(1, len(seen) + 1)), [value if math.isfinite(value) else math.inf for value in seen])
