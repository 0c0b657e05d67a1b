"""Modules initialised from an explicit generator, without touching PyTorch's global random stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

__all__ = ["he", "initialised", "uniform"]

M = TypeVar("M", bound=nn.Module)


def initialised(
    build: Callable[[], M],
    generator: torch.Generator | None = None,
    weights: Callable[[nn.Module, torch.Generator], None] | None = None,
) -> M:
    """Build a model and draw its weights from ``generator`` (None: seed 0), on the CPU.

    ``build`` runs with the global stream put aside, for PyTorch's own initialisation draws from it. ``weights``
    (default `uniform`) then fills every linear and convolution layer; all other layers are reset to their start values.
    """
    generator = generator or torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # not the meta device: to_empty would load sympy
        model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
                (weights or uniform)(module, generator)
            elif hasattr(module, "reset_parameters"):  # normalisation layers: constants only
                module.reset_parameters()
    return model


def uniform(module: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default: weights and biases uniform within ±1/sqrt(fan in)."""
    bound = 1 / math.sqrt(module.weight[0].numel())
    module.weight.uniform_(-bound, bound, generator=generator)
    if module.bias is not None:
        module.bias.uniform_(-bound, bound, generator=generator)


def he(module: nn.Module, generator: torch.Generator) -> None:
    """Normal weights of variance 2/fan in (He et al., 2015, eq. 10), biases zero."""
    module.weight.normal_(0, math.sqrt(2 / module.weight[0].numel()), generator=generator)
    if module.bias is not None:
        module.bias.zero_()
