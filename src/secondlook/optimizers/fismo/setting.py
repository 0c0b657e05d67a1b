"""The rules that are compared, the networks that they train, and updates that are looked at without being taken."""

import copy
from dataclasses import replace
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
    held_out = {name: task.held_out[name] for name in ("val", "test")}  # the training loss is not asked for
    return replace(task, measures={**task.measures, "accuracy": accuracy_of}, held_out=held_out)


def cifar10(width: int, batch_size: int, device: str) -> Task:
    """ResNet-20 on CIFAR-10, cropped and flipped."""
    data = ImageProblem("cifar10-jpeg", resnet20).load(device)
    return Task(
        lambda g: resnet20(width=width, generator=g).to(device),
        lambda g: minibatches(*data.train, batch_size, g, crop_and_flip),
        {"loss": cross_entropy, "accuracy": accuracy_of},
        {"val": tuple(data.val), "test": tuple(data.test)},
    )


TASKS = {"digits-mlp": digits_with_accuracy, "cifar10-resnet20": cifar10}


def float64_task(problem: str, network: dict[str, Any], batch_size: int, device: str) -> Task:
    """The digits' or a text's task, for a network in double precision."""
    if problem == "digits-mlp":
        return digits(**network, batch_size=batch_size, device=device, dtype=torch.float64)
    return text(problem, **network, batch_size=batch_size, device=device)


class Shadow:
    """What an optimizer would do with the gradients of another's training, without taking part in it.

    Several rules may share one, as FISMO's with exact polar factors does: they enter no state, only the step itself.
    """

    def __init__(self, name: str, like: list[Tensor]) -> None:
        dtype = torch.float32 if name.endswith("-float32") else torch.float64
        self.weights = [torch.zeros_like(w, dtype=dtype).requires_grad_() for w in like]
        self.optimizer = SHADOWS[name.removesuffix("-float32")](self.weights, lr=1.0)

    def follow(self, grads: list[Tensor]) -> None:
        """Take the next gradients in."""
        for w, g in zip(self.weights, grads, strict=True):
            w.grad = g.to(w.dtype, copy=True)
        self.optimizer.step()

    def update(self, grads: list[Tensor], **options: str) -> list[Tensor]:
        """The step at learning rate 1 for the next gradients, downhill negative, in double precision; not taken.

        `options` are the optimizer's, for this step alone.
        """
        twin = copy.deepcopy(self)
        twin.optimizer.param_groups[0].update(options)
        for w in twin.weights:
            w.detach().zero_()
        twin.follow(grads)
        return [w.detach().to(torch.float64) for w in twin.weights]


SHADOWS: dict[str, Any] = {
    "adam": Adam,
    "muon": partial(Muon, adjust_lr_fn="none"),
    "fismo": partial(FISMO, polar="ns5"),
    "fismo-relative": partial(FISMO, polar="ns5", relative=True),
    # Muon without Nesterov's blend; roots that stay at the identity are computed once
    "identity": partial(FISMO, polar="ns5", damping=IDENTITY, every=10**9),
}
EXACT = {"fismo-svd": "fismo", "identity": "identity", "identity-float32": "identity-float32"}
"""Rules with exact polar factors, and the shadows whose state they have."""


def made(rule: str, params: list[Tensor], lr: float) -> Optimizer:
    """An optimizer for matrices alone, with fresh roots at every step."""
    if rule.startswith("fismo"):
        return RULES[rule](params, lr=lr, every=1)
    if rule == "shampoo":
        return Shampoo(params, lr, eps=1e-12)
    return RULES[rule](params, lr=lr)
