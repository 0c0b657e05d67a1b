"""Errors of few-step samplers against the converged solution, on an exact score and on a trained network.

Every arm has eight recipes. At each number of function evaluations (NFE) an arm's recipe is the one with the
smallest error on validation noises; it is then measured on fresh noises of each seed. The arms differ in the
statistics alone or in the family of solvers:

    v3              DPM-Solver-v3 with measured statistics
    v3-degenerate   the same solver with l = 1, s = b = 0 (what is left without the paper's idea)
    v3-shuffled     the same solver with the measured statistics at the wrong noise levels
    baseline        DDIM, DPM-Solver++ (2M in two variants, 3M), UniPC (orders 2 and 3, two variants)
    baseline-copy   the same eight recipes, tuned and measured on other noises
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.problems import datasets
from secondlook.problems.zoo import denoiser as denoisers
from secondlook.samplers.dpm_solver_v3.frechet import Features, frechet_distance
from secondlook.samplers.dpm_solver_v3.method import EMS, compute_ems
from secondlook.samplers.dpm_solver_v3.multistep import MultistepSampler
from secondlook.samplers.dpm_solver_v3.testbeds import BASELINES, TESTBEDS, TestBed, v3_recipes
from secondlook.suite.runner import Run

# Streams of random numbers beside those of the seeds 0, 1, ...
TUNING, COPY, STATISTICS = 10_000, 20_000, 30_000


def few_steps(
    run: Run,
    *,
    problems: list[str],
    nfes: list[int],
    noises: int,
    tuning_noises: int,
    statistics: dict[str, Any],
    grid: int,
    reference_steps: int,
) -> None:
    """Measure every arm's error at every NFE on every problem.

    `noises` are drawn for each seed, `tuning_noises` once; `statistics` goes to `compute_ems`; `grid` is the
    number of intervals that the solver's integrals and step times use; `reference_steps` are Runge-Kutta
    steps.
    """
    for problem in run.track(problems, "problems"):
        bed = TESTBEDS[problem](run)
        draw = _stream(STATISTICS)
        ems = compute_ems(bed.eps_fn, bed.schedule, bed.data, generator=draw, track=run.track, **statistics)
        _record_statistics(run, problem, ems)
        flat = EMS.degenerate(bed.schedule, tuple(bed.data.shape[1:]), grid, device=bed.data.device)
        here = _start(bed, run.seeds, tuning_noises, noises, reference_steps)
        elsewhere = _start(bed, run.seeds, tuning_noises, noises, reference_steps, stream=COPY)
        arms = {
            "baseline": (BASELINES, here),
            "baseline-copy": (BASELINES, elsewhere),
            "v3": (v3_recipes(ems.refine(grid)), here),
            "v3-degenerate": (v3_recipes(flat), here),
            "v3-shuffled": (v3_recipes(ems.shuffled(draw).refine(grid)), here),
        }
        curves: dict[str, dict[int, list[float]]] = {}
        for arm, (recipes, start) in run.track(arms.items(), f"{problem}: arms", len(arms)):
            tries = [(recipe, n) for recipe in recipes for n in nfes]
            samplers = {recipe: build(bed.eps_fn, bed.schedule) for recipe, build in recipes.items()}
            tuning = _errors(bed, samplers, tries, start, ["tuning"])
            chosen = [(min(recipes, key=lambda recipe, n=n: tuning[recipe, n]["tuning"]), n) for n in nfes]
            run.note(f"{problem}, {arm}: " + ", ".join(f"{recipe} at {n}" for recipe, n in chosen))
            drawn = arm in ("baseline", "v3")  # the figure shows every recipe of these
            errors = _errors(bed, samplers, tries if drawn else chosen, start, run.seeds)
            curves[arm] = {seed: [errors[at][seed] for at in chosen] for seed in run.seeds}
            for recipe in recipes if drawn else ():
                for seed in run.seeds:
                    values = [errors[recipe, n][seed] for n in nfes]
                    run.record_series("mse", values, method=recipe, problem=problem, seed=seed, steps=nfes)
        for arm, by_seed in curves.items():
            for seed, curve in by_seed.items():
                where = {"method": arm, "problem": problem, "seed": seed, "steps": nfes}
                rival = curves["baseline"][seed]
                run.record_series("mse", curve, **where)
                if arm != "baseline":
                    run.record_series("gain", np.log10(rival) - np.log10(curve), **where)
                    run.record_series("speedup", speedup(nfes, rival, curve), **where)


def speedup(nfes: list[int], rival: list[float], curve: list[float]) -> list[float]:
    """How many more steps, in percent, the rival needs for the errors of `curve`, at every NFE.

    The rival's best error so far is interpolated linearly in log error and log NFE, and stays within the NFEs
    measured, so a lead that it never makes up counts for no more than the last NFE.
    """
    best = np.log(np.minimum.accumulate(rival))
    gains = np.append(True, np.diff(best) < 0)
    at = np.log(nfes)
    needed = np.interp(-np.log(curve), -best[gains], at[gains], right=at[-1])
    return np.where(np.isfinite(curve), 100 * np.expm1(needed - at), np.nan).tolist()


def _stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Start:
    """Validation noises and those of all seeds in one batch, their converged solutions, and whose rows are whose."""

    x_T: Tensor
    solution: Tensor
    rows: dict[str | int, slice]


def _start(
    bed: TestBed, seeds: tuple[int, ...], tuning: int, each: int, reference_steps: int, stream: int = 0
) -> Start:
    parts = {"tuning": bed.noise(tuning, _stream(TUNING + stream))}
    parts |= {seed: bed.noise(each, _stream(seed + stream)) for seed in seeds}
    ends = list(accumulate(map(len, parts.values()), initial=0))
    x_T = torch.cat(list(parts.values()))
    rows = {name: slice(a, b) for name, (a, b) in zip(parts, pairwise(ends), strict=True)}
    return Start(x_T, bed.reference(x_T, reference_steps), rows)


def _errors(
    bed: TestBed,
    samplers: dict[str, MultistepSampler],
    tries: Iterable[tuple[str, int]],
    start: Start,
    names: Sequence[str | int],
) -> dict[tuple[str, int], dict[str | int, float]]:
    """Mean square error of every (recipe, NFE) tried, over the noises of each of the parts named."""
    parts = [start.rows[name] for name in names]
    x_T, solution = (torch.cat([rows[part] for part in parts]) for rows in (start.x_T, start.solution))
    out = {}
    for recipe, n in tries:
        each = (bed.solve(samplers[recipe], x_T, n) - solution).square().flatten(1).mean(1)
        each = each.nan_to_num(nan=math.inf)  # a sampler that breaks down is never chosen
        split = each.split([part.stop - part.start for part in parts])
        out[recipe, n] = {name: part.mean().item() for name, part in zip(names, split, strict=True)}
    return out


def _record_statistics(run: Run, problem: str, ems: EMS) -> None:
    """The curves' median and 10% and 90% quantiles over coordinates."""
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=ems.l.device)
    steps = ems.lambdas.tolist()
    for name in ("l", "s", "b"):
        quantiles = getattr(ems, name).flatten(1).quantile(levels, 1)
        for level, curve in zip(("p10", "median", "p90"), quantiles, strict=True):
            run.record_series(name, curve, method=level, problem=problem, seed=run.seeds[0], steps=steps)


def frechet(
    run: Run,
    *,
    nfes: list[int],
    samples: int,
    tuning_samples: int,
    statistics: dict[str, Any],
    grid: int,
    network: str,
    network_steps: int,
) -> None:
    """Fréchet distance between the samples of a trained denoiser and the test images, by arm and NFE.

    `network` is trained for `network_steps` on the images' classes to provide features; recipes are chosen by the
    distance of `tuning_samples` samples to the validation images.
    """
    bed = TESTBEDS["denoiser"](run)
    images = datasets.load(denoisers.SCALES[run.scale]["data"])
    features = Features(network, images, network_steps, run.device)
    run.record("accuracy", features.accuracy, method=network, problem="denoiser", seed=run.seeds[0])
    val, test = (features((split.x * 2 - 1).to(run.device)) for split in (images.val, images.test))
    ems = compute_ems(bed.eps_fn, bed.schedule, bed.data, generator=_stream(STATISTICS), track=run.track, **statistics)
    for arm, recipes, stream in (
        ("baseline", BASELINES, 0),
        ("baseline-copy", BASELINES, COPY),
        ("v3", v3_recipes(ems.refine(grid)), 0),
    ):
        samplers = {recipe: build(bed.eps_fn, bed.schedule) for recipe, build in recipes.items()}
        trial = bed.noise(tuning_samples, _stream(TUNING + stream))
        starts = {seed: bed.noise(samples, _stream(seed + stream)) for seed in run.seeds}
        for n in run.track(nfes, f"{arm}: evaluations"):
            tried = {
                recipe: frechet_distance(features(bed.solve(sampler, trial, n)), val)
                for recipe, sampler in samplers.items()
            }
            chosen = min(tried, key=tried.__getitem__)
            run.note(f"{arm} at {n}: {chosen}")
            for seed, x_T in starts.items():
                distance = frechet_distance(features(bed.solve(samplers[chosen], x_T, n)), test)
                run.record("frechet", distance, method=arm, problem="denoiser", seed=seed, step=n)
