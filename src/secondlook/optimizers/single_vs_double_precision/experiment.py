"""Conjugate gradients and RMSprop in both precisions: on tasks of several depths, and down to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from secondlook.optimizers.nonlinear_cg import FunctionAndGradient, Trace, bracketing, conjugate_gradient
from secondlook.optimizers.single_vs_double_precision.method import Task, make_zero_mse_task, rmsprop, width_for
from secondlook.problems.pairing import COPY
from secondlook.problems.tuning import TUNING_SEED
from secondlook.suite.runner import Run

CHECKPOINTS = 20
SINGLE, DOUBLE = torch.float32, torch.float64


def coarse(fun_and_grad: FunctionAndGradient) -> FunctionAndGradient:
    """Broken on purpose: value and gradient rounded to the 8 significant bits of bfloat16."""

    def rounded(w: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = fun_and_grad(w)
        return value.bfloat16().to(value.dtype), gradient.bfloat16().to(gradient.dtype)

    return rounded


def mixed(fun_and_grad: FunctionAndGradient) -> FunctionAndGradient:
    """The network and its error in float32, everything outside in float64: weights, directions and the line search."""

    def wider(w: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = fun_and_grad(w.float())
        return value.double(), gradient.double()

    return wider


@dataclass(frozen=True)
class Setting:
    """A family of tasks of one size, and the evaluations that every run may spend."""

    layers: int
    nonlinearity: str
    parameters: int
    n_in: int
    n_out: int
    per_parameter: float  # target numbers for each parameter
    evaluations: int

    def task(self, seed: int, device: str) -> Task:
        width = width_for(self.parameters, self.layers, self.n_in, self.n_out)
        samples = math.ceil(self.per_parameter * self.parameters / self.n_out)
        shape = (self.layers, width, self.n_in, self.n_out, samples)
        return make_zero_mse_task(*shape, self.nonlinearity, seed, device)

    @property
    def shown(self) -> list[int]:
        """Evaluations at which curves are recorded: 30, evenly spaced on a logarithmic axis."""
        return sorted({int(e) for e in np.geomspace(1, self.evaluations, 30).round()})


def student(task: Task, seed: int) -> Tensor:
    return task.start(torch.Generator().manual_seed(10**6 + seed))


def conjugate(task: Task, seed: int, evaluations: int, rtol: float, control: bool) -> dict[str, Trace]:
    """Conjugate gradients in float32, in float64 and, as a control, broken."""
    f32, f64, w0 = task.squared_error(SINGLE), task.squared_error(DOUBLE), student(task, seed)
    search = partial(bracketing, rtol=rtol)
    arms = {"cg32": (f32, SINGLE), "cg64": (f64, DOUBLE)} | ({"cg-coarse": (coarse(f32), SINGLE)} if control else {})
    return {arm: conjugate_gradient(f, w0, dtype, evaluations, search) for arm, (f, dtype) in arms.items()}


def compare(keep: Callable[..., None], traces: dict[str, Trace], evaluations: int) -> None:
    """Single against double precision up to the first line search that fails in single precision, and at the end."""
    failure = traces["cg32"].first_failure
    until = failure or evaluations
    for arm in (arm for arm in ("cg32", "cg-coarse") if arm in traces):
        at = [until * (k + 1) / CHECKPOINTS for k in range(CHECKPOINTS)]
        ratios = [math.log2(traces[arm].at(e) / traces["cg64"].at(e)) for e in at]
        keep("until_failure", median(ratios), method=arm)
        keep("at_the_end", math.log10(traces[arm].values[-1] / traces["cg64"].values[-1]), method=arm)
    for arm in ("cg32", "cg64"):
        keep("failed", 100 * (traces[arm].first_failure is not None), method=arm)
        keep("first_failure", traces[arm].first_failure or evaluations, method=arm)


def tuned_rate(setting: Setting, rates: dict[str, list[float]], device: str) -> tuple[float, bool]:
    """RMSprop's best step size and whether it falls, in float64, on a task of its own."""
    task = setting.task(TUNING_SEED, device)
    scores = {}
    for kind, lrs in rates.items():
        f = Task.stack([task] * len(lrs)).squared_error(DOUBLE)
        starts = student(task, TUNING_SEED).repeat(len(lrs), 1)
        traces = rmsprop(f, starts, DOUBLE, torch.tensor(lrs, dtype=DOUBLE), setting.evaluations, kind == "decay")
        scores |= {(lr, kind == "decay"): trace.values[-1] for lr, trace in zip(lrs, traces, strict=True)}
    return min(scores, key=scores.__getitem__)


def tuned_search(setting: Setting, tolerances: list[float], device: str) -> float:
    """The best tolerance of the line search, in float64, on the same task."""
    task = setting.task(TUNING_SEED, device)
    f, w0 = task.squared_error(DOUBLE), student(task, TUNING_SEED)

    def score(rtol: float) -> float:
        search = partial(bracketing, rtol=rtol)
        return conjugate_gradient(f, w0, DOUBLE, setting.evaluations, search).values[-1]

    return min(tolerances, key=score)


def first_order(setting: Setting, tasks: list[Task], seeds: list[int], option: tuple[float, bool]) -> dict[str, list]:
    """RMSprop on the tasks of all seeds: in float32, in float64, in bfloat16, and in float64 from other starts."""
    stack, lr, decay = Task.stack(tasks), *option
    rates = torch.full((len(tasks),), lr, dtype=DOUBLE)
    starts = torch.stack([student(task, seed) for task, seed in zip(tasks, seeds, strict=True)])
    others = torch.stack([student(task, seed + COPY) for task, seed in zip(tasks, seeds, strict=True)])
    f32, f64 = stack.squared_error(SINGLE), Task.stack([*tasks, *tasks]).squared_error(DOUBLE)

    def f16(w: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = f32(w.float())
        return value, gradient.bfloat16()

    both = rmsprop(f64, torch.cat([starts, others]), DOUBLE, rates.repeat(2), setting.evaluations, decay)
    return {
        "rmsprop32": rmsprop(f32, starts, SINGLE, rates, setting.evaluations, decay),
        "rmsprop64": both[: len(tasks)],
        "rmsprop16": rmsprop(f16, starts, torch.bfloat16, rates, setting.evaluations, decay),
        "rmsprop64-copy": both[len(tasks) :],
    }


@torch.inference_mode()  # gradients are by hand
def tasks(
    run: Run,
    *,
    layers: list[int],
    parameters: int,
    n_in: int,
    n_out: int,
    per_parameter: float,
    evaluations: int,
    rates: dict[str, list[float]],
    tolerances: list[float],
) -> None:
    """Both methods in both precisions on tasks of several depths, moderately and strongly nonlinear."""
    agree: dict[tuple[str, int], list[bool]] = {}
    cells = [(kind, depth) for kind in ("moderate", "strong") for depth in layers]
    for kind, depth in run.track(cells, "tasks"):
        setting = Setting(depth, kind, parameters, n_in, n_out, per_parameter, evaluations)
        problem = f"{kind}-{depth}"
        option, rtol = tuned_rate(setting, rates, run.device), tuned_search(setting, tolerances, run.device)
        run.record("tuned_rate", option[0], method="rmsprop", problem=problem, step=int(option[1]))
        run.record("tuned_tolerance", rtol, method="cg", problem=problem)
        of_seed = [setting.task(seed, run.device) for seed in run.seeds]
        rms = first_order(setting, of_seed, list(run.seeds), option)
        for place, (seed, task) in enumerate(zip(run.seeds, of_seed, strict=True)):

            def keep(metric: str, value: float, method: str, problem: str = problem, seed: int = seed) -> None:
                run.record(metric, value, method=method, problem=problem, seed=seed)

            traces = conjugate(task, seed, evaluations, rtol, control=kind == "moderate")
            traces |= {arm: many[place] for arm, many in rms.items()}
            compare(keep, traces, evaluations)
            variance = float(task.variance())
            final = {arm: trace.values[-1] / variance for arm, trace in traces.items()}
            for arm, trace in traces.items():
                curve = [trace.at(e) / variance for e in setting.shown]
                run.record_series("curve", curve, steps=setting.shown, method=arm, problem=problem, seed=seed)
                keep("final", final[arm], method=arm)
            keep("final", min(final["cg64"], final["rmsprop64"]), method="lower-of-both")
            for arm in ("cg64", "rmsprop64-copy"):
                keep("gain", math.log10(final[arm] / final["rmsprop64"]), method=arm)
            for arm in ("rmsprop32", "rmsprop16"):
                ratio = final[arm] / final["rmsprop64"]
                keep("log2_ratio", math.log2(ratio), method=arm)
                agree.setdefault((arm, seed), []).append(0.8 <= ratio <= 1.25)
    for (arm, seed), close in agree.items():
        run.record("share", 100 * sum(close) / len(close), method=arm, problem="all tasks", seed=seed)


@torch.inference_mode()
def floor(
    run: Run, *, parameters: int, n_in: int, n_out: int, per_parameter: float, evaluations: int, tolerance: float
) -> None:
    """Small tasks with one hidden layer that conjugate gradients can solve down to rounding."""
    setting = Setting(1, "strong", parameters, n_in, n_out, per_parameter, evaluations)
    for seed in run.track(run.seeds, "seeds"):
        task = setting.task(seed, run.device)
        traces = conjugate(task, seed, evaluations, tolerance, control=True)
        wide = mixed(task.squared_error(SINGLE))
        traces["cg-mixed"] = conjugate_gradient(
            wide, student(task, seed), DOUBLE, evaluations, partial(bracketing, rtol=tolerance)
        )

        def keep(metric: str, value: float, method: str, seed: int = seed) -> None:
            run.record(metric, value, method=method, problem="floor", seed=seed)

        compare(keep, traces, evaluations)
        variance = float(task.variance())
        for arm, trace in traces.items():
            curve = [trace.at(e) / variance for e in setting.shown]
            run.record_series("curve", curve, steps=setting.shown, method=arm, problem="floor", seed=seed)
            keep("final", trace.values[-1] / variance, method=arm)
