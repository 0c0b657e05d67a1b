"""Entropy against dimension, and both measures during training, redrawn from the tidy table."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

ARMS = {"clean": "true labels", "shuffled": "shuffled labels"}
COLOURS = {"clean": plots.PALETTE[0], "shuffled": plots.PALETTE[3]}


def dimension(table: pd.DataFrame, paper: Paper) -> Figure:
    """The diffusion entropy, in both normalisations, and the binned one, a line a noise level."""
    rows = table[(table["metric"] == "entropy") & table["problem"].str.startswith("gaussian")]
    arms = {
        "dse": "diffusion, as released",
        "row": "diffusion, rows normalised",
        "binned": "classic, two bins a coordinate",
    }
    fig, axes = plots.subplots(1, len(arms), width=3.7, sharey=True)
    noises = sorted({float(problem.split()[1]) for problem in rows["problem"]})
    for ax, (arm, name) in zip(axes, arms.items(), strict=True):
        for noise, colour in zip(noises, plots.sequence(len(noises)), strict=True):
            mine = rows[(rows["method"] == arm) & (rows["problem"] == f"gaussian {noise:g}")]
            _line(ax, mine, f"{100 * noise:g}%", colour, "o-")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xticks(sorted(rows["step"].unique()))
        ax.minorticks_off()
        ax.set_xlabel(paper.metrics["entropy"].step)
        plots.title(ax, name)
    axes[0].set_ylabel(plots.axis_label(paper, "entropy"))
    axes[0].legend(title="noise")
    return fig


def training(table: pd.DataFrame, paper: Paper) -> Figure:
    """A row a data set: entropy and information at the released bandwidth, and at one that follows the scale."""
    rows = table[table["experiment"] == "training"]
    problems = [*dict.fromkeys(rows["problem"])]
    metrics = ("dse", "dse_median", "dsmi", "dsmi_median", "test_accuracy")
    fig, axes = plots.subplots(len(problems), len(metrics), width=3.1, height=3.1, squeeze=False)
    for line, problem in zip(axes, problems, strict=True):
        for ax, metric in zip(line, metrics, strict=True):
            here = rows[(rows["problem"] == problem) & (rows["metric"] == metric)]
            for arm, name in ARMS.items():
                _line(ax, here[here["method"] == arm], name, COLOURS[arm], "o-")
            ax.set_xscale("symlog", linthresh=1)
            ax.xaxis.set_major_formatter("{x:g}")
            ax.set_xlabel(paper.metrics[metric].step)
            ax.set_ylabel(plots.axis_label(paper, metric))
        plots.title(line[0], problem)
        line[0].legend()
    return fig


def _line(ax: Axes, rows: pd.DataFrame, label: str, colour: str, style: str) -> None:
    """Mean and 95% interval over seeds."""
    stats = plots.summary(rows, ["step"])
    ax.plot(stats["step"], stats["mean"], style, color=colour, label=label, ms=3.5)
    if stats["low"].notna().any():
        ax.fill_between(stats["step"].astype(float), stats["low"], stats["high"], color=colour, alpha=0.18, lw=0)
