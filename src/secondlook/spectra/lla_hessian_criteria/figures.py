"""Criteria against accuracy, spectral densities and landscapes, redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

NAMES = {
    "k_hn": r"$K_{H05}$",
    "r_e": r"$r_e$",
    "loss": "loss",
    "trace": "trace",
    "top": "largest\neigenvalue",
    "hessian": "Hessian axes",
    "hessian-filter": "Hessian axes, by filter",
    "random": "normal axes, by filter",
    "random-uniform": "uniform axes, by filter",
    "initial": "untrained",
    "trained": "trained",
}
KINDS = {"noise": "o", "roll": "s", "invert": "^", "blur": "D", "rotate": "v"}


def tracking(table: pd.DataFrame, paper: Paper) -> Figure:
    """Both criteria against accuracy, and the correlations beside those of loss, trace and largest eigenvalue."""
    fig, (left, middle, right) = plots.subplots(1, 3, width=4.0)
    rows = table[table["method"] == "shifted"]
    for ax, metric in ((left, "k_hn_change"), (middle, "r_e_change")):
        _scatter(ax, rows, metric, paper)
    left.legend(fontsize=7.5)
    found = plots.summary(table[table["metric"] == "rank_correlation"], ["method"]).set_index("method")
    order = [name for name in ("k_hn", "r_e", "loss", "trace", "top") if name in found.index]
    found = found.loc[order]
    right.bar(range(len(order)), found["mean"], color=plots.PALETTE[7], width=0.7)
    error = np.nan_to_num(np.array([found["mean"] - found["low"], found["high"] - found["mean"]]))
    right.errorbar(range(len(order)), found["mean"], error, fmt="none", ecolor=plots.INK, capsize=2, lw=1)
    right.axhline(-0.5, color=plots.MUTED, lw=1, ls=":")
    right.set_xticks(range(len(order)), [NAMES[name] for name in order])
    right.set_ylabel(plots.axis_label(paper, "rank_correlation"))
    return fig


def spectra(table: pd.DataFrame, paper: Paper) -> Figure:
    """Densities before and after training (top), and under shifts (bottom), a column for each network."""
    rows = table[table["metric"] == "density"]
    problems = [p for p in dict.fromkeys(rows["problem"]) if ":" not in p]
    fig, axes = plots.subplots(2, len(problems), height=2.8, squeeze=False)
    for column, problem in enumerate(problems):
        own = rows[rows["problem"] == problem]
        for method, colour in (("initial", plots.PALETTE[1]), ("trained", plots.PALETTE[0])):
            line = own[own["method"] == method]
            axes[0, column].plot(line["step"], line["value"], color=colour, label=NAMES[method], lw=1.2)
        plots.title(axes[0, column], problem)
        shifts = [p for p in dict.fromkeys(rows["problem"]) if p.startswith(f"{problem}:")]
        for name, shade in zip(shifts, plots.sequence(len(shifts)), strict=True):
            line = rows[rows["problem"] == name]
            axes[1, column].plot(
                line["step"], line["value"], color=shade, label=name.removeprefix(f"{problem}: "), lw=1.2
            )
        for ax in axes[:, column]:
            ax.set(yscale="log", ylim=(1e-5, 1e3), ylabel=plots.axis_label(paper, "density"))
            ax.set_xlabel("eigenvalue (nats)")
            ax.legend()
    return fig


def landscapes(table: pd.DataFrame, paper: Paper) -> Figure:
    """Three rasters of the batch-norm network with one colour scale each, and how often the minimum is centred."""
    rows = table[(table["metric"] == "surface") & (table["problem"] == "batch-norm")]
    shown = ["hessian", "random", "random-uniform"]
    fig, axes = plots.subplots(1, len(shown) + 1, width=3.7)
    for ax, method in zip(axes, shown, strict=False):
        values = rows[rows["method"] == method].sort_values("step")["value"].to_numpy()
        side = round(len(values) ** 0.5)
        grid, places = values.reshape(side, side).T, np.linspace(-0.5, 0.5, side)
        image = ax.pcolormesh(places, places, grid, norm=LogNorm(), cmap="viridis", shading="nearest")
        row, column = divmod(int(grid.argmin()), side)
        ax.plot(0, 0, "x", color="white", ms=9, mew=2)
        ax.plot(places[column], places[row], "o", color=plots.PALETTE[3], ms=5)
        ax.set(xlabel="along the first axis", ylabel="along the second axis")
        ax.grid(visible=False)
        fig.colorbar(image, ax=ax, label=plots.axis_label(paper, "surface"))
        plots.title(ax, NAMES[method])
    counted = table[(table["metric"] == "centred") & table["method"].isin([*shown, "hessian-filter"])]
    plots.bars(axes[-1], counted, "centred", paper, methods=["hessian", "hessian-filter", *shown[1:]], labels=NAMES)
    axes[-1].set_ylim(0, 150)
    axes[-1].set_yticks(range(0, 101, 25))
    axes[-1].legend(fontsize=7.5, loc="upper center")
    return fig


def _scatter(ax: Axes, rows: pd.DataFrame, metric: str, paper: Paper) -> None:
    """Mean over seeds at every shift; colours tell networks, marks the kinds of shift."""
    keys = ["problem", "step"]
    x = rows[rows["metric"] == "accuracy_change"].groupby(keys)["value"].mean()
    y = plots.summary(rows[rows["metric"] == metric], keys).set_index(keys)
    networks = list(dict.fromkeys(name.split(":")[0] for name in x.index.get_level_values("problem")))
    for problem in dict.fromkeys(x.index.get_level_values("problem")):
        network, kind = problem.split(":")
        colour, s, at = plots.PALETTE[networks.index(network)], y.loc[problem], x.loc[problem]
        error = np.nan_to_num(np.array([s["mean"] - s["low"], s["high"] - s["mean"]]))
        ax.errorbar(at, s["mean"], error, fmt="none", ecolor=colour, lw=0.8, alpha=0.6)
        ax.plot(at, s["mean"], KINDS[kind], color=colour, label=f"{network}, {kind}")
    ax.set(xlabel=plots.axis_label(paper, "accuracy_change"), ylabel=plots.axis_label(paper, metric))
    ax.axhline(0, color=plots.MUTED, lw=0.8)
