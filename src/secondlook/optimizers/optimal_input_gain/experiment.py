"""The two theorems, what a change of the inputs does to each algorithm, and training beside Levenberg-Marquardt."""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from secondlook.optimizers.optimal_input_gain.cost import Sizes
from secondlook.optimizers.optimal_input_gain.data import Parts, draw
from secondlook.optimizers.optimal_input_gain.lm import fit_lm
from secondlook.optimizers.optimal_input_gain.method import (
    Network,
    OIGTrainer,
    augmented,
    gradient,
    hwo,
    line_step,
    whitening,
)
from secondlook.problems.pairing import first_stream
from secondlook.suite.runner import Run

RCOND = 1e-10


def theorems(run: Run, *, rows: int, n_hidden: int, conditions: list[float]) -> None:
    """One step on changed inputs, taken back, against the step with the scaled gradient on the inputs as they are.

    Differences are relative to the step, and divided by the condition number of the change A.
    """
    for seed in run.track(run.seeds, "seeds"):
        data = draw("inversion", rows, seed).train
        X, T = augmented(data[0]), data[1]
        g = torch.Generator().manual_seed(seed)
        network = OIGTrainer(n_hidden).start(*data, generator=g)
        O, fprime = network.hidden(X)
        E, W_oh = T - torch.cat([X, O], 1) @ network.Wo.T, network.Wo[:, X.shape[1] :]
        G = gradient(X, E, W_oh, fprime)

        def plain(A: Tensor, X: Tensor = X, E: Tensor = E, W_oh: Tensor = W_oh, fprime: Tensor = fprime) -> Tensor:
            """Steepest descent on inputs A x, which have weights W A^-1, as a step of W."""
            own = gradient(X @ A.T, E, W_oh, fprime)
            return line_step(X @ A.T, W_oh, fprime, own, own) @ A

        def keep(metric: str, method: str, found: Tensor, expected: Tensor, step: float, seed: int = seed) -> None:
            error = (found - expected).norm() / expected.norm() / step
            run.record(metric, error, method=method, problem="inversion", seed=seed, step=step)

        for condition in conditions:
            A = conditioned(X.shape[1], condition, g)
            for method, R in (("scaled-gradient", A.T @ A), ("wrong-order", A @ A.T)):
                keep("scaling_error", method, line_step(X, W_oh, fprime, G, G @ R), plain(A), condition)
        R = X.T @ X / len(X)
        values, vectors = torch.linalg.eigh(R)  # the symmetric root: another one than the method's
        A = (vectors / values.sqrt()) @ vectors.T
        strange = augmented(torch.randn(len(X), X.shape[1] - 1, generator=g, dtype=X.dtype).cumsum(1))
        for method, inputs in (("hwo", X), ("wrong-whitening", strange)):
            step = hwo(X, E, W_oh, fprime, whitening(inputs.T @ inputs / len(X), RCOND), RCOND)
            keep("whitening_error", method, step, plain(A), 1)


def conditioned(n: int, condition: float, generator: torch.Generator) -> Tensor:
    """A random matrix [n, n] of that condition number."""
    turns = [torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for _ in range(2)]
    return turns[0] * torch.logspace(0, -math.log10(condition), n, dtype=torch.float64) @ turns[1]


def invariance(run: Run, *, rows: int, n_hidden: int, iterations: int, condition: float, arms: list[str]) -> None:
    """Training from the same function with inputs as they are, each in another unit, and mixed by a random matrix."""
    for seed in run.track(run.seeds, "seeds"):
        X, T = draw("inversion", rows, seed).train
        g, n = torch.Generator().manual_seed(seed), X.shape[1]
        W = OIGTrainer(n_hidden).start(X, T, g).W
        changes = {
            "as they are": torch.eye(n, dtype=X.dtype),
            "units": torch.logspace(0, math.log10(condition), n, dtype=X.dtype).diag(),
            "mixed": conditioned(n, condition, g),
        }
        for arm in arms:
            errors = {}
            for name, M in changes.items():
                trainer = OIGTrainer(n_hidden, arm, iterations=iterations, rcond=1e-13)
                moved = X @ M.T
                start = torch.cat([W[:, :n] @ M.inverse(), W[:, n:]], 1)
                errors[name] = trainer.fit(moved, T, trainer.solved(start, augmented(moved), T)).error
                at = {"method": arm, "problem": name, "seed": seed}
                run.record_series("error_on_changed", errors[name], steps=range(iterations + 1), **at)
                pairs = zip(errors[name], errors["as they are"], strict=True)
                run.record("change", max(abs(a / b - 1) for a, b in pairs), **at)


@dataclass
class Path:
    """Multiplications so far, training errors, and errors of validation and test, at the start and each iteration."""

    spent: list[int]
    train: list[float]
    held_out: list[tuple[float, float]]

    @property
    def test(self) -> float:
        """Test error where the validation error is least."""
        return min(self.held_out)[1]

    def at_cost(self, budget: float) -> float:
        """Training error of the last iteration within a budget; NaN where there is none."""
        count = bisect_right(self.spent, budget)
        return self.train[count - 1] if count else math.nan

    def cost_of(self, error: float) -> int:
        """Multiplications until the training error is at most this."""
        return next(c for c, e in zip(self.spent, self.train, strict=True) if e <= error)


def trained(arm: str, data: Parts, n_hidden: int, seed: int, iterations: int, lm_iterations: int) -> Path:
    """One arm from the start that the seed draws, the same for all arms but those named -copy."""
    name, seen = arm.removesuffix("-copy"), []
    (X, T), parts = data.train, [(augmented(x), t) for x, t in (data.val, data.test)]
    sizes = Sizes(len(X), X.shape[1] + 1, n_hidden, T.shape[1])
    trainer = OIGTrainer(n_hidden, "bp" if name == "lm" else name, iterations=iterations, rcond=RCOND)
    start = trainer.start(X, T, torch.Generator().manual_seed(first_stream(arm, seed, 1)))

    def watch(_: int, network: Network) -> None:
        seen.append(network)

    if name == "lm":
        trace = fit_lm(X, T, start, lm_iterations, watch)
        trials = [b - a for a, b in pairwise(trace.evaluations)]
        costs, errors = map(sizes.lm, trials), trace.losses
    else:
        history = trainer.fit(X, T, start, watch)
        costs, errors = (sizes.step(name, trials) for trials in history.trials[1:]), history.error
    path = Network(torch.stack([net.W for net in seen]), torch.stack([net.Wo for net in seen]))  # all in one product
    held_out = zip(*((t - path(x)).square().sum(-1).mean(-1).tolist() for x, t in parts), strict=True)
    return Path(list(accumulate(costs, initial=sizes.start(name))), errors, list(held_out))


def training(
    run: Run,
    *,
    problems: dict[str, int],
    rows: int,
    iterations: int,
    lm_iterations: int,
    arms: list[str],
    shown: int,
) -> None:
    """All algorithms from the same starts; `problems` gives the hidden units of each."""
    cells: list[tuple[str, int, dict[str, Path]]] = []
    for problem, n_hidden in run.track(problems.items(), "problems"):
        for seed in run.seeds:
            data = draw(problem, rows, seed)
            paths = {arm: trained(arm, data, n_hidden, seed, iterations, lm_iterations) for arm in arms}
            cells.append((problem, seed, paths))
            record(partial(run.record, problem=problem, seed=seed), paths)
    for problem in problems:  # one grid of costs for all seeds
        mine = [(seed, paths) for name, seed, paths in cells if name == problem]
        ends = [path.spent[i] for _, paths in mine for path in paths.values() for i in (0, -1)]
        grid = torch.logspace(math.log10(min(ends)), math.log10(max(ends)), shown, dtype=torch.float64).tolist()
        for seed, paths in mine:
            for arm, path in paths.items():
                seen = [c for c in grid if c <= 1.2 * path.spent[-1] and not math.isnan(path.at_cost(c))]
                values = [path.at_cost(c) for c in seen]
                at = {"method": arm, "problem": problem, "seed": seed}
                run.record_series("error_at_cost", values, steps=[c / 1e6 for c in seen], **at)


def record(keep: Callable[..., None], paths: dict[str, Path]) -> None:
    """What the claims read: every algorithm beside that without gains, and beside Levenberg-Marquardt."""
    for arm, path in paths.items():
        base, lm = paths["hwo" if "hwo" in arm else "bp"], paths["lm"]
        keep("train_error", path.train[-1], method=arm)
        keep("test_error", path.test, method=arm)
        keep("test_over_lm", path.test / lm.test, method=arm)
        reached = max(path.train[-1], lm.train[-1])  # both get there
        keep("cost_over_lm", path.cost_of(reached) / lm.cost_of(reached), method=arm)
        if arm != "lm":
            keep("train_over_base", path.train[-1] / base.train[-1], method=arm)
            keep("train_over_base_at_cost", path.at_cost(base.spent[-1]) / base.train[-1], method=arm)
