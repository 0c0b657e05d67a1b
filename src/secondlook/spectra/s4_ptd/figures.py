"""Transfer functions, the solver's trade-off and the loss under Fourier noise, from the tidy table."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

NAMES = {"s4d": "S4D-LegS", "ptd": "S4-PTD", "s4d-copy": "S4D-LegS, again (control)"}


def transfer(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, (left, right) = plots.subplots(1, 2)
    rows = table[table["metric"] == "response"]
    for name, style in {"S4D": "-", "S4-PTD": "-", "S4": "--"}.items():
        line = rows[rows["method"] == name].sort_values("step")
        colour = plots.INK if name == "S4" else plots.colour({"S4D": "s4d", "S4-PTD": "ptd"}[name])
        left.plot(line["step"], line["value"], style, color=colour, label=name, lw=1.2)
    left.set(xscale="log", yscale="log", xlabel=paper.metrics["response"].step)
    left.set_ylabel(plots.axis_label(paper, "response"))
    left.legend()
    plots.title(left, f"n = {table[table['metric'] == 'to_s4d']['step'].max():g}")
    plots.band(right, table, "relative_deviation", paper, methods=["supremum", "frequency 1"])
    right.set(xscale="log", yscale="log")
    right.legend()
    plots.title(right, "Dropping the rank-one part")
    return fig


def solver(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, axes = plots.subplots(1, 2)
    rows = table[(table["experiment"] == "perturbation") & table["method"].str.startswith("ptd")]
    wide = rows.pivot_table(index=["method", "step", "seed"], columns="metric", values="value", observed=True)
    groups = list(wide.groupby(level=["step", "method"]))
    for ax, metric in zip(axes, ("condition", "deviation"), strict=True):
        for i, ((n, method), part) in enumerate(groups):
            label = f"n = {n:g}" + (method.removeprefix("ptd") if method != "ptd" else "")
            marker = plots.MARKERS[i % len(plots.MARKERS)]
            ax.plot(part["relative_size"], part[metric], marker, color=plots.PALETTE[i % 10], label=label)
        ax.set(xscale="log", yscale="log", xlabel=plots.axis_label(paper, "relative_size"))
        plots.few_log_ticks(ax)
        ax.set_ylabel(plots.axis_label(paper, metric))
    others = table[(table["metric"] == "deviation") & (table["method"] == "s4d")]
    axes[1].axhline(others["value"].mean(), color=plots.INK, ls=":", lw=1.2, label="S4D, all n")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def fourier_noise(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, ax = plots.subplots(1, 1, width=5.2)
    rows = table[table["experiment"] == "robustness"]
    plots.band(ax, rows, "drop", paper, methods=list(NAMES), labels=NAMES)
    ax.axvline(rows[rows["metric"] == "spike"]["value"].mean(), color=plots.INK, ls=":", lw=1.2)
    ax.legend()
    return fig
