"""The device against theory, and training with it beside gradient descent, Adam and the exact natural gradient."""

import math
from collections.abc import Callable
from functools import partial
from math import inf

import torch
from torch import Tensor

from secondlook.optimizers.thermodynamic_ngd.method import DenseOU, euler_maruyama, ou_solve
from secondlook.optimizers.thermodynamic_ngd.training import Arm, Option, Setting, reached
from secondlook.problems.images import ImageProblem
from secondlook.problems.models import mlp
from secondlook.suite.runner import Run


def conditioned(dim: int, condition: float, generator: torch.Generator) -> Tensor:
    """A random symmetric matrix [dim, dim] with eigenvalues spread geometrically from 1 / condition to 1."""
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    values = torch.logspace(-math.log10(condition), 0, dim, dtype=torch.float64)
    return (q * values) @ q.T


def device(
    run: Run, *, dim: int, conditions: list[float], times: list[float], mismatch: float, paths: int, beta: float
) -> None:
    """Relative error of readouts after `times` (in units of the slowest mode's) for exact, discrete and faulty devices.

    `simulated` integrates the equation without noise, in steps of half the fastest mode's time; `average` is the
    mean of `paths` noisy readouts, at inverse temperature `beta` for solutions of unit mean square;
    `mismatched` has every coupling off by a random factor.
    """
    for seed in run.track(run.seeds, "seeds"):
        for condition in conditions:
            generator = torch.Generator().manual_seed(seed)
            A = conditioned(dim, condition, generator)
            b = torch.randn(dim, generator=generator, dtype=torch.float64)
            wrong = torch.randn(dim, dim, generator=generator, dtype=torch.float64).triu()
            faulty = A * (1 + mismatch * (wrong + wrong.triu(1).T))
            solution = torch.linalg.solve(A, b)
            initial = (b - solution).norm()
            exact, dt, done = DenseOU(A), 0.5, 0
            states = {"simulated": b[None], "mismatched": b[None]}
            inverse_noise = beta * dim / float(solution.square().sum())
            for time in times:
                t = time * condition  # the slowest eigenvalue is 1 / condition
                steps, done = round(t / dt) - done, round(t / dt)
                states["simulated"] = euler_maruyama(A, b, states["simulated"], dt, steps)
                states["mismatched"] = euler_maruyama(faulty, b, states["mismatched"], dt, steps)
                t = done * dt
                noisy = ou_solve(exact, b.expand(paths, dim), t, inverse_noise, generator=generator)
                readouts = {method: state[0] for method, state in states.items()}
                readouts |= {"exact": ou_solve(exact, b, t), "average": noisy.mean(0)}
                for method, x in readouts.items():
                    keep = partial(
                        run.record, method=method, problem=f"condition-{condition:g}", seed=seed, step=t / condition
                    )
                    error = (x - solution).norm()
                    keep("readout_error", error / initial)
                    keep("over_bound", error / (initial * math.exp(-t / condition)))


def training(
    run: Run,
    *,
    data: str,
    widths: list[int],
    batch_size: int,
    steps: int,
    every: int,
    target: float,
    rates: dict[str, list[float]],
    dampings: list[float],
    momenta: list[float],
    times: list[float],
    delays: list[int],
    warm_time: float,
) -> None:
    """Training loss of every arm. The exact natural gradient chooses the damping that all devices then have.

    Times are in units of 1 / damping. A device that starts from the gradient and runs for no time is gradient
    descent, so `sgd` stands for time 0. `tngd-delayed` is the delay above 0 that tuning found best.
    """
    setting = Setting(ImageProblem(data, mlp).load(run.device), widths, batch_size, steps, every)
    seeds = list(run.seeds)

    def report(method: str, arm: Arm, option: Option, copy: bool = False) -> list[dict[str, list[float]]]:
        runs = [setting.train(arm, option, seed, copy) for seed in seeds]
        for seed, columns in zip(seeds, runs, strict=True):
            keep = partial(run.record, method=method, problem=data, seed=seed)
            for metric in ("train_loss", "test_accuracy"):
                run.record_series(
                    metric, columns[metric], steps=columns["step"], method=method, problem=data, seed=seed
                )
            keep("final_loss", columns["final"][0])
            keep("steps_to_target", reached(columns, target))
        for place, value in enumerate((option.rate, option.damping, option.momentum)):
            run.record("chosen", value, method=method, problem=data, step=place)
        return runs

    def tuned(method: str, arm: Arm, options: list[Option]) -> tuple[Option, float]:
        chosen, score = setting.choose(arm, options)
        report(method, arm, chosen)
        return chosen, score

    def devices(damping: float) -> list[Option]:
        return [Option(rate, damping) for rate in rates["natural"]]

    first = {}
    for name in run.track(("sgd", "adam"), "first order"):
        first[name], _ = tuned(name, Arm(name), [Option(rate) for rate in rates[name]])
        report(f"{name}-copy", Arm(name), first[name], copy=True)
    ngd, _ = tuned("ngd", Arm("ngd"), [o for damping in dampings for o in devices(damping)])
    report("ngd-copy", Arm("ngd"), ngd, copy=True)
    heavy = [Option(o.rate * (1 - m), o.damping, m) for m in momenta for o in devices(ngd.damping)]
    report("ngd-momentum-copy", Arm("ngd"), tuned("ngd-momentum", Arm("ngd"), heavy)[0], copy=True)

    for time in run.track(times, "device times"):
        tuned(f"tngd-t{time:g}", Arm("tngd", time), devices(ngd.damping))
    found = {}
    for delay in run.track(delays, "delays"):
        arm = Arm("tngd", warm_time, delay, warm=True)
        found[delay] = (arm, *tuned(f"tngd-delay{delay}", arm, devices(ngd.damping)))
    late = min((d for d in delays if d), key=lambda d: found[d][2])
    sweep(run, data, times, delays, late, partial(setting.train, Arm("sgd"), first["sgd"]))


def sweep(
    run: Run, data: str, times: list[float], delays: list[int], late: int, sgd: Callable[..., dict[str, list[float]]]
) -> None:
    """Final losses once more, as functions of the device's time and of the delay, with gradient descent as control."""
    finals = {(row["method"], row["seed"]): row for row in run.rows if row["metric"] == "final_loss"}

    def value(method: str, seed: int) -> float:
        row = finals[method, seed]
        return row["value"] if row["status"] == "ok" else inf

    for seed in run.seeds:
        keep = partial(run.record, problem=data, seed=seed)
        for i, time in enumerate([0.0, *times]):
            keep("loss_by_time", value(f"tngd-t{time:g}" if time else "sgd", seed), method="tngd", step=time)
            other = sgd(1000 * (i + 1) + seed, copy=True)["final"][0]
            keep("loss_by_time", other, method="sgd-copies", step=time)
        for delay in delays:
            keep("loss_by_delay", value(f"tngd-delay{delay}", seed), method="tngd", step=delay)
        keep("final_loss", value(f"tngd-delay{late}", seed), method="tngd-delayed")
    run.record("chosen_delay", late, method="tngd-delayed", problem=data)
