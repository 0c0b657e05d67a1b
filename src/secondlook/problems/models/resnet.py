"""Residual networks for 32x32 images (He et al., 2015, section 4.2), as AdaHessian and others train them.

Depth 6n + 2: a 3x3 convolution, three stages of n basic blocks with 16, 32 and 64 channels, mean pooling and a
linear layer. Where a stage halves the image, the shortcut is option A (every other pixel, new channels zero; no
parameters; the CIFAR networks of the paper) or option B (1x1 convolution with batch norm).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.problems.models.initial import he, initialised

__all__ = ["ResNet", "resnet", "resnet20", "resnet32"]

Shortcut = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Option A: keep every ``stride``-th pixel and append channels of zeros, half before and half after."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.stride, extra = stride, fan_out - fan_in
        self.padding = (0, 0, 0, 0, extra // 2, extra - extra // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and the shortcut around them; ReLU after the sum."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
            nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if (fan_in, stride) != (fan_out, 1):
            self.shortcut = (
                PadShortcut(fan_in, fan_out, stride)
                if shortcut == "A"
                else nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out))
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Images [N, 3, H, W] to scores [N, classes]; see `resnet`."""

    def __init__(self, blocks: int, classes: int, shortcut: Shortcut, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, width, 2 * width, 4 * width]
        self.stages = nn.Sequential(
            *(
                BasicBlock(
                    widths[stage] if block == 0 else widths[stage + 1],
                    widths[stage + 1],
                    2 if stage > 0 and block == 0 else 1,
                    shortcut,
                )
                for stage in range(3)
                for block in range(blocks)
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def resnet(
    depth: int,
    classes: int = 10,
    shortcut: Shortcut = "A",
    width: int = 16,
    generator: torch.Generator | None = None,
) -> ResNet:
    """Residual network of ``depth`` 6n + 2 layers, He initialisation from ``generator`` (None: seed 0).

    ResNet-20 has 269,722 parameters with shortcut A and 272,474 with B; ResNet-32 464,154 and 466,906.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 with n >= 1 (8, 14, 20, 32, ...), got {depth}")
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut must be 'A' or 'B', got {shortcut!r}")
    return initialised(lambda: ResNet((depth - 2) // 6, classes, shortcut, width), generator, he)


def resnet20(
    classes: int = 10, shortcut: Shortcut = "A", width: int = 16, generator: torch.Generator | None = None
) -> ResNet:
    """`resnet` of depth 20."""
    return resnet(20, classes, shortcut, width, generator)


def resnet32(
    classes: int = 10, shortcut: Shortcut = "A", width: int = 16, generator: torch.Generator | None = None
) -> ResNet:
    """`resnet` of depth 32."""
    return resnet(32, classes, shortcut, width, generator)
