"""FISMO's updates beside Muon's, its training where curvature has two factors, on digits, images and text."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from statistics import mean, pstdev
from typing import Any

import torch
from torch import Tensor

from secondlook.optimizers.fismo.matrices import Regression, factorisation
from secondlook.optimizers.fismo.method import FISMO
from secondlook.optimizers.fismo.setting import EXACT, RULES, TASKS, Shadow, float64_task, made
from secondlook.optimizers.hidden import Recipe, hidden, optimizer, text
from secondlook.problems.tuning import TUNING_SEED, Grid, best, choices
from secondlook.suite.runner import Run


def updates(
    run: Run,
    *,
    problem: str,
    network: dict[str, Any],
    batch_size: int,
    steps: int,
    every: int,
    lr: float,
    rest_lr: float,
    rules: list[str],
    scaled_rules: list[str],
    loss_scales: list[float],
) -> None:
    """Condition numbers of the updates that rules make of the same gradients, met while Muon trains, in float64.

    What `scaled_rules` make of the loss in other units, `loss_scales` times as much, is looked at in the end.
    """
    task = float64_task(problem, network, batch_size, run.device)
    for seed in run.track(run.seeds, "seeds"):
        model = task.model(torch.Generator().manual_seed(seed)).double()
        batches = task.batches(torch.Generator(run.device).manual_seed(seed))
        opt = optimizer(RULES["muon"], model, rest_lr=rest_lr, lr=lr)
        matrices = hidden(model)
        looked_at = dict.fromkeys([(r, 1.0) for r in rules] + [(r, c) for r in scaled_rules for c in loss_scales])
        shadows = {(EXACT.get(r, r), c): Shadow(EXACT.get(r, r), matrices) for r, c in looked_at}
        for step in range(1, steps + 1):
            opt.zero_grad()
            task.measures["loss"](model, next(batches)).backward()
            grads = {c: torch._foreach_mul([w.grad for w in matrices], c) for c in {c for _, c in looked_at}}
            found = {}
            if step % every == 0 or step == steps:
                for rule, c in looked_at:
                    shadow = shadows[EXACT.get(rule, rule), c]
                    found[rule, c] = shadow.update(grads[c], **({"polar": "svd"} if rule in EXACT else {}))
            for (rule, c), layer in itertools.product(found, range(len(matrices))):
                at = {"method": rule, "problem": f"layer-{layer + 1}", "seed": seed}
                update, muon = found[rule, c][layer], found["identity", 1.0][layer]
                if c == 1.0 and step % every == 0:
                    run.record("log_condition", log_condition(update), step=step, **at)
                    run.record("departure", unit_gap(update, muon), step=step, **at)
                if step == steps and rule in scaled_rules and c in loss_scales:
                    run.record("scaled_log_condition", log_condition(update), step=c, **at)
                    run.record("scaled_departure", unit_gap(update, muon), step=c, **at)
            for (_, c), shadow in shadows.items():
                shadow.follow(grads[c])
            opt.step()


def log_condition(update: Tensor) -> Tensor:
    """log10 of the largest over the least singular value."""
    values = torch.linalg.svdvals(update)
    return (values[0] / values[-1]).log10()


def unit_gap(a: Tensor, b: Tensor) -> Tensor:
    """Distance of the two directions."""
    return (a / a.norm() - b / b.norm()).norm()


def regression(
    run: Run,
    *,
    shape: tuple[int, int],
    conditions: list[float],
    batch_size: int,
    steps: int,
    tuning_seeds: int,
    rows: int,
    arms: list[str],
    lrs: dict[str, list[float]],
) -> None:
    """Excess loss where the curvature is a Kronecker product and Fisher's matrix is the curvature."""
    seeds = [*range(TUNING_SEED, TUNING_SEED + tuning_seeds), *run.seeds]
    shown = range(0, steps + 1, max(1, steps // rows))
    for condition in conditions:
        problem = f"condition-{condition:g}"
        for arm in run.track(arms, f"arms at {problem}"):
            rule = arm.removesuffix("-copy")
            ends: dict[float, Tensor] = {}
            for lr in lrs[rule]:
                drawn = Regression.draw(arm, seeds, *shape, condition, batch_size)
                ends[lr] = drawn.train(partial(made, rule, lr=lr), steps)
            tuning = {lr: losses[-1, :tuning_seeds].log().mean().item() for lr, losses in ends.items()}
            chosen = min(tuning, key=tuning.__getitem__)
            run.record("tuned_lr", chosen, method=arm, problem=problem)
            for i, seed in enumerate(run.seeds, tuning_seeds):
                at = {"method": arm, "problem": problem, "seed": seed}
                run.record("final_excess", ends[chosen][-1, i], **at)
                run.record_series("excess_loss", ends[chosen][shown, i], steps=shown, **at)


def rate(run: Run, *, shape: tuple[int, int, int], noise: float, lr: float, lengths: list[int]) -> None:
    """Mean squared gradient norm of a run against its number of steps T, with the rate lr / sqrt(T) and without."""
    go = partial(factorisation, seeds=list(run.seeds), shape=shape, noise=noise)
    longest = go(partial(FISMO, lr=lr / math.sqrt(lengths[0])), steps=max(lengths))  # at one rate it holds the shorter
    for T in run.track(lengths, "lengths"):
        found = {"fismo": go(partial(FISMO, lr=lr / math.sqrt(T)), steps=T), "fismo-constant": longest[:T]}
        for method, norms in found.items():
            for seed, value in zip(run.seeds, norms.mean(0).tolist(), strict=True):
                run.record("mean_sq_gradient", value, method=method, problem="factorisation", seed=seed, step=T)


def images(
    run: Run, *, problem: str, network: dict[str, Any], batch_size: int, steps: int, rows: int, **rest: Any
) -> None:
    """Loss, accuracy and smoothness on images."""
    task = TASKS[problem](**network, batch_size=batch_size, device=run.device)
    compare(run, problem, partial(Recipe, task, RULES, steps, rows), **rest)


def language(
    run: Run, *, corpus: str, size: dict[str, int], batch_size: int, steps: int, rows: int, **rest: Any
) -> None:
    """Loss on the next characters of a text."""
    compare(run, corpus, partial(Recipe, text(corpus, size, batch_size, run.device), RULES, steps, rows), **rest)


def compare(
    run: Run,
    problem: str,
    make: Callable[..., Recipe],
    *,
    rest_lr: float,
    tuning_seeds: int,
    arms: list[str],
    grids: dict[str, Grid],
) -> None:
    """Networks whose hidden matrices are trained by each rule, with the best choice of its own grid."""
    recipe = make(rest_lr, run.device)
    seeds = range(TUNING_SEED, TUNING_SEED + tuning_seeds)
    chosen: dict[str, dict[str, float]] = {}
    for arm in run.track(arms, "arms"):
        rule = arm.removesuffix("-copy")
        if rule not in chosen:
            tuning = [
                (mean(best(recipe.train(rule, choice, s))["val_loss"] for s in seeds), choice)
                for choice in choices(grids[rule])
            ]
            chosen[rule] = min(tuning, key=lambda tried: tried[0])[1]
            for lr in grids[rule]["lr"]:
                least = min(loss for loss, choice in tuning if choice["lr"] == lr)
                run.record("tuning_loss", least, method=rule, problem=problem, step=lr)
        for name, value in chosen[rule].items():
            run.record(f"tuned_{name}", value, method=arm, problem=problem)
        for seed in run.seeds:
            history = recipe.train(arm, chosen[rule], seed)
            at = {"method": arm, "problem": problem, "seed": seed}
            run.record("best_test_loss", best(history)["test_loss"], **at)
            if "accuracy" in recipe.task.measures:
                seen = history.column("val_accuracy")
                run.record("best_test_accuracy", best(history).get("test_accuracy", math.nan), **at)
                run.record("roughness", pstdev(b - a for a, b in itertools.pairwise(seen)), **at)
            run.record_series("val_loss", history.column("val_loss"), steps=history.column("step"), **at)
