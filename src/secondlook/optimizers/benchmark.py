"""The family's benchmark: how fast, and how far, each optimizer trains the same networks.

Protocol. Budgets and targets of the tasks were fixed in advance from tuned AdamW and SGD (`problems.tasks`). Every
optimizer is tuned over the same learning rates, `trials` of them spread evenly over the logarithm of [1e-4, 10], in
runs of half the steps from one seed of its own, by final validation loss; all other options keep their defaults. Then
it runs on `seeds` fresh seeds. All runs have a cosine schedule to their end. Reported are the steps and the seconds
(training alone, without evaluation) until the validation loss first falls to the target; the performance profile, which
is the share of the tasks that an optimizer solves within a factor of the fewest steps (or the least time) that any
needs; the share of the learning rates that reach, in half the steps, the target of such runs; and, against AdamW, the
time of a step and the memory of the optimizer's state. A run that never gets there has `reached` 0 and no time. `floor`
says how much of the time of AdamW's and AdaHessian's steps their operations need at the machine's best rates
(`suite.floors`).

Your own optimizer joins by `--method module:Class`. It is called as `Class(params, lr=...)`, with the model in place of
`params` where the first argument is called `model`, and with a seeded `generator=` where it takes one. At steps at
which its `wants_graph` is true, it gets gradients with a graph (as AdaHessian does); if its `needs_closure` is true,
`step` gets a closure.

With several jobs (`run.jobs`), runs go on side by side, a core each, and the clock of one may feel the other; steps are
timed alone, afterwards. All numbers but times stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import mean
from typing import Any, TypeVar

import torch
from torch import nn

from secondlook.optimizers import (
    FISMO,
    FOSI,
    KFAC,
    MFAC,
    MKOR,
    OASIS,
    SAM,
    SGDP,
    AdaFisher,
    AdaHessian,
    AdamP,
    AuON,
    INNAprop,
    Muon,
    Shampoo,
    Sophia,
)
from secondlook.optimizers.auon import Together
from secondlook.optimizers.overhead import own_times
from secondlook.optimizers.peers import beside_peers
from secondlook.optimizers.trial import Make, Trial, steps_of, train
from secondlook.problems.tasks import TASKS
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite import floors
from secondlook.suite.errors import SecondLookError
from secondlook.suite.named import load
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
    "good_rates": {"label": "learning rates that reach the target of half a run", "unit": "%"},
    "step_time": {"label": "time of a step, AdamW = 1", "unit": "", "timing": True},
    "floor": {
        "label": "least time of its operations at the machine's best rates, over the time taken",
        "unit": "%",
        "timing": True,
    },
    "arithmetic": {"label": "arithmetic a second", "unit": "GFLOP/s", "timing": True},
    "own_time": {"label": "time of the optimizer's own arithmetic, AdamW = 1", "unit": "", "timing": True},
    "state": {"label": "memory of the optimizer's state, parameters = 1", "unit": ""},
    "peer_time": {"label": "time of a step, the other package = 1", "unit": "", "timing": True},
    "peer_difference": {"label": "largest relative difference of the parameters after five steps", "unit": ""},
    "tuned_lr": {"label": "tuned learning rate", "unit": ""},
    "tuning_loss": {"label": "final validation loss while tuning", "unit": "task's own", "step": "learning rate"},
    "val_loss": {"label": "validation loss", "unit": "task's own", "step": "step"},
}

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "problems": ["breast-cancer-logistic", "matrix-completion"],
        "trials": 2,
        "seeds": 2,
        "rows": 4,
        "tensors": 6,
    },
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
        "trials": 6,
        "seeds": 5,
        "rows": 20,
        "tensors": 200,
    },
    "gpu": {
        "problems": ["mnist-lenet", "cifar10-resnet20", "shakespeare-transformer"],
        "trials": 6,
        "seeds": 5,
        "rows": 40,
        "tensors": 200,
    },
}

T, R = TypeVar("T"), TypeVar("R")

LOWEST_LR, HIGHEST_LR = 1e-4, 10.0
FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
TIMED_REPEATS, OWN_REPEATS, PEER_REPEATS = 2, 3, 5
BESIDE_FLOOR = ("adamw", "adahessian")
DIFFERENTIATE = ("adahessian", "fosi", "oasis")  # their own time is that of their Hessian-vector products


def fosi(params: Iterable[nn.Parameter], lr: float, generator: torch.Generator) -> FOSI:
    """FOSI on heavy ball; with the default, eigenpairs from step 100 on, some tasks would end before they start."""
    return FOSI(torch.optim.SGD(params, lr, momentum=0.9, foreach=True), every=25, generator=generator)


def for_matrices(rule: Make, params: Iterable[nn.Parameter], lr: float) -> Together:
    """`rule` for whatever has two axes or more, and Adam for the rest at the same learning rate."""
    params = list(params)
    matrices, rest = ([p for p in params if (p.ndim > 1) is matrix] for matrix in (True, False))
    parts = [rule(matrices, lr=lr)] if matrices else []
    return Together(*parts, *([torch.optim.Adam(rest, lr, foreach=True)] if rest else []))


AdamW = partial(torch.optim.AdamW, foreach=True)  # on a CPU PyTorch goes from tensor to tensor by itself
METHODS: dict[str, Make] = {
    "sgd-momentum": partial(torch.optim.SGD, momentum=0.9, foreach=True),
    "adamw": AdamW,
    "adafisher": AdaFisher,
    "adahessian": AdaHessian,
    "adamp": AdamP,
    "sgdp": SGDP,
    "fosi": fosi,
    "kfac": KFAC,
    "mfac": partial(MFAC, n_grads=128),  # the default of 1024 costs its cube at every step
    "mkor": partial(MKOR, rule="package"),  # as released
    "oasis": partial(OASIS, stochastic=True),
    "sophia": Sophia,
    "innaprop": INNAprop,
    "shampoo": partial(Shampoo, root_every=20),  # as in the large runs, where roots are never fresh
    "auon": AuON,
    "muon": partial(for_matrices, partial(Muon, adjust_lr_fn="match_rms_adamw")),  # scaled to Adam's steps
    "fismo": partial(for_matrices, partial(FISMO, polar="ns5", every=10)),
    "sam": partial(SAM, base_optimizer=AdamW),
}


def benchmark(
    run: Run, *, method: str | None = None, problems: list[str], trials: int, seeds: int, rows: int, tensors: int
) -> None:
    """Run the family's optimizers, and `method` ("module:Class") beside them where given."""
    methods = methods_with(method)
    rates = learning_rates(trials)
    trained: dict[tuple[str, str], list[Trial]] = {}
    pairs = [(problem, name) for problem in problems for name in methods]
    contest = partial(compete, method=method, rates=rates, seeds=seeds, rows=rows, device=run.device)
    results = run.track(side_by_side(contest, pairs, run.jobs), "optimizers on tasks", len(pairs))
    for (problem, name), (tuning, done) in zip(pairs, results, strict=True):
        trained[problem, name] = done
        keep = partial(run.record, method=name, problem=problem)
        for lr, trial in tuning.items():
            keep("tuning_loss", trial.history.last("val_loss"), step=lr)
        keep("good_rates", 100 * mean(t.hit is not None for t in tuning.values()))
        keep("tuned_lr", tuned(tuning))
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
        calls = {name: steps_of(make, problem, run.device, LOWEST_LR) for name, make in methods.items()}
        table = interleaved(calls, repeats=TIMED_REPEATS).pivot(index="repeat", columns="name", values="seconds")
        for name in calls:
            for repeat, ratio in enumerate(table[name] / table["adamw"]):
                run.record("step_time", ratio, method=name, problem=problem, seed=repeat)
        for name in BESIDE_FLOOR:
            floors.record(run, calls[name], method=name, problem=problem)
    plain = {name: make for name, make in methods.items() if name not in DIFFERENTIATE}
    for name, ratio in own_times(plain, tensors, run.device, OWN_REPEATS).items():
        run.record("own_time", ratio, method=name, problem=f"{tensors} small tensors")
    beside_peers(run, tensors=tensors, repeats=PEER_REPEATS)


def methods_with(method: str | None) -> dict[str, Make]:
    """The family's methods, and the stranger's last."""
    if method is None:
        return METHODS
    own = load(method, "the method")
    if not callable(own):
        raise SecondLookError(f"{method!r} is not callable as Class(params, lr=...)")
    return {**METHODS, method: own}


def side_by_side(call: Callable[[T], R], arguments: list[T], jobs: int) -> Iterator[R]:
    """Results in the arguments' order, from as many processes."""
    if jobs == 1:
        yield from map(call, arguments)
        return
    one_thread = partial(torch.set_num_threads, 1)
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=one_thread) as pool:
        yield from pool.map(call, arguments)


def compete(
    pair: tuple[str, str], *, method: str | None, rates: list[float], seeds: int, rows: int, device: str
) -> tuple[dict[float, Trial], list[Trial]]:
    """All runs of one method on one problem: one for each learning rate, and one for each seed with the best."""
    problem, name = pair
    runs = partial(train, methods_with(method)[name], problem, device=device)
    short = partial(runs, seed=TUNING_SEED, rows=rows // 2, budget=TASKS[problem].half)
    tuning = {lr: short(lr=lr) for lr in rates}
    return tuning, [runs(lr=tuned(tuning), seed=seed, rows=rows) for seed in range(seeds)]


def tuned(tuning: dict[float, Trial]) -> float:
    """The learning rate with the lowest final loss."""
    return min(tuning, key=lambda lr: tuning[lr].final)


def learning_rates(trials: int) -> list[float]:
    """The middles of `trials` equal parts of the logarithmic range: no gap is wider than another."""
    return [LOWEST_LR * (HIGHEST_LR / LOWEST_LR) ** ((i + 0.5) / trials) for i in range(trials)]


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
