"""Small convolutional networks for images of digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from secondlook.problems.models.initial import initialised

__all__ = ["convnet", "digits_cnn", "lenet"]


def convnet(
    shape: tuple[int, int, int],
    channels: Sequence[int],
    classes: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    batch_norm: bool = False,
    global_pool: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Blocks of 3x3 convolution (padding 1), optional batch norm, activation, 2x2 mean pooling; then linear.

    Inputs [N, *shape] with ``shape`` = (channels, height, width), one block for each entry of ``channels``,
    outputs [N, classes]. Every block halves the sides; mean pooling keeps the network as smooth as its
    activation. ``global_pool`` averages the last block over space instead of flattening it.
    """
    depth, height, width = shape
    if not channels or min(height, width) < 2 ** len(channels):
        raise ValueError(f"{len(channels)} blocks need 1 or more blocks and sides >= {2 ** len(channels)}, got {shape}")

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip([depth, *channels], channels, strict=False):
            layers.append(nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(fan_out)] * batch_norm + [activation(), nn.AvgPool2d(2)]
        if global_pool:
            layers.append(nn.AdaptiveAvgPool2d(1))
        side = 1 if global_pool else (height >> len(channels)) * (width >> len(channels))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side, classes))

    return initialised(build, generator)


def digits_cnn(
    channels: Sequence[int] = (16, 32),
    classes: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    batch_norm: bool = False,
    global_pool: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """`convnet` for 8x8 grey images [N, 1, 8, 8]: by default 1-16-32 channels and 6,090 parameters."""
    return convnet(
        (1, 8, 8), channels, classes, activation, batch_norm=batch_norm, global_pool=global_pool, generator=generator
    )


def lenet(
    shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """LeNet-5 as it is used today: 5x5 convolutions of 6 and 16 channels, mean pooling, linear 120-84-classes.

    Inputs [N, *shape]; 28x28 images are padded by 2 as in LeCun et al. (1998). Outputs [N, classes].
    """
    depth, height, width = shape
    padding = 2 if height < 32 else 0
    sides = [((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width)]
    if min(sides) < 1:
        raise ValueError(f"images of {height}x{width} are too small for LeNet-5; 28x28 or more")

    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(depth, 6, 5, padding=padding),
            activation(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            activation(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * sides[0] * sides[1], 120),
            activation(),
            nn.Linear(120, 84),
            activation(),
            nn.Linear(84, classes),
        )

    return initialised(build, generator)
