"""The four regimes, and exponents against the decay of the spectrum, redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

RESOURCES = ("data", "parameters")


def regimes(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, axes = plots.subplots(2, 2, height=3.2)
    excess = table[table["metric"] == "excess"]
    losses = table[(table["metric"] == "loss") & table["experiment"].isin(["resolution", "images"])]
    for column, resource in enumerate(RESOURCES):
        other = RESOURCES[1 - column]
        _lines(axes[0, column], excess[excess["method"] == resource], decay_of=lambda problem: 1.0)
        plots.title(axes[0, column], f"Growing {resource}, few {other}")
        _lines(axes[1, column], losses[losses["method"] == resource], decay_of=_decay, relative=True)
        plots.title(axes[1, column], f"Growing {resource}, abundant {other}")
        for ax, label in zip(axes[:, column], ("excess loss / limit", "loss / loss at the smallest size"), strict=True):
            ax.set_xscale("log")
            ax.set_yscale("log")
            plots.few_log_ticks(ax, "x")
            ax.set_xlabel(resource)
            ax.set_ylabel(label)
        axes[1, column].legend(fontsize=7.5)
        axes[0, column].legend()
    return fig


def exponents(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, ax = plots.subplots(1, 1, width=5.6, height=3.8)
    rows = table[(table["metric"] == "exponent") & table["experiment"].isin(["resolution", "images"])]
    colours = dict(zip(dict.fromkeys(rows["problem"]), plots.PALETTE, strict=False))
    for problem, colour in colours.items():
        here = rows[rows["problem"] == problem]
        spectrum = here[here["method"] == "spectrum"]["value"]
        x = _decay(problem) if spectrum.empty else spectrum.mean()
        s = plots.summary(here[here["method"].isin(RESOURCES)], ["method"]).set_index("method")
        for resource, marker, shift in zip(RESOURCES, "os", (-0.012, 0.012), strict=True):
            mean, low, high = s.loc[resource, ["mean", "low", "high"]]
            error = np.nan_to_num([[mean - low], [high - mean]])
            label = f"{problem}, {resource}"
            ax.errorbar([x + shift], [mean], error, fmt=marker, color=colour, capsize=2, label=label)
    ends = [0, 1.1 * rows["value"].max()]
    ax.plot(ends, ends, color=plots.INK, ls="--", lw=1, zorder=1)
    ax.set_xlabel("decay of the spectrum")
    ax.set_ylabel("exponent of the loss")
    ax.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def _decay(problem: str) -> float | None:
    """The decay that a problem's name states, None for images."""
    return float(problem.split()[1]) if problem.startswith("decay ") else None


def _lines(ax, rows: pd.DataFrame, decay_of, relative: bool = False) -> None:
    """One line a problem with its interval, and a dashed line of the stated slope through its first point."""
    stats = plots.summary(rows, ["problem", "step"])
    for i, problem in enumerate(dict.fromkeys(rows["problem"])):
        s = stats[stats["problem"] == problem].sort_values("step")
        unit = s["mean"].iloc[0] if relative else 1.0
        colour = plots.PALETTE[i]
        ax.plot(s["step"], s["mean"] / unit, color=colour, marker=plots.MARKERS[i], label=problem)
        ax.fill_between(s["step"].astype(float), s["low"] / unit, s["high"] / unit, color=colour, alpha=0.18, lw=0)
        if (decay := decay_of(problem)) is not None:
            guide = s["mean"].iloc[0] / unit * (s["step"] / s["step"].iloc[0]) ** -decay
            ax.plot(s["step"], guide, color=colour, ls="--", lw=1)
