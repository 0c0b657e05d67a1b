"""The family's common protocol: error against cost, for every sampler from the same noises.

Each sampler solves the probability-flow ODE of a model from the same starting noises with a given number of function
evaluations (NFE). `mse` is the mean square distance to the converged solution from the same noise (Runge-Kutta);
`sample_time` is the wall time per sample at one NFE, the solver's own arithmetic included, in one process and
alternating order. The statistics of DPM-Solver-v3 are measured once before; `statistics_time` says what they cost.
Where `diffusers` is installed its schedulers take the same steps: `disagreement` is the largest difference of samples
relative to the largest value (diffusers computes in single precision), `seconds` the time of both for the same batch.
`floor` says how much of the time of two samplers their operations need at the machine's best rates (`suite.floors`).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from secondlook.samplers.dpm_solver_v3.baselines import DPMSolverPP, UniPC
from secondlook.samplers.dpm_solver_v3.method import compute_ems
from secondlook.samplers.dpm_solver_v3.multistep import EpsFn, MultistepSampler
from secondlook.samplers.dpm_solver_v3.schedule import Schedule
from secondlook.samplers.dpm_solver_v3.testbeds import BASELINES, TESTBEDS, Build, TestBed, v3_recipes
from secondlook.suite import floors
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

METRICS = {
    "mse": {"label": "mean square error to the converged solution", "unit": "1", "step": "function evaluations"},
    "sample_time": {"label": "time per sample", "unit": "ms", "step": "function evaluations", "timing": True},
    "statistics_time": {"label": "time to measure the statistics", "unit": "s", "timing": True},
    "floor": {
        "label": "least time of its operations at the machine's best rates, over the time taken",
        "unit": "%",
        "timing": True,
    },
    "arithmetic": {"label": "arithmetic a second", "unit": "GFLOP/s", "timing": True},
    "seconds": {"label": "time for one batch", "unit": "s", "step": "function evaluations", "timing": True},
    "disagreement": {"label": "largest relative difference of samples", "unit": "1", "step": "function evaluations"},
}
SCALES = {
    "smoke": {
        "problems": ["mixture"],
        "nfes": [5, 10],
        "timed_nfe": 5,
        "noises": 8,
        "repeats": 2,
        "statistics": {"n_grid": 12, "n_data": 64, "probes": 1},
        "reference_steps": 40,
    },
    "laptop": {
        "problems": ["mixture", "denoiser"],
        "nfes": [5, 6, 8, 10, 15, 20, 30],
        "timed_nfe": 10,
        "noises": 128,
        "repeats": 5,
        "statistics": {"n_grid": 60, "n_data": 128, "probes": 4},
        "reference_steps": 150,
    },
    "gpu": {
        "problems": ["denoiser"],
        "nfes": [5, 6, 8, 10, 15, 20, 30],
        "timed_nfe": 10,
        "noises": 256,
        "repeats": 5,
        "statistics": {"n_grid": 120, "n_data": 1024, "probes": 4, "batch_size": 128},
        "reference_steps": 150,
    },
}
GRID = 1200
BESIDE_FLOOR = ("dpm-solver++", "v3-3-c")


def benchmark(
    run: Run,
    *,
    method: str | None = None,
    problems: list[str],
    nfes: list[int],
    timed_nfe: int,
    noises: int,
    repeats: int,
    statistics: dict[str, Any],
    reference_steps: int,
) -> None:
    """Error and cost of every sampler on every problem.

    `method` adds a sampler of your own, "package.module:Class", built as Class(eps_fn, schedule) with a method
    sample(x_T, steps).
    """
    own = {} if method is None else _own(method)
    for problem in run.track(problems, "problems"):
        bed = TESTBEDS[problem](run)
        began = perf_counter()
        ems = compute_ems(bed.eps_fn, bed.schedule, bed.data, generator=_draw(), **statistics)
        run.record("statistics_time", perf_counter() - began, method="v3", problem=problem)
        recipes = BASELINES | v3_recipes(ems.refine(GRID)) | own
        samplers = {name: build(bed.eps_fn, bed.schedule) for name, build in recipes.items()}
        x_T = bed.noise(noises, _draw())
        solution = bed.reference(x_T, reference_steps)
        for name, sampler in run.track(samplers.items(), f"{problem}: samplers", len(samplers)):
            errors = [(bed.solve(sampler, x_T, n) - solution).square().mean() for n in nfes]
            run.record_series("mse", torch.stack(errors), method=name, problem=problem, steps=nfes)
        times = interleaved(
            {name: _solving(bed, sampler, x_T, timed_nfe) for name, sampler in samplers.items()}, repeats=repeats
        )
        for row in times.itertuples():
            per_sample = 1000 * row.seconds / noises
            run.record("sample_time", per_sample, method=row.name, problem=problem, seed=row.repeat, step=timed_nfe)
        for name in BESIDE_FLOOR:
            floors.record(run, _solving(bed, samplers[name], x_T, timed_nfe), method=name, problem=problem)
        _against_diffusers(run, problem, bed, x_T, timed_nfe, repeats)


def _against_diffusers(run: Run, problem: str, bed: TestBed, x_T: Tensor, nfe: int, repeats: int) -> None:
    ours = {
        "dpm-solver++": DPMSolverPP(bed.eps_fn, bed.schedule, 2),
        "dpm-solver++-3m": DPMSolverPP(bed.eps_fn, bed.schedule, 3),
        "unipc-3": UniPC(bed.eps_fn, bed.schedule, 3),
    }
    try:
        theirs = {name: diffusers_sampler(bed.eps_fn, bed.schedule, name) for name in ours}
    except ImportError:
        run.note("peer diffusers is not installed: pip install 'secondlook[peers]'")
        return
    for name in ours:
        a, b = (bed.solve(side[name], x_T, nfe) for side in (ours, theirs))
        where = {"problem": f"{problem}, {name}", "step": nfe}
        run.record("disagreement", (a - b).abs().max() / a.abs().max(), method="diffusers", **where)
        pair = {"secondlook": _solving(bed, ours[name], x_T, nfe), "diffusers": _solving(bed, theirs[name], x_T, nfe)}
        for row in interleaved(pair, repeats=repeats).itertuples():
            run.record("seconds", row.seconds, method=row.name, seed=row.repeat, **where)


def diffusers_sampler(eps_fn: EpsFn, schedule: Schedule, recipe: str, variant: str | None = None) -> MultistepSampler:
    """A scheduler of the package `diffusers` behind this family's call: the same steps in lambda, the same model.

    `recipe` is "dpm-solver++", "dpm-solver++-3m", "unipc-2" or "unipc-3"; `variant` is the scheduler's
    `solver_type`. It lowers the final orders below 15 steps only, and computes in single precision. Needs a
    variance-preserving schedule. Raises ImportError without the package.
    """
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    order = 3 if recipe.endswith(("3", "3m")) else 2

    class Peer:
        def sample(self, x_T: Tensor, steps: int) -> Tensor:
            common = {"solver_order": order, "final_sigmas_type": "sigma_min"}
            if recipe.startswith("unipc"):
                scheduler = UniPCMultistepScheduler(solver_type=variant or "bh2", **common)
            else:
                scheduler = DPMSolverMultistepScheduler(solver_type=variant or "midpoint", **common)
            lams = schedule.nodes(steps)
            scheduler.set_timesteps(steps)
            scheduler.sigmas = (-lams).exp()  # diffusers counts in sigma / alpha
            scheduler.timesteps = torch.arange(steps)
            scheduler.set_begin_index(0)
            x = x_T
            for step, lam in zip(scheduler.timesteps, lams[:-1].tolist(), strict=True):
                at = torch.tensor(lam, dtype=x.dtype, device=x.device)
                x = scheduler.step(eps_fn(x, at), step, x).prev_sample
            return x

    return Peer()


def _own(path: str) -> dict[str, Build]:
    module, _, name = path.partition(":")
    if not name:
        raise ValueError(f"method must read package.module:Class, got {path!r}")
    return {name: getattr(import_module(module), name)}


def _solving(bed: TestBed, sampler: MultistepSampler, x_T: Tensor, nfe: int) -> Callable[[], Tensor]:
    return lambda: bed.solve(sampler, x_T, nfe)


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)
