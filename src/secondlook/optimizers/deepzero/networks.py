"""The small convolutional networks of the comparison of estimators."""

import torch
from torch import Tensor, nn

from secondlook.problems.models.initial import initialised


class MaxPool(nn.Module):
    """2x2 max pooling that keeps no indices: most forward passes here are never differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        a, b = x[..., 0:height:2, :width], x[..., 1:height:2, :width]
        rows = torch.maximum(a, b)
        return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def small_convnet(
    depth: int,
    channels: int = 18,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """`depth` times 3x3 convolution, batch norm, ReLU and 2x2 max pooling; then the mean over space and a linear layer.

    With 18 channels, colour images and ten classes it has 730 + 2970 (depth - 1) parameters, as the published ones.
    """
    if depth < 1 or min(shape[1:]) < 2**depth:
        raise ValueError(f"depth must be at least 1 and the sides at least 2^depth, got {depth} and {shape}")

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for i in range(depth):
            convolution = nn.Conv2d(channels if i else shape[0], channels, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(), MaxPool()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    return initialised(build, generator)
