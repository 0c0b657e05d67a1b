"""Sophia beside AdamW on text, its estimates beside exact diagonals, its steps at any condition number."""

import copy
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from secondlook.curvature import GGNOperator, HessianOperator
from secondlook.optimizers.adahessian.method import hutchinson_diag
from secondlook.optimizers.sophia.bartlett import bartlett_diag
from secondlook.optimizers.sophia.convex import Problem, steps_needed, trajectories
from secondlook.optimizers.sophia.method import Sophia
from secondlook.optimizers.sophia.setting import Recipe, observed_loss
from secondlook.problems import datasets
from secondlook.problems.language import LanguageProblem
from secondlook.problems.models import mlp
from secondlook.problems.training import cross_entropy, fit, minibatches
from secondlook.problems.tuning import TUNING_SEED, Grid, best, choices
from secondlook.problems.zoo.char_gpt import next_character_loss
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved


def condition(
    run: Run,
    *,
    rules: dict[str, list[str]],
    kappas: list[float],
    dim: int,
    target: float,
    limit: int,
    tuning_starts: int,
    grids: dict[str, Grid],
) -> None:
    """Steps to `target` against the spread kappa of the curvatures, for every rule with its best choice at each kappa.

    Choices are tuned on starts of their own. A kappa that a rule does not solve from all starts is left out.
    """
    starts = [*(TUNING_SEED + i for i in range(tuning_starts)), *run.seeds]
    for name, methods in rules.items():
        problem = Problem.draw(name, kappas, starts, dim)
        for method in run.track(methods, f"rules on {name}"):
            tried = choices(grids[method])
            needed = steps_needed(method, problem, tried, target, limit)
            for i, kappa in enumerate(kappas):
                winner = int(needed[:, i, :tuning_starts].mean(-1).argmin())
                found = needed[winner, i, tuning_starts:]
                if found.isfinite().all():
                    for seed, steps in zip(run.seeds, found.tolist(), strict=True):
                        run.record("steps_needed", steps, method=method, problem=name, seed=seed, step=kappa)
                    run.record("tuned_lr", tried[winner]["lr"], method=method, problem=name, step=kappa)


def plane(run: Run, *, steps: int, lr: float) -> None:
    """Paths of four rules in the plane."""
    for method, path in trajectories(steps, lr).items():
        for metric, values in zip(("sharp_coordinate", "flat_coordinate"), zip(*path, strict=True), strict=True):
            run.record_series(metric, values, method=method, problem="plane", steps=range(steps + 1))


def estimator(run: Run, *, width: int, batch_size: int, train_steps: int, draws: int, counts: list[int]) -> None:
    """Error of averaged estimates against the exact diagonals, in float64, on a small net after a little training.

    Gauss-Newton-Bartlett is held against the Gauss-Newton diagonal, Hutchinson's products against the Hessian's.
    """
    data = datasets.load("digits").to(run.device)
    x, y = data.train.x.double(), data.train.y
    for seed in run.track(run.seeds, "seeds"):
        g = torch.Generator(run.device).manual_seed(seed)
        model = mlp([64, width, 10], nn.Tanh, torch.Generator().manual_seed(seed)).double().to(run.device)
        batches = minibatches(x, y, batch_size, g)
        fit(model, torch.optim.Adam(model.parameters(), 1e-2), batches, cross_entropy, steps=train_steps)
        batch = next(batches)
        exact = {
            name: operator(model, F.cross_entropy, [batch]).dense().diagonal()
            for name, operator in (("gauss-newton", GGNOperator), ("hessian", HessianOperator))
        }
        for method in ("bartlett", "true-labels", "hutchinson"):
            truth = exact["hessian" if method == "hutchinson" else "gauss-newton"]
            single = estimates(method, model, batch, draws, g)
            for n in counts:
                error = (single.view(-1, n, len(truth)).mean(1) - truth).square().sum(1).mean().sqrt() / truth.norm()
                run.record("diagonal_error", error, method=method, problem="digits-mlp", seed=seed, step=n)


def estimates(
    method: str, model: nn.Module, batch: tuple[Tensor, Tensor], draws: int, generator: torch.Generator
) -> Tensor:
    """Estimates of the diagonal `[draws, n]`: bartlett, the same with true-labels, or hutchinson with Gaussian vectors.

    All of them come from one forward pass, and hutchinson's from one graph of the gradient.
    """
    x, y = batch
    params, scores = list(model.parameters()), model(x)
    if method == "true-labels":  # no chance in it
        return flat(bartlett_diag(scores, params, labels=y)).repeat(draws, 1)
    if method == "bartlett":
        return torch.stack([flat(bartlett_diag(scores, params, generator=generator)) for _ in range(draws)])
    grads = torch.autograd.grad(F.cross_entropy(scores, y), params, create_graph=True)

    def product() -> list[Tensor]:
        u = [torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device) for p in params]
        return hutchinson_diag(grads, params, signed=True, probes=[u])

    return torch.stack([flat(product()) for _ in range(draws)])


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def language(
    run: Run,
    *,
    corpus: str,
    size: dict[str, int],
    batch_size: int,
    steps: int,
    rows: int,
    arms: list[str],
    grids: dict[str, Grid],
) -> None:
    """AdamW and Sophia on next characters, each with its own tuned settings at `steps` and at half as many."""
    recipe = Recipe(LanguageProblem(datasets.corpus(corpus), size, batch_size, run.device), steps, rows)
    chosen: dict[str, dict[str, float]] = {}
    for arm in run.track(arms, "arms"):
        tuned_as = arm.removesuffix("-copy")
        if tuned_as not in chosen:
            chosen[tuned_as] = recipe.tuned(tuned_as, grids[tuned_as.removesuffix("-half")])
        for name, value in chosen[tuned_as].items():
            run.record(f"tuned_{name}", value, method=arm, problem=corpus)
        for seed in run.seeds:
            history = recipe.train(arm, chosen[tuned_as], seed)
            at = {"method": arm, "problem": corpus, "seed": seed}
            run.record("best_test_loss", best(history)["test_loss"], **at)
            for metric in ("val_loss", "win_rate"):
                if metric in history.rows[-1]:
                    run.record_series(metric, history.column(metric), steps=history.column("step"), **at)


def step_cost(
    run: Run, *, corpus: str, size: dict[str, int], batch_size: int, periods: int, repeats: int, arms: list[str]
) -> None:
    """Time of a training step, mean over periods of ten with one refresh; arms in turn on the same batch."""
    problem = LanguageProblem(datasets.corpus(corpus), size, batch_size, run.device)
    for seed in run.track(run.seeds, "seeds"):
        batch = next(problem.batches(torch.Generator(run.device).manual_seed(seed)))
        start = problem.model(torch.Generator().manual_seed(seed))
        calls = {arm: partial(train_periods, *stepper(arm, copy.deepcopy(start)), batch, periods) for arm in arms}
        times = interleaved(calls, repeats=repeats)
        # The least disturbed repeat: whatever else the machine does only adds time.
        for arm, seconds in times.groupby("name")["seconds"].min().items():
            run.record("step_time", 1e3 * seconds / (10 * periods), method=arm, problem=corpus, seed=seed)


def stepper(arm: str, model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[Tensor], None] | None]:
    """The model, its optimizer, and what looks at the curvature of a batch apart from the training step, if anything.

    Arms: adamw; sophia-g and sophia-h, which refresh every tenth step, from a quarter of the batch with -quarter (their
    estimate then has a forward pass of its own); sophia-g-always, which refreshes at every step.
    """
    params = list(model.parameters())
    if arm == "adamw":
        return model, torch.optim.AdamW(params, 1e-4), None
    every = 1 if arm.endswith("-always") else 10
    part = arm.endswith("-quarter")
    opt = Sophia(params, 1e-4, update_every=every, observed=part or arm.startswith("sophia-g"))

    def from_scores(batch: Tensor) -> None:
        opt.observe_scores(model(batch[:, :-1]))

    def from_products(batch: Tensor) -> None:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
            opt.observe_loss(next_character_loss(model, batch))

    look = {"sophia-g": from_scores, "sophia-h": from_products}[arm.removesuffix("-quarter")] if part else None
    return model, opt, look


def train_periods(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    look: Callable[[Tensor], None] | None,
    batch: Tensor,
    periods: int,
) -> None:
    """`periods` times ten steps on one batch."""
    loss = observed_loss(opt) if look is None else next_character_loss
    for _ in range(periods):
        if look:
            look(batch[: max(1, len(batch) // 4)])
        fit(model, opt, itertools.repeat(batch), loss, steps=10, graph=hasattr(opt, "wants_graph"))
