"""Classification of small tables and images, and an autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from secondlook.problems import datasets
from secondlook.problems.datasets import Split
from secondlook.problems.models import lenet, mlp, resnet, resnet20
from secondlook.problems.tasks import Task
from secondlook.problems.training import cross_entropy, minibatches, mse


def _classification(
    data: str, device: str, batch_size: int, model: Callable[..., nn.Module], change: Callable | None = None
) -> Task:
    parts = datasets.load(data).to(device)
    parts = parts.map(change) if change else parts
    return Task(
        model=lambda generator: model(generator=generator),
        batches=partial(minibatches, *parts.train, batch_size),
        loss=cross_entropy,
        validate=torch.no_grad()(partial(cross_entropy, batch=parts.val)),
    )


def logistic(device: str) -> Task:
    """Logistic regression on 30 features of breast tumours: convex."""
    return _classification("breast-cancer", device, 32, partial(mlp, (30, 2)))


def digits_mlp(device: str) -> Task:
    """8x8 digits, two hidden layers of 32 tanh units."""
    return _classification("digits", device, 64, partial(mlp, (64, 32, 32, 10), nn.Tanh))


def digits_resnet(device: str) -> Task:
    """8x8 digits, a residual network of eight layers with batch norm, 4 to 16 channels."""

    def model(generator: torch.Generator) -> nn.Module:
        network = resnet(8, width=4, generator=generator)
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 0.3  # with the usual 0.1 the averages for validation are still on their way after 25 steps
        return network

    return _classification("digits", device, 32, model, lambda s: Split(s.x.expand(-1, 3, -1, -1).contiguous(), s.y))


def digits_autoencoder(device: str) -> Task:
    """8x8 digits through a bottleneck of eight tanh units."""
    parts = datasets.load("digits").to(device).map(lambda s: Split(s.x.flatten(1), s.x.flatten(1)))
    return Task(
        model=lambda generator: mlp((64, 32, 8, 32, 64), nn.Tanh, generator),
        batches=partial(minibatches, *parts.train, 64),
        loss=mse,
        validate=torch.no_grad()(partial(mse, batch=parts.val)),
    )


def mnist_lenet(device: str) -> Task:
    """MNIST, LeNet."""
    return _classification("mnist", device, 128, lenet)


def cifar10_resnet20(device: str) -> Task:
    """CIFAR-10 (JPEG copies), ResNet-20, without augmentation."""
    return _classification("cifar10-jpeg", device, 128, resnet20)
