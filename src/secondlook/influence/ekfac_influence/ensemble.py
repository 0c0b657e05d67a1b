"""Trains many copies of a small network side by side: seeds, weight decays, or subsets of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from secondlook.influence.ekfac_influence.losses import OutputLoss


def train_ensemble(
    models: Sequence[nn.Module],
    loss: OutputLoss,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    generator: torch.Generator,
    weight_decay: float | Tensor = 0.0,
    include: Tensor | None = None,
    momentum: float = 0.9,
) -> dict[str, Tensor]:
    """SGD with momentum and one cosine cycle on K networks of one architecture; stacked parameters [K, ...].

    weight_decay: L2 coefficient, or one for each network [K].  include: [K, N] of 0 and 1, the examples that each
    network may see (all by default); its loss is the mean over them. All networks draw the same mini-batches.
    """
    count, size = len(x), min(batch_size, len(x))
    parameters = {n: p.detach().clone() for n, p in stack_module_state(list(models))[0].items()}
    weights = torch.ones(len(models), count, device=x.device, dtype=x.dtype) if include is None else include.to(x)
    weights = weights / weights.mean(1, keepdim=True)
    decay = torch.as_tensor(weight_decay, dtype=x.dtype, device=x.device).expand(len(models))
    template = models[0]

    def objective(params: Mapping[str, Tensor], xb: Tensor, yb: Tensor, wb: Tensor) -> Tensor:
        return (wb * loss.loss(functional_call(template, params, (xb,)), yb)).mean()

    gradient = vmap(grad(objective), in_dims=(0, None, None, 0))
    values = list(parameters.values())
    shrink = [decay.view(-1, *[1] * (p.dim() - 1)) for p in values]
    velocity = [torch.zeros_like(p) for p in values]
    order, start = torch.empty(0, dtype=torch.long), 0
    for step in range(steps):
        if start + size > len(order):
            order, start = torch.randperm(count, generator=generator, device=generator.device).to(x.device), 0
        rows, start = order[start : start + size], start + size
        grads = list(gradient(parameters, x[rows], y[rows], weights[:, rows]).values())
        torch._foreach_add_(grads, torch._foreach_mul(values, shrink))
        torch._foreach_mul_(velocity, momentum)
        torch._foreach_add_(velocity, grads)
        rate = 0.5 * lr * (1 + math.cos(math.pi * step / steps))
        torch._foreach_add_(values, velocity, alpha=-rate)
    return parameters


def member(model: nn.Module, parameters: Mapping[str, Tensor], k: int) -> nn.Module:
    """Network k of an ensemble, loaded into `model`, in eval mode."""
    model.load_state_dict({n: p[k] for n, p in parameters.items()})
    return model.eval()


def losses(model: nn.Module, parameters: Mapping[str, Tensor], loss: OutputLoss, x: Tensor, y: Tensor) -> Tensor:
    """Loss of every network on every example, [K, N]."""

    def measure(params: Mapping[str, Tensor]) -> Tensor:
        return loss.loss(functional_call(model, params, (x,)), y)

    with torch.no_grad():
        return vmap(measure)(dict(parameters))
