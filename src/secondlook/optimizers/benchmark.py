"""The family's benchmark: how fast, and how far, each optimizer trains the same networks.

Protocol. Budgets and targets of the tasks were fixed in advance from tuned AdamW and SGD (`problems.tasks`). Every
optimizer is tuned over the same learning rates, `trials` draws spread evenly over the logarithm of [1e-4, 10], on one
seed of its own, by final validation loss; all other options keep their defaults. Then it runs on `seeds` fresh seeds
with a cosine schedule. Reported are the steps and the seconds (training alone, without evaluation) until the validation
loss first falls to the target; the performance profile, which is the share of the tasks that an optimizer solves within
a factor of the fewest steps (or the least time) that any needs; the share of the learning rates that reach the
target; and, against AdamW, the time of a step and the memory of the optimizer's state. A run that never gets there
has `reached` 0 and no time.

Your own optimizer joins by `--method module:Class`. It is called as `Class(params, lr=...)`, and with a seeded
`generator=` where it takes one. At steps at which its `wants_graph` is true, it gets gradients with a graph (as
AdaHessian does); if its `needs_closure` is true, `step` gets a closure.
"""

from __future__ import annotations

import importlib
import inspect
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import nn

from secondlook.optimizers import FOSI, MFAC, OASIS, SAM, SGDP, AdaHessian, AdamP, AuON, INNAprop, Muon, Shampoo, Sophia
from secondlook.optimizers.auon import Together
from secondlook.problems import tasks
from secondlook.problems.training import History, cosine, fit
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

METRICS: dict[str, dict[str, Any]] = {
    "steps_to_target": {"label": "steps to target", "unit": "steps"},
    "seconds_to_target": {"label": "time to target", "unit": "s", "timing": True},
    "reached": {"label": "target reached", "unit": ""},
    "profile_steps": {"label": "tasks solved within a factor of the fewest steps", "unit": "%", "step": "factor"},
    "profile_time": {
        "label": "tasks solved within a factor of the least time",
        "unit": "%",
        "step": "factor",
        "timing": True,
    },
    "good_rates": {"label": "learning rates that reach the target", "unit": "%"},
    "step_time": {"label": "time of a step, AdamW = 1", "unit": "", "timing": True},
    "state": {"label": "memory of the optimizer's state, parameters = 1", "unit": ""},
    "tuned_lr": {"label": "tuned learning rate", "unit": ""},
    "tuning_loss": {"label": "final validation loss while tuning", "unit": "task's own", "step": "learning rate"},
    "val_loss": {"label": "validation loss", "unit": "task's own", "step": "step"},
}

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"problems": ["breast-cancer-logistic", "matrix-completion"], "trials": 2, "seeds": 2, "rows": 4},
    "laptop": {
        "problems": [
            "breast-cancer-logistic",
            "digits-mlp",
            "digits-resnet",
            "digits-autoencoder",
            "pydoc-transformer",
            "pydoc-lstm",
            "matrix-completion",
            "coordinate-image",
            "heat-pinn",
        ],
        "trials": 8,
        "seeds": 5,
        "rows": 20,
    },
    "gpu": {
        "problems": ["mnist-lenet", "cifar10-resnet20", "shakespeare-transformer"],
        "trials": 6,
        "seeds": 5,
        "rows": 40,
    },
}

TUNING_SEED = 1000
LOWEST_LR, HIGHEST_LR = 1e-4, 10.0
FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
TIMED_STEPS, TIMED_REPEATS = 4, 5

Make = Callable[..., torch.optim.Optimizer]  # (params, lr=...)


def fosi(params: Iterable[nn.Parameter], lr: float, generator: torch.Generator) -> FOSI:
    """FOSI on heavy ball; with the default, eigenpairs from step 100 on, some tasks would end before they start."""
    return FOSI(torch.optim.SGD(params, lr, momentum=0.9), every=25, generator=generator)


def muon(params: Iterable[nn.Parameter], lr: float) -> Together:
    """Muon for whatever has two axes or more, scaled so that Adam, for the rest, can have the same learning rate."""
    params = list(params)
    matrices, rest = ([p for p in params if (p.ndim > 1) is matrix] for matrix in (True, False))
    parts = [Muon(matrices, lr, adjust_lr_fn="match_rms_adamw")] if matrices else []
    return Together(*parts, *([torch.optim.Adam(rest, lr)] if rest else []))


METHODS: dict[str, Make] = {
    "sgd-momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adahessian": AdaHessian,
    "adamp": AdamP,
    "sgdp": SGDP,
    "fosi": fosi,
    "mfac": partial(MFAC, n_grads=128),  # the default of 1024 costs its cube at every step
    "oasis": partial(OASIS, stochastic=True),
    "sophia": Sophia,
    "innaprop": INNAprop,
    "shampoo": partial(Shampoo, root_every=20),  # as in the large runs, where roots are never fresh
    "auon": AuON,
    "muon": muon,
    "sam": partial(SAM, base_optimizer=torch.optim.AdamW),
}


def benchmark(run: Run, *, method: str | None = None, problems: list[str], trials: int, seeds: int, rows: int) -> None:
    """Run the family's optimizers, and `method` ("module:Class") beside them where given."""
    methods = METHODS if method is None else {**METHODS, method: imported(method)}
    rates = learning_rates(trials)
    trained: dict[tuple[str, str], list[Trial]] = {}
    jobs = [(problem, name) for problem in problems for name in methods]
    for problem, name in run.track(jobs, "optimizers on tasks"):
        runs = partial(train, methods[name], problem, device=run.device, rows=rows)
        keep = partial(run.record, method=name, problem=problem)
        tuning = {lr: runs(lr=lr, seed=TUNING_SEED) for lr in rates}
        for lr, trial in tuning.items():
            keep("tuning_loss", trial.history.last("val_loss"), step=lr)
        keep("good_rates", 100 * mean(t.hit is not None for t in tuning.values()))
        best = min(rates, key=lambda lr, tuning=tuning: tuning[lr].final)
        keep("tuned_lr", best)
        done = trained[problem, name] = [runs(lr=best, seed=seed) for seed in range(seeds)]
        for seed, trial in enumerate(done):
            history = trial.history
            series = {"steps": history.column("step"), "method": name, "problem": problem, "seed": seed}
            run.record_series("val_loss", history.column("val_loss"), **series)
            keep("reached", trial.hit is not None, seed=seed)
            if trial.hit is not None:
                keep("steps_to_target", trial.steps_to_target, seed=seed)
                keep("seconds_to_target", trial.seconds_to_target, seed=seed)
        keep("state", done[0].state)
    profiles(run, trained, list(methods), problems, seeds)
    for problem in problems:
        calls = {name: steps_of(make, problem, run.device) for name, make in methods.items()}
        table = interleaved(calls, repeats=TIMED_REPEATS).pivot(index="repeat", columns="name", values="seconds")
        for name in calls:
            for repeat, ratio in enumerate(table[name] / table["adamw"]):
                run.record("step_time", ratio, method=name, problem=problem, seed=repeat)


def learning_rates(trials: int) -> list[float]:
    """One draw from each of `trials` equal parts of the logarithmic range, the same for every method."""
    draws = torch.rand(trials, generator=torch.Generator().manual_seed(TUNING_SEED)).tolist()
    octaves = math.log(HIGHEST_LR / LOWEST_LR)
    return [LOWEST_LR * math.exp(octaves * (i + u) / trials) for i, u in enumerate(draws)]


@dataclass
class Trial:
    """One run: its history, the seconds of training before each of the history's rows, and the optimizer's memory."""

    target: float
    history: History = field(default_factory=History)
    seconds: list[float] = field(default_factory=list)
    state: float = 0.0  # bytes of tensors in the optimizer's state, over the bytes of the parameters

    @property
    def final(self) -> float:
        """Final validation loss, infinite for a run that diverged."""
        loss = self.history.last("val_loss")
        return math.inf if math.isnan(loss) else loss

    @property
    def hit(self) -> int | None:
        """The first row at the target, None if there is none."""
        return next((i for i, v in enumerate(self.history.column("val_loss")) if v <= self.target), None)

    @property
    def steps_to_target(self) -> float:
        return math.inf if self.hit is None else self.history.column("step")[self.hit]

    @property
    def seconds_to_target(self) -> float:
        return math.inf if self.hit is None else self.seconds[self.hit]


def train(make: Make, problem: str, *, lr: float, seed: int, device: str, rows: int, steps: int | None = None) -> Trial:
    """One run of a task from one seed: weights, batches and the optimizer's own draws all come from it."""
    task, budget = tasks.load(problem, device), tasks.TASKS[problem]
    steps, trial = steps or budget.steps, Trial(budget.target)
    model, batches, optimizer = started(make, task, lr, seed, device)
    clock = [time.perf_counter(), 0.0]  # when training last went on, and the seconds of it so far

    def evaluate(model: nn.Module) -> dict[str, float]:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        clock[1] += time.perf_counter() - clock[0]
        trial.seconds.append(clock[1])
        loss = float(task.validate(model.eval()))
        clock[0] = time.perf_counter()
        return {"val_loss": loss}

    trial.history = fit(
        model,
        optimizer,
        batches,
        task.loss,
        steps=steps,
        schedule=cosine(steps),
        graph=hasattr(optimizer, "wants_graph"),
        closure=bool(getattr(optimizer, "needs_closure", False)),
        evaluate=evaluate,
        every=max(1, steps // rows),
    )
    trial.state = _bytes(_tensors(optimizer.state.values())) / _bytes(model.parameters())
    return trial


def started(
    make: Make, task: tasks.Task, lr: float, seed: int, device: str
) -> tuple[nn.Module, Iterable[Any], torch.optim.Optimizer]:
    """A fresh network, its batches, and its optimizer, from three streams of one seed."""
    model = task.model(torch.Generator().manual_seed(3 * seed)).to(device)
    shuffle, draws = (torch.Generator(device).manual_seed(3 * seed + i) for i in (1, 2))
    random = {"generator": draws} if "generator" in inspect.signature(make).parameters else {}
    return model, task.batches(shuffle), make(model.parameters(), lr=lr, **random)


def steps_of(make: Make, problem: str, device: str) -> Callable[[], object]:
    """A call that takes a few steps of training at a small learning rate; its state lives on from call to call."""
    task = tasks.load(problem, device)
    model, batches, optimizer = started(make, task, LOWEST_LR, 0, device)
    needs = {
        "graph": hasattr(optimizer, "wants_graph"),
        "closure": bool(getattr(optimizer, "needs_closure", False)),
    }

    def call() -> None:
        fit(model, optimizer, batches, task.loss, steps=TIMED_STEPS, **needs)

    return call


def profiles(
    run: Run, trained: dict[tuple[str, str], list[Trial]], methods: list[str], problems: list[str], seeds: int
) -> None:
    """Performance profiles (Dolan and More 2002), one a seed: each problem's best is the least mean over seeds."""
    for metric, attribute in (("profile_steps", "steps_to_target"), ("profile_time", "seconds_to_target")):
        needed = {key: [getattr(t, attribute) for t in found] for key, found in trained.items()}
        best = {p: min(mean(needed[p, m]) for m in methods) for p in problems}
        solvable = [p for p in problems if math.isfinite(best[p])]
        for name in methods:
            for seed in range(seeds):
                for factor in FACTORS:
                    solved = [needed[p, name][seed] <= factor * best[p] for p in solvable]
                    share = 100 * sum(solved) / len(problems)
                    run.record(metric, share, method=name, problem="all tasks", seed=seed, step=factor)


def imported(method: str) -> Make:
    """The optimizer that "module:Class" names."""
    module, _, name = method.partition(":")
    if not module or not name:
        raise ValueError(f"method must be 'module:Class', for instance 'torch.optim:RMSprop', got {method!r}")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {method!r} ({error}); is its folder on PYTHONPATH?") from error
    if not callable(found):
        raise TypeError(f"{method!r} is not callable as Class(params, lr=...)")
    return found


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    """All tensors in nested dicts, lists and tuples."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
