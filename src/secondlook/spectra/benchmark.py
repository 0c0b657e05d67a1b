"""The family's common protocol: what an accurate answer about a Hessian costs, beside curvlinops and PyHessian.

Five small networks, trained a little on real digits, have a dense Hessian to compare with; three larger ones have none.
All work is in single precision, as users have it; the dense Hessians are in double.

On the five, four questions are asked: the largest eigenvalue, the trace, the diagonal, the density of the eigenvalues.
Every method gets the same ladder of budgets on the same seeds. Cost is the number of columns that were really
multiplied, counted by the operator, and wall time; so each method has a curve of error against products and one
against time (the latter between budgets by logarithms, on a grid of times). A bare package name stands for one method
a question: ours was chosen in advance (Lanczos, XTrace, XDiag, Lanczos quadrature), the rest is listed after a colon.
Peers run their own functions, at settings that suit the questions (`bench.peers` says which).

- `products_ratio`, `seconds_ratio`: what ours needs over what the peer's best method on that network needs, for the
  same accuracy, as percentiles over networks and seeds. Accuracies were fixed in advance. A ratio to a peer that never
  gets there is taken with all that it spent, so the true one is smaller; where ours never gets there, it is no number.
- `reached`: how often a method's error comes to stay within the accuracy, at any budget of the ladder.
- `coverage`: how many of the stated 95% intervals hold the exact answer; 100% is wanted of `top`, a certificate.

On the other three, `agreement` is the share of answers of two independent methods that differ by no more than their
stated errors allow. On all eight, bare products are timed on the same vectors (`hvp`, `hvp-block`), on the MLP also
an eigenvalue solver, Hutchinson's estimate and Lanczos quadrature (`bench.workloads`). There `disagreement` is the
largest difference between a peer's answer and ours, relative to the largest of ours; `dense_error` is the same for
`extreme` against the dense Hessian. `floor` says how much of the time of our bare products their operations need at the
machine's best rates (`suite.floors`).

A method of yours joins by `--method MODULE:FACTORY`: `factory(model, loss, (x, y), params)` returns anything with
`shape`, `dtype`, `device` and `@`; this package's algorithms then run on it, in every part.
"""

from __future__ import annotations

from typing import Any

from secondlook.spectra.bench.agreement import agreement
from secondlook.spectra.bench.contest import Curve, contest
from secondlook.spectra.bench.contestants import Contestant, secondlook, stranger
from secondlook.spectra.bench.networks import Network, trained
from secondlook.spectra.bench.peers import PEERS
from secondlook.spectra.bench.quantities import exact
from secondlook.spectra.bench.standings import standings
from secondlook.spectra.bench.workloads import ALONE, Task, workloads
from secondlook.suite.runner import Run

METRICS: dict[str, dict[str, Any]] = {
    "products_ratio": {
        "label": "products of ours over the peer's, for the same accuracy",
        "unit": "1",
        "step": "percentile of networks and seeds",
    },
    "seconds_ratio": {
        "label": "time of ours over the peer's, for the same accuracy",
        "unit": "1",
        "step": "percentile of networks and seeds",
        "timing": True,
    },
    "top_error": {"label": "relative error of the largest eigenvalue", "unit": "1", "step": "products"},
    "trace_error": {"label": "relative error of the trace", "unit": "1", "step": "products"},
    "diagonal_error": {"label": "relative error of the diagonal", "unit": "1", "step": "products"},
    "density_error": {"label": "relative Wasserstein distance of the density", "unit": "1", "step": "products"},
    "top_error_in_time": {
        "label": "relative error of the largest eigenvalue, by time",
        "unit": "1",
        "step": "seconds",
        "timing": True,
    },
    "trace_error_in_time": {
        "label": "relative error of the trace, by time",
        "unit": "1",
        "step": "seconds",
        "timing": True,
    },
    "diagonal_error_in_time": {
        "label": "relative error of the diagonal, by time",
        "unit": "1",
        "step": "seconds",
        "timing": True,
    },
    "density_error_in_time": {
        "label": "relative Wasserstein distance of the density, by time",
        "unit": "1",
        "step": "seconds",
        "timing": True,
    },
    "coverage": {"label": "stated 95% intervals that hold", "unit": "%"},
    "reached": {"label": "accuracy reached", "unit": "%"},
    "agreement": {"label": "answers that agree within their stated errors", "unit": "%"},
    "seconds": {"label": "time", "unit": "s", "timing": True},
    "floor": {
        "label": "least time of its operations at the machine's best rates, over the time taken",
        "unit": "%",
        "timing": True,
    },
    "arithmetic": {"label": "arithmetic a second", "unit": "GFLOP/s", "timing": True},
    "disagreement": {"label": "largest relative difference from ours", "unit": "1"},
    "dense_error": {"label": "relative error against the dense Hessian", "unit": "1"},
}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "known": {"MLP": 3},
        "unknown": {"recurrent": 4},
        "points": 30,
        "training": 10,
        "seeds": 2,
        "budgets": [12, 24],
        "top_budgets": [4, 12],
        "density_budgets": [12, 24],
        "steps": 12,
        "block": 4,
        "top": 1,
        "probes": 2,
        "repeats": 1,
    },
    "laptop": {
        "known": {"logistic regression": 0, "MLP": 24, "CNN": 5, "attention": 8, "recurrent": 20},
        "unknown": {"deep MLP": 96, "residual": 4, "attention": 32},
        "points": 60,
        "training": 60,
        "seeds": 5,
        "budgets": [12, 24, 48, 96],
        "top_budgets": [4, 8, 16, 32],
        "density_budgets": [12, 24, 36, 60],
        "steps": 12,
        "block": 16,
        "top": 3,
        "probes": 4,
        "repeats": 5,
    },
    "gpu": {
        "known": {"logistic regression": 0, "MLP": 48, "CNN": 12, "attention": 24, "recurrent": 48},
        "unknown": {"deep MLP": 1024, "residual": 32, "attention": 256},
        "points": 1000,
        "training": 60,
        "seeds": 10,
        "budgets": [12, 24, 48, 96, 192, 384],
        "top_budgets": [4, 8, 16, 32, 64],
        "density_budgets": [12, 24, 48, 96, 192],
        "steps": 12,
        "block": 32,
        "top": 10,
        "probes": 16,
        "repeats": 7,
    },
}
DRIVEN = "MLP"  # the network on which the workloads beyond bare products run
US = "secondlook"


def benchmark(
    run: Run,
    *,
    method: str | None = None,
    known: dict[str, int],
    unknown: dict[str, int],
    points: int,
    training: int,
    seeds: int,
    budgets: list[int],
    top_budgets: list[int],
    density_budgets: list[int],
    steps: int,
    block: int,
    top: int,
    probes: int,
    repeats: int,
) -> None:
    """The contest on the `known` networks, agreement on the `unknown` (names with widths), and the bare workloads."""
    ladders = {"top": top_budgets, "trace": budgets, "diagonal": budgets, "density": density_budgets}
    curves: list[Curve] = []
    tasks = [*((name, width, True) for name, width in known.items()), *((n, w, False) for n, w in unknown.items())]
    for name, width, dense in run.track(tasks, "networks", total=len(tasks)):
        network = trained(name, width, points, training, run.device)
        truth = exact(network) if dense else None
        if truth:
            entered = contestants(run, network, method, steps)
            curves += contest(run, network.title, truth, entered, ladders, seeds)
        else:
            agreement(run, network, method, budget=budgets[len(budgets) // 2], steps=steps, seeds=seeds)
        task = Task.draw(network, block, probes, top, steps)
        only = () if truth and name == DRIVEN else ALONE
        workloads(run, task, method, repeats=repeats, only=only, exact=truth.values if truth else None)
    standings(run, curves, US)


def contestants(run: Run, network: Network, method: str | None, steps: int) -> list[Contestant]:
    """Ours, the stranger where there is one, and the peers that are installed."""
    entered = [secondlook(network, steps)]
    if method:
        entered.append(stranger(network, method, steps))
    for name, peer in PEERS.items():
        try:
            entered.append(peer(network, steps))
        except ImportError:
            note = f"peer {name} is not installed: pip install 'secondlook[peers]'"
            if note not in run.notes:
                run.note(note)
    return entered
