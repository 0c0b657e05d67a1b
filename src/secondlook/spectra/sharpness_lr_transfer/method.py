"""Networks that keep their learning rate, or not, as they grow; their sharpness; their tangent kernel.

Noci, Meterez, Hofmann, Orvieto, "Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep
Learning" (2024), later "Super Consistency of Neural Network Landscapes and Learning Rate Transfer". With all weights
drawn from N(0, 1), D inputs and L hidden layers of width N,

    z_1 = x W_1 / sqrt(D),   z_{l+1} = sqrt(2 / N) phi(z_l) W_{l+1},   f = phi(z_L) W_out / (gamma sqrt(N)).

(The factor 2 is for ReLU; it is 1 where phi is linear.) What a width changes is gamma and the learning rate of each W:

    NTK scaling (ntp)       gamma = 1,              eta
    muP (mup)               gamma = sqrt(N / N_0),  eta gamma^2
    standard scaling (sp)   gamma = 1,              eta N / N_0 for all but W_1

All three are the same at the base width N_0. The last one is what one rate for ordinary weights w = W / sqrt(fan-in)
comes to: a step in w is fan-in times as large in W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from secondlook.curvature import FunctionOperator, HessianOperator, SharpnessTracker, eigsh, pack
from secondlook.curvature.linear import between

__all__ = [
    "ScaledMLP",
    "descend",
    "draw_weights",
    "empirical_ntk",
    "lr_transfer_sweep",
    "preconditioned_hessian",
    "preconditioned_sharpness",
    "scaled_mlp",
    "scaling",
    "sharpness_tracker",
]

Scaling = Literal["mup", "ntp", "sp"]


def scaling(param: Scaling, width: int, base_width: int = 64, depth: int = 2) -> tuple[float, list[float]]:
    """gamma, and what eta is multiplied by for each of the `depth + 1` weights."""
    ratio = width / base_width
    match param:
        case "ntp":
            return 1.0, [1.0] * (depth + 1)
        case "mup":
            return math.sqrt(ratio), [ratio] * (depth + 1)
        case "sp":
            return 1.0, [1.0] + [ratio] * depth
    raise ValueError(f"param must be 'mup', 'ntp' or 'sp', got {param!r}")


def draw_weights(inputs: int, width: int, depth: int, outputs: int, generator: torch.Generator) -> list[Tensor]:
    """Standard normal weights `[in, out]` of `depth` hidden layers and the output layer."""
    if depth < 1:
        raise ValueError(f"a network has at least one hidden layer, got {depth}")
    sizes = [inputs, *[width] * depth, outputs]
    return [torch.randn(a, b, generator=generator) for a, b in pairwise(sizes)]


def scaled_mlp(weights: Sequence[Tensor], x: Tensor, gamma: float = 1.0, linear: bool = False) -> Tensor:
    """Outputs `[..., n, C]` at points `[..., n, D]`; weights may have leading axes that stack networks."""
    return _layers(weights, x, gamma, linear)[-1][1]


def _layers(weights: Sequence[Tensor], x: Tensor, gamma: float, linear: bool) -> list[tuple[Tensor, Tensor, float]]:
    """Input h, output z = c h W and factor c of every layer."""
    layers: list[tuple[Tensor, Tensor, float]] = []
    gain = 1.0 if linear else 2.0
    z = x
    for i, W in enumerate(weights):
        h = z if i == 0 or linear else torch.relu(z)
        last = i == len(weights) - 1
        c = 1 / gamma / math.sqrt(W.shape[-2]) if last else math.sqrt((gain if i else 1) / W.shape[-2])
        z = c * (h @ W)
        layers.append((h, z, c))
    return layers


class ScaledMLP(nn.Module):
    """One such network, for any optimizer of the SGD kind: hand it `param_groups(eta)`.

    `lr_mults` are what the learning rate of each weight is multiplied by.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        param: Scaling = "mup",
        base_width: int = 64,
        *,
        inputs: int,
        outputs: int,
        linear: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.gamma, self.lr_mults = scaling(param, width, base_width, depth)
        generator = generator or torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(draw_weights(inputs, width, depth, outputs, generator))

    def forward(self, x: Tensor) -> Tensor:
        return scaled_mlp(list(self.weights), x, self.gamma, self.linear)

    def param_groups(self, eta: float) -> list[dict[str, object]]:
        return [{"params": [W], "lr": eta * m} for W, m in zip(self.weights, self.lr_mults, strict=True)]


def sharpness_tracker(model: ScaledMLP, data: tuple[Tensor, Tensor], **options: Any) -> SharpnessTracker:
    """Follows D^(1/2) H D^(1/2) of the mean squared error, D the multipliers: stable up to an eigenvalue 2 / eta."""

    def inverse(params: list[Tensor]) -> list[Tensor]:
        return [torch.full_like(p, 1 / m) for p, m in zip(params, model.lr_mults, strict=True)]

    return SharpnessTracker(model, "mse", data, precondition=inverse, **options)


def preconditioned_hessian(
    params: Sequence[Tensor], loss: Callable[[], Tensor], lr_mults: Sequence[float]
) -> FunctionOperator:
    """D^(1/2) H D^(1/2), D the learning rates of the tensors in units of eta: stable up to an eigenvalue 2 / eta.

    `loss()` depends on `params`, which require grad.
    """
    if len(lr_mults) != len(params) or min(lr_mults) <= 0:
        raise ValueError(f"need a positive multiplier for each of {len(params)} tensors, got {list(lr_mults)}")
    H = HessianOperator.of_loss(lambda _: loss(), params)
    root = pack([torch.full_like(p, m**0.5) for p, m in zip(params, lr_mults, strict=True)]).detach()
    return between(root, H)


def preconditioned_sharpness(
    model: nn.Module | Sequence[Tensor],
    loss: Callable[[], Tensor],
    lr_mults: Sequence[float],
    iters: int = 60,
    *,
    tol: float = 1e-3,
) -> float:
    """The largest eigenvalue of `preconditioned_hessian`, by at most `iters` Lanczos steps."""
    params = list(model.parameters()) if isinstance(model, nn.Module) else model
    A = preconditioned_hessian(params, loss, lr_mults)
    generator = torch.Generator().manual_seed(0)
    return float(eigsh(A, tol=tol, max_products=iters, generator=generator).values[0])


def empirical_ntk(
    weights: Sequence[Tensor],
    x: Tensor,
    gamma: float = 1.0,
    linear: bool = False,
    lr_mults: Sequence[float] | None = None,
) -> Tensor:
    """J D J^T over n points and C outputs, `[n C, n C]`, of one network, D the multipliers (default: ones).

    The Jacobian of z = c h W by W is c h times the signal sent back from the outputs, so that layer by layer
    K = sum m c^2 (h_i . h_j) (delta_ic . delta_jd), and no Jacobian is ever stored.
    """
    weights = [W.detach().requires_grad_() for W in weights]
    with torch.enable_grad():
        layers = _layers(weights, x, gamma, linear)
        outputs = [z for _, z, _ in layers]
        back = [torch.autograd.grad(f.sum(), outputs, retain_graph=True) for f in outputs[-1].unbind(-1)]
    kernel: Tensor | float = 0.0
    mults = lr_mults or [1.0] * len(weights)
    for (h, _, c), deltas, m in zip(layers, zip(*back, strict=True), mults, strict=True):
        delta = torch.stack(deltas, 1).flatten(0, 1)  # [n C, out]
        inner = (h @ h.T).detach().repeat_interleave(len(back), 0).repeat_interleave(len(back), 1)
        kernel = kernel + m * c**2 * inner * (delta @ delta.T)
    return kernel


def descend(
    weights: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    lr: Tensor,
    scales: tuple[float, Sequence[float]],
    steps: int,
    *,
    linear: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Full-batch gradient descent of S networks `[S, ...]` on the mean squared error.

    `lr`, `[S]`, is eta of each network, and `scales` what `scaling` says. Returns the weights and the losses before
    each step, `[steps, S]`.
    """
    gamma, mults = scales
    now = [W.detach().clone().requires_grad_() for W in weights]
    losses = []
    for _ in range(steps):
        with torch.enable_grad():
            loss = (scaled_mlp(now, x, gamma, linear) - y).square().mean((-2, -1))
            gradients = torch.autograd.grad((lr * loss).sum(), now)
        with torch.no_grad():
            for W, g, m in zip(now, gradients, mults, strict=True):
                W.sub_(g, alpha=m)
        losses.append(loss.detach())
    return [W.detach() for W in now], torch.stack(losses) if losses else lr.new_zeros(0, len(lr))


def lr_transfer_sweep(
    widths: Sequence[int],
    lrs: Sequence[float],
    param: Scaling,
    data: tuple[Tensor, Tensor],
    steps: int,
    *,
    depth: int = 2,
    base_width: int = 64,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Training loss (mean of the last tenth of the steps) by `width`, `lr` and `seed`; NaN or inf where it diverged.

    `first` is the loss before training. All rates and seeds of a width are trained together.
    """
    x, y = data
    rows = []
    for width in widths:
        drawn = [
            draw_weights(x.shape[-1], width, depth, y.shape[-1], torch.Generator().manual_seed(seed)) for seed in seeds
        ]
        stack = [torch.stack([W for W in layer for _ in lrs]).to(x) for layer in zip(*drawn, strict=True)]
        rates = torch.tensor(list(lrs) * len(seeds)).to(x)
        _, losses = descend(stack, x, y, rates, scaling(param, width, base_width, depth), steps)
        last = losses[-max(1, steps // 10) :].mean(0)
        keys = [(seed, lr) for seed in seeds for lr in lrs]
        rows += [
            {"width": width, "lr": lr, "seed": seed, "loss": end, "first": start}
            for (seed, lr), end, start in zip(keys, last.tolist(), losses[0].tolist(), strict=True)
        ]
    return pd.DataFrame(rows)
