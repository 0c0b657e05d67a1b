"""VGG-16 and ResNet-34 for 32x32 images of two classes: one score an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from secondlook.problems.models.initial import initialised
from secondlook.problems.models.resnet import BasicBlock

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # channels; 0 halves the image
RESNET34 = ((64, 3), (128, 4), (256, 6), (512, 3))  # channels and blocks of a stage


def conv(fan_in: int, fan_out: int) -> list[nn.Module]:
    return [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out), nn.ReLU()]


def vgg16(shrink: int = 1) -> nn.Sequential:
    """Convolutions with batch norm (Simonyan and Zisserman, 2015, table 1 D) and one linear layer."""
    layers, fan_in = [], 3
    for channels in VGG16:
        layers += conv(fan_in, channels // shrink) if channels else [nn.MaxPool2d(2)]
        fan_in = channels // shrink or fan_in
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(fan_in, 1))


def resnet34(shrink: int = 1) -> nn.Sequential:
    """Basic blocks (He et al., 2015, table 1), with a 3x3 stem and no pooling before them, as small images need."""
    fan_in = RESNET34[0][0] // shrink
    layers = conv(3, fan_in)
    for stage, (channels, blocks) in enumerate(RESNET34):
        for block in range(blocks):
            layers.append(BasicBlock(fan_in, channels // shrink, 2 if stage and not block else 1, "B"))
            fan_in = channels // shrink
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, 1))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"vgg16": vgg16, "resnet34": resnet34}


def network(name: str, shrink: int, generator: torch.Generator) -> nn.Module:
    """A network with `shrink` times fewer channels, weights by PyTorch's default rule."""
    return initialised(lambda: NETWORKS[name](shrink), generator)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percentage of images on the right side of zero."""
    model.eval()
    hits = sum(((model(a)[:, 0] > 0) == (b > 0.5)).sum() for a, b in zip(x.split(1000), y.split(1000), strict=True))
    return 100 * float(hits) / len(y)
