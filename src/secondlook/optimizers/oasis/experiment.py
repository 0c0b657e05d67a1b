"""OASIS untuned against tuned methods: by evaluations on regularised classification, by accuracy on networks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from secondlook.optimizers.adahessian.method import AdaHessian
from secondlook.optimizers.oasis.method import OASIS
from secondlook.optimizers.oasis.objectives import Objective
from secondlook.optimizers.oasis.race import ETA0, Race
from secondlook.problems import datasets
from secondlook.problems.datasets import Dataset
from secondlook.problems.models import lenet, mlp
from secondlook.problems.pairing import COPY
from secondlook.problems.training import History, accuracy, cosine, cross_entropy, fit, minibatches
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite.runner import Run

FIRST_ORDER = ("gd", "nesterov", "adam")


def evaluations(run: Run, *, problems: list[str], gap: float, limit: int, rates: dict[str, list[float]]) -> None:
    """Evaluations until `gap` is left: OASIS, AdGD, L-BFGS and descent with 1/L untuned, the others at their best rate.

    The best of `rates` is the fastest from a start of its own. More than `limit` iterations count as `limit`.
    """
    for problem in run.track(problems, "problems"):
        race = Race(Objective.of(problem, run.device), gap, limit)
        seeds, others = run.seeds, [seed + COPY for seed in run.seeds]
        tuned = {rule: race.tuned(rule, rates[rule], TUNING_SEED) for rule in rates}
        champion = min(FIRST_ORDER, key=lambda rule, tuned=tuned: tuned[rule][1])
        theory = race.first_order("gd", 1.0, [*seeds, *others])
        arms = {
            "oasis": race.oasis(seeds),
            "adgd": race.first_order("adgd", ETA0, seeds),
            "lbfgs": race.lbfgs(seeds),
            "adahessian": race.adahessian(tuned["adahessian"][0], seeds),
            **{rule: race.first_order(rule, tuned[rule][0], seeds) for rule in FIRST_ORDER},
            "gd-theory": theory[: len(seeds)],
            "gd-theory-copy": theory[len(seeds) :],
        }
        for rule, (rate, _) in tuned.items():
            run.record("tuned_rate", rate, method=rule, problem=problem)
        cost = {method: [trace.evaluations(gap, limit) for trace in traces] for method, traces in arms.items()}
        peers = {"times_best": champion, "times_gd": "gd", "times_theory": "gd-theory"}
        for method, traces in arms.items():
            for i, (seed, trace) in enumerate(zip(seeds, traces, strict=True)):
                at = {"method": method, "problem": problem, "seed": seed}
                run.record("evaluations", cost[method][i], **at)
                for metric, peer in peers.items():
                    run.record(metric, cost[method][i] / cost[peer][i], **at)
                shown = trace.shown()
                run.record_series("gap", trace.gaps[shown], steps=trace.once + trace.cost * shown, **at)
                if trace.steps:
                    run.record_series("step_length", np.array(trace.steps)[shown - 1], steps=shown - 1, **at)


def first_step(run: Run, *, problems: list[str], gap: float, limit: int, etas: list[float]) -> None:
    """Iterations of OASIS from first steps many orders apart, and of gradient descent that keeps those steps."""
    for problem in run.track(problems, "problems"):
        race = Race(Objective.of(problem, run.device), gap, limit)
        pairs = [(seed, eta) for seed in run.seeds for eta in etas]
        fixed = race.first_order("gd", [eta / race.unit("gd") for _, eta in pairs], [seed for seed, _ in pairs])
        adaptive = race.oasis([seed for seed, _ in pairs], [eta for _, eta in pairs])
        for method, traces in {"oasis": adaptive, "gd-fixed": fixed}.items():
            needed = [trace.iterations(gap, limit) for trace in traces]
            for i, seed in enumerate(run.seeds):
                mine = needed[i * len(etas) : (i + 1) * len(etas)]
                run.record_series("iterations", mine, steps=etas, method=method, problem=problem, seed=seed)
                run.record("spread", max(mine) / min(mine), method=method, problem=problem, seed=seed)


def rate(run: Run, *, problems: list[str], gap: float, limit: int) -> None:
    """How evenly the gap falls: decades an iteration over the last half of a run, over those in the quarter before.

    A steady linear rate has 1, a power law k^-p has 1/2 whatever its p. Beside OASIS runs descent with steps that
    shrink like 1/k.
    """
    for problem in run.track(problems, "problems"):
        race = Race(Objective.of(problem, run.device), gap, limit)
        traces = race.oasis(run.seeds)
        longest = max(len(trace.gaps) for trace in traces) - 1
        decaying = Race(race.objective, 0.0, longest).first_order("gd-decaying", 8, run.seeds)
        for seed, trace, other in zip(run.seeds, traces, decaying, strict=True):
            for method, gaps in {"oasis": trace.gaps, "gd-decaying": other.gaps[: len(trace.gaps)]}.items():
                fall, last = np.log10(gaps), len(gaps) - 1
                half, quarter = fall[last] - fall[last // 2], fall[last // 2] - fall[last // 4]
                steadiness = half / (last - last // 2) / (quarter / (last // 2 - last // 4))
                run.record("steadiness", steadiness, method=method, problem=problem, seed=seed)


def scaling(run: Run, *, problems: list[str], iterations: int, more: int, decades: float) -> None:
    """The gap when feature i is multiplied by 10^u_i, u uniform in +-`decades`, after so many iterations.

    The method without the scaling (AdGD) is given `more` times as many.
    """
    for problem in run.track(problems, "problems"):
        width = Objective.of(problem, run.device).x.shape[1] - 1
        for seed in run.seeds:
            draw = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            objective = Objective.of(problem, run.device, (decades * (2 * draw - 1)).to(run.device))
            race, longer = (Race(objective, 0.0, limit, spread=0.0) for limit in (iterations, more * iterations))
            ours, copy = race.oasis([seed, seed + COPY])
            (unscaled,) = longer.first_order("adgd", ETA0, [seed])
            for method, trace in {"oasis": ours, "oasis-copy": copy, "adgd": unscaled}.items():
                shown = trace.shown()
                at = {"method": method, "problem": problem, "seed": seed}
                run.record_series("scaled_gap", trace.gaps[shown], steps=shown, **at)


@dataclass(frozen=True)
class Network:
    """A data set and a network for it."""

    data: str
    model: Callable[..., nn.Module]


NETWORKS = {
    "digits-softmax": Network("digits", partial(mlp, (64, 10))),
    "digits-mlp": Network("digits", partial(mlp, (64, 32, 32, 10), nn.Tanh)),
    "mnist-lenet": Network("mnist", lenet),
}


def optimizer(arm: str, model: nn.Module, lr: float, seed: int) -> torch.optim.Optimizer:
    """An arm's optimizer; `lr` stands for the fixed step of oasis-fixed, and is 1 for oasis itself."""
    params = list(model.parameters())
    signs = torch.Generator(params[0].device).manual_seed(seed)
    match arm:
        case "sgd" | "sgd-untuned":
            return torch.optim.SGD(params, lr, momentum=0.9 if arm == "sgd" else 0.0)
        case "adam":
            return torch.optim.Adam(params, lr)
        case "adahessian":
            return AdaHessian(params, lr, generator=signs)
        case "oasis":
            return OASIS(params, stochastic=True, lr=lr, generator=signs)
        case "oasis-fixed":
            return OASIS(params, adaptive=False, eta0=1.0, lr=lr, generator=signs)
    raise ValueError(f"no arm {arm!r}; use sgd, sgd-untuned, adam, adahessian, oasis or oasis-fixed")


def train(
    arm: str,
    lr: float,
    seed: int,
    network: Network,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    curve: bool = False,
) -> History:
    """One run. Rates fall along half a cosine for all arms but the untuned ones, which are left alone.

    Rows are one an epoch for a `curve`, the end otherwise.
    """
    device = data.train.x.device
    model = network.model(generator=torch.Generator().manual_seed(3 * seed)).to(device)
    batches = minibatches(*data.train, batch_size, torch.Generator(device).manual_seed(3 * seed + 1))
    opt, steps = optimizer(arm, model, lr, 3 * seed + 2), epochs * batches.steps_per_epoch

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float]:
        test, model = accuracy(model, *data.test), model.eval()
        return {"test_accuracy": test, "val_loss": cross_entropy(model, data.val)}

    return fit(
        model,
        opt,
        batches,
        cross_entropy,
        steps=steps,
        schedule=None if arm in ("oasis", "sgd-untuned") else cosine(steps),
        graph=getattr(opt, "wants_graph", False),
        closure=getattr(opt, "needs_closure", False),
        evaluate=evaluate,
        every=batches.steps_per_epoch if curve else None,
    )


def networks(run: Run, *, problems: list[str], epochs: int, batch_size: int, rates: dict[str, list[float]]) -> None:
    """Test accuracy after equal epochs, every arm at the best of its `rates` by final validation loss on another seed.

    "best-tuned" is, for each seed, the tuned rival with the least validation loss at the end.
    """
    for problem in run.track(problems, "networks"):
        network = NETWORKS[problem]
        data = datasets.load(network.data).to(run.device)
        ends: dict[str, list[History]] = {}
        for arm, choice in rates.items():
            go = partial(train, arm, network=network, data=data, epochs=epochs, batch_size=batch_size)
            tried = [loss_of(go(lr, TUNING_SEED)) if len(choice) > 1 else 0.0 for lr in choice]
            lr = choice[int(np.argmin(tried))]
            run.record("tuned_rate", lr, method=arm, problem=problem)
            ends[arm] = [go(lr, seed, curve=True) for seed in run.seeds]
        rivals = [arm for arm in rates if arm not in ("oasis", "oasis-fixed", "sgd-untuned")]
        for i, seed in enumerate(run.seeds):
            best = min((ends[arm][i] for arm in rivals), key=loss_of)
            for arm, h in {**{arm: found[i] for arm, found in ends.items()}, "best-tuned": best}.items():
                run.record("accuracy", h.last("test_accuracy"), method=arm, problem=problem, seed=seed)
                if arm != "best-tuned":
                    losses, steps = h.column("val_loss"), h.column("step")
                    run.record_series("val_loss", losses, steps=steps, method=arm, problem=problem, seed=seed)


def loss_of(history: History) -> float:
    """The final validation loss, infinite for a run that diverged."""
    return float(np.nan_to_num(history.last("val_loss"), nan=np.inf))
