"""INNAprop against the equation it discretises, and against AdamW in training."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from secondlook.optimizers.innaprop.flow import inna_flow
from secondlook.optimizers.innaprop.method import euler_step
from secondlook.optimizers.innaprop.setting import PROBLEMS, train, train_gpt, train_seeds
from secondlook.problems import datasets
from secondlook.problems.pairing import COPY
from secondlook.problems.training import History
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite.runner import Run

T = TypeVar("T")


def valley(x: Any, y: Any) -> tuple[Any, Any]:
    """Gradient of (1 - x)^2 + 10 (y - x^2)^2: Rosenbrock's valley, ten times less steep than usual."""
    return 2 * (x - 1) - 40 * x * (y - x**2), 20 * (y - x**2)


def downhill(x: np.ndarray) -> tuple[float, float]:
    """The valley's gradient at x `[2]`; Python's own numbers are several times faster here."""
    return valley(*x.tolist())


def start(seed: int) -> np.ndarray:
    """A point of the square of side 2.4 around the origin."""
    return 2.4 * np.random.default_rng(seed).random(2) - 1.2


def euler(x0: Tensor, rest: Sequence[float], alpha: float, beta: float, lr: float, time: float, looks: int) -> Tensor:
    """Euler steps in the valley from starts `[seeds, 2]`, evenly in time: `[looks, rest, seeds, 2]`.

    psi starts at each `rest` times x0.
    """
    x = torch.stack([x0] * len(rest)).movedim(-1, 0).contiguous()  # both coordinates apart
    psi = x * torch.tensor(rest, dtype=x.dtype)[:, None]
    path = []
    for _ in range(looks):
        for _ in range(round(time / lr / looks)):
            euler_step([x], [psi], [torch.stack(valley(*x))], lr, alpha, beta)
        path.append(x.movedim(0, -1).clone())
    return torch.stack(path)


def turns(path: np.ndarray, still: float = 1e-5) -> int:
    """How often the coordinates of a path `[2, times]` turn back; movements below `still` do not count."""
    moves = [d[np.abs(d) > still] for d in np.diff(path)]
    return sum(int((np.diff(np.sign(d)) != 0).sum()) for d in moves)


def flow(
    run: Run,
    *,
    pairs: list[str],
    steps: list[float],
    time: float,
    looks: int,
    alpha: float,
    betas: list[float],
    long: float,
) -> None:
    """Distance of the discrete path from the flow, by step size; and how often the flow turns back, by beta."""
    at = partial(run.record, problem="valley")
    times = np.linspace(0, time, looks + 1)[1:]
    starts = np.stack([start(seed) for seed in run.seeds])
    for pair in run.track(pairs, "pairs"):
        a, b = map(float, pair.split("-"))
        exact = np.stack([inna_flow(downhill, x0, a, b, (0, time))(times)[:2].T for x0 in starts], 1)
        trace = partial(run.record_series, problem="valley", seed=run.seeds[0], steps=times)
        for axis, name in enumerate(("x", "y")):
            trace(name, exact[:, 0, axis], method=f"flow-{pair}")
        psi = {"rest": 1 - a * b} | ({"psi-zero": 0.0} if a * b != 1 else {})
        paths = {lr: euler(torch.from_numpy(starts), [*psi.values()], a, b, lr, time, looks).numpy() for lr in steps}
        for lr, (m, method) in itertools.product(steps, enumerate(psi)):
            path = paths[lr][:, m]
            if lr == steps[0] and method == "rest":
                for axis, name in enumerate(("x", "y")):
                    trace(name, path[:, 0, axis], method=f"euler-{pair}")
            for i, seed in enumerate(run.seeds):
                error = np.linalg.norm(path[:, i] - exact[:, i], axis=1).max()
                at("flow_error", error, method=f"{method}-{pair}", seed=seed, step=lr)
    fine = np.linspace(0, long, 2000)
    for seed, (method, shift) in itertools.product(run.seeds, (("flow", 0), ("flow-copy", COPY))):
        for beta in betas if method == "flow" else betas[:1]:
            path = inna_flow(downhill, start(seed + shift), alpha, beta, (0, long), tolerance=1e-7)(fine)
            at("turns", turns(path[:2]), method=method, seed=seed, step=beta)


def prepared(run: Run, go: Callable[..., T], problem: str, width: int | None, **settings: Any) -> Callable[..., T]:
    """`go`, of `train`'s kind, with all but arm, learning rate and seed settled; `width` is for networks with one."""
    setting = PROBLEMS[problem]
    setting = replace(setting, model=partial(setting.model, width=width)) if width else setting
    return partial(go, problem=setting, data=setting.load(run.device), **settings)


def report(run: Run, history: History, arm: str, problem: str, seed: int, every: int) -> None:
    """Accuracies at every `every` epochs; on training images at its first look, and on test images at its end."""
    keep = {"method": arm, "problem": problem, "seed": seed}
    for metric in ("train_accuracy", "test_accuracy"):
        values = history.column(metric)
        run.record_series(metric, values, steps=[every * (i + 1) for i in range(len(values))], **keep)
    run.record("early_accuracy", history.column("train_accuracy")[0], **keep)
    run.record("final_accuracy", history.last("test_accuracy"), **keep)


def tuned(lrs: Sequence[float], seeds: int, score: Callable[[float, int], tuple[float, ...]]) -> float:
    """The learning rate with the best summed score over the tuning seeds; the larger the better."""

    def total(lr: float) -> tuple[float, ...]:
        return tuple(map(sum, zip(*(score(lr, TUNING_SEED + s) for s in range(seeds)), strict=True)))

    return lrs[0] if len(lrs) == 1 else max(lrs, key=total)


def accuracy(
    run: Run,
    *,
    problem: str,
    lrs: dict[str, list[float]],
    tuning_seeds: int,
    epochs: int,
    early: int,
    batch_size: int,
    weight_decay: float,
    width: int | None = None,
) -> None:
    """All arms at AdamW's learning rate, which is tuned on validation images; INNAprop also at its own (`-tuned`)."""
    settings = {"epochs": epochs, "batch_size": batch_size, "weight_decay": weight_decay}
    recipe, together = (prepared(run, go, problem, width, **settings) for go in (train, train_seeds))

    def score(arm: str, lr: float, seed: int) -> tuple[float, float]:
        h = recipe(arm, lr, seed)
        return (-math.inf, -math.inf) if h.diverged else (h.last("val_accuracy"), -h.last("val_loss"))

    own = {arm: tuned(lrs[arm], tuning_seeds, partial(score, arm)) for arm in run.track(lrs, "tuning")}
    for arm, lr in own.items():
        run.record("tuned_lr", lr, method=arm, problem=problem)
    for arm in run.track([*lrs, "adamw-copy"], "arms"):
        shared = together(arm, own["adamw"], run.seeds, every=early)
        for seed, history in zip(run.seeds, shared, strict=True):
            report(run, history, arm, problem, seed, early)
        if arm.startswith("innaprop"):
            alone = shared if own[arm] == own["adamw"] else together(arm, own[arm], run.seeds, every=early)
            for seed, history in zip(run.seeds, alone, strict=True):
                report(run, history, f"{arm}-tuned", problem, seed, early)


def dampings(
    run: Run,
    *,
    problem: str,
    alphas: list[float],
    betas: list[float],
    lr: float,
    epochs: int,
    early: int,
    batch_size: int,
    weight_decay: float,
    width: int | None = None,
) -> None:
    """Early training accuracy and final test accuracy over a grid of both dampings; the step column holds beta."""
    recipe = prepared(run, train, problem, width, epochs=epochs, batch_size=batch_size, weight_decay=weight_decay)
    for alpha, beta in run.track(list(itertools.product(alphas, betas)), "pairs"):
        for seed in run.seeds:
            h = recipe(f"innaprop-{alpha:g}-{beta:g}", lr, seed, every=early)
            keep = {"method": f"alpha-{alpha:g}", "problem": problem, "seed": seed, "step": beta}
            run.record("grid_early", h.column("train_accuracy")[0], **keep)
            run.record("grid_final", h.last("test_accuracy"), **keep)


def language(
    run: Run,
    *,
    corpus: str,
    lrs: dict[str, list[float]],
    size: dict[str, int],
    batch_size: int,
    steps: int,
    weight_decay: float,
    sigma: float,
    tuning_seeds: int,
) -> None:
    """Test loss of a character-level transformer, each arm at the learning rate that ends best on validation text."""
    go = partial(
        train_gpt,
        text=datasets.corpus(corpus),
        size=size,
        batch_size=batch_size,
        steps=steps,
        weight_decay=weight_decay,
        second=sigma,
        device=run.device,
    )
    for arm in run.track(lrs, "arms"):
        lr = tuned(lrs[arm], tuning_seeds, lambda lr, seed, arm=arm: (-go(arm, lr, seed, part="val"),))
        run.record("tuned_lr", lr, method=arm, problem="char-gpt")
        copies = [arm + "-copy"] if arm == "adamw" else []
        for one, seed in itertools.product([arm, *copies], run.seeds):
            run.record("test_loss", go(one, lr, seed), method=one, problem="char-gpt", seed=seed)
