"""The paper's figures from the tidy table alone."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "v3": "DPM-Solver-v3",
    "v3-degenerate": "v3 without statistics",
    "v3-shuffled": "v3, statistics shuffled",
    "baseline": "best earlier solver",
    "baseline-copy": "best earlier solver, other noises",
    "ddim": "DDIM",
    "dpm-solver++": "DPM-Solver++ 2M",
    "dpm-solver++-3m": "DPM-Solver++ 3M",
    "unipc-3": "UniPC-3",
    "mixture": "exact score (mixture)",
    "denoiser": "trained denoiser",
}


def error_against_evaluations(table: pd.DataFrame, paper: Paper) -> Figure:
    """Mean square error to the converged solution, log-log, every recipe of the earlier solvers and v3 tuned."""
    problems = _problems(table, "mse")
    fig, axes = plots.subplots(1, len(problems), squeeze=False)
    methods = ["ddim", "dpm-solver++", "dpm-solver++-3m", "unipc-3", "v3-degenerate", "v3"]
    for ax, problem in zip(axes[0], problems, strict=True):
        rows = table[table["problem"] == problem]
        plots.band(ax, rows, "mse", paper, methods=methods, labels=LABELS, err="bars")
        _log(ax, table, "mse")
        ax.set_yscale("log")
        plots.title(ax, LABELS.get(problem, problem))
    axes[0][0].legend()
    return fig


def gain(table: pd.DataFrame, paper: Paper) -> Figure:
    """How much smaller the error is than that of the best earlier solver, and the two controls that bear comparison."""
    problems = _problems(table, "gain")
    fig, axes = plots.subplots(1, len(problems), squeeze=False, sharey=True)
    for ax, problem in zip(axes[0], problems, strict=True):
        rows = table[table["problem"] == problem]
        methods = ["v3", "v3-degenerate", "baseline-copy"]
        plots.band(ax, rows, "gain", paper, methods=methods, labels=LABELS)
        ax.axhline(0, color=plots.MUTED, lw=1)
        _log(ax, table, "gain")
        plots.title(ax, LABELS.get(problem, problem))
    axes[0][0].legend()
    return fig


def statistics(table: pd.DataFrame, paper: Paper) -> Figure:
    """The measured coefficient curves over lambda: median over coordinates and the range from 10% to 90%."""
    problems = _problems(table, "l")
    fig, axes = plots.subplots(1, 3, height=3.0, width=3.6)
    for ax, name in zip(axes, ("l", "s", "b"), strict=True):
        for problem in problems:
            rows = table[(table["metric"] == name) & (table["problem"] == problem)]
            wide = rows.pivot_table(index="step", columns="method", values="value")
            colour = plots.colour(problem)
            ax.plot(wide.index, wide["median"], color=colour, label=LABELS.get(problem, problem))
            ax.fill_between(wide.index, wide["p10"], wide["p90"], color=colour, alpha=0.18, lw=0)
        ax.set_xlabel(paper.metrics[name].step)
        plots.title(ax, paper.metrics[name].label)
    axes[0].legend()
    return fig


def distance_to_data(table: pd.DataFrame, paper: Paper) -> Figure:
    """Fréchet distance of the samples to the test images, in a classifier's features."""
    fig, ax = plots.subplots(1, 1)
    plots.band(ax, table, "frechet", paper, methods=["baseline", "baseline-copy", "v3"], labels=LABELS)
    _log(ax, table, "frechet")
    ax.legend()
    return fig


def _problems(table: pd.DataFrame, metric: str) -> list[str]:
    return sorted(table.loc[table["metric"] == metric, "problem"].unique(), key=lambda p: p == "denoiser")


def _log(ax, table: pd.DataFrame, metric: str) -> None:
    """A logarithmic axis of function evaluations with the measured ones as ticks."""
    nfes = sorted({int(n) for n in table.loc[table["metric"] == metric, "step"]})
    ax.set_xscale("log")
    ax.set_xticks(nfes, [str(n) for n in nfes])
    ax.minorticks_off()
