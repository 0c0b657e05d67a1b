"""The rules that are compared, the networks that they train, and updates that are looked at without being taken."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from secondlook.optimizers.auon.method import Muon
from secondlook.optimizers.auon.setting import sgd
from secondlook.optimizers.fismo.method import FISMO
from secondlook.optimizers.hidden import Rules, Task, digits, text
from secondlook.optimizers.scalable_shampoo.method import Shampoo
from secondlook.problems.augment import crop_and_flip
from secondlook.problems.images import ImageProblem
from secondlook.problems.models import resnet20
from secondlook.problems.training import accuracy, cross_entropy, minibatches

LOOK = 2048  # training images on which the training loss is read
IDENTITY = 1e12  # damping that leaves P = Q = I up to rounding


def adamw(params: list[Tensor], lr: float, beta2: float = 0.999) -> AdamW:
    """Without decay, as all rules here."""
    return AdamW(params, lr, (0.9, beta2), weight_decay=0.0)


RULES: Rules = {
    "sgd": sgd,
    "adamw": adamw,
    "shampoo": partial(Shampoo, root_every=10),
    "muon": Muon,  # with its factor for tall matrices
    "fismo": partial(FISMO, polar="ns5", every=10),
    "fismo-relative": partial(FISMO, polar="ns5", every=10, relative=True),
}


def accuracy_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """In percent."""
    return accuracy(model, *batch)


def digits_with_accuracy(sizes: list[int], batch_size: int, device: str) -> Task:
    """A deep tanh network on 8x8 digits."""
    task = digits(sizes, batch_size, device)
    task.measures["accuracy"] = accuracy_of
    return task


def cifar10(width: int, batch_size: int, device: str) -> Task:
    """ResNet-20 on CIFAR-10, cropped and flipped."""
    data = ImageProblem("cifar10-jpeg", resnet20).load(device)
    return Task(
        lambda g: resnet20(width=width, generator=g).to(device),
        lambda g: minibatches(*data.train, batch_size, g, crop_and_flip),
        {"loss": cross_entropy, "accuracy": accuracy_of},
        {"train": (data.train.x[:LOOK], data.train.y[:LOOK]), "val": tuple(data.val), "test": tuple(data.test)},
    )


TASKS = {"digits-mlp": digits_with_accuracy, "cifar10-resnet20": cifar10}


def float64_task(problem: str, network: dict[str, Any], batch_size: int, device: str) -> Task:
    """The digits' or a text's task, for a network in double precision."""
    if problem == "digits-mlp":
        return digits(**network, batch_size=batch_size, device=device, dtype=torch.float64)
    return text(problem, **network, batch_size=batch_size, device=device)


class Shadow:
    """What an optimizer would do with the gradients of another's training, without taking part in it."""

    def __init__(self, rule: str, like: list[Tensor]) -> None:
        dtype = torch.float32 if rule.endswith("-float32") else torch.float64
        self.weights = [torch.zeros_like(w, dtype=dtype).requires_grad_() for w in like]
        self.optimizer = SHADOWS[rule.removesuffix("-float32")](self.weights, lr=1.0)

    @torch.no_grad()
    def updates(self, grads: list[Tensor]) -> list[Tensor]:
        """Steps at learning rate 1 for the next gradients, downhill ones negative, in double precision."""
        for w, g in zip(self.weights, grads, strict=True):
            w.zero_()
            w.grad = g.to(w.dtype, copy=True)
        self.optimizer.step()
        return [w.detach().to(torch.float64, copy=True) for w in self.weights]


SHADOWS: dict[str, Any] = {
    "adam": Adam,
    "muon": partial(Muon, adjust_lr_fn="none"),
    "fismo": partial(FISMO, polar="ns5"),
    "fismo-relative": partial(FISMO, polar="ns5", relative=True),
    "fismo-svd": FISMO,
    "identity": partial(FISMO, damping=IDENTITY),  # Muon with exact steps and without Nesterov's blend
}


def made(rule: str, params: list[Tensor], lr: float) -> Optimizer:
    """An optimizer for matrices alone, with fresh roots at every step."""
    if rule.startswith("fismo"):
        return RULES[rule](params, lr=lr, every=1)
    if rule == "shampoo":
        return Shampoo(params, lr, eps=1e-12)
    return RULES[rule](params, lr=lr)
