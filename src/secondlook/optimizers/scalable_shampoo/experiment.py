"""Shampoo's roots beside exact ones, what its factors do to a condition number, its speed, and its cost."""

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from secondlook.optimizers.scalable_shampoo.kronecker import Problem, spread
from secondlook.optimizers.scalable_shampoo.roots import inverse_pth_root
from secondlook.optimizers.scalable_shampoo.setting import (
    exactly,
    first_at,
    optimizer_step,
    steps_to,
    train_images,
)
from secondlook.problems import datasets
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

ROOTS = {  # type, tolerance, ridge
    "newton-float64": (torch.float64, 1e-13, 0.0),
    "newton-float32": (torch.float32, 1e-6, 0.0),
    "newton-float32-ridge": (torch.float32, 1e-6, 1e-6),
}


def roots(run: Run, *, conditions: list[float], powers: list[int], size: int, matrices: int) -> None:
    """Worst relative error of Newton's root over random matrices, against an exact decomposition in float64.

    With a ridge, the truth is the root of the matrix with the ridge on it.
    """
    for seed in run.track(run.seeds, "seeds"):
        g = torch.Generator().manual_seed(seed)
        for condition in conditions:
            halves = torch.stack([spread(size, condition**0.5, g) for _ in range(matrices)])
            values, vectors = torch.linalg.eigh(halves @ halves.mT)
            values = values.clamp_min(0.5 / condition)  # rounding may cross zero
            A = vectors * values[:, None] @ vectors.mT
            for method, (dtype, tol, eps) in ROOTS.items():
                for p in powers:
                    X, info = inverse_pth_root(A.to(dtype), p, eps, tol)
                    exact = vectors * (values + info.ridge[:, None])[:, None] ** (-1 / p) @ vectors.mT
                    error = torch.linalg.matrix_norm(X.double() - exact) / torch.linalg.matrix_norm(exact)
                    at = {"method": method, "problem": f"power-{p}", "seed": seed, "step": condition}
                    run.record("root_error", error.max(), **at)
                    run.record("rounds", info.iterations.max(), **at)


def condition(
    run: Run, *, rows: int, columns: int, conditions: list[float], gradients: int, methods: list[str]
) -> None:
    """Condition number of a Kronecker quadratic before and after preconditioning."""
    for bare in conditions:
        problem = Problem.draw(run.seeds, rows, columns, bare**0.25)
        for method in methods:
            g = torch.Generator().manual_seed(TUNING_SEED)
            found = problem.condition(method, gradients, g)
            for seed, value in zip(run.seeds, found, strict=True):
                run.record("condition_number", value, method=method, problem="kronecker", seed=seed, step=bare)


def kronecker(
    run: Run,
    *,
    rows: int,
    columns: int,
    condition: float,
    steps: int,
    target: float,
    tuning_starts: int,
    grids: dict[str, list[float]],
) -> None:
    """Loss after `steps`, and steps to `target`, on a Kronecker quadratic; the rate is tuned for each of the two."""
    others = Problem.draw(range(TUNING_SEED, TUNING_SEED + tuning_starts), rows, columns, condition**0.25)
    problem = Problem.draw(run.seeds, rows, columns, condition**0.25)
    shown = sorted({round(steps ** (i / 30)) for i in range(31)})
    for arm, lrs in run.track(list(grids.items()), "optimizers"):
        tried = others.path(exactly(arm), lrs, steps)
        ends = tried[-1].log().mean(1).nan_to_num(math.inf, math.inf)
        needed = _first_below(tried, target).mean(1)
        best = {"final_loss": int(ends.argmin()), "steps_to_target": int(needed.argmin())}
        chosen = sorted(set(best.values()))
        path = problem.path(exactly(arm), [lrs[i] for i in chosen], steps)
        for metric, i in best.items():
            run.record(f"lr_for_{metric}", lrs[i], method=arm, problem="kronecker")
        lowest, fastest = (path[:, chosen.index(i)] for i in best.values())
        needed = _first_below(fastest, target)
        for j, seed in enumerate(run.seeds):
            at = {"method": arm, "problem": "kronecker", "seed": seed}
            run.record("final_loss", lowest[-1, j], **at)
            run.record_series("loss", lowest[shown, j].tolist(), steps=shown, **at)
            run.record("steps_to_target", needed[j], **at)


def _first_below(path: torch.Tensor, target: float) -> torch.Tensor:
    """First step at which each column is at the target; infinite if never, or if it diverged."""
    hit = path <= target
    steps = torch.where(hit.any(0) & path[-1].isfinite(), hit.int().argmax(0), math.inf)
    return steps.double()


def autoencoder(run: Run, *, sizes: list[int], target: float, limit: int, grids: dict[str, list[float]]) -> None:
    """Full-batch steps of an autoencoder of 8x8 digits to the target, each arm at the rate that needs the fewest."""
    x = datasets.load("digits").to(run.device).train.x.flatten(1)
    setting = {"x": x, "sizes": sizes, "limit": limit}
    taken: dict[str, list[float]] = {}
    for arm, lrs in run.track(list(grids.items()), "optimizers"):
        tried = steps_to(target, arm, lrs, [TUNING_SEED] * len(lrs), **setting)
        best = min(zip(lrs, tried, strict=True), key=lambda one: one[1][0])[0]
        run.record("lr_for_steps_to_target", best, method=arm, problem="digits-autoencoder")
        for name in (arm, f"{arm}-copy") if arm == "nesterov" else (arm,):
            found = steps_to(target, name, [best] * len(run.seeds), run.seeds, **setting)
            for seed, (steps, losses) in zip(run.seeds, found, strict=True):
                taken.setdefault(name, []).append(steps)
                at = {"method": name, "problem": "digits-autoencoder", "seed": seed}
                run.record("steps_to_target", steps, **at)
                run.record_series("loss", losses[::10], steps=range(0, len(losses), 10), **at)
    rivals = [arm for arm in ("nesterov", "adagrad", "adam") if arm in taken]
    for arm, steps in taken.items():
        for i, seed in enumerate(run.seeds):
            speedup = min(taken[r][i] for r in rivals) / steps[i]
            run.record("speedup", speedup, method=arm, problem="digits-autoencoder", seed=seed)


def images(
    run: Run,
    *,
    data: str,
    width: int,
    batch_size: int,
    steps: int,
    rows: int,
    target: float,
    grids: dict[str, list[float]],
) -> None:
    """Steps and seconds of ResNet-20 to a test accuracy; rates tuned by steps to it, then accuracy, on validation."""
    loaded = datasets.load(data).to(run.device)
    setting = {"data": loaded, "width": width, "batch_size": batch_size, "steps": steps, "rows": rows}
    for arm, lrs in run.track(list(grids.items()), "optimizers"):

        def rank(lr: float, arm: str = arm) -> tuple[float, float]:
            tried = train_images(arm, lr, TUNING_SEED, **setting)
            return first_at(tried, target, "val", "step"), -tried[-1].get("val_accuracy", 0.0)

        best = min(lrs, key=rank)
        run.record("lr_for_steps_to_target", best, method=arm, problem=data)
        for name in (arm, f"{arm}-copy") if arm == "nesterov" else (arm,):
            for seed in run.seeds:
                history = train_images(name, best, seed, **setting)
                at = {"method": name, "problem": data, "seed": seed}
                run.record("steps_to_target", first_at(history, target, "test", "step"), **at)
                run.record("seconds_to_target", first_at(history, target, "test", "seconds"), **at)
                kept = [row for row in history if "test_accuracy" in row]
                accuracies = [row["test_accuracy"] for row in kept]
                run.record_series("test_accuracy", accuracies, steps=[row["step"] for row in kept], **at)
                run.record("final_accuracy", history[-1].get("test_accuracy", math.nan), **at)


def cost(run: Run, *, width: int, layers: int, arms: Sequence[str], period: int, repeats: int) -> None:
    """Multiplications and time of an optimizer's step, mean over `period` steps, on square layers."""
    for seed in run.track(run.seeds, "seeds"):
        made = {arm: optimizer_step(arm, width, layers, seed, run.device)[0] for arm in arms}
        at = {"problem": f"{layers}-layers", "seed": seed}
        for arm, optimizer in made.items():
            with FlopCounterMode(display=False) as counter:
                for _ in range(period):
                    optimizer.step()
            run.record("step_flops", counter.get_total_flops() / period / 2e6, method=arm, **at)
        calls = {arm: lambda opt=opt: [opt.step() for _ in range(period)] for arm, opt in made.items()}
        for arm, seconds in interleaved(calls, repeats=repeats, warmup=0).groupby("name")["seconds"].min().items():
            run.record("step_time", 1e3 * seconds / period, method=arm, **at)
