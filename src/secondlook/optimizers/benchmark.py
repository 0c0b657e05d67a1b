"""The family's benchmark: how fast, and how far, each optimizer trains the same networks.

Protocol. Every optimizer is tuned over the same learning rates, `trials` draws spread evenly over the logarithm of
[1e-4, 3], on one seed of its own, by final validation loss; all other options keep their defaults. Then it
runs on `seeds` fresh seeds with a cosine schedule. Reported are the steps and the seconds (training alone, without
evaluation) until the validation loss first falls to the task's target, and the final test accuracy. A run that
never gets there has `reached` 0 and no time.

Your own optimizer joins by `--method module:Class`. It is called as `Class(params, lr=...)`, and with a seeded
`generator=` where it takes one. If its `wants_graph` is true, it gets gradients with a graph (as AdaHessian does); if
its `needs_closure` is true, `step` gets a closure.
"""

import importlib
import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from secondlook.optimizers.adahessian import AdaHessian
from secondlook.problems import datasets
from secondlook.problems.datasets import Dataset
from secondlook.problems.models import digits_cnn, lenet, mlp, resnet20
from secondlook.problems.training import History, accuracy, cosine, cross_entropy, fit, minibatches
from secondlook.suite.runner import Run

METRICS: dict[str, dict[str, Any]] = {
    "steps_to_target": {"label": "steps to target", "unit": "steps"},
    "seconds_to_target": {"label": "time to target", "unit": "s", "timing": True},
    "reached": {"label": "target reached", "unit": ""},
    "test_accuracy": {"label": "final test accuracy", "unit": "%"},
    "val_loss": {"label": "validation loss", "unit": "nats", "step": "step"},
    "tuned_lr": {"label": "tuned learning rate", "unit": ""},
}

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "problems": ["digits-cnn", "digits-mlp", "breast-cancer-logistic"],
        "trials": 2,
        "seeds": 1,
        "steps": 30,
        "every": 10,
    },
    "laptop": {
        "problems": ["digits-cnn", "digits-mlp", "breast-cancer-logistic"],
        "trials": 6,
        "seeds": 3,
        "steps": 200,
        "every": 10,
    },
    "gpu": {
        "problems": ["mnist-lenet", "cifar10-resnet20"],
        "trials": 6,
        "seeds": 3,
        "steps": 4000,
        "every": 100,
    },
}

TUNING_SEED = 1000
LOWEST_LR, HIGHEST_LR = 1e-4, 3.0


@dataclass(frozen=True)
class Task:
    """A data set, a network, and the validation loss to reach."""

    data: str
    model: Callable[..., nn.Module]
    batch_size: int
    target: float  # nats; tuned optimizers get there well before the laptop budget ends


TASKS = {
    "digits-cnn": Task("digits", partial(digits_cnn, (8, 16), batch_norm=True), 64, 0.1),
    "digits-mlp": Task("digits", partial(mlp, (64, 32, 32, 10), nn.Tanh), 64, 0.2),
    "breast-cancer-logistic": Task("breast-cancer", partial(mlp, (30, 2)), 32, 0.055),
    "mnist-lenet": Task("mnist", lenet, 128, 0.04),
    "cifar10-resnet20": Task("cifar10-jpeg", resnet20, 128, 0.8),
}

Make = Callable[..., torch.optim.Optimizer]  # (params, lr=...)
METHODS: dict[str, Make] = {
    "sgd-momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adahessian": AdaHessian,
}


def benchmark(
    run: Run, *, method: str | None = None, problems: list[str], trials: int, seeds: int, steps: int, every: int
) -> None:
    """Run the family's optimizers, and `method` ("module:Class") beside them where given."""
    methods = METHODS if method is None else {**METHODS, method: _imported(method)}
    jobs = [(problem, name) for problem in problems for name in methods]
    for problem, name in run.track(jobs, "optimizers on tasks"):
        task = TASKS[problem]
        data = datasets.load(task.data).to(run.device)
        runs = partial(_train, methods[name], task, data, steps=steps, every=every)
        lr = min(learning_rates(trials), key=lambda lr, runs=runs: _final(runs(lr=lr, seed=TUNING_SEED).history))
        run.record("tuned_lr", lr, method=name, problem=problem)
        for seed in range(seeds):
            trial = runs(lr=lr, seed=seed)
            keep = partial(run.record, method=name, problem=problem, seed=seed)
            losses, done = trial.history.column("val_loss"), trial.history.column("step")
            run.record_series("val_loss", losses, steps=done, method=name, problem=problem, seed=seed)
            keep("test_accuracy", accuracy(trial.model, *data.test))
            hit = next((i for i, value in enumerate(losses) if value <= task.target), None)
            keep("reached", hit is not None)
            if hit is not None:
                keep("steps_to_target", done[hit])
                keep("seconds_to_target", trial.seconds[hit])


def learning_rates(trials: int) -> list[float]:
    """One draw from each of `trials` equal parts of the logarithmic range, the same for every method."""
    draws = torch.rand(trials, generator=torch.Generator().manual_seed(TUNING_SEED)).tolist()
    octaves = math.log(HIGHEST_LR / LOWEST_LR)
    return [LOWEST_LR * math.exp(octaves * (i + u) / trials) for i, u in enumerate(draws)]


@dataclass
class Trial:
    """A trained network, its history, and the seconds of training before each of the history's rows."""

    model: nn.Module
    history: History = field(default_factory=History)
    seconds: list[float] = field(default_factory=list)


def _train(make: Make, task: Task, data: Dataset, *, lr: float, seed: int, steps: int, every: int) -> Trial:
    device = data.train.x.device
    trial = Trial(task.model(generator=torch.Generator().manual_seed(3 * seed)).to(device))
    shuffle, draws = (torch.Generator(device).manual_seed(3 * seed + i) for i in (1, 2))
    random = {"generator": draws} if "generator" in inspect.signature(make).parameters else {}
    optimizer = make(trial.model.parameters(), lr=lr, **random)
    clock = [time.perf_counter(), 0.0]  # when training last went on, and the seconds of it so far

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock[1] += time.perf_counter() - clock[0]
        trial.seconds.append(clock[1])
        model.eval()
        loss = float(cross_entropy(model, data.val))
        clock[0] = time.perf_counter()
        return {"val_loss": loss}

    trial.history = fit(
        trial.model,
        optimizer,
        minibatches(*data.train, task.batch_size, shuffle),
        cross_entropy,
        steps=steps,
        schedule=cosine(steps),
        graph=bool(getattr(optimizer, "wants_graph", False)),
        closure=bool(getattr(optimizer, "needs_closure", False)),
        evaluate=evaluate,
        every=every,
    )
    return trial


def _final(history: History) -> float:
    loss = history.last("val_loss")
    return math.inf if math.isnan(loss) else loss


def _imported(method: str) -> Make:
    module, _, name = method.partition(":")
    if not module or not name:
        raise ValueError(f"method must be 'module:Class', for instance 'torch.optim:RMSprop', got {method!r}")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {method!r} ({error}); is its folder on PYTHONPATH?") from error
    if not callable(found):
        raise TypeError(f"{method!r} is not callable; name a class or function that makes an optimizer")
    return found
