"""Networks of one shape that go through every layer together: a few small ones take little longer than one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["side_by_side"]


class Linears(nn.Module):
    """Linear layers of one shape, each for its own inputs: [n, B, inputs] to [n, B, outputs]."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers])[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight.mT)


def side_by_side(networks: Sequence[nn.Sequential]) -> nn.Sequential:
    """`mlp` networks of one shape as one network, from [n, B, ...] to [n, B, outputs]; weights are copied.

    A step that treats every entry alike (SGD's, Adam's) down the sum of their losses is the step of each alone.
    """

    def joined(alike: tuple[nn.Module, ...]) -> nn.Module:
        match alike[0]:
            case nn.Linear():
                return Linears(alike)
            case nn.Flatten():
                return nn.Flatten(2)
        return alike[0]  # an activation

    return nn.Sequential(*map(joined, zip(*networks, strict=True)))
