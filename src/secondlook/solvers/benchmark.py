"""The family's common protocol: entropic transport between uniform marginals at random costs, to one accuracy.

Two workloads, each on the same costs and in one process, all methods in turn. `sweeps` is a fixed number of Sinkhorn
sweeps, so everybody does the same work and the plans can be compared; `solve` runs until the marginals are met to
1e-9 or `max_sweeps` are spent (the L1 error reached is recorded, so that no speed is bought with digits). POT stops on
an L2 error, which is set so that its L1 error ends at the same level. A problem is a size and an inverse
regularisation strength eta: Sinkhorn's own ground is where eta is small, Newton's where it is large.

Your own solver: a function ``(C, r, c, eta, tol=...)`` that returns an object with a ``plan``, named as
``package.module:function``; it takes part in `solve`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from secondlook.solvers.sinkhorn_newton_sparse import sinkhorn, sns
from secondlook.suite.runner import Run
from secondlook.suite.timing import interleaved

METRICS = {
    "seconds": {"label": "time to solve", "unit": "s", "step": "points a side", "timing": True},
    "error": {"label": "L1 error of the marginals", "unit": "", "step": "points a side"},
    "disagreement": {
        "label": "largest difference of the plan from POT's log-domain plan",
        "unit": "",
        "step": "points a side",
    },
}
SCALES = {
    "smoke": {"problems": [(50, 100.0)], "sweeps": 20, "tol": 1e-9, "max_sweeps": 5000, "repeats": 2},
    "laptop": {
        "problems": [(100, 200.0), (300, 200.0), (100, 1000.0)],
        "sweeps": 100,
        "tol": 1e-9,
        "max_sweeps": 5000,
        "repeats": 3,
    },
    "gpu": {
        "problems": [(500, 500.0), (2000, 500.0), (500, 5000.0)],
        "sweeps": 200,
        "tol": 1e-9,
        "max_sweeps": 50000,
        "repeats": 3,
    },
}


def benchmark(
    run: Run,
    *,
    method: str | None = None,
    problems: list[tuple[int, float]],
    sweeps: int,
    tol: float,
    max_sweeps: int,
    repeats: int,
) -> None:
    """Time, marginal error and agreement of every solver for every size."""
    peers = _pot(run)
    for n, eta in run.track(problems, "problems"):
        cost = torch.rand(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(run.device)
        mass = torch.full((n,), 1 / n, dtype=torch.float64, device=run.device)
        problem = (cost, mass, mass, eta)
        fixed = {"secondlook": lambda p=problem: sinkhorn(*p, max_iter=sweeps, tol=0.0, check_every=sweeps).plan}
        solve = {
            "secondlook-sns": lambda p=problem: sns(*p, tol=tol).plan,
            "secondlook-sinkhorn": lambda p=problem: sinkhorn(*p, tol=tol, max_iter=max_sweeps).plan,
        }
        for name, peer in peers.items():
            # POT updates the columns first: on the transposed problem the iterates are the same as ours.
            fixed[name] = partial(peer, *problem, sweeps, 0.0)
            solve[name] = partial(peer, *problem, max_sweeps, tol / n**0.5)
        if method:
            module, _, attribute = method.partition(":")
            own = getattr(import_module(module), attribute)
            solve[method] = lambda p=problem, own=own: own(*p, tol=tol).plan
        _compare(run, f"{sweeps} sweeps, eta = {eta:g}", n, fixed, mass, repeats)
        _compare(run, f"solve to {tol:g}, eta = {eta:g}", n, solve, mass, repeats)


def _compare(
    run: Run, workload: str, n: int, calls: dict[str, Callable[[], Tensor]], mass: Tensor, repeats: int
) -> None:
    plans = {name: call() for name, call in calls.items()}
    for name, plan in plans.items():
        record = partial(run.record, method=name, problem=workload, step=n)
        record("error", (plan.sum(1) - mass).abs().sum() + (plan.sum(0) - mass).abs().sum())
        if "pot-log" in plans:
            record("disagreement", (plan - plans["pot-log"]).abs().max() * n)  # relative to a row's mass
    for row in interleaved(calls, repeats=repeats, warmup=0).itertuples():
        run.record("seconds", row.seconds, method=row.name, problem=workload, seed=row.repeat, step=n)


def _pot(run: Run) -> dict[str, Callable[..., Tensor]]:
    """POT's solvers on the transposed problem, as (C, r, c, eta, sweeps, tolerance) -> plan."""
    try:
        from ot import bregman
    except ImportError:
        run.note("peer POT is not installed: pip install 'secondlook[peers]'")
        return {}
    if run.device != "cpu":
        run.note("POT is measured on the CPU, in NumPy")

    def call(solver: Callable, C: Tensor, r: Tensor, c: Tensor, eta: float, sweeps: int, tol: float) -> Tensor:
        cost, rows, columns = (np.ascontiguousarray(a.cpu().numpy()) for a in (C.mT, c, r))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "did not converge": a fixed number of sweeps is not meant to
            plan = solver(rows, columns, cost, 1 / eta, numItermax=sweeps, stopThr=tol)
        return torch.from_numpy(plan).mT.to(C.device)

    return {
        "pot-log": partial(call, bregman.sinkhorn_log),
        "pot-stabilized": partial(call, bregman.sinkhorn_stabilized),
    }
