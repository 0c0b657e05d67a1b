"""AuON's updates beside the momentum they come from, its paths beside momentum SGD's, its training beside Muon's."""

import itertools
import math
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.optimizers.auon.setting import MOMENTUM, RULES, counted, direction
from secondlook.optimizers.hidden import Recipe, Task, digits, hidden, optimizer, text
from secondlook.problems.training import fit
from secondlook.problems.tuning import TUNING_SEED, best
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

LOSS_SCALE = 1024.0  # what mixed-precision training multiplies the loss by, or any other change of its unit


def updates(
    run: Run, *, sizes: list[int], batch_size: int, steps: int, every: int, lr: float, rules: list[str]
) -> None:
    """Spectra of the updates that the rules make of the same momenta, met while momentum SGD trains, in float64."""
    for seed in run.track(run.seeds, "seeds"):
        task = digits(sizes, batch_size, run.device, torch.float64)
        model = task.model(torch.Generator().manual_seed(seed))
        batches = task.batches(torch.Generator(run.device).manual_seed(seed))
        averages = [torch.zeros_like(w) for w in hidden(model)]
        opt = optimizer(RULES["sgd"], model, lr=lr, rest_lr=3e-3)
        for step in range(1, steps + 1):
            opt.zero_grad()
            task.measures["loss"](model, next(batches)).backward()
            grads = [w.grad for w in hidden(model)]
            torch._foreach_lerp_(averages, grads, 1 - MOMENTUM)
            if step % every == 0:
                momenta = torch._foreach_lerp(grads, averages, MOMENTUM)
                for layer, rule in itertools.product(range(len(momenta)), rules):
                    keep = {"method": rule, "problem": f"layer-{layer + 1}", "seed": seed}
                    look(run, rule, momenta[layer], step, keep, spectrum=step == steps and seed == run.seeds[0])
            opt.step()


def look(run: Run, rule: str, u: Tensor, step: int, keep: dict[str, Any], *, spectrum: bool) -> None:
    """Record what `rule` makes of one momentum matrix."""
    found = direction(rule, u)
    before, after = torch.linalg.svdvals(u), torch.linalg.svdvals(found)
    run.record("condition_ratio", (after[0] / after[-1]) / (before[0] / before[-1]), step=step, **keep)
    run.record("spectral_norm", after[0], step=step, **keep)
    run.record("scaled_spectral_norm", torch.linalg.matrix_norm(direction(rule, LOSS_SCALE * u), 2), step=step, **keep)
    run.record("cosine", (u * found).sum() / u.norm() / found.norm(), step=step, **keep)
    if rule == "auon":
        excess = u.norm() / found.norm() - 1
        run.record("excess", excess, step=step, **keep)
        limit = math.sqrt(1 + math.sinh(1.5) ** 2 / u.numel()) - 1
        run.record("share_of_limit", excess / limit, step=step, **keep)
    if spectrum:
        run.record_series("singular_value", after / after[0], steps=range(1, len(after) + 1), **keep)


def paths(
    run: Run,
    *,
    sizes: list[int],
    batch_size: int,
    steps: int,
    every: int,
    pairs: dict[str, list[str]],
    lrs: dict[str, float],
) -> None:
    """Distance between the weights of two rules from one start at one learning rate, over the distance travelled.

    Float64, but for a rule whose name ends in -float32.
    """
    for seed in run.track(run.seeds, "seeds"):
        trail = partial(walk, sizes, batch_size, steps, every, seed, run.device)
        taken = {rule: trail(rule, lrs[rule]) for rule in {r for pair in pairs.values() for r in pair}}
        for name, (rule, reference) in pairs.items():
            a, b = taken[rule], taken[reference]
            for i, step in enumerate(range(every, steps + 1, every), 1):
                gap = (a[i] - b[i]).norm() / (b[i] - b[0]).norm()
                run.record("path_gap", gap, method=name, problem="digits-mlp", seed=seed, step=step)


def walk(
    sizes: list[int], batch_size: int, steps: int, every: int, seed: int, device: str, rule: str, lr: float
) -> list[Tensor]:
    """Hidden weights, flat and in float64, at the start and after every `every` steps."""
    dtype = torch.float32 if rule.endswith("-float32") else torch.float64
    task = digits(sizes, batch_size, device, dtype)
    model = task.model(torch.Generator().manual_seed(seed))
    seen = []

    def weights(model: nn.Module) -> dict[str, float]:
        seen.append(torch.cat([w.detach().double().flatten() for w in hidden(model)]))
        return {}

    weights(model)
    batches = task.batches(torch.Generator(device).manual_seed(seed))
    opt = optimizer(RULES[rule.removesuffix("-float32")], model, lr=lr, rest_lr=3e-3)
    fit(model, opt, batches, task.measures["loss"], steps=steps, evaluate=weights, every=every)
    return seen


def training(
    run: Run,
    *,
    problem: str,
    network: dict[str, Any],
    batch_size: int,
    steps: int,
    rows: int,
    rest_lr: float,
    tuning_seeds: int,
    arms: list[str],
    grids: dict[str, list[float]],
) -> None:
    """Losses of networks whose hidden matrices are trained by each rule, with its own tuned learning rate."""
    make: dict[str, Any] = {"digits-mlp": digits, "tinyshakespeare": partial(text, "tinyshakespeare")}
    task: Task = make[problem](**network, batch_size=batch_size, device=run.device)
    recipe = Recipe(task, RULES, steps, rows, rest_lr, run.device)
    chosen: dict[str, float] = {}
    for arm in run.track(arms, "arms"):
        rule = arm.removesuffix("-copy")
        if rule not in chosen:
            seeds = range(TUNING_SEED, TUNING_SEED + tuning_seeds)
            tuning = {
                lr: mean(best(h)["val_loss"] for h in recipe.train_seeds(rule, {"lr": lr}, seeds)) for lr in grids[rule]
            }
            chosen[rule] = min(tuning, key=tuning.__getitem__)
            for lr, loss in tuning.items():
                run.record("tuning_loss", loss, method=rule, problem=problem, step=lr)
        run.record("tuned_lr", chosen[rule], method=arm, problem=problem)
        for seed, history in zip(run.seeds, recipe.train_seeds(arm, {"lr": chosen[rule]}, run.seeds), strict=True):
            keep = {"method": arm, "problem": problem, "seed": seed}
            run.record("best_test_loss", best(history)["test_loss"], **keep)
            for metric in ("train_loss", "val_loss"):
                run.record_series(metric, history.column(metric), steps=history.column("step"), **keep)


def operations(run: Run, *, sizes: list[int], rules: list[str]) -> None:
    """Scalar operations of an optimizer's step on one square matrix, against the number of its entries."""
    for rule, n in itertools.product(rules, sizes):
        run.record("operations", counted(rule, n), method=rule, problem="square", seed=0, step=n * n)


def cost(run: Run, *, sizes: list[int], repeats: int, rules: list[str]) -> None:
    """Time of an optimizer's step on one square matrix, the rules in turn, against the number of its entries."""
    for seed in run.track(run.seeds, "seeds"):
        for n in sizes:
            g = torch.Generator(run.device).manual_seed(seed)
            calls = {}
            for rule in rules:
                w = torch.zeros(n, n, device=run.device, requires_grad=True)
                w.grad = torch.randn(n, n, generator=g, device=run.device)
                calls[rule] = RULES[rule]([w], lr=1e-3).step
            times = interleaved(calls, repeats=repeats)
            # The least disturbed repeat: whatever else the machine does only adds time.
            for rule, seconds in times.groupby("name")["seconds"].min().items():
                run.record("step_time", 1e3 * seconds, method=rule, problem="square", seed=seed, step=n * n)
