"""One training run of an arm, and the exact natural gradient that the device is compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.optimizers.factor import cholesky
from secondlook.optimizers.thermodynamic_ngd.method import TNGD
from secondlook.problems.datasets import Dataset
from secondlook.problems.models import convnet, mlp
from secondlook.problems.pairing import streams
from secondlook.problems.training import accuracy, cross_entropy, fit, minibatches
from secondlook.problems.tuning import TUNING_SEED


class NGD(TNGD):
    """Exact natural gradient, by Cholesky's method on the batch's side of Woodbury's identity, with heavy ball."""

    def __init__(self, params: Any, model: nn.Module, lr: float, damping: float, momentum: float = 0.0) -> None:
        super().__init__(params, model, "cross_entropy", lr, damping)
        self.momentum = momentum

    def _readout(self, state: dict[str, Any], gradient: Tensor, factor: Tensor) -> Tensor:
        gram = factor.T @ factor
        gram.diagonal().add_(self.damping)
        inner = torch.cholesky_solve((factor.T @ gradient)[:, None], cholesky(gram))[:, 0]
        x = (gradient - factor @ inner) / self.damping
        if self.momentum:
            x = state["velocity"] = x + self.momentum * state["velocity"] if "velocity" in state else x
        return x


@dataclass(frozen=True)
class Option:
    """What is chosen for an arm. `rate` is the step size in directions without curvature, see `lr`."""

    rate: float
    damping: float = 1.0
    momentum: float = 0.0

    def lr(self, t: float) -> float:
        """The rate over the device's gain at curvature zero: one grid then spans gradient and natural gradient."""
        decay = math.exp(-self.damping * t)
        return self.rate / (decay + (1 - decay) / self.damping)


@dataclass(frozen=True)
class Arm:
    """An optimizer: sgd, adam, ngd or tngd, for tngd with the device's time in units of 1 / damping."""

    name: str
    time: float = 0.0
    delay: int = 0
    warm: bool = False

    def optimizer(self, model: nn.Module, option: Option) -> torch.optim.Optimizer:
        params, damping = list(model.parameters()), option.damping
        match self.name:
            case "sgd":
                return torch.optim.SGD(params, option.rate)
            case "adam":
                return torch.optim.Adam(params, option.rate)
            case "ngd":
                return NGD(params, model, option.lr(inf), damping, option.momentum)
            case "tngd":
                t = self.time / damping
                given = {"warm_start": self.warm, "delay": self.delay}
                # A device that runs on reaches the equilibrium over several steps, whatever t is.
                lr = option.lr(inf if self.warm else t)
                return TNGD(params, model, "cross_entropy", lr, damping, t, **given)
        raise ValueError(f"no optimizer {self.name!r}; use sgd, adam, ngd or tngd")


@dataclass(frozen=True)
class Setting:
    """What all arms share. `widths` are those of the hidden layer, or the channels where the images are larger."""

    data: Dataset
    widths: Sequence[int]
    batch_size: int
    steps: int
    every: int

    def model(self, generator: torch.Generator) -> nn.Module:
        shape = tuple(self.data.train.x.shape[1:])
        if len(self.widths) == 1:
            sizes = (math.prod(shape), *self.widths, self.data.classes)
            return mlp(sizes, nn.Tanh, generator)
        return convnet(shape, self.widths, self.data.classes, nn.Tanh, generator=generator)

    def train(self, arm: Arm, option: Option, seed: int, copy: bool = False) -> dict[str, list[float]]:
        """Columns `step`, `train_loss`, `val_loss`, `test_accuracy`, NaN from where the run diverged."""
        train, val, test = self.data.train, self.data.val, self.data.test
        weights, order = streams("copy-copy" if copy else "arm", seed, train.x.device)
        model = self.model(weights).to(train.x.device)
        optimizer = arm.optimizer(model, option)

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            if isinstance(optimizer, TNGD):
                optimizer.observe(batch[0])
            return cross_entropy(model, batch)

        @torch.no_grad()
        def evaluate(model: nn.Module) -> dict[str, Any]:
            losses = {"train_loss": cross_entropy(model, train), "val_loss": cross_entropy(model, val)}
            return {**losses, "test_accuracy": accuracy(model, *test)}

        batches = minibatches(*train, self.batch_size, order)
        history = fit(model, optimizer, batches, loss, steps=self.steps, evaluate=evaluate, every=self.every)
        names = ("train_loss", "val_loss", "test_accuracy")
        return {name: history.column(name) for name in ("step", *names)} | {"final": [history.last("train_loss")]}

    def choose(self, arm: Arm, options: Sequence[Option]) -> tuple[Option, float]:
        """The option of the least final validation loss on a seed of its own, and that loss."""

        def score(option: Option) -> float:
            last = self.train(arm, option, TUNING_SEED)["val_loss"][-1]
            return inf if math.isnan(last) else last

        scores = [score(option) for option in options]
        least = min(range(len(options)), key=scores.__getitem__)
        return options[least], scores[least]


def reached(columns: dict[str, list[float]], target: float) -> float:
    """The first recorded step with the training loss at the target; the last step where there is none."""
    rows = zip(columns["step"], columns["train_loss"], strict=True)
    return next((step for step, loss in rows if loss <= target), columns["step"][-1])
