"""Evolution and training, drawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {"lm": "Levenberg-Marquardt", "adam": "Adam", "tdvp": "variational principle"}


def lines(ax: Axes, table: pd.DataFrame, metric: str, paper: Paper, methods: dict[str, str]) -> None:
    """Geometric mean and 95% interval over seeds by step, on a logarithmic axis."""
    rows = table[(table["metric"] == metric) & (table["value"] > 0) & table["method"].isin(list(methods))]
    stats = plots.summary(rows.assign(value=np.log(rows["value"])), ["method", "step"])
    stats[["mean", "low", "high"]] = np.exp(stats[["mean", "low", "high"]])
    for method, label in methods.items():
        s = stats[stats["method"] == method]
        ax.plot(s["step"], s["mean"], color=plots.colour(method), label=label)
        ax.fill_between(s["step"].astype(float), s["low"], s["high"], color=plots.colour(method), alpha=0.18, lw=0)
    ax.set(yscale="log", xlabel=paper.metrics[metric].step, ylabel=plots.axis_label(paper, metric))


def evolution(table: pd.DataFrame, paper: Paper) -> Figure:
    """Magnetisation and infidelity against time, a row for each chain."""
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(len(problems), 2, squeeze=False)
    for row, problem in zip(axes, problems, strict=True):
        rows = table[table["problem"] == problem]
        truth = rows[(rows["metric"] == "magnetisation") & (rows["method"] == "exact")]
        row[0].plot(truth["step"], truth["value"], "--", color=plots.INK, label="exact", zorder=5)
        plots.band(row[0], rows, "magnetisation", paper, methods=list(LABELS), labels=LABELS, markers=False)
        plots.title(row[0], f"{problem.removeprefix('n')} spins")
        lines(row[1], rows[rows["step"] > 0], "infidelity", paper, LABELS)
        row[1].axhline(1e-2, color=plots.MUTED, ls=":", lw=1.2)
        row[1].annotate("1%", (0, 1e-2), xycoords=("axes fraction", "data"), xytext=(4, 3), textcoords="offset points")
        plots.title(row[1], "distance from the exact state")
    axes[0][0].legend(loc="lower left")
    return fig


def training(table: pd.DataFrame, paper: Paper) -> Figure:
    """Loss against work, a panel for each chain."""
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(1, len(problems), squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        lines(ax, table[table["problem"] == problem], "loss", paper, {m: LABELS[m] for m in ("lm", "adam")})
        plots.title(ax, f"{problem.removeprefix('n')} spins")
    axes[0][0].legend()
    return fig
