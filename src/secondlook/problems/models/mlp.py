"""Multilayer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from secondlook.problems.models.initial import initialised

__all__ = ["mlp"]


def mlp(
    sizes: Sequence[int],
    activation: Callable[[], nn.Module] = nn.ReLU,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Flatten, then linear layers of widths ``sizes`` = (inputs, hidden..., outputs) with ``activation`` between.

    Inputs [N, ...] with ``sizes[0]`` values a row; outputs [N, sizes[-1]]. Weights are drawn from
    ``generator`` (None: seed 0) by PyTorch's default rule.
    """
    if len(sizes) < 2 or any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(f"sizes must be at least two positive integers (inputs, ..., outputs), got {list(sizes)}")

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), activation()]
        return nn.Sequential(*layers[:-1])

    return initialised(build, generator)
