"""Hedging policies trained by Adam and by K-FAC, and the rules of thumb that they compete with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor, nn

from secondlook.optimizers.kfac_deep_hedging.market import (
    Heston,
    banded,
    black_scholes_delta,
    call_price,
    simulate_heston,
)
from secondlook.optimizers.kfac_deep_hedging.method import KFAC
from secondlook.optimizers.kfac_deep_hedging.policy import HedgingLSTM, hedge_pnl, side_by_side
from secondlook.problems.pairing import streams
from secondlook.problems.training import History, cosine, fit, minibatches
from secondlook.problems.tuning import TUNING_SEED, least
from secondlook.suite.runner import Run

STRIKE = 100.0
PATHS = {"train": 1, "val": 2, "test": 3}  # seeds of the paths, common to all runs

Paths = tuple[Tensor, Tensor]
Option = dict[str, float]


@dataclass(frozen=True)
class Desk:
    """What all arms share: the paths, the claim's premium, the cost of a trade, and the size of the training."""

    paths: dict[str, Paths]
    premium: float
    cost: float
    hidden: int
    layers: int
    batch_size: int
    steps: int
    every: int

    def pnl(self, positions: Tensor, paths: Paths) -> tuple[Tensor, Tensor]:
        return hedge_pnl(paths[0], positions, STRIKE, self.premium, self.cost)

    def loss(self, model: nn.Module, batch: Paths) -> Tensor:
        """Mean square of profit and loss."""
        return self.pnl(model(*batch, STRIKE), batch)[0].square().mean()

    def measured(self, positions: Tensor, part: str) -> dict[str, float]:
        """What positions on a part of the paths come to."""
        pnl, costs = self.pnl(positions, self.paths[part])
        mean, deviation = float(pnl.mean()), float(pnl.std())
        found = {"objective": float(pnl.square().mean()), "cost": float(costs.mean()), "sd": deviation}
        return found | {"variance": deviation**2, "sharpe": mean / deviation}

    def train(self, arm: str, options: Sequence[Option], seeds: Sequence[int]) -> list[tuple[HedgingLSTM, History]]:
        """Policies, and their histories on the validation paths: one for each pair of an option and a seed.

        Arms of one seed share weights and batches. Adam's policies are trained side by side, in one batch: positions in
        (-1, 1) bound the loss, so none diverges and stops the others. K-FAC's hooks need a policy for itself.
        """
        if arm == "kfac" and len(seeds) > 1:
            return [self.train(arm, [option], [seed])[0] for option, seed in zip(options, seeds, strict=True)]
        S, V = self.paths["train"]
        models, orders, groups = nn.ModuleList(), [], defaultdict(list)
        for option, seed in zip(options, seeds, strict=True):
            weights, order = streams(arm, seed, S.device)
            models.append(HedgingLSTM.seeded(self.hidden, self.layers, weights).to(S.device))
            orders.append(minibatches(S, V, self.batch_size, order))
            groups[tuple(option.items())] += models[-1].parameters()
        if arm == "kfac":
            optimizer = KFAC(models[0], **options[0])
        else:
            optimizer = torch.optim.Adam([{"params": ps, **dict(o)} for o, ps in groups.items()], foreach=True)
        found: list[list[dict[str, float]]] = []

        @torch.no_grad()
        def evaluate(models: nn.ModuleList) -> dict[str, float]:
            found.append([self.measured(model(*self.paths["val"], STRIKE), "val") for model in models])
            return {}

        schedule = cosine(self.steps, warmup=self.steps // 20)
        loop = {"steps": self.steps, "schedule": schedule, "evaluate": evaluate, "every": self.every}
        together = fit(models, optimizer, zip(*orders, strict=True), self.losses, **loop)
        rows = list(zip_longest(together.rows, found, fillvalue=[{}] * len(models)))  # nothing is found at a divergence
        own = [[{"step": row["step"], **each[i]} for row, each in rows] for i in range(len(models))]
        return [(model, replace(together, rows=mine)) for model, mine in zip(models, own, strict=True)]

    def losses(self, models: nn.ModuleList, batches: Sequence[Paths]) -> Tensor:
        """Sum of the policies' losses, each on its own batch."""
        if len(models) == 1:
            return self.loss(models[0], batches[0])
        S, V = (torch.stack(part) for part in zip(*batches, strict=True))
        positions = side_by_side(models, S, V, STRIKE)
        pnl, _ = self.pnl(positions.flatten(0, 1), (S.flatten(0, 1), V.flatten(0, 1)))
        return len(models) * pnl.square().mean()

    def chosen(self, arm: str, options: Sequence[Option]) -> Option:
        """The option of the least final objective on the validation paths, on a seed of its own."""
        if len(options) == 1:
            return options[0]
        tried = replace(self, every=self.steps).train(arm, options, [TUNING_SEED] * len(options))
        return options[least(range(len(options)), lambda i: tried[i][1].last("objective"))]


def hedging(
    run: Run,
    *,
    paths: dict[str, int],
    n_steps: int,
    costs: list[float],
    hidden: int,
    layers: int,
    batch_size: int,
    steps: int,
    every: int,
    widths: list[float],
    options: dict[str, dict[str, list[float]]],
) -> None:
    """Costs, risk and progress of both optimizers, and of Black and Scholes' hedge followed within bands.

    `costs` are proportional; each is a problem of its own. `options` has the grid of each optimizer.
    """
    market = Heston()
    drawn = {part: simulate_heston(count, n_steps, market, PATHS[part]) for part, count in paths.items()}
    drawn = {part: (S.to(run.device), V.to(run.device)) for part, (S, V) in drawn.items()}
    premium = call_price(market, STRIKE)
    for cost in costs:
        problem = f"heston-{1e4 * cost:g}bp"
        desk = Desk(drawn, premium, cost, hidden, layers, batch_size, steps, every)
        frontier = rules(run, desk, problem, widths, market.maturity)
        target: dict[int, float] = {}  # Adam's final objective on the validation paths, by seed
        for arm in run.track(("adam", "adam-copy", "kfac"), problem):
            if not arm.endswith("-copy"):
                grid = options[arm]
                chosen = desk.chosen(arm, combinations(grid))
                for place, value in enumerate(chosen.values()):
                    run.record("chosen", value, method=arm, problem=problem, step=place)
            trained = desk.train(arm, [chosen] * len(run.seeds), run.seeds)
            for seed, (model, history) in zip(run.seeds, trained, strict=True):
                target.setdefault(seed, history.last("objective"))
                report(run, desk, model, history, target[seed], frontier, arm, problem, seed)


def combinations(grid: dict[str, list[float]]) -> list[Option]:
    """All points of a grid."""
    points: list[Option] = [{}]
    for name, values in grid.items():
        points = [point | {name: value} for point in points for value in values]
    return points


def rules(run: Run, desk: Desk, problem: str, widths: list[float], maturity: float) -> list[dict[str, float]]:
    """Black and Scholes' hedge followed within bands of `widths`, on the test paths; 0 is the hedge itself."""
    target = black_scholes_delta(*desk.paths["test"], STRIKE, maturity)
    found = []
    for width in widths:
        found.append(desk.measured(banded(target, width), "test"))
        for metric in ("cost", "sd", "objective"):
            run.record(metric, found[-1][metric], method="band", problem=problem, step=width)
    return found


def cost_at(frontier: list[dict[str, float]], deviation: float) -> float:
    """Cost of the band with this standard deviation, between neighbours in proportion; the ends are not left."""
    points = sorted((point["sd"], point["cost"]) for point in frontier)
    return float(np.interp(deviation, *zip(*points, strict=True)))


def report(
    run: Run,
    desk: Desk,
    model: HedgingLSTM,
    history: History,
    target: float,
    frontier: list[dict[str, float]],
    method: str,
    problem: str,
    seed: int,
) -> None:
    """Record a trained policy on the test paths, and its history."""
    keep = partial(run.record, method=method, problem=problem, seed=seed)
    with torch.no_grad():
        found = desk.measured(model(*desk.paths["test"], STRIKE), "test")
    for metric, value in found.items():
        keep(metric, value)
    keep("relative_cost", found["cost"] / cost_at(frontier, found["sd"]))
    steps = history.column("step")
    for metric in ("objective", "cost", "sd"):
        values = history.column(metric)
        run.record_series(f"val_{metric}", values, steps=steps, method=method, problem=problem, seed=seed)
    rows = zip(steps, history.column("objective"), strict=True)
    keep("steps_to_target", next((step for step, value in rows if value <= target), steps[-1]))
