"""Ordered spectra, counts, the split and the segment, redrawn from the tidy table."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

NAMES = {
    "trained": "trained",
    "same-width": "same width (control)",
    "same-clusters": "two clusters (control)",
    "continued": "small batch, continued",
    "same-start": "small batch, same start",
    "other-start": "small batch, other start (control)",
    "exact": "exact",
    "slq": "quadrature",
    "slq-coarse": "quadrature, six steps (control)",
}


def spectra(table: pd.DataFrame, paper: Paper) -> Figure:
    rows = table[table["metric"] == "eigenvalue"]
    width, data = (rows[rows["experiment"] == name] for name in ("width", "data"))
    problems = [*dict.fromkeys(width["problem"])]
    fig, axes = plots.subplots(1, len(problems) + 1, width=4.0, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=False):
        _ordered(ax, width[(width["problem"] == problem) & width["method"].str.startswith("h =")], paper)
        plots.title(ax, f"Growing width: {problem}")
    _ordered(axes[0, -1], data, paper)
    plots.title(axes[0, -1], "Growing number of clusters")
    return fig


def counts(table: pd.DataFrame, paper: Paper) -> Figure:
    metrics = ("outliers", "outliers_trace90", "near_zero")
    width = table[table["experiment"] == "width"]
    sweeps = {f"hidden units: {p}": width[width["problem"] == p] for p in dict.fromkeys(width["problem"])}
    sweeps["clusters in the data"] = table[table["experiment"] == "data"]
    fig, axes = plots.subplots(len(metrics), len(sweeps), width=4.0, height=2.7, squeeze=False)
    for column, (name, rows) in enumerate(sweeps.items()):
        arms = [m for m in ("trained", "same-width", "same-clusters") if m in set(rows["method"])]
        for ax, metric in zip(axes[:, column], metrics, strict=True):
            plots.band(ax, rows, metric, paper, methods=arms, labels=NAMES)
            for line in ax.lines[1:]:
                line.set_linestyle(":")
            ax.set_xscale("log", base=2)
            ax.set_xticks(sorted(rows[rows["metric"] == metric]["step"].unique()))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.set_xlabel(name)
        axes[0, column].legend()
    return fig


def split(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, (left, right) = plots.subplots(1, 2)
    width = table[(table["experiment"] == "width") & (table["problem"] == "clusters")]
    widest = width[width["metric"] == "outliers"]["step"].max()
    full = f"h = {widest:g}"
    rows = width[(width["metric"] == "eigenvalue") & width["method"].isin([full, "G", "R"])]
    _ordered(left, rows.replace({"method": {full: "H"}}), paper, order=["H", "G", "R"])
    plots.title(left, f"The split, {widest:g} hidden units")
    segment = table[table["experiment"] == "segment"]
    plots.band(right, segment, "segment_loss", paper, methods=["continued", "same-start", "other-start"], labels=NAMES)
    right.legend(loc="upper left", fontsize=7.5)
    plots.title(right, "From the large-batch solution")
    return fig


def quadrature(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, ax = plots.subplots(1, 1)
    plots.band(ax, table, "cumulative", paper, methods=["exact", "slq-coarse", "slq"], labels=NAMES, markers=False)
    for line, colour, style in zip(ax.lines, (plots.INK, plots.PALETTE[1], plots.PALETTE[0]), "-:-", strict=False):
        line.set(color=colour, linestyle=style)
    ax.lines[0].set(linewidth=4, alpha=0.35)
    ax.set_xscale("symlog", linthresh=1e-3)
    ax.legend()
    return fig


def _ordered(ax: Axes, rows: pd.DataFrame, paper: Paper, order: list[str] | None = None) -> None:
    """Median over seeds of the eigenvalues by rank, one line a method; ordered sweeps get ordered colours."""
    names = order or sorted(set(rows["method"]), key=lambda name: float(name.split("=")[1]))
    colours = [plots.INK, *plots.PALETTE][: len(names)] if order else sns.color_palette("crest", len(names))
    medians = rows.groupby(["method", "step"])["value"].median()
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        line = medians[name]
        ax.plot(line.index + 1, line.to_numpy(), color=colour, label=name, ls="--" if order and i else "-")
    zero = 1e-3 * float(medians.max())
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=zero)
    ax.set_xlabel("rank from the top")
    ax.set_ylabel(plots.axis_label(paper, "eigenvalue"))
    ax.legend()
