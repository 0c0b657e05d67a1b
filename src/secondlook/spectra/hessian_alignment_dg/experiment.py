"""The bound on the transfer measure, and domain generalisation under correlation shift with and without alignment."""

from collections.abc import Sequence

import torch
from torch import Tensor

from secondlook.suite.runner import Run

from .domains import Domain, make
from .method import head_hessian
from .training import PENALTIES, Params, Recipe, accuracies, head_distance, train
from .transfer import head, minimiser, transfer_bound, transfer_measure

TUNING = 5000  # streams from here on only choose options
COPY = 70_000


def transfer(
    run: Run, *, trials: int, points: int, features: int, deltas: list[float], directions: int, spread: float
) -> None:
    """Transfer measure and bound for random pairs of domains with a logistic head.

    `aligned`: features of different covariance and mean, labels of one and the same mechanism, so both domains have
    one minimiser. `moved`: the target's mechanism differs, so that equal Hessians would not be enough.
    """
    for seed in run.track(run.seeds, "seeds"):
        generator = torch.Generator().manual_seed(seed)
        worst: dict[tuple[str, float], float] = {}
        for trial in range(trials):
            source, aligned, moved = pair(points, features, spread, generator)
            w = head(minimiser(source))
            for method, target in (("aligned", aligned), ("moved", moved)):
                hessians = [head_hessian(*domain, w) for domain in (source, target)]
                for delta in deltas:
                    gap = transfer_measure(source, target, delta, directions=directions, generator=generator)
                    bound = transfer_bound(delta, *hessians)
                    key = (method, delta)
                    worst[key] = max(worst.get(key, 0.0), float(gap / bound))
                    at = {"method": method, "problem": f"delta = {delta:g}", "seed": seed, "step": trial}
                    run.record("gap", gap, **at)
                    run.record("bound", bound, **at)
        for (method, delta), ratio in worst.items():
            run.record("gap_over_bound", ratio, method=method, problem="logistic", seed=seed, step=delta)


def pair(points: int, width: int, spread: float, generator: torch.Generator) -> tuple[Domain, Domain, Domain]:
    """A source, a target of the same mechanism and one of another; labels are probabilities of the mechanism."""

    def draw() -> Tensor:
        mix = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        mean = spread * torch.randn(width, generator=generator, dtype=torch.float64)
        noise = torch.randn(points, width, generator=generator, dtype=torch.float64)
        return noise @ (torch.eye(width, dtype=torch.float64) + spread * mix) + mean

    def mechanism() -> Tensor:
        return torch.randn(width + 1, generator=generator, dtype=torch.float64) / width**0.5

    source, target, own, other = draw(), draw(), mechanism(), mechanism()

    def labelled(z: Tensor, w: Tensor) -> Domain:
        return z, (z @ w[:-1] + w[-1]).sigmoid()

    return labelled(source, own), labelled(target, own), labelled(target, other)


def correlation_shift(
    run: Run,
    *,
    source: str,
    arms: dict[str, list[str]],
    options: dict[str, list[list[float]]],
    points: int,
    hidden: int,
    lr: float,
    steps: int,
    anneal: int,
    probes: int,
    tuning: int,
    looks: int,
) -> None:
    """Accuracy where the colour's correlation with the label is reversed, for every penalty.

    Every arm has the same number of options (weight of the penalty, strength of l2), of which the one with the best
    accuracy on a validation domain without correlation is taken; this happens on `tuning` streams of its own.
    """
    recipe = Recipe(hidden, lr, steps, anneal, probes)
    for shift, methods in arms.items():
        seen = stack(source, shift, run.seeds, points, run.device)
        trial = stack(source, shift, [TUNING + t for t in range(tuning)], points, run.device) if tuning else {}
        for arm in run.track(methods, f"{shift}: arms"):
            base = arm.removesuffix("-copy")
            option = choose(base, trial, options[base], recipe)
            streams = [10 * seed + (COPY if arm != base else 0) for seed in run.seeds]
            training = [seen["first"], seen["second"]]

            def look(step: int, params: Params, arm: str = arm, shift: str = shift, data: list = training) -> None:
                if step % max(1, steps // looks) == 0:
                    note(run, "hessian_distance", head_distance(params, data), arm, shift, step)

            params = train(base, training, [option] * len(streams), streams, recipe, look)
            note(run, "hessian_distance", head_distance(params, training), arm, shift, steps)
            run.record("tuned_weight", option[0], method=arm, problem=shift)
            run.record("tuned_l2", option[1], method=arm, problem=shift)
            note(run, "train_accuracy", sum(accuracies(params, d) for d in training) / 2, arm, shift)
            for name in ("val", "test", "grey"):
                note(run, f"{name}_accuracy", accuracies(params, seen[name]), arm, shift)


def choose(
    method: str, domains: dict[str, Domain], options: Sequence[Sequence[float]], recipe: Recipe
) -> tuple[float, float]:
    """The option with the best mean accuracy on the validation domain; all options train side by side."""
    if method not in PENALTIES:
        raise ValueError(f"an arm must be one of {', '.join(PENALTIES)} or its copy, got {method!r}")
    if len(options) == 1:
        return tuple(options[0])
    streams = len(domains["val"][1])
    repeated = {
        name: tuple(part.repeat(len(options), *[1] * (part.ndim - 1)) for part in domains[name])
        for name in ("first", "second", "val")
    }
    every = [tuple(option) for option in options for _ in range(streams)]
    starts = [10 * TUNING + 10 * i for _ in options for i in range(streams)]
    params = train(method, [repeated["first"], repeated["second"]], every, starts, recipe)
    found = accuracies(params, repeated["val"]).view(len(options), streams).mean(1)
    return tuple(options[int(found.argmax())])


def stack(source: str, shift: str, streams: Sequence[int], points: int, device: str) -> dict[str, Domain]:
    """The domains of several streams, inputs `[streams, N, D]` and labels `[streams, N]`."""
    made = [make(source, shift, stream, points, device) for stream in streams]
    return {name: tuple(torch.stack(part) for part in zip(*(m[name] for m in made), strict=True)) for name in made[0]}


def note(run: Run, metric: str, values: Tensor, method: str, problem: str, step: float | None = None) -> None:
    """One value a seed."""
    for seed, value in zip(run.seeds, values.tolist(), strict=True):
        run.record(metric, value, method=method, problem=problem, seed=seed, step=step)
