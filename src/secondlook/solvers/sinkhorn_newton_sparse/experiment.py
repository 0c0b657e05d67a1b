"""Sweeps against sparse Newton steps: random assignments, images, weaker regularisation, sparser Hessians."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from secondlook.problems import datasets
from secondlook.suite.runner import Run

from .method import OTResult, Select, sinkhorn, sns, transport_plan

TOL = 1e-12  # ||grad f||_1 that counts as machine accuracy
NEWTON = 150  # Newton steps allowed
BLIND = 15  # the same for arms that stall at once; nobody waits longer for those
Problem = tuple[Tensor, Tensor, Tensor, float]  # cost, marginals, eta
Arm = Callable[..., OTResult]
SNS = partial(sns, n_newton=NEWTON)  # the paper's defaults: 20 sweeps, 2/n of the Hessian


def assignment(run: Run, *, n: int, eta: float, max_sweeps: int) -> None:
    """The published random assignment: uniform costs and marginals, all arms to machine accuracy."""
    arms = {"sns": SNS, "newton": partial(SNS, sparsity=1.0)}
    for seed in run.track(run.seeds, "seeds"):
        random = partial(sns, n_newton=BLIND, select=_random_entries(seed))
        _race(run, f"random-{n}", seed, _random(n, eta, seed, run.device), arms | {"sns-random": random}, max_sweeps)


def images(
    run: Run,
    *,
    data: str,
    cases: list[dict],
    eta: float,
    max_sweeps: int,
    kept: list[int],
) -> None:
    """Transport between two images; the sparsity of SNS is chosen on one pair of validation images."""
    pictures = datasets.load(data)
    for case in run.track(cases, "costs"):
        power, side, sweeps = case["power"], case["side"], case["sweeps"]
        name = f"{data}-l{power}-{side}"
        pair = partial(_image_pair, power=power, side=side, eta=eta, device=run.device)
        share = _tuned([k / side**2 for k in kept], sweeps, pair(pictures.val, seed=0))
        run.note(f"{name}: {share * side**2:g}/n of the Hessian, chosen on validation images")
        chosen = partial(SNS, n_sinkhorn=sweeps, sparsity=share)
        for seed in run.seeds:
            arms = {"sns": chosen}
            if "default" in case["variants"]:
                arms["sns-default"] = partial(sns, n_newton=BLIND)
            if "random" in case["variants"]:
                arms["sns-random"] = partial(chosen, n_newton=BLIND, select=_random_entries(seed))
            _race(run, name, seed, pair(pictures.test, seed=seed), arms, max_sweeps)


def regularisation(run: Run, *, n: int, etas: list[float], max_sweeps: int) -> None:
    """The same random costs from strong to weak regularisation; Sinkhorn with the columns first is the control."""
    arms = {
        "sns": SNS,
        "sns-16": partial(SNS, sparsity=16 / n),
        "newton": partial(SNS, sparsity=1.0),
        "sinkhorn-columns": partial(_columns_first, max_iter=max_sweeps),
    }
    for seed in run.track(run.seeds, "seeds"):
        for eta in etas:
            _race(run, f"eta-{eta:g}", seed, _random(n, eta, seed, run.device), arms, max_sweeps, trace=False)


def sparsity(run: Run, *, n: int, eta: float, kept: list[float], sweeps: list[int]) -> None:
    """How concentrated the Hessian is after some sweeps, and what keeping less, or sweeping less, costs."""
    per_row = torch.logspace(-2, 4, 25, base=2.0)
    for seed in run.track(run.seeds, "seeds"):
        problem = _random(n, eta, seed, run.device)
        at = {"problem": f"random-{n}", "seed": seed}
        for count in sweeps:
            start = sinkhorn(*problem, max_iter=count).plan if count else _cold_plan(problem[0], eta)
            mass = start.flatten().sort(descending=True).values.cumsum(0)
            outside = 1 - mass[(per_row * n).long().clamp(1, n * n) - 1] / mass[-1]
            run.record_series("outside_mass", outside, steps=per_row.tolist(), method=f"sweeps-{count}", **at)
            result = SNS(*problem, n_sinkhorn=count, tol=TOL)
            run.record("newton_steps", result.n_iter - result.n_sinkhorn, method="warm-up", step=count, **at)
            run.record("final_error", result.error, method="warm-up", step=count, **at)
        for share in kept:
            result = SNS(*problem, sparsity=share / n, tol=TOL)
            run.record("newton_steps", result.n_iter - result.n_sinkhorn, method="kept", step=share, **at)
            run.record("final_error", result.error, method="kept", step=share, **at)


def _race(
    run: Run, name: str, seed: int, problem: Problem, arms: dict[str, Arm], max_sweeps: int, trace: bool = True
) -> None:
    """Run stabilised Sinkhorn and every arm once. An arm that stalls is charged Sinkhorn's whole run on top."""
    for warm in (sinkhorn, *(a for key, a in arms.items() if key != "sinkhorn-columns")):  # first calls of kernels
        warm(*_random(16, 50.0, 0, run.device))
    reference, reference_seconds = None, 0.0
    for method, solve in {"sinkhorn": partial(sinkhorn, max_iter=max_sweeps), **arms}.items():
        clock: list[tuple[int, float, float]] = []
        began = time.perf_counter()
        result = solve(*problem, tol=TOL, callback=_stopwatch(clock, began))
        seconds = time.perf_counter() - began
        reference, reference_seconds = reference or result, reference_seconds or seconds
        stalled = not result.converged and not method.startswith("sinkhorn")
        iterations = result.n_iter + (reference.n_iter if stalled else 0)
        at = {"method": method, "problem": name, "seed": seed}
        run.record("iterations", iterations, **at)
        run.record("speed_up", reference.n_iter / iterations, **at)
        run.record("seconds", seconds + (reference_seconds if stalled else 0.0), **at)
        run.record("final_error", result.error, **at)
        if trace:
            for i, error, elapsed in _thinned(clock):
                run.record("marginal_error", error, step=i, **at)
                run.record("elapsed", elapsed, step=i, **at)


def _stopwatch(clock: list[tuple[int, float, float]], began: float) -> Callable[[int, float], None]:
    return lambda i, error: clock.append((i, error, time.perf_counter() - began))


def _thinned(clock: list[tuple[int, float, float]], most: int = 60) -> list[tuple[int, float, float]]:
    """At most `most` looks at evenly spaced log iterations, the last among them."""
    places = torch.logspace(0, torch.tensor(len(clock)).log10().item(), most).round().long().unique() - 1
    return [clock[i] for i in places.clamp(0, len(clock) - 1).unique().tolist()]


def _columns_first(C: Tensor, r: Tensor, c: Tensor, eta: float, **kw) -> OTResult:
    return sinkhorn(C.mT.contiguous(), c, r, eta, **kw)


def _tuned(sparsities: list[float], sweeps: int, problem: Problem) -> float:
    """The share of the Hessian that needs the fewest iterations after the paper's warm-up."""

    def rank(sparsity: float) -> tuple[bool, int]:
        result = SNS(*problem, n_sinkhorn=sweeps, sparsity=sparsity, tol=TOL)
        return not result.converged, result.n_iter

    return min(sparsities, key=rank)


def _cold_plan(C: Tensor, eta: float) -> Tensor:
    return transport_plan(C, C.new_zeros(C.shape[0]), C.new_zeros(C.shape[1]), eta)


def _random_entries(seed: int) -> Select:
    """The control: the same number of entries, chosen blindly."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    return lambda P, k: torch.randperm(P.numel(), generator=generator)[:k].to(P.device)


def _random(n: int, eta: float, seed: int, device: str) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    C = torch.rand(n, n, generator=generator, dtype=torch.float64).to(device)
    uniform = torch.full((n,), 1 / n, dtype=torch.float64, device=device)
    return C, uniform, uniform, eta


def _image_pair(split: datasets.Split, *, power: int, side: int, eta: float, seed: int, device: str) -> Problem:
    """Two images on a `side` x `side` grid; cost |p - q|_power^power scaled to [0, 1]; 1% grey keeps mass > 0."""
    generator = torch.Generator().manual_seed(seed)
    chosen = split.x[torch.randperm(len(split.x), generator=generator)[:2]].double()
    grey = torch.nn.functional.interpolate(chosen, size=side, mode="bilinear").flatten(1) + 0.01
    r, c = (grey / grey.sum(1, keepdim=True)).to(device)
    axis = torch.linspace(0, 1, side, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    C = torch.cdist(grid, grid, p=float(power)) ** power
    return (C / C.max()).to(device), r, c, eta
