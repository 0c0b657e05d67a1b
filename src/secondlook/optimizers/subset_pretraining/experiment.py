"""When a subset's minimum is that of the full set, and what training through a subset costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from secondlook.optimizers.nonlinear_cg import conjugate_gradient
from secondlook.optimizers.single_vs_double_precision.method import Network, Task
from secondlook.optimizers.subset_pretraining.method import (
    SEARCH,
    History,
    balanced_subset,
    fine_tune,
    overdetermination_ratio,
    subset_pretrain,
)
from secondlook.problems.datasets import Dataset
from secondlook.problems.images import ImageProblem
from secondlook.problems.models import convnet, mlp
from secondlook.problems.pairing import first_stream
from secondlook.problems.training import accuracy
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite.runner import Run

MARGIN = 0.5  # points of accuracy that count as equivalent
ADAM = partial(torch.optim.Adam, fused=True)  # one call a step: the networks are smaller than a loop over parameters


def linear(run: Run, *, parameters: int, ratios: list[float], draws: int) -> None:
    """Least squares on subsets: excess loss over the noise, beside the exact law for Gaussian inputs."""
    for seed in run.seeds:
        generator = torch.Generator().manual_seed(seed)
        laws: dict[str, list[float]] = {"exact-law": [], "one-over-q": []}
        for ratio in ratios:
            size = round(ratio * parameters)
            x = torch.randn(draws, size, parameters, generator=generator, dtype=torch.float64)
            noise = torch.randn(draws, size, 1, generator=generator, dtype=torch.float64)
            w = torch.linalg.solve(x.mT @ x, x.mT @ noise)  # the true weights are 0, so the excess is |w|^2
            excess = float(w.square().sum((1, 2)).mean())
            exact = parameters / (size - parameters - 1)
            run.record("excess", excess, method="measured", problem="linear", seed=seed, step=ratio)
            run.record("excess", exact, method="exact-law", problem="linear", seed=seed, step=ratio)
            laws["exact-law"].append(excess / exact)
            laws["one-over-q"].append(excess * size / parameters)
        for law, values in laws.items():
            run.record("over_law", fmean(values), method=law, problem="linear", seed=seed)


@dataclass(frozen=True)
class Examples:
    """Inputs [K, D] and one-hot targets [K, M] in float64."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, split: tuple[Tensor, Tensor], classes: int) -> Examples:
        return cls(split[0].flatten(1).double(), one_hot(split[1], classes).double())

    def loss(self, sizes: tuple[int, ...], w: Tensor) -> float:
        return float(Network(sizes, self.x).squared_error(self.y)(w)[0])

    def minimum(self, sizes: tuple[int, ...], start: Tensor, evaluations: int, rows: Tensor | slice) -> Tensor:
        fun = Network(sizes, self.x[rows]).squared_error(self.y[rows])
        return conjugate_gradient(fun, start, torch.float64, evaluations, SEARCH).w


def threshold(
    run: Run, *, data: str, widths: list[int], halvings: int, evaluations: int, above: float = 5, below: float = 0.5
) -> None:
    """Loss on the full set at minima of subsets, over its loss at its own minimum, for networks of several sizes."""
    problem = ImageProblem(data, mlp).load(run.device)
    train, test = (Examples.of(split, problem.classes) for split in (problem.train, problem.test))
    labels, count = problem.train.y, len(train.x)
    for seed in run.track(run.seeds, "seeds"):
        determined: dict[str, list[float]] = {"subset": [], "half-the-classes": []}
        underdetermined, again = [], []
        for width in widths:
            sizes = (train.x.shape[1], width, problem.classes)
            generator = torch.Generator().manual_seed(first_stream("subset", seed, 1))
            task = Task(sizes, train.x, train.x)  # for its rule of starting weights
            start, other = task.start(generator), task.start(generator)
            order = balanced_subset(labels, count, generator)
            few = order[(labels.cpu()[order] < problem.classes // 2)]  # a subset without the upper half of the classes
            find = partial(train.minimum, sizes, start, evaluations)
            full = train.loss(sizes, full_w := find(slice(None)))
            keep = partial(run.record, problem=f"{width} hidden units", seed=seed)
            for halving in range(halvings + 1):
                size = max(1, round(count / 2**halving))
                q = overdetermination_ratio(size, problem.classes, len(start))
                w = find(order[:size].to(run.device)) if halving else full_w
                loss = train.loss(sizes, w)
                keep("train_loss", loss, method="subset", step=q)
                keep("test_loss", test.loss(sizes, w), method="subset", step=q)
                keep("train_ratio", loss / full, method="subset", step=q)
                if halving and q > above:
                    determined["subset"].append(math.log(loss / full))
                    broken = train.loss(sizes, find(few[:size].to(run.device)))
                    keep("train_ratio", broken / full, method="half-the-classes", step=q)
                    determined["half-the-classes"].append(math.log(broken / full))
                elif halving and q < below:
                    underdetermined.append(math.log(loss / full))
            copy = train.loss(sizes, train.minimum(sizes, other, evaluations, slice(None)))
            again.append(math.log(copy / full))
        for arm, logs in determined.items():
            if logs:
                run.record("above_five", math.exp(fmean(logs)), method=arm, problem=data, seed=seed)
        for arm, logs in {"subset": underdetermined, "full-copy": again}.items():
            if logs:
                run.record("below_half", math.exp(fmean(logs)), method=arm, problem=data, seed=seed)


@dataclass(frozen=True)
class Setting:
    """What conventional and subset training share."""

    data: Dataset
    hidden: int | None
    channels: list[int] | None
    batch_size: int
    epochs: int
    pre_passes: int
    fine_epochs: int

    @property
    def whole(self) -> int:
        """Sample gradients of all of conventional training."""
        return self.epochs * len(self.data.train.x)

    def model(self, stream: int) -> nn.Module:
        x, generator = self.data.train.x, torch.Generator().manual_seed(stream)
        shape, classes = tuple(x.shape[1:]), self.data.classes
        if self.channels:
            net = convnet(shape, self.channels, classes, nn.Tanh, generator=generator)
        else:
            net = mlp((x[0].numel(), self.hidden, classes), nn.Tanh, generator)
        return net.to(x.device)

    def look(self, model: nn.Module) -> tuple[float, float]:
        """Accuracy on validation and test images, in percent."""
        return accuracy(model, *self.data.val), accuracy(model, *self.data.test)

    @property
    def targets(self) -> Tensor:
        return one_hot(self.data.train.y, self.data.classes).float()

    def conventional(self, arm: str, lr: float, seed: int) -> History:
        """Adam on mini-batches of the full set."""
        stream = first_stream(arm, seed, 2)
        model, history, x = self.model(stream), History(), self.data.train.x
        history.look(0, self.look(model))
        fine_tune(
            model, x, self.targets, nn.functional.mse_loss, ADAM(model.parameters(), lr), self.epochs, self.batch_size,
            torch.Generator().manual_seed(stream + 1),
            lambda epochs: history.look(epochs * len(x), self.look(model)),
        )  # fmt: skip
        return history

    def through_subset(self, fraction: float, lr: float, seed: int) -> History:
        """Conjugate gradients on the subset, then Adam on everything."""
        stream = first_stream("subset", seed, 2)
        return subset_pretrain(
            self.model(stream), self.data.train.x, self.targets, fraction, "cg", self.pre_passes, partial(ADAM, lr=lr),
            self.fine_epochs, stream + 1, evaluate=self.look, batch_size=self.batch_size,
        )  # fmt: skip


def best(looks: list[tuple[float, float]]) -> int:
    """Where the validation accuracy is highest for the first time: early stopping."""
    return max(range(len(looks)), key=lambda i: looks[i][0])


def reached(history: History, target: float, never: float) -> float:
    """Cost of the first look with this validation accuracy; without one that of the run, and no less than `never`."""
    costs = (c for c, (val, _) in zip(history.sample_gradients, history.losses, strict=True) if val >= target)
    return next(costs, max(history.sample_gradients[-1], never))


def tuned(setting: Setting, lrs: list[float]) -> float:
    """The step size with which conventional training first comes within half a point of the best of all of them."""
    runs = {lr: setting.conventional("adam", lr, TUNING_SEED) for lr in lrs}
    target = max(max(val for val, _ in history.losses) for history in runs.values()) - MARGIN
    return min(lrs, key=lambda lr: reached(runs[lr], target, math.inf))


def cost(
    run: Run,
    *,
    data: str,
    batch_size: int,
    epochs: int,
    pre_passes: int,
    fine_epochs: int,
    lrs: list[float],
    fractions: list[float],
    hidden: int | None = None,
    channels: list[int] | None = None,
) -> None:
    """Sample gradients until the accuracy of conventional training is reached, and the accuracies in the end.

    Conventional training has its step size tuned on a seed of its own; subset training has, for every seed anew, the
    fraction that is cheapest, or most accurate, on the validation images. That favours the subsets.
    """
    setting = Setting(
        ImageProblem(data, mlp).load(run.device), hidden, channels, batch_size, epochs, pre_passes, fine_epochs
    )
    lr = tuned(setting, lrs)
    run.record("tuned_rate", lr, method="adam", problem=data)
    for seed in run.track(run.seeds, "seeds"):
        keep = partial(run.record, problem=data, seed=seed)
        adam, copy = (setting.conventional(arm, lr, seed) for arm in ("adam", "adam-copy"))
        stop = best(adam.losses)
        target = adam.losses[stop][0] - MARGIN
        keep("cost", adam.sample_gradients[stop], method="adam")
        keep("cost", reached(copy, target, setting.whole), method="adam-copy")
        keep("accuracy", adam.losses[stop][1], method="adam")
        keep("accuracy", copy.losses[best(copy.losses)][1], method="adam-copy")
        through = {fraction: setting.through_subset(fraction, lr, seed) for fraction in fractions}
        needed = {fraction: reached(history, target, setting.whole) for fraction, history in through.items()}
        looks = []
        for fraction, history in through.items():
            alone, whole = history.losses[: history.pretraining], history.losses
            keep("accuracy_by_fraction", alone[best(alone)][1], method="pretrained", step=fraction)
            keep("accuracy_by_fraction", whole[best(whole)][1], method="fine-tuned", step=fraction)
            keep("cost_by_fraction", needed[fraction], method="subset", step=fraction)
            looks.append(whole[best(whole)])
            if fraction == min(fractions):
                keep("accuracy", alone[best(alone)][1], method="smallest-alone")
        cheapest = min(fractions, key=needed.__getitem__)
        keep("cost", needed[cheapest], method="subset")
        keep("cheapest", cheapest, method="subset")
        keep("accuracy", looks[best(looks)][1], method="subset")
        for arm, history in {"adam": adam, "subset": through[cheapest]}.items():
            vals = [val for val, _ in history.losses]
            run.record_series("val", vals, steps=history.sample_gradients, method=arm, problem=data, seed=seed)
