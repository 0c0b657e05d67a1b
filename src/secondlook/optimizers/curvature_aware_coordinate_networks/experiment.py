"""Signals as networks: L-BFGS, and Adam with all samples and in batches, for the same number of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from secondlook.optimizers.curvature_aware_coordinate_networks.fitting import Trace, fit_signal
from secondlook.optimizers.curvature_aware_coordinate_networks.method import CoordNet
from secondlook.problems.pairing import streams
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite.runner import Run

SMOOTH, KINKED = ("sine", "gauss"), "relu_pe"
ARMS = ("lbfgs", "adam", "adam-copy")
POINTS = 30  # of a recorded curve


def signal(name: str, samples: int) -> tuple[Tensor, Tensor]:
    """Coordinates in [-1, 1] and values in [0, 1]: an image of `samples` x `samples`, or a chirp of `samples`."""
    if name == "chirp":
        t = torch.linspace(-1, 1, samples)
        return t[:, None], (0.5 + 0.5 * torch.sin(2 * math.pi * (10 * (t + 1) + 15 * (t + 1) ** 2)))[:, None]
    from skimage import data, transform

    line = torch.linspace(-1, 1, samples)
    image = torch.as_tensor(transform.resize(getattr(data, name)(), (samples, samples), anti_aliasing=True))
    return torch.cartesian_prod(line, line), image.float().reshape(samples**2, -1)


def fits(
    run: Run,
    *,
    signals: dict[str, int],
    activations: list[str],
    hidden: int,
    layers: int,
    evals: int,
    history: int,
    rates: dict[str, list[float]],
    batch_rates: dict[str, list[float]],
    batches: int,
) -> None:
    """PSNR by gradients over all samples. Adam's rate is tuned for every signal and activation, L-BFGS is not tuned."""
    for name, samples in signals.items():
        x, y = (part.to(run.device) for part in signal(name, samples))
        speedups: dict[str, dict[tuple[str, int], float]] = {}
        for activation in activations:
            problem = f"{name}-{activation}"

            def train(arm: str, seed: int, lr: float = 1.0, activation: str = activation, x=x, y=y) -> Trace:
                weights, order = streams(arm, seed)
                net = CoordNet(x.shape[1], y.shape[1], hidden, layers, activation, generator=weights).to(run.device)
                kind = {"optimizer": "lbfgs", "history": history} if arm == "lbfgs" else {"optimizer": "adam", "lr": lr}
                parts = batches if arm.startswith("adam-batches") else 1
                return fit_signal(net, x, y, budget_evals=evals, batches=parts, generator=order, **kind)

            grids = {"adam": rates[activation]}
            arms = list(ARMS)
            if activation in batch_rates:
                grids["adam-batches"] = batch_rates[activation]
                arms += ["adam-batches", "adam-batches-copy"]
            tuned = {arm: _best(partial(train, arm, TUNING_SEED), grid, evals) for arm, grid in grids.items()}
            for arm, lr in tuned.items():
                run.record("tuned_lr", lr, method=arm, problem=problem)
            traces = {
                (arm, seed): train(arm, seed, tuned.get(arm.removesuffix("-copy"), 1.0))
                for arm in run.track(arms, problem)
                for seed in run.seeds
            }
            speedups[activation] = _record(run, problem, traces, evals)
        _compare(run, name, speedups)


def _best(train: Callable[[float], Trace], grid: list[float], evals: int) -> float:
    """The rate that ends highest, on a seed of its own."""
    return grid[0] if len(grid) == 1 else max(grid, key=lambda lr: train(lr).at(evals))


def _record(run: Run, problem: str, traces: dict[tuple[str, int], Trace], evals: int) -> dict[tuple[str, int], float]:
    """Curves, final PSNR, price, and gradients to Adam's final PSNR of the same seed; returns budget over the latter.

    An arm that never gets there is counted as if it did with its last gradient, which flatters it.
    """
    steps = sorted({round(evals * (i + 1) / POINTS) for i in range(POINTS)} - {0})
    speedups = {}
    for (arm, seed), trace in traces.items():
        keep = partial(run.record, method=arm, problem=problem, seed=seed)
        for step in steps:
            keep("psnr", trace.at(step), step=step)
        keep("final_psnr", trace.at(evals))
        needed = min(trace.reached(traces["adam", seed].at(evals)), evals)
        keep("evals_to_target", needed)
        speedups[arm, seed] = evals / needed
        if arm == "lbfgs":
            keep("price", trace.pace() / traces["adam", seed].pace())
    return speedups


def _compare(run: Run, name: str, speedups: dict[str, dict[tuple[str, int], float]]) -> None:
    """The smaller of the speed-ups with smooth activations, and that with ReLU."""
    if not {*SMOOTH, KINKED} <= speedups.keys():
        return
    for arm, seed in ((arm, seed) for arm in ("lbfgs", "adam-copy") for seed in run.seeds):
        keep = partial(run.record, method=arm, problem=name, seed=seed)
        keep("smooth_speedup", min(speedups[activation][arm, seed] for activation in SMOOTH))
        keep("kinked_speedup", speedups[KINKED][arm, seed])
