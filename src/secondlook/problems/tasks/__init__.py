"""Training tasks for comparing optimizers: a network, its minibatches, its loss, and a validation loss to reach.

A task is a file of this folder, or a function of one, that takes the device and returns a `Task`. Targets and budgets
were fixed in advance: `target` is the validation loss that the better of AdamW and SGD with momentum, each tuned by
`calibrate`, has after two thirds of `steps`, mean over five seeds, rounded up to two digits. `half_target` is the same
for runs of half the steps, with which learning rates are tuned.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.problems.training import History, cosine, fit
from secondlook.suite.errors import UnknownName

__all__ = ["TASKS", "Budget", "Task", "calibrate", "load"]


@dataclass(frozen=True)
class Task:
    """What is trained. Everything random comes from the generators handed in.

    Attributes:
        model: `model(generator)` builds the network with drawn weights, on the CPU.
        batches: `batches(generator)` yields minibatches for ever, on the device.
        loss: `loss(model, batch)`, 0-d.
        validate: `validate(model)`, the validation loss as a 0-d tensor; the model is in evaluation mode.
    """

    model: Callable[[torch.Generator], nn.Module]
    batches: Callable[[torch.Generator], Iterator[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    validate: Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Budget:
    """How a task is built, how many steps a run has, and the validation loss to reach in it and in half of them."""

    build: str  # module:function in this folder
    steps: int
    target: float
    half_target: float
    unit: str = "nats"

    @property
    def half(self) -> Budget:
        """The budget of a run of half the steps."""
        return replace(self, steps=self.steps // 2, target=self.half_target)


TASKS = {
    "breast-cancer-logistic": Budget("supervised:logistic", 150, 0.046, 0.051),
    "digits-mlp": Budget("supervised:digits_mlp", 160, 0.13, 0.17),
    "digits-resnet": Budget("supervised:digits_resnet", 50, 0.45, 1.1),
    "digits-autoencoder": Budget("supervised:digits_autoencoder", 200, 0.027, 0.033, "mean squared error"),
    "pydoc-transformer": Budget("language:transformer", 60, 3.2, 3.4),
    "pydoc-lstm": Budget("language:lstm", 80, 2.8, 3.1),
    "matrix-completion": Budget("completion:matrix_completion", 240, 0.038, 0.21, "mean squared error"),
    "coordinate-image": Budget("coordinates:coordinate_image", 200, 0.026, 0.052, "mean squared error"),
    "heat-pinn": Budget("heat:heat_pinn", 100, 5.8e-5, 3.8e-4, "mean squared error"),
    # Set by hand: no GPU was at hand to calibrate the tasks of the `gpu` scale.
    "mnist-lenet": Budget("supervised:mnist_lenet", 4000, 0.04, 0.05),
    "cifar10-resnet20": Budget("supervised:cifar10_resnet20", 4000, 0.8, 0.95),
    "shakespeare-transformer": Budget("language:large_transformer", 4000, 1.7, 1.8),
}


def load(name: str, device: str = "cpu") -> Task:
    """The task called ``name``, its data on ``device``; built once."""
    if name not in TASKS:
        raise UnknownName("task", name, TASKS)
    return _load(name, str(device))


@lru_cache(maxsize=4)
def _load(name: str, device: str) -> Task:
    module, _, function = TASKS[name].build.partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)(device)


def calibrate(
    name: str, device: str = "cpu", trials: int = 9, seeds: int = 5, steps: int | None = None
) -> dict[str, float]:
    """Validation loss of tuned AdamW and tuned SGD after two thirds of ``steps`` (by default all of the budget's).

    The learning rate is one of ``trials`` spread evenly over the logarithm of [1e-4, 10], chosen on a seed of its own
    by the final loss.
    """
    task, steps = load(name, device), steps or TASKS[name].steps
    arms = {"adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9)}
    rates = [10 ** (-4 + 5 * i / (trials - 1)) for i in range(trials)]

    def run(make: Callable[..., torch.optim.Optimizer], lr: float, seed: int) -> History:
        draws = [torch.Generator(d).manual_seed(2 * seed + i) for i, d in enumerate(("cpu", device))]
        model = task.model(draws[0]).to(device)
        every = max(1, 2 * steps // 3)
        validate = lambda m: {"loss": float(task.validate(m.eval()))}  # noqa: E731
        batches = task.batches(draws[1])
        options = {"steps": steps, "schedule": cosine(steps), "evaluate": validate, "every": every}
        return fit(model, make(model.parameters(), lr=lr), batches, task.loss, **options)

    found = {}
    for name_, make in arms.items():
        losses = {lr: run(make, lr, 1000).last("loss") for lr in rates}
        best = min(losses, key=lambda lr: math.inf if math.isnan(losses[lr]) else losses[lr])
        found[name_] = mean(run(make, best, seed).column("loss")[0] for seed in range(seeds))
        found[f"{name_}-lr"] = best
    return found
